"""Accuracy and macro-F1 of classes that a model names in its answer."""

import re
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.normalizers import get_normalizer

NO_CLASS = -1


class Classification(ItemMetric):
    """
    Share of right answers, and the mean over the classes of F1.

    The class of an answer is the label that it names first; an answer without one is wrong. Classes that occur neither
    among references nor among answers do not count in macro-F1.

    Args:
        labels (`Sequence[str]`, *optional*): The classes, by default those of the references.
    """

    description = "Accuracy and macro-averaged F1."
    inputs: ClassVar = {"predictions": "text", "references": "text"}
    scores: ClassVar = {"accuracy": Score("higher", percent=True), "macro_f1": Score("higher", percent=True)}

    def __init__(self, labels: Sequence[str] | None = None, **kwargs):
        self.labels = list(labels) if labels is not None else None
        self.normalize = get_normalizer("basic")
        self._classes: list[str] = []
        super().__init__(**kwargs)

    def items(self, predictions, references=None, sampling_rate=None, failures=None) -> np.ndarray:
        """Rows of the index of the class of the reference and of the answer (-1 for none)."""
        labels = self.labels if self.labels is not None else [text for text in references or [] if text]
        self._classes = list(dict.fromkeys(self.normalize(label) for label in labels))
        return super().items(predictions, references, sampling_rate, failures)

    def item(self, prediction, reference, sampling_rate):
        label = self.normalize(reference or "")
        if label not in self._classes or not label:
            raise ValueError(f"the reference {reference!r} is none of the labels {self._classes}")
        return (self._classes.index(label), self._named(self.normalize(prediction or "")))

    def _named(self, answer: str) -> int:
        # The longest of those that begin first: "very happy" is not "happy" if both are classes.
        found = [
            (match.start(), -len(label), index)
            for index, label in enumerate(self._classes)
            if (match := re.search(_whole(label), answer))
        ]
        return min(found)[2] if found else NO_CLASS

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        truth, answers = rows.T
        return {"accuracy": float((truth == answers).mean()), "macro_f1": macro_f1(truth, answers)}

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"accuracy": (rows[:, 0] == rows[:, 1]).astype(np.float64)}


def _whole(label: str) -> str:
    """A pattern for the label as words of their own; Chinese and Japanese have no spaces between words."""
    name = re.escape(label)
    return name if re.search("[\u3040-\u30ff\u3400-\u9fff]", label) else rf"(?<!\w){name}(?!\w)"


def macro_f1(truth: np.ndarray, answers: np.ndarray) -> float:
    """The mean of F1 over all classes that occur, classes as numbers, `NO_CLASS` for no answer."""
    f1 = []
    for label in np.unique(np.concatenate([truth, answers[answers != NO_CLASS]])):
        both = ((truth == label) & (answers == label)).sum()
        f1.append(2 * both / ((truth == label).sum() + (answers == label).sum()))
    return float(np.mean(f1))
