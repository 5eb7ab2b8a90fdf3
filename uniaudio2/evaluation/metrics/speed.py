"""Speed: seconds of work per second of audio, or what is made per second."""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.metric import ItemMetric, Score


class Speed(ItemMetric):
    """
    Real-time factor (`rtf`): seconds of work over seconds of audio; below 1 is faster than real time. Or tokens and
    frames per second (`tokens_per_second`). Both are sums over all items, divided.

    `predictions` are the seconds of work, `references` the seconds of audio, or the number of tokens.

    Args:
        per (`str`, *optional*, defaults to `"audio"`): `"audio"` or `"tokens"`.
    """

    description = "Seconds of work per second of audio, or tokens per second."
    inputs: ClassVar = {"predictions": "number", "references": "number"}

    def __init__(self, per: str = "audio", **kwargs):
        if per not in ("audio", "tokens"):
            raise ValueError(f"`per` is {per!r}, but must be 'audio' or 'tokens'.")
        self.per = per
        self.scores = {"rtf": Score("lower")} if per == "audio" else {"tokens_per_second": Score("higher")}
        super().__init__(**kwargs)

    def item(self, prediction, reference, sampling_rate):
        for value, name in ((prediction, "the seconds of work"), (reference, f"the amount of {self.per}")):
            if value is None or not np.isfinite(value) or value <= 0:
                raise ValueError(f"{name} must be a positive number, but is {value}")
        return (prediction, reference)

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        return {name: float(value) for name, value in self._speed(*rows.sum(axis=0)).items()}

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._speed(*rows.T)

    def _speed(self, work, amount):
        return {"rtf": work / amount} if self.per == "audio" else {"tokens_per_second": amount / work}
