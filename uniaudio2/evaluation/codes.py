"""Codes of a codec, as files of a manifest and as metrics read them."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

STREAMS = ("reasoning", "reconstruction")


def write_codes(path: Path, **streams: np.ndarray) -> None:
    """Write streams of shape `(num_codebooks, frames)`, as the command line does: `uniaudio2 run` reads the file."""
    save_file({f"{name}_codes": np.ascontiguousarray(codes) for name, codes in streams.items()}, path)


def read_codes(codes: Any, stream: str) -> np.ndarray:
    """
    One stream of a recording.

    Args:
        codes (`str`, `os.PathLike` or array of shape `(num_codebooks, frames)`):
            A file with `{stream}_codes`, or the codes themselves.
        stream (`str`): Which one of the file.

    Returns:
        `np.ndarray` of shape `(num_codebooks, frames)`, int64.

    Raises:
        ValueError: if there is no such file or stream, no frame, or what is no code.
    """
    if codes is None:
        raise ValueError("there are no codes")
    if isinstance(codes, (str, os.PathLike)):
        try:
            found = load_file(codes)
        except (OSError, SafetensorError) as error:
            raise ValueError(f"{str(codes)!r} cannot be read as codes: {error}") from error
        if f"{stream}_codes" not in found:
            raise ValueError(f"{str(codes)!r} has no '{stream}_codes', but {', '.join(map(repr, sorted(found)))}")
        codes = found[f"{stream}_codes"]
    codes = np.asarray(codes)
    if codes.ndim != 2 or codes.shape[1] == 0:
        raise ValueError(f"codes have shape (num_codebooks, frames) and at least one frame, but got {codes.shape}")
    if not np.issubdtype(codes.dtype, np.integer) or codes.min() < 0:
        raise ValueError("codes are integers of at least 0")
    return codes.astype(np.int64)


def check_stream(stream: str) -> str:
    """The stream, if there is one of that name; else a `ValueError`."""
    if stream not in STREAMS:
        raise ValueError(f"`stream` is {stream!r}, but must be one of {', '.join(STREAMS)}.")
    return stream


def check_splits(
    training: Sequence[np.ndarray], measured: Sequence[np.ndarray], train: str, held_out: str
) -> tuple[int, int]:
    """
    The number and the size of the codebooks of two splits, called `train` and `held_out`.

    Raises:
        ValueError: if one is empty, or items have different numbers of codebooks.
    """
    if not training or not measured:
        raise ValueError(
            f"there are {len(training)} items of the split {train!r} to learn from and {len(measured)} of "
            f"{held_out!r} to measure, but both are needed"
        )
    used = [*training, *measured]
    if len({len(codes) for codes in used}) > 1:
        raise ValueError(f"items have {sorted({len(codes) for codes in used})} codebooks, but need as many each")
    return len(used[0]), 1 + max(int(codes.max()) for codes in used)
