"""Recipes: what a stage of training needs to know, as YAML files that are laid over each other."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

RECIPES = Path(__file__).parent / "recipes"


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
    recipe: Mapping[str, Any], known: Mapping[str, Sequence[str] | None], required: Sequence[str]
) -> None:
    """
    Refuse what a stage would not read.

    Args:
        recipe (`Mapping[str, Any]`): The recipe.
        known (`Mapping[str, Sequence[str] | None]`): Sections and their keys; `None` for any.
        required (`Sequence[str]`): `section.key` that must be there.

    Raises:
        ValueError: Names the key and those that are known.
    """
    for section, value in recipe.items():
        if section not in known:
            raise ValueError(f"Unknown section {section!r} in the recipe; the sections are {', '.join(known)}.")
        keys = known[section]
        for key in value if isinstance(value, Mapping) and keys is not None else ():
            if key not in keys:
                raise ValueError(f"Unknown key {section}.{key} in the recipe; the keys are {', '.join(keys)}.")
    for name in required:
        section, _, key = name.partition(".")
        value = recipe.get(section)
        if value is None or (key and value.get(key) is None):
            raise ValueError(f"The recipe lacks {name}: add it to the file, or pass {name}=VALUE.")


def evaluated(recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a recipe, which evaluate every `eval_steps` where it names held-out data."""
    strategy = {"eval_strategy": "steps"} if recipe["data"].get("validation") else {}
    return strategy | dict(recipe["arguments"])
