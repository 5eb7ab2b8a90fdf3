"""Frechet distance between two sets of recordings (FD, and FAD with an embedder trained for it)."""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.embedders import check_embedder, check_kind, get_embedder
from uniaudio2.evaluation.metric import ItemMetric, Score


class FrechetDistance(ItemMetric):
    """
    Distance of two Gaussians fitted to embeddings: `|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))`, in float64.

    It is a number of a set: no item has one of its own, and at least two items are needed. Numbers of different
    embedders, or of few items, are not comparable. The published ones of UniAudio 2.0 use CNN14 as in audioldm_eval,
    which transformers does not have: pass it as a function of your own (`embedder="package.module:name"`).

    Args:
        embedder (`str`, *optional*, defaults to `"clap"`): See [`get_embedder`].
        model (`str`, *optional*): Checkpoint of the embedder.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    description = "Frechet distance between Gaussians fitted to audio embeddings."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"frechet_distance": Score("lower")}
    resamples = 100
    has_set_bias = True

    def __init__(self, embedder: str = "clap", model: str | None = None, device: str = "cpu", **kwargs):
        check_kind(embedder)
        self.embedder, self.model_name, self.device = embedder, model, device
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        return super().check() + check_embedder(self.embedder, self.model_name)

    def item(self, prediction, reference, sampling_rate):
        embed = get_embedder(self.embedder, self.model_name, self.device)
        return np.concatenate([embed(audio, sampling_rate) for audio in (prediction, reference)])

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        if len(rows) < 2:
            raise ValueError(f"The Frechet distance needs at least two items, but got {len(rows)}.")
        moments = [(half.mean(axis=0), np.cov(half, rowvar=False)) for half in np.split(rows, 2, axis=1)]
        return {"frechet_distance": gaussian_distance(*moments[0], *moments[1])}

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}


def gaussian_distance(
    mean_1: np.ndarray, covariance_1: np.ndarray, mean_2: np.ndarray, covariance_2: np.ndarray
) -> float:
    """Squared Frechet (2-Wasserstein) distance of two Gaussians."""
    covariance_1, covariance_2 = np.atleast_2d(covariance_1), np.atleast_2d(covariance_2)
    # tr((S1 S2)^1/2) is the sum of the singular values of S1^1/2 S2^1/2. No root is taken of their product, whose
    # rounding errors it would magnify: those of the zeros of a singular covariance from 1e-16 to 1e-8.
    cross = np.linalg.svd(_root(covariance_1) @ _root(covariance_2), compute_uv=False).sum()
    difference = mean_1 - mean_2
    distance = difference @ difference + np.trace(covariance_1) + np.trace(covariance_2) - 2 * cross
    return max(float(distance), 0.0)


def _root(covariance: np.ndarray) -> np.ndarray:
    """The symmetric square root. Eigenvalues that are zero but for rounding count as zero."""
    values, vectors = np.linalg.eigh(covariance)
    rounding = len(values) * np.finfo(values.dtype).eps * values.max(initial=0.0)
    return (vectors * np.sqrt(np.where(values > rounding, values, 0.0))) @ vectors.T
