"""Codes in a file: what the codec has made of a recording, or the model in place of one."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..processing import AudioCodes

CODES_SUFFIX = ".safetensors"
STREAMS = ("reasoning_codes", "reconstruction_codes")


def save_codes(codes: AudioCodes, path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Writes those streams that have frames, each of shape `(num_codebooks, frames)`, and what else is to be known of
    them; whole or not at all."""
    streams = {name: getattr(codes, name) for name in STREAMS}
    tensors = {name: tensor for name, tensor in streams.items() if tensor is not None and tensor.numel() > 0}
    if not tensors:
        raise ValueError(f"there are no codes to write to {str(path)!r}: the answer is empty; try another --seed")
    aside = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        save_file({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, aside, metadata)
        aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


def load_codes(path: Path) -> AudioCodes:
    """Reads them again. A `ValueError` for a file that holds none."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {str(path)!r}")
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_tensor(name) for name in file.keys() if name in STREAMS}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{str(path)!r} cannot be read as codes ({error})") from error
    if not found:
        raise ValueError(f"{str(path)!r} holds no codes: it has neither {' nor '.join(STREAMS)}")
    return AudioCodes(**found)


def recording(name: str) -> str | AudioCodes:
    """A recording as the command line names it: the codes in a file of codes, or a name for the processor to read."""
    return load_codes(Path(name)) if name.endswith(CODES_SUFFIX) else name
