"""What the cards say, gathered from the model folder: what its makers wrote down, what configs and weights tell."""

import importlib.metadata
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from packaging.requirements import Requirement
from transformers import PreTrainedModel

from ..conversion.convert import RECORD_FILE as CONVERSION_FILE
from ..processing.tasks import TASKS
from .checks import without_folders
from .model_files import ModelFolder, read_json

CARD_FILE, PROVENANCE_FILE = "card.yaml", "provenance.json"
# The last epoch: earlier ones are released too, and are not what the paper's numbers are about.
RELEASED_FILE = "llm_ep3.checkpoint"
RELEASE_CARD = Path(__file__).parent / "release.yaml"
CARD_ENTRIES = {"language": list, "example": str, "language_model": dict, "codec": dict}
PART_ENTRIES = {"license": str, "summary": str, "data": list, "stages": list, "limits": list}
OPTIONAL_PART_ENTRIES = {"license_name": str, "license_link": str, "license_note": str, "base_model": str}
# What the code in the repositories imports, directly or by the feature extractor.
REQUIRED = (
    "transformers",
    "torch",
    "accelerate",
    "diffusers",
    "vector-quantize-pytorch",
    "einops",
    "numpy",
    "scipy",
    "soundfile",
    "soxr",
)
# Hardware of Spaces, by what fits into its memory (gigabytes of a GPU).
SPACE_HARDWARE = ((16, "t4-small"), (24, "l4x1"), (48, "l40sx1"), (80, "a100-large"))
CPU_PARAMETERS = 100e6


@dataclass(frozen=True)
class Facts:
    """
    Args:
        card (`Mapping`): What the makers say: `card.yaml`, or `release.yaml` for a conversion.
        conversion (`Mapping`, *optional*): `conversion.json`.
        provenance (`Mapping`, *optional*): `provenance.json`.
        folder (`ModelFolder`): The models.
    """

    card: Mapping[str, Any]
    conversion: Mapping[str, Any] | None
    provenance: Mapping[str, Any] | None
    folder: ModelFolder

    @property
    def is_released(self) -> bool:
        """Whether these are the weights that the paper's numbers are about: the release, in the size of its 3B."""
        if self.conversion is None or RELEASED_FILE not in self.conversion["files"]:
            return False
        config = self.folder.model.config
        # Released code and paper: 3 + 28 + 2 layers of width 3072.
        return (config.num_hidden_layers, config.hidden_size) == (33, 3072)

    @property
    def tasks(self) -> dict[str, str]:
        """The tasks it was trained on, with what they do; all if nobody has written them down."""
        names = self.folder.model.config.tasks or TASKS
        return {name: TASKS[name].description for name in names if name in TASKS}

    @property
    def languages(self) -> list[str]:
        """What its makers say; Cantonese has tasks of its own, and goes with them."""
        known = any(name.startswith("Yue_") for name in self.tasks)
        return [language for language in self.card["language"] if known or language != "yue"]

    @property
    def sizes(self) -> list[dict[str, str]]:
        """Parameters and bytes of the parts, and what they take together."""
        model, codec = self.folder.model, self.folder.codec
        rows = [_size("language model", model), _size("codec", codec)]
        config = model.config
        heads = 2 * config.num_hidden_layers * config.num_key_value_heads * config.head_dim
        cache = heads * config.trained_context_length * model.dtype.itemsize
        rows.append(
            {
                "part": f"key-value cache of one sequence of {config.trained_context_length:,} rows",
                "parameters": "",
                "type": _name(model.dtype),
                "bytes": _bytes(cache),
            }
        )
        return [*rows, {"part": "together", "parameters": "", "type": "", "bytes": _bytes(self.num_bytes + cache)}]

    @property
    def num_bytes(self) -> int:
        """What the weights of both models take in memory."""
        return sum(_num_bytes(model) for model in (self.folder.model, self.folder.codec))

    @property
    def space_hardware(self) -> str:
        """The smallest hardware of Spaces that holds both models, with a fifth more for what passes through them."""
        parameters = sum(model.num_parameters() for model in (self.folder.model, self.folder.codec))
        if parameters <= CPU_PARAMETERS:
            return "cpu-basic"
        needed = 1.2 * self.num_bytes / 1e9
        fitting = [name for gigabytes, name in SPACE_HARDWARE if needed <= gigabytes]
        return fitting[0] if fitting else SPACE_HARDWARE[-1][1]

    @property
    def streams(self) -> list[dict[str, str]]:
        """Rates and sizes of the two streams of codes."""
        config = self.folder.codec.config
        rows = []
        for name in ("reasoning", "reconstruction"):
            rate = config.sampling_rate / getattr(config, f"{name}_hop_length")
            size = getattr(config, f"{name}_codebook_size")
            rows.append(
                {
                    "stream": name,
                    "frames per second": f"{rate:g}",
                    "codebooks": f"{config.num_codebooks} of {size:,} codes",
                    "kbit/s": f"{rate * config.num_codebooks * math.log2(size) / 1000:.2f}",
                }
            )
        return rows

    @property
    def versions(self) -> str:
        """The versions of the packages that made the weights; empty if nobody has recorded them."""
        if self.conversion is not None:
            return ", ".join(f"{name} {version}" for name, version in self.conversion["versions"].items())
        return str((self.provenance or {}).get("made_with", ""))


