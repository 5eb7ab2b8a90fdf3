"""Reading the tensors of released files without running what is in them, and without holding them in memory.

The release is a handful of pickles. They are read by `torch.load(weights_only=True)`, which builds tensors and plain
data. What training loops pickle beside the weights (an optimizer, fairseq's configuration) names further classes:
those in `INERT_CLASSES` become empty objects that do nothing, any other is refused by name.
"""

import contextlib
import pickle
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

# Mapped pages count as memory of the process while the file stays mapped: after as many bytes it is mapped anew.
BYTES_BETWEEN_MAPPINGS = 512 * 1024**2

# Classes that training loops, fairseq's trainer (`music_ssl.pt`) and numpy are known to leave in checkpoints.
INERT_CLASSES = (
    "argparse.Namespace",
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.PurePosixPath",
    "typing.Any",
    *(f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bool", "int", "float", "str", "list",
      "dict", "tuple", "set", "object")),
    *(f"{module}.{name}" for module in ("numpy.core.multiarray", "numpy._core.multiarray")
      for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    "_codecs.encode",
    "omegaconf.dictconfig.DictConfig",
    "omegaconf.listconfig.ListConfig",
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata", "SCMode")),
    *(f"omegaconf.nodes.{name}" for name in ("AnyNode", "BooleanNode", "BytesNode", "EnumNode", "FloatNode",
      "IntegerNode", "PathNode", "StringNode")),
    *(f"fairseq.dataclass.configs.{name}" for name in ("FairseqConfig", "CommonConfig", "CommonEvalConfig",
      "DistributedTrainingConfig", "DatasetConfig", "OptimizationConfig", "CheckpointConfig", "GenerationConfig",
      "EvalLMConfig", "InteractiveConfig", "EMAConfig", "FairseqBMUFConfig")),
    *(f"fairseq.dataclass.constants.{name}" for name in ("StrEnum", "DDP_BACKEND_CHOICES", "DDP_COMM_HOOK_CHOICES",
      "LOG_FORMAT_CHOICES", "PIPELINE_CHECKPOINT_CHOICES", "ZERO_SHARDING_CHOICES",
      "GENERATION_CONSTRAINTS_CHOICES", "GENERATION_DECODING_FORMAT_CHOICES", "PRINT_ALIGNMENT_CHOICES")),
    *(f"fairseq.logging.meters.{name}" for name in ("AverageMeter", "TimeMeter", "StopwatchMeter")),
    "fairseq.data.dictionary.Dictionary",
    *(f"torch.optim.{module}.{name}" for module, name in (("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD"))),
    *(f"torch.optim.lr_scheduler.{name}" for name in ("LambdaLR", "StepLR", "CosineAnnealingLR", "LinearLR",
      "SequentialLR", "ConstantLR", "OneCycleLR")),
)  # fmt: skip


class Inert:
    """Stands for a pickled object of no interest: takes whatever it is given and keeps nothing."""

    def __new__(cls, *args, **kwargs):
        return super().__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state) -> None:
        pass


def _plain_dict(*args) -> dict:
    """Stands for `defaultdict`: the unpickler fills dictionaries of the plain kinds only."""
    return {}


class TorchFile(Mapping):
    """
    The tensors under one entry of a file that `torch.save` wrote, by name.

    They are mapped from the file and read when they are looked at, if the file has the format of torch since 1.6;
    an older one is read as a whole.

    Args:
        path (`Path`): The file.
        entry (`str`, *optional*): Key of the state dict in the file; `None` if the file is the state dict.

    Raises:
        ValueError: If the file is damaged, needs other classes than those in `INERT_CLASSES`, or has no such entry.
    """

    def __init__(self, path: Path, entry: str | None = None):
        self.path, self.entry = path, entry
        self._can_map = _is_zip(path)
        self._tensors: dict[str, torch.Tensor] | None = None
        self._bytes_read = 0
        self.shapes = {key: tensor.shape for key, tensor in self._mapped().items()}
        self.dtypes = {key: tensor.dtype for key, tensor in self._mapped().items()}

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._mapped()[key]
        self._bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def describe(self, key: str) -> dict[str, str]:
        """The place of a tensor in the release, in words."""
        return {"from": key, "file": self.path.name}

    def give_back_pages(self) -> None:
        """Forgets the mapping when much of it was read. Tensors handed out before keep theirs alive."""
        if self._can_map and self._bytes_read >= BYTES_BETWEEN_MAPPINGS:
            self._tensors, self._bytes_read = None, 0

    def _mapped(self) -> dict[str, torch.Tensor]:
        if self._tensors is None:
            self._tensors = _state_dict(load_inert(self.path, self._can_map), self.path, self.entry)
        return self._tensors


