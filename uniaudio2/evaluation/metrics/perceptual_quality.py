"""PESQ (ITU-T P.862): speech quality against a reference, by the package pesq."""

from typing import ClassVar

import pesq

from uniaudio2.evaluation.audio import read_pair
from uniaudio2.evaluation.metric import ItemMetric, Score

RATES = {"wb": 16000, "nb": 8000}


class PerceptualQuality(ItemMetric):
    """
    PESQ of 16 kHz wideband (P.862.2) or 8 kHz narrowband speech, from about 1 to 4.6.

    Recordings of other rates are resampled. Silence, and anything shorter than a quarter of a second, has no value:
    PESQ finds no utterance in it.

    Args:
        band (`str`, *optional*, defaults to `"wb"`): `"wb"` or `"nb"`.
    """

    description = "PESQ, ITU-T P.862."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"pesq": Score("higher")}
    packages = ("pesq",)

    def __init__(self, band: str = "wb", **kwargs):
        if band not in RATES:
            raise ValueError(f"`band` is {band!r}, but must be 'wb' or 'nb'.")
        self.band = band
        super().__init__(**kwargs)

    def item(self, prediction, reference, sampling_rate):
        prediction, reference, rate = read_pair(prediction, reference, sampling_rate, RATES[self.band])
        if not prediction.any():
            raise ValueError("PESQ has no value: the prediction is silent")
        try:
            return (pesq.pesq(rate, reference, prediction, self.band),)
        except pesq.PesqError as error:
            reason = error.args[0].decode() if isinstance(error.args[0], bytes) else str(error)
            raise ValueError(f"PESQ has no value: {reason}") from error