def gather_facts(folder: ModelFolder) -> Facts:
    """
    Raises:
        ValueError: If nobody says what the model may be used for and what it was trained on, or a record is damaged.
    """
    conversion = _record(folder.path / CONVERSION_FILE, {"source": str, "files": dict, "versions": dict})
    file = folder.path / CARD_FILE
    if not file.is_file():
        if conversion is None:
            raise ValueError(
                f"{folder.path} has no {CARD_FILE}, which says what only its makers know: licence, training data, "
                "limits. docs/publish.md says what stands in it."
            )
        file = RELEASE_CARD
    return Facts(read_card(file), conversion, _record(folder.path / PROVENANCE_FILE, {}), folder)


def read_card(file: Path) -> dict[str, Any]:
    """
    What the makers of a model say.

    Raises:
        ValueError: If an entry is missing, unknown or of another type; it names the entry.
    """
    try:
        card = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not valid YAML: {error}") from error
    _check_entries(file, "", card, CARD_ENTRIES, {})
    for part in ("language_model", "codec"):
        _check_entries(file, f"{part}.", card[part], PART_ENTRIES, OPTIONAL_PART_ENTRIES)
    return card


def requirements(names: tuple[str, ...] = REQUIRED) -> list[str]:
    """The packages as this one requires them."""
    required = [Requirement(text) for text in importlib.metadata.requires("uniaudio2")]
    # Several extras may ask for the same package.
    known = {entry.name: f"{entry.name}{entry.specifier}" for entry in required}
    return [known[name] for name in names]


def _check_entries(file: Path, where: str, content: Any, required: Mapping[str, type], optional: Mapping[str, type]):
    if not isinstance(content, dict):
        raise ValueError(f"{file}: {where.rstrip('.') or 'the file'} must be a mapping with {', '.join(required)}.")
    known = {**required, **optional}
    for name in content:
        if name not in known:
            raise ValueError(f"{file}: unknown entry {where}{name}; there is {', '.join(known)}.")
    for name, kind in known.items():
        if name in required and name not in content:
            raise ValueError(f"{file} lacks {where}{name}.")
        if name in content and not isinstance(content[name], kind):
            raise ValueError(f"{file}: {where}{name} must be of the type {kind.__name__}, but is {content[name]!r}.")


def _record(file: Path, entries: Mapping[str, type]) -> dict[str, Any] | None:
    if not file.is_file():
        return None
    content = without_folders(read_json(file))
    for name, kind in entries.items():
        if not isinstance(content.get(name), kind):
            raise ValueError(f"{file} has no valid entry {name!r}: convert the model again, or remove the file.")
    return content


def _num_bytes(model: PreTrainedModel) -> int:
    return sum(tensor.numel() for tensor in model.state_dict().values()) * model.dtype.itemsize


def _size(name: str, model: PreTrainedModel) -> dict[str, str]:
    return {
        "part": name,
        "parameters": f"{model.num_parameters():,}",
        "type": _name(model.dtype),
        "bytes": _bytes(_num_bytes(model)),
    }


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _bytes(number: int) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"
