"""Writing a model's weights as safetensors shards, one tensor after the other, so that none waits in memory."""

import json
import os
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from tqdm import tqdm
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from .checkpoint_files import SAFETENSORS_DTYPES

DTYPE_NAMES = {dtype: name for name, dtype in SAFETENSORS_DTYPES.items()}
FILENAME_PATTERN = "model{suffix}.safetensors"


def write_shards(
    folder: Path,
    layout: Mapping[str, torch.Tensor],
    produce: Callable[[str], torch.Tensor],
    max_shard_size: int | str,
    description: str,
) -> list[Path]:
    """
    Write weights in the files that `save_pretrained` would write, with the index if there are several.

    Args:
        folder (`Path`): Where to.
        layout (`Mapping[str, torch.Tensor]`): Names, shapes and types, as tensors on the meta device.
        produce (`Callable[[str], torch.Tensor]`): Gives the tensor of a name; asked once for each.
        max_shard_size (`int` or `str`): Largest file, `"5GB"` or a number of bytes.
        description (`str`): Of the progress bar.
    """
    split = split_torch_state_dict_into_shards(
        dict(layout), filename_pattern=FILENAME_PATTERN, max_shard_size=max_shard_size
    )
    total = sum(_num_bytes(tensor) for tensor in layout.values())
    with tqdm(total=total, desc=description, unit="B", unit_scale=True, leave=False) as bar:
        for filename, names in split.filename_to_tensors.items():
            with open(folder / filename, "wb") as file:
                for tensor in _write_shard(file, {name: layout[name] for name in names}, produce):
                    bar.update(_num_bytes(tensor))
                file.flush()
                # What is renamed into place must have reached the disk.
                os.fsync(file.fileno())
    if split.is_sharded:
        parameters = sum(tensor.numel() for tensor in layout.values())
        index = {
            "metadata": {"total_parameters": parameters, **split.metadata},
            "weight_map": split.tensor_to_filename,
        }
        text = json.dumps(index, indent=2, sort_keys=True) + "\n"
        (folder / SAFE_WEIGHTS_INDEX_NAME).write_text(text, encoding="utf-8")
    return [folder / filename for filename in split.filename_to_tensors]


def tensor_bytes(tensor: torch.Tensor) -> memoryview:
    """The values of a tensor as they lie in memory."""
    return memoryview(tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy())


def _write_shard(
    file: BinaryIO, layout: Mapping[str, torch.Tensor], produce: Callable[[str], torch.Tensor]
) -> Iterator[torch.Tensor]:
    # Wide types first, so that every tensor is aligned.
    names = sorted(layout, key=lambda name: -layout[name].element_size())
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name in names:
        end = offset + _num_bytes(layout[name])
        header[name] = {
            "dtype": DTYPE_NAMES[layout[name].dtype],
            "shape": list(layout[name].shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for name in names:
        tensor = produce(name)
        if tensor.shape != layout[name].shape or tensor.dtype != layout[name].dtype:
            raise ValueError(
                f"{name} was announced as {tuple(layout[name].shape)} {layout[name].dtype}, but is "
                f"{tuple(tensor.shape)} {tensor.dtype}."
            )
        file.write(tensor_bytes(tensor))
        yield layout[name]


def _num_bytes(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()
