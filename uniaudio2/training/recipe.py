"""Recipes: what a stage of training needs to know, as YAML files that are laid over each other."""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"
BUFFERS_ARE_FOR_STREAMS = "'shuffle_buffer' is for sources with 'streaming: true'; others are in random order anyway."


class _Loader(yaml.SafeLoader):
    """YAML, in which 2e-4 is a number, as everybody expects: YAML 1.1 wants 2.0e-4."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def load_recipe(configs: Sequence[str], overrides: Sequence[str] = ()) -> dict[str, Any]:
    """
    Read recipes; the values of later ones replace those of earlier ones, key by key.

    Args:
        configs (`Sequence[str]`): Files, or names of shipped recipes (`"pretraining"`, `"size_3b"`, `"lora"`).
        overrides (`Sequence[str]`, *optional*): `section.key=value`, the value as in YAML.

    Raises:
        ValueError: If a file is missing or is no recipe, or an override is not `key=value`.
    """
    recipe: dict[str, Any] = {}
    for config in configs:
        path = Path(config) if Path(config).suffix else RECIPES / f"{config}.yaml"
        if not path.is_file():
            shipped = ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))
            raise ValueError(f"There is no recipe {config}. Pass a file, or one of those that are shipped: {shipped}.")
        content = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        if not isinstance(content, Mapping):
            raise ValueError(f"{path} is no recipe: it must hold sections of keys and values.")
        recipe = merge(recipe, content)
    for override in overrides:
        key, found, value = override.partition("=")
        if not found:
            raise ValueError(f"{override!r} is not of the form section.key=value.")
        nested: Any = yaml.load(value, _Loader)
        for name in reversed(key.split(".")):
            nested = {name: nested}
        recipe = merge(recipe, nested)
    return recipe


def merge(lower: Mapping[str, Any], upper: Mapping[str, Any]) -> dict[str, Any]:
    """`upper` over `lower`: sections key by key, everything else replaced."""
    result = dict(lower)
    for key, value in upper.items():
        both = isinstance(value, Mapping) and isinstance(result.get(key), Mapping)
        result[key] = merge(result[key], value) if both else value
    return result


def checked_section(
    recipe: Mapping[str, Any], known: Mapping[str, Collection[str] | None], required: Sequence[str]
) -> None:
    """
    Refuse what a stage would not read.

    Args:
        recipe (`Mapping[str, Any]`): The recipe.
        known (`Mapping[str, Collection[str] | None]`): Sections and their keys; `None` for any.
        required (`Sequence[str]`): `section.key` that must be there.

    Raises:
        ValueError: Names the key and those that are known, or the section that is none.
    """
    refuse_unknown(recipe, known, "section")
    for section, value in recipe.items():
        keys = known[section]
        if keys is None or value is None:
            continue
        if not isinstance(value, Mapping):
            raise ValueError(f"Section {section!r} of the recipe holds keys and values, but is {value!r}.")
        refuse_unknown(value, keys, "key", f"{section}.")
    for name in required:
        section, _, key = name.partition(".")
        value = recipe.get(section)
        if value is None or (key and value.get(key) is None):
            raise ValueError(f"The recipe lacks {name}: add it to the file, or pass {name}=VALUE.")


def refuse_unknown(given: Collection[str], known: Collection[str], what: str, prefix: str = "") -> None:
    """
    Raises:
        ValueError: If one of the `given` names is not `known`. Says which was probably meant, or lists all.
    """
    for name in given:
        if name in known:
            continue
        close = get_close_matches(str(name), known, n=2)
        hint = f"did you mean {' or '.join(prefix + match for match in close)}?" if close else ""
        if not close or len(known) <= 12:
            hint += f"{' ' if hint else ''}There are {', '.join(known)}."
        raise ValueError(f"Unknown {what} {prefix}{name}: {hint}")


def refuse_held_out_streams(data: Mapping[str, Any]) -> None:
    """
    Raises:
        ValueError: If a source of `data.validation` asks for `streaming`.
    """
    if any(entry.get("streaming") for entry in data.get("validation") or ()):
        raise ValueError("Sources of data.validation are read whole: leave out 'streaming' there.")


def argument_names(arguments: type) -> list[str]:
    """The keys of a recipe's section `arguments`: the fields of the class but the output, which stands by itself."""
    return [field.name for field in dataclasses.fields(arguments) if field.init and field.name != "output_dir"]


def check_positive_integers(recipe: Mapping[str, Any], names: Sequence[str]) -> None:
    """
    Raises:
        ValueError: If a `section.key` that is there is not a positive integer.
    """
    for name in names:
        section, _, key = name.partition(".")
        value = (recipe.get(section) or {}).get(key, 1)
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be a positive integer, but is {value!r}.")


def trainer_arguments(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """
    The arguments of a recipe as its trainer takes them: `output_dir` among them, the path of a DeepSpeed file where a
    shipped one is named, and evaluation every `eval_steps` where there is held-out data.
    """
    strategy = {"eval_strategy": "steps"} if recipe["data"].get("validation") else {}
    arguments = strategy | {"output_dir": recipe["output"]} | dict(recipe["arguments"])
    deepspeed = arguments.get("deepspeed")
    if deepspeed is not None and not Path(deepspeed).suffix:
        arguments["deepspeed"] = str(RECIPES.parent / "deepspeed" / f"{deepspeed}.json")
    return arguments
