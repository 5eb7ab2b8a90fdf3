"""Writing a file that `torch.load` reads, one tensor after the other, so that none waits in memory.

`torch.save` keeps all tensors until it has written the last. The format is a zip archive with a pickle that names the
tensors and one uncompressed member per tensor.
"""

import io
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from .shard_writer import tensor_bytes

ROOT = "archive"
# Members start at multiples of this, so that mapped tensors are aligned; as in torch.
ALIGNMENT = 64
# A zip member's header: its fixed part, and the sizes that `force_zip64` appends.
HEADER_BYTES, ZIP64_BYTES = 30, 20
# The identifier and the length in front of a field of padding.
FIELD_BYTES = 4

STORAGES = {
    torch.float64: torch.DoubleStorage,
    torch.float32: torch.FloatStorage,
    torch.float16: torch.HalfStorage,
    torch.bfloat16: torch.BFloat16Storage,
    torch.int64: torch.LongStorage,
    torch.int32: torch.IntStorage,
    torch.uint8: torch.ByteStorage,
    torch.bool: torch.BoolStorage,
}


def write_archive(
    path: Path,
    entry: str,
    layout: Mapping[str, torch.Tensor],
    produce: Callable[[str], torch.Tensor],
    description: str,
) -> None:
    """
    Write a state dict under one entry of a dictionary, as training loops do.

    Args:
        path (`Path`): The file.
        entry (`str`): Key of the state dict.
        layout (`Mapping[str, torch.Tensor]`): Names, shapes and types, as tensors on the meta device.
        produce (`Callable[[str], torch.Tensor]`): Gives the tensor of a name; asked once for each.
        description (`str`): Of the progress bar.
    """
    members = {name: str(index) for index, name in enumerate(layout)}
    content = {entry: {name: _Tensor(member, layout[name]) for name, member in members.items()}}
    pickled = io.BytesIO()
    _Pickler(pickled, protocol=2).dump(content)
    total = sum(tensor.numel() * tensor.element_size() for tensor in layout.values())
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False) as bar,
    ):
        archive.writestr(f"{ROOT}/data.pkl", pickled.getvalue())
        archive.writestr(f"{ROOT}/byteorder", "little")
        for name, member in members.items():
            data = tensor_bytes(produce(name))
            with archive.open(_aligned(archive, f"{ROOT}/data/{member}"), "w", force_zip64=True) as file:
                file.write(data)
            bar.update(len(data))
        archive.writestr(f"{ROOT}/version", "3\n")


class _Storage(NamedTuple):
    member: str
    tensor: torch.Tensor


class _Tensor:
    """Pickled as a contiguous tensor whose values are in a member of the archive."""

    def __init__(self, member: str, tensor: torch.Tensor):
        self.storage = _Storage(member, tensor)

    def __reduce__(self):
        shape = tuple(self.storage.tensor.shape)
        strides = torch.empty(shape, device="meta").stride()
        arguments = (self.storage, 0, shape, strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if not isinstance(value, _Storage):
            return None
        return "storage", STORAGES[value.tensor.dtype], value.member, "cpu", value.tensor.numel()


def _aligned(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    """A member that starts at a multiple of `ALIGNMENT`, thanks to padding in its header."""
    member = zipfile.ZipInfo(name)
    start = archive.fp.tell() + HEADER_BYTES + len(name) + ZIP64_BYTES + FIELD_BYTES
    padding = -start % ALIGNMENT
    member.extra = b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return member
