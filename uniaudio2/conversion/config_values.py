"""Collecting the values of a config, each with where it came from."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedConfig

# The first part of a field's name in `--set`, to the config it means. Names of the release serve too.
SECTIONS = {
    "backbone": "language_model",
    "language_model": "language_model",
    "decoder": "language_model.depth_decoder_config",
    "depth_decoder": "language_model.depth_decoder_config",
    "depth_decoder_config": "language_model.depth_decoder_config",
    "codec": "codec",
}
SUB_CONFIGS = ("whisper_config", "wavlm_config", "music_encoder_config", "flow_config", "scalar_config")


def parse_overrides(assignments: list[str]) -> dict[str, dict[str, Any]]:
    """
    `FIELD=VALUE` texts to values by config.

    `num_hidden_layers`, `backbone.num_hidden_layers`: the language model. `depth_decoder.hidden_size`: its depth
    decoder. `codec.hidden_size`, `codec.flow_config.num_layers`: the codec and its parts. Values are JSON, or plain
    text.

    Returns:
        `dict[str, dict[str, Any]]`: `{"codec.flow_config": {"num_layers": 32}, ...}`.
    """
    overrides: dict[str, dict[str, Any]] = {}
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        first, *rest = path.strip().split(".")
        if not rest:
            config, field = "language_model", first
        elif first in SECTIONS and len(rest) == 1:
            config, field = SECTIONS[first], rest[0]
        elif first == "codec" and len(rest) == 2 and rest[0] in SUB_CONFIGS:
            config, field = f"codec.{rest[0]}", rest[1]
        else:
            field = ""
        if not equals or not field:
            raise ValueError(
                f"--set {assignment} is not understood: write FIELD=VALUE, where FIELD is a field of the language "
                f"model's config, or begins with {', '.join(f'{name}.' for name in SECTIONS)} or with codec. and one "
                f"of {', '.join(SUB_CONFIGS)}."
            )
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        overrides.setdefault(config, {})[field] = value
    return overrides


class ConfigValues:
    """
    Values for a config, and the origin of each for the record of the conversion. What the user sets goes first.

    Args:
        config_class (`type[PreTrainedConfig]`): The config that is filled.
        overrides (`Mapping[str, Any]`): Fields that the user sets.
        option (`str`): How `--set` names this config.

    Raises:
        ValueError: If the user sets a field that the config does not have.
    """

    def __init__(self, config_class: type[PreTrainedConfig], overrides: Mapping[str, Any], option: str):
        self.config_class, self.option = config_class, option
        self._known = {field.name for field in dataclasses.fields(config_class)}
        unknown = sorted(overrides.keys() - self._known)
        if unknown:
            raise ValueError(f"--set {option}{unknown[0]}: {config_class.__name__} has no such field.")
        self.values: dict[str, Any] = dict(overrides)
        self.origins: dict[str, str] = dict.fromkeys(overrides, "--set")

    def __contains__(self, name: str) -> bool:
        return name in self.values

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    def add(self, name: str, value: Any, origin: str) -> None:
        if name not in self.values:
            self.values[name], self.origins[name] = value, origin

    def add_from_file(self, names: Mapping[str, str], content: Mapping[str, Any], place: str) -> None:
        """
        Take values that only a file of the release knows.

        Args:
            names (`Mapping[str, str]`): Field to its name in the file.
            content (`Mapping[str, Any]`): What the file holds.
            place (`str`): The file, for messages.

        Raises:
            ValueError: If a value is missing.
        """
        for field, name in names.items():
            if field in self:
                continue
            if content.get(name) is None:
                raise ValueError(
                    f"{place} lacks {name!r}, which nothing else of the release tells. Add it there, or pass "
                    f"--set {self.option}{field}=VALUE."
                )
            self.add(field, content[name], f"{place}: {name}")

    def build(self, **parts: PreTrainedConfig) -> PreTrainedConfig:
        """
        The config.

        Raises:
            ValueError: If the values contradict each other, or have other types than the fields.
        """
        try:
            return self.config_class(**self.values, **parts)
        except Exception as error:  # the validation of strict dataclasses has exceptions of its own
            reason = str(error.__cause__ or error)
            raise ValueError(f"The values found do not make a {self.config_class.__name__}: {reason}") from error

    def record(self, config: PreTrainedConfig) -> dict[str, dict[str, Any]]:
        """Every field with its value and origin; what was neither found nor set is a constant of the released code."""
        inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
        fields = config.to_dict()
        return {
            name: {"value": fields[name], "from": self.origins.get(name, "constant of the released code")}
            for name in sorted(self._known & fields.keys() - (inherited - self.origins.keys()))
            if not isinstance(getattr(config, name), PreTrainedConfig)
        }


def read_mapping(path: Path, *keys: str) -> dict[str, Any]:
    """
    The mapping in a YAML or JSON file, or the one inside it under `keys`.

    Raises:
        ValueError: If the file is damaged or has no such mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
        # JSON has a parser of its own: in YAML 1.1 the number 1e-05 is a text.
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {' '.join(str(error).split())}. Fetch it again.") from error
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise ValueError(f"{path} lacks {key!r} (it should hold {'.'.join(keys)}).")
        content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold names and values, but holds {type(content).__name__}.")
    return content
