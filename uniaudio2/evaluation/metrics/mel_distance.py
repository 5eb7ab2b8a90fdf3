"""Mel distance: mean absolute difference of log-mel spectrograms."""

from typing import ClassVar

import numpy as np
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from uniaudio2.evaluation.audio import read_pair
from uniaudio2.evaluation.metric import ItemMetric, Score

SAMPLING_RATE = 24000
WINDOW, HOP, NUM_BANDS = 1024, 256, 80
FLOOR = 1e-5


class MelDistance(ItemMetric):
    """
    Mean absolute difference of natural log-mel magnitudes: 80 bands of 0 to 12 kHz, windows of 43 ms, hops of 11 ms.

    Magnitudes are limited from below at 1e-5, so silence has a value: the distance of that floor. Recordings of other
    rates are resampled to 24 kHz; anything shorter than one window has no value.
    """

    description = "Mean absolute difference of natural log-mel magnitudes at 24 kHz."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"mel_distance": Score("lower")}

    def item(self, prediction, reference, sampling_rate):
        prediction, reference, _ = read_pair(prediction, reference, sampling_rate, SAMPLING_RATE)
        if len(reference) < WINDOW:
            raise ValueError(f"{len(reference)} samples at {SAMPLING_RATE} Hz are less than one window ({WINDOW})")
        return (float(np.abs(log_mel(prediction) - log_mel(reference)).mean()),)


def log_mel(waveform: np.ndarray) -> np.ndarray:
    """Natural log-mel magnitudes of a 24 kHz waveform, of shape `(80, frames)`."""
    filters = mel_filter_bank(
        num_frequency_bins=WINDOW // 2 + 1,
        num_mel_filters=NUM_BANDS,
        min_frequency=0.0,
        max_frequency=SAMPLING_RATE / 2,
        sampling_rate=SAMPLING_RATE,
        norm="slaney",
        mel_scale="slaney",
    )
    magnitudes = spectrogram(
        waveform,
        window_function(WINDOW, "hann"),
        frame_length=WINDOW,
        hop_length=HOP,
        power=1.0,
        mel_filters=filters,
        mel_floor=FLOOR,
    )
    return np.log(magnitudes)
