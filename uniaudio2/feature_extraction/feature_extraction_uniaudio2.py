"""Feature extractor of UniAudio 2.0: recordings of any kind to padded 24 kHz mono waveforms."""

import io
import math
import numbers
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import soundfile
import soxr
from transformers import SequenceFeatureExtractor
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import PaddingStrategy, TensorType

# Rates outside are mistakes, most often kilohertz given as hertz.
LOWEST_SAMPLING_RATE, HIGHEST_SAMPLING_RATE = 1_000, 768_000
# A server that says nothing for so many seconds is taken for gone.
DOWNLOAD_TIMEOUT = 20
ACCEPTED_AUDIO = (
    "a one-dimensional waveform (NumPy array, tensor or list of floats), a stereo one of shape (2, samples) or "
    "(samples, 2), the path, URL or bytes of an audio file, a dictionary with 'array' and 'sampling_rate', or a list "
    "of these"
)


class UniAudio2FeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns recordings into what the codec reads: mono waveforms at 24 kHz in [-1, 1], padded to a batch, with a mask.

    Args:
        feature_size (`int`, *optional*, defaults to 1):
            The number of channels that come out. Stereo recordings are mixed down to one.
        sampling_rate (`int`, *optional*, defaults to 24000):
            The rate that comes out, in hertz. Recordings with other rates are resampled.
        padding_value (`float`, *optional*, defaults to 0.0):
            What shorter recordings of a batch are filled up with, on the right.

    Example:

    ```python
    >>> extractor = UniAudio2FeatureExtractor()
    >>> inputs = extractor([speech_16k, longer_speech_16k], sampling_rate=16000, return_tensors="pt")
    >>> inputs["input_values"].shape  # (2, 1, samples at 24 kHz)
    >>> inputs["padding_mask"].shape  # (2, samples at 24 kHz)
    ```
    """

    model_input_names: ClassVar[list[str]] = ["input_values", "padding_mask"]
    _auto_class = "AutoFeatureExtractor"

    def __init__(self, feature_size: int = 1, sampling_rate: int = 24_000, padding_value: float = 0.0, **kwargs):
        if feature_size != 1:
            raise ValueError(f"`feature_size` is {feature_size}, but UniAudio 2.0 is mono: leave it at 1.")
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        if self.padding_side != "right":
            raise ValueError(f"`padding_side` is {self.padding_side!r}, but recordings are filled up on the right.")
        # Not an attribute: pipelines would demand that the rows of a batch are filled up on the same side.
        del self.padding_side

    def __call__(
        self,
        raw_audio: Any,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | TensorType | None = None,
    ) -> BatchFeature:
        """
        Prepare one recording or a batch.

        Args:
            raw_audio (`np.ndarray`, `torch.Tensor`, `list[float]`, `str`, `bytes`, `dict` or a list of these):
                A recording is a waveform of shape `(samples,)`, `(channels, samples)` or `(samples, channels)` with
                one or two channels; or the path, the URL or the bytes of a file that libsndfile reads (wav, flac,
                ogg, opus, mp3, ...); or a dictionary `{"array", "sampling_rate"}`, `{"path"}` or `{"bytes"}` as data
                sets hold them. A batch is a list of recordings of any lengths. Floats are taken as they are, int16
                and int32 are scaled to [-1, 1].
            sampling_rate (`int`, *optional*):
                The rate of the waveforms in hertz. Required for those that do not bring their own (files and
                dictionaries do).
            padding, max_length, truncation, pad_to_multiple_of:
                As in [`~SequenceFeatureExtractor.pad`], counted in samples at 24 kHz.
            return_tensors (`str`, *optional*):
                `"pt"` or `"np"`.

        Returns:
            [`BatchFeature`] with **input_values**, float32 of shape `(batch_size, 1, samples)`, and **padding_mask**,
            boolean of shape `(batch_size, samples)`, true where there is a recording.

        Raises:
            ValueError: for an empty recording, NaN or infinite samples, a shape that is no recording, a missing or
                impossible sampling rate, or a file that cannot be read.
            TypeError: for values that are no audio or that have no defined scale.
            OSError: for a file that does not exist or a URL that cannot be downloaded.
        """
        recordings = list(raw_audio) if self._is_batch(raw_audio) else [raw_audio]
        if not recordings:
            raise ValueError("`raw_audio` is an empty list. Pass at least one recording.")
        waveforms = [self._waveform(recording, sampling_rate) for recording in recordings]

        padded = self.pad(
            BatchFeature({"input_values": waveforms}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=True,
        )
        padded["padding_mask"] = [np.asarray(mask, dtype=bool) for mask in padded.pop("attention_mask")]
        padded["input_values"] = [np.asarray(values, dtype=np.float32)[None] for values in padded["input_values"]]
        return padded.convert_to_tensors(return_tensors) if return_tensors is not None else padded

    def _pad(
        self,
        processed_features: dict[str, np.ndarray],
        max_length: int | None = None,
        padding_strategy: PaddingStrategy = PaddingStrategy.DO_NOT_PAD,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
    ) -> dict[str, np.ndarray]:
        """Fill one recording up on the right, as [`~SequenceFeatureExtractor.pad`] asks; it resolves `longest`."""
        name = self.model_input_names[0]
        samples = processed_features[name]
        length = len(samples) if padding_strategy == PaddingStrategy.DO_NOT_PAD else max(max_length, len(samples))
        if pad_to_multiple_of is not None and padding_strategy != PaddingStrategy.DO_NOT_PAD:
            length += -length % pad_to_multiple_of
        missing = (0, length - len(samples))
        padded = {**processed_features, name: np.pad(samples, missing, constant_values=self.padding_value)}
        if return_attention_mask:
            padded["attention_mask"] = np.pad(np.ones(len(samples), dtype=np.int32), missing)
        return padded

    def load_audio(self, path: str | os.PathLike | bytes | io.IOBase) -> dict[str, np.ndarray | int]:
        """
        Read an audio file.

        Args:
            path (`str`, `os.PathLike`, `bytes` or a binary file object):
                A file that libsndfile reads (wav, flac, ogg, opus, mp3, ...), its http or https address, or what is
                in it.

        Returns:
            `dict`: `array`, float32 of shape `(samples,)` or `(channels, samples)`, and `sampling_rate` in hertz.

        Raises:
            FileNotFoundError: if there is no such file.
            OSError: if an address cannot be downloaded.
            ValueError: if it cannot be read as audio.
        """
        name, file = repr(str(path)), path
        if isinstance(path, (str, os.PathLike)):
            if str(path).startswith(("http://", "https://")):
                file = io.BytesIO(_download(str(path)))
            elif not Path(path).is_file():
                raise FileNotFoundError(f"There is no audio file {name}. Texts go in `text`, paths in `audio`.")
        else:
            name, file = "The data", io.BytesIO(path) if isinstance(path, bytes) else path
        try:
            samples, sampling_rate = soundfile.read(file, dtype="float32", always_2d=True)
        except soundfile.LibsndfileError as error:
            raise ValueError(
                f"{name} cannot be read as audio ({error.error_string}) Convert it to wav, flac, ogg, opus or mp3."
            ) from error
        if samples.shape[1] > 2:
            samples = samples.mean(axis=1, keepdims=True)
        return {"array": samples[:, 0] if samples.shape[1] == 1 else samples.T, "sampling_rate": sampling_rate}

    def fetch_audio(self, audio_url_or_urls: Any, sampling_rate: int | None = None) -> Any:
        """
        Read the files among the recordings, for the pipelines; everything else is returned as it came.

        Args:
            audio_url_or_urls (`str` or a recording, or a list of these): Paths or addresses of files.
            sampling_rate (`int`, *optional*): Not used: files bring their own rate and are resampled later.
        """
        if self._is_batch(audio_url_or_urls):
            return [self.fetch_audio(recording) for recording in audio_url_or_urls]
        if isinstance(audio_url_or_urls, (str, os.PathLike, bytes)):
            return self.load_audio(audio_url_or_urls)
        return audio_url_or_urls

    @staticmethod
    def _is_batch(raw_audio: Any) -> bool:
        """A list of numbers is a recording, any other list is a batch."""
        return isinstance(raw_audio, (list, tuple)) and not (raw_audio and isinstance(raw_audio[0], numbers.Number))

    def _waveform(self, recording: Any, sampling_rate: int | None) -> np.ndarray:
        """One recording of any kind as float32 `(samples,)` at the extractor's rate."""
        if isinstance(recording, (str, os.PathLike, bytes)):
            recording = self.load_audio(recording)
        if isinstance(recording, Mapping):
            recording, sampling_rate = self._unpack(recording, sampling_rate)
        mono = self._mono(self._to_float(recording))
        rate = self._check_sampling_rate(sampling_rate)
        if not np.isfinite(mono).all():
            raise ValueError(
                f"The audio holds {int((~np.isfinite(mono)).sum())} samples that are NaN or infinite. "
                "Replace them first, for example with `np.nan_to_num(audio)`."
            )
        if rate == self.sampling_rate:
            return mono
        resampled = soxr.resample(mono, rate, self.sampling_rate)
        if resampled.size == 0:
            raise ValueError(
                f"{mono.size} samples at {rate} Hz are less than one sample at {self.sampling_rate} Hz. "
                "Pass a longer recording."
            )
        return resampled

    def _unpack(self, recording: Mapping, sampling_rate: int | None) -> tuple[Any, int | None]:
        """The waveform and the rate of a dictionary, which is trusted more than the declared rate."""
        if recording.get("array") is None:
            if recording.get("bytes") is not None:
                recording = self.load_audio(recording["bytes"])
            elif recording.get("path") is not None:
                recording = self.load_audio(recording["path"])
            else:
                raise ValueError(
                    f"A recording given as a dictionary needs 'array' (with 'sampling_rate'), 'bytes' or 'path', "
                    f"but this one has {sorted(map(str, recording))}."
                )
        return recording["array"], recording.get("sampling_rate", sampling_rate)

    @staticmethod
    def _to_float(recording: Any) -> np.ndarray:
        is_list = isinstance(recording, (list, tuple))
        if hasattr(recording, "detach"):  # a tensor; bfloat16 is unknown to NumPy
            recording = recording.detach().cpu()
            recording = (recording.float() if recording.is_floating_point() else recording).numpy()
        if not is_list and not isinstance(recording, np.ndarray):
            raise TypeError(f"Audio of type {type(recording).__name__} is not understood. Pass {ACCEPTED_AUDIO}.")
        samples = np.asarray(recording)
        if samples.dtype in (np.int16, np.int32):
            return samples.astype(np.float32) / -float(np.iinfo(samples.dtype).min)
        if samples.size and not np.issubdtype(samples.dtype, np.floating):
            raise TypeError(
                f"Audio with values of type {samples.dtype} has no defined scale. "
                "Pass floats in [-1, 1], or a NumPy array or tensor of int16 or int32."
            )
        return samples.astype(np.float32)

    @staticmethod
    def _mono(samples: np.ndarray) -> np.ndarray:
        if samples.size == 0:
            raise ValueError(f"The audio is empty (shape {samples.shape}). Pass at least one sample.")
        if samples.ndim == 1:
            return samples
        channels_first = samples.ndim == 2 and samples.shape[0] in (1, 2)
        channels_last = samples.ndim == 2 and samples.shape[1] in (1, 2)
        if channels_first == channels_last:
            raise ValueError(
                f"Audio of shape {samples.shape} is {'ambiguous' if channels_first else 'no recording'}. "
                f"Pass {ACCEPTED_AUDIO}; a batch is a list, not one array."
            )
        return samples.mean(axis=0 if channels_first else 1)

    def _check_sampling_rate(self, sampling_rate: int | None) -> int:
        if sampling_rate is None:
            raise ValueError(
                "The sampling rate of the audio is unknown. Pass it, for example `sampling_rate=16000`, "
                f"or `sampling_rate={self.sampling_rate}` if the audio has the model's own rate."
            )
        is_number = isinstance(sampling_rate, numbers.Real) and not isinstance(sampling_rate, bool)
        if not is_number or not math.isfinite(sampling_rate) or sampling_rate != int(sampling_rate):
            raise ValueError(f"`sampling_rate` is {sampling_rate!r}, but it must be a whole number of hertz.")
        if not LOWEST_SAMPLING_RATE <= sampling_rate <= HIGHEST_SAMPLING_RATE:
            raise ValueError(
                f"`sampling_rate` is {sampling_rate}, which is outside {LOWEST_SAMPLING_RATE} to "
                f"{HIGHEST_SAMPLING_RATE}. It is in hertz: 16000, not 16."
            )
        return int(sampling_rate)


def _download(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=DOWNLOAD_TIMEOUT) as response:
            return response.read()
    except OSError as error:  # also urllib's own errors, those of HTTP included
        raise OSError(
            f"{url!r} cannot be downloaded ({error}). Check the address and the network, or download the file and "
            "pass its path."
        ) from error


__all__ = ["UniAudio2FeatureExtractor"]
