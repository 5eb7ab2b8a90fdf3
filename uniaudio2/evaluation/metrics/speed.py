"""Speed: seconds of work per second of audio, and what is made per second."""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.metric import ItemMetric, Score, ratio


class Speed(ItemMetric):
    """
    Real-time factor: seconds of work over seconds of audio, summed over all items; below 1 is faster than real time.

    Args of `compute`: `predictions` are the seconds of work, `references` the seconds of audio.
    """

    description = "Seconds of work per second of audio."
    inputs: ClassVar = {"predictions": "number", "references": "number"}
    scores: ClassVar = {"rtf": Score("lower")}

    def item(self, prediction, reference, sampling_rate):
        if prediction is None or not np.isfinite(prediction) or prediction < 0:
            raise ValueError(f"the seconds of work must be a number that is not negative, but are {prediction}")
        if reference is None or not np.isfinite(reference) or reference <= 0:
            raise ValueError(f"the seconds of audio must be a positive number, but are {reference}")
        return (prediction, reference)

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        work, audio = rows.sum(axis=0)
        return {"rtf": float(work / audio)}

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"rtf": ratio(rows[:, 0], rows[:, 1])}
