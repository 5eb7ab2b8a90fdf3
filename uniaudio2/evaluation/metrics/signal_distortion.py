"""SI-SDR: scale-invariant signal-to-distortion ratio (Le Roux et al. 2019)."""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.audio import read_pair
from uniaudio2.evaluation.metric import ItemMetric, Score

LIMIT_DB = 100.0


class SignalDistortion(ItemMetric):
    """
    Energy of the reference in the prediction over the energy of all else, in dB, means taken off.

    Limited to plus and minus 100 dB: an exact copy has 100, a silent prediction -100. A reference without energy has
    no value.
    """

    description = "Scale-invariant signal-to-distortion ratio in dB."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"si_sdr": Score("higher")}

    def item(self, prediction, reference, sampling_rate):
        prediction, reference, _ = read_pair(prediction, reference, sampling_rate, None)
        prediction, reference = (signal.astype(np.float64) - signal.mean() for signal in (prediction, reference))
        energy = reference @ reference
        if energy <= 0:
            raise ValueError("the reference is constant")
        target = (prediction @ reference) / energy * reference
        rest = prediction - target
        return (_decibel(target @ target, rest @ rest),)


def _decibel(signal: float, noise: float) -> float:
    floor = 10 ** (-LIMIT_DB / 10)
    if signal <= floor * noise:
        return -LIMIT_DB
    if noise <= floor * signal:
        return LIMIT_DB
    return float(10 * np.log10(signal / noise))