class SafetensorsFile(Mapping):
    """
    The tensors of a safetensors file, or of several that share them out, by name.

    Raises:
        ValueError: If a file is damaged.
    """

    def __init__(self, *paths: Path):
        self.paths = paths
        self._files: dict[Path, safe_open] = {}
        self._places: dict[str, Path] = {}
        self._bytes_read = 0
        self.shapes: dict[str, torch.Size] = {}
        self.dtypes: dict[str, torch.dtype] = {}
        for path in paths:
            file = self._open(path)
            for key in file.keys():  # noqa: SIM118  (it does not iterate)
                view = file.get_slice(key)
                self._places[key] = path
                self.shapes[key] = torch.Size(view.get_shape())
                self.dtypes[key] = SAFETENSORS_DTYPES[view.get_dtype()]

    def __getitem__(self, key: str) -> torch.Tensor:
        tensor = self._open(self._places[key]).get_tensor(key)
        self._bytes_read += tensor.numel() * tensor.element_size()
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def describe(self, key: str) -> dict[str, str]:
        """As [`TorchFile.describe`]."""
        return {"from": key, "file": self._places[key].name}

    def give_back_pages(self) -> None:
        """As [`TorchFile.give_back_pages`]."""
        if self._bytes_read >= BYTES_BETWEEN_MAPPINGS:
            self._files, self._bytes_read = {}, 0

    def _open(self, path: Path):
        if path not in self._files:
            try:
                self._files[path] = safe_open(path, "pt")
            except SafetensorError as error:
                raise ValueError(f"{path} is damaged or cut off ({error}). Fetch it again.") from error
        return self._files[path]


SAFETENSORS_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def load_inert(path: Path, can_map: bool):
    """`torch.load` of tensors and plain data, where nothing else comes alive."""
    stand_ins = [(_plain_dict, "collections.defaultdict"), *((Inert, name) for name in INERT_CLASSES)]
    with torch.serialization.safe_globals(stand_ins), _reading(path):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=can_map)


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns the many ways in which a file can be unreadable into one line that names it."""
    try:
        yield
    except pickle.UnpicklingError as error:
        named = re.search(r"(?:Unsupported global: GLOBAL|unsupported GLOBAL) (\S+)", str(error))
        if named is None:
            reason = str(error).rpartition("WeightsUnpickler error: ")[2].split("\n")[0]
            raise ValueError(f"{path} is no checkpoint, or damaged or cut off ({reason}). Fetch it again.") from error
        raise ValueError(
            f"{path} is refused: it holds more than tensors and plain data, an object of {named[1]}. Nothing of it "
            "was run. Ask whoever made the file for one with the weights alone."
        ) from error
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever a reader makes of bytes that are none of its format
        raise ValueError(f"{path} is no checkpoint, or damaged or cut off. Fetch it again.") from error


def _state_dict(content, path: Path, entry: str | None) -> dict[str, torch.Tensor]:
    if entry is not None:
        if not isinstance(content, dict) or entry not in content:
            found = sorted(map(str, content))[:5] if isinstance(content, dict) else type(content).__name__
            raise ValueError(f"{path} should hold the weights under {entry!r}, but holds {found}.")
        content = content[entry]
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold a state dict, but holds a {type(content).__name__}.")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise ValueError(f"{path} should hold a state dict, but these are no tensors: {others[:5]}.")
    return content


def _is_zip(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"
