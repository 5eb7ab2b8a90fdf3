"""Audio files: written whole or not at all, with what made them in their metadata."""

import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from transformers.utils import logging

logger = logging.get_logger(__name__)

# IPTC's term for media that a trained model has made.
DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# File formats whose name is not their suffix.
FILE_FORMATS = {"opus": {"format": "OGG", "subtype": "OPUS"}, "aif": {"format": "AIFF"}}


def write_audio(
    waveform: torch.Tensor | np.ndarray,
    path: Path,
    sampling_rate: int,
    provenance: Mapping[str, str] | None = None,
) -> None:
    """
    Write a waveform to a file, whose suffix says the format.

    The file appears when it is complete: an interrupted call leaves no half of one behind.

    Args:
        waveform (`torch.Tensor` or `np.ndarray`): Of shape `(samples,)` or `(channels, samples)`.
        path (`Path`): The file.
        sampling_rate (`int`): In hertz.
        provenance (`Mapping[str, str]`, *optional*):
            What made the file. It goes into the comment of the file as JSON, because that is the one text that all
            formats with texts have; a format without texts is written without it, with a warning.

    Raises:
        ValueError: for a waveform that is empty, has no shape of a waveform or is not finite, and for a suffix that is
            no audio format.
        FileNotFoundError: if there is no such folder.
    """
    samples = as_samples(waveform)
    if samples.size == 0:
        raise ValueError(
            f"There is no audio to write to {str(path)!r}: the waveform has no samples. If it was generated, the "
            "answer held no reconstruction frames: raise `max_new_tokens` or try another seed."
        )
    if samples.ndim not in (1, 2):
        raise ValueError(f"A waveform has shape (samples,) or (channels, samples), but got {samples.shape}.")
    if not np.isfinite(samples).all():
        raise ValueError("The waveform holds NaN or infinite samples and is not written.")
    suffix = path.suffix.lstrip(".").lower()
    if suffix not in FILE_FORMATS and suffix.upper() not in soundfile.available_formats():
        raise ValueError(f"{str(path)!r} has no known audio format: end it in .wav, .flac, .ogg, .opus or .mp3.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"There is no folder {str(path.parent)!r} to write {path.name!r} into.")
    options = FILE_FORMATS.get(suffix, {"format": suffix.upper()})
    channels = 1 if samples.ndim == 1 else len(samples)
    aside = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        with soundfile.SoundFile(aside, "w", sampling_rate, channels, **options) as file:
            if provenance is not None:
                _write_comment(file, path, provenance)
            file.write(samples.T)
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def read_provenance(path: str | os.PathLike) -> dict[str, Any] | None:
    """
    What made an audio file, as [`write_audio`] has noted it; `None` if the file does not say.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no audio file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no audio file {str(path)!r}.")
    try:
        with soundfile.SoundFile(path) as file:
            comment = file.comment
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{str(path)!r} cannot be read as audio ({error.error_string})") from error
    try:
        provenance = json.loads(comment)
    except json.JSONDecodeError:  # somebody else's comment, or none
        return None
    return provenance if isinstance(provenance, dict) and "digitalSourceType" in provenance else None


def as_samples(waveform: torch.Tensor | np.ndarray) -> np.ndarray:
    """A waveform as an array; tensors, which may be of types that NumPy does not know, as float32."""
    return waveform.detach().float().cpu().numpy() if isinstance(waveform, torch.Tensor) else np.asarray(waveform)


def _write_comment(file: soundfile.SoundFile, path: Path, provenance: Mapping[str, str]) -> None:
    try:
        # In ASCII, because not every format says which encoding it has.
        file.comment = json.dumps(dict(provenance))
    except soundfile.LibsndfileError:
        logger.warning(
            f"{file.format} files hold no text: {str(path)!r} does not say what made it. WAV, FLAC, OGG, OPUS and MP3 "
            "do; `provenance=False` writes without."
        )
