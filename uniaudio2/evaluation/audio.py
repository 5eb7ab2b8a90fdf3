"""Recordings as metrics take them: one channel, finite, at the rate a metric asks for."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr

# More difference in length than this means that the two recordings are not aligned.
MAX_LENGTH_DIFFERENCE_SECONDS = 0.1


def read_audio(audio: Any, sampling_rate: int | None, target_rate: int | None) -> tuple[np.ndarray, int]:
    """
    Read and resample a recording.

    Args:
        audio (`str`, `os.PathLike`, array of shape `(samples,)` or `None`): A file or a waveform.
        sampling_rate (`int`, *optional*): Rate of a waveform in hertz; a file brings its own.
        target_rate (`int`, *optional*): Rate to return, by default that of the recording.

    Returns:
        `tuple[np.ndarray, int]`: float32 of shape `(samples,)`, channels averaged, and its rate.

    Raises:
        ValueError: if there is no sample, if one is not finite, if the rate is not known or the file cannot be read.
    """
    if audio is None:
        raise ValueError("there is no audio")
    if isinstance(audio, (str, os.PathLike)):
        if not Path(audio).is_file():
            raise ValueError(f"there is no file {str(audio)!r}")
        try:
            samples, sampling_rate = soundfile.read(audio, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(f"{str(audio)!r} cannot be read: {error}") from error
        samples = samples.mean(axis=1)
    else:
        samples = np.asarray(audio, dtype=np.float32)
        if sampling_rate is None or sampling_rate <= 0:
            raise ValueError(f"a waveform needs its `sampling_rate` in hertz, but got {sampling_rate}")
        if samples.ndim != 1:
            raise ValueError(f"a waveform has shape (samples,), but got {samples.shape}")
    if samples.size == 0:
        raise ValueError("the recording has no samples")
    if not np.isfinite(samples).all():
        raise ValueError("the recording holds NaN or infinite samples")
    if target_rate is not None and target_rate != sampling_rate:
        samples, sampling_rate = soxr.resample(samples, sampling_rate, target_rate), target_rate
        if samples.size == 0:
            raise ValueError("the recording is too short to resample")
    return samples, sampling_rate


def read_pair(
    prediction: Any, reference: Any, sampling_rate: int | None, target_rate: int | None
) -> tuple[np.ndarray, np.ndarray, int]:
    """
    Read a recording and its reference, cut to the same length.

    Raises:
        ValueError: as [`read_audio`], or if their lengths differ by more than a tenth of a second.
    """
    reference, rate = read_audio(reference, sampling_rate, target_rate)
    prediction, _ = read_audio(prediction, sampling_rate, rate)
    length = min(len(prediction), len(reference))
    if abs(len(prediction) - len(reference)) > MAX_LENGTH_DIFFERENCE_SECONDS * rate:
        raise ValueError(
            f"the recording has {len(prediction) / rate:.2f} s and its reference {len(reference) / rate:.2f} s: "
            "they must be aligned"
        )
    return prediction[:length], reference[:length], rate
