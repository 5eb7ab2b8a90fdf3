"""STOI and ESTOI: speech intelligibility against a reference, by the package pystoi."""

import warnings
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pystoi

from uniaudio2.evaluation.audio import read_pair
from uniaudio2.evaluation.metric import ItemMetric, Score


class Intelligibility(ItemMetric):
    """
    Short-time objective intelligibility, plain (`stoi`) and extended (`estoi`), from about 0 to 1.

    The reference must hold at least 0.4 s that are not silent. A silent prediction is about 0.
    """

    description = "STOI (Taal et al. 2011) and ESTOI (Jensen and Taal 2016)."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"stoi": Score("higher"), "estoi": Score("higher")}
    packages = ("pystoi",)

    def item(self, prediction, reference, sampling_rate):
        prediction, reference, rate = read_pair(prediction, reference, sampling_rate, None)
        if not reference.any():
            raise ValueError("the reference is silent")
        with warnings.catch_warnings():
            # pystoi warns, and returns a placeholder, where it has no value.
            warnings.simplefilter("error", RuntimeWarning)
            try:
                with _seeded():
                    return tuple(
                        pystoi.stoi(reference, prediction, rate, extended=extended) for extended in (False, True)
                    )
            except (RuntimeWarning, ValueError, IndexError) as error:
                raise ValueError("STOI needs at least 0.4 s of the reference that are not silent") from error


@contextmanager
def _seeded():
    """pystoi adds noise of numpy's global generator to ESTOI: the last digit would change from call to call."""
    state = np.random.get_state()
    np.random.seed(0)
    try:
        yield
    finally:
        np.random.set_state(state)
