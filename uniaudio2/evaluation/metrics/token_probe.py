"""What codec tokens tell: a linear classifier of frozen tokens, as for an emotion or a speaker."""

from typing import ClassVar

import numpy as np
from scipy.sparse import csr_matrix, vstack

from uniaudio2.evaluation.codes import check_stream, read_codes
from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.metrics.classification import macro_f1


class TokenProbe(ItemMetric):
    """
    How well a linear classifier tells a label from the codes of a recording alone, which stay as they are.

    A recording is how often each code of each codebook occurs in it: the square roots of the shares, so that every
    codebook is a vector of length 1. The classifier is scikit-learn's logistic regression. Every item is classified by
    one that has not seen it, in a cross-validation whose folds hold the classes in equal shares. What the order of the
    codes tells is lost: this is a lower bound. The paper instead trains a language model on the tokens.

    `majority` is the accuracy of always naming the commonest class of the training folds: what knowing nothing gives.

    Args:
        stream (`str`, *optional*, defaults to `"reasoning"`): `"reasoning"` or `"reconstruction"`.
        folds (`int`, *optional*, defaults to 5): Of the cross-validation.
        seed (`int`, *optional*, defaults to 0): Of the folds.
    """

    description = "Accuracy of a linear classifier of frozen codec tokens, cross-validated."
    inputs: ClassVar = {"predictions": "codes", "references": "text"}
    packages = ("sklearn",)

    def __init__(self, stream: str = "reasoning", folds: int = 5, seed: int = 0, **kwargs):
        if folds < 2:
            raise ValueError(f"`folds` is {folds}, but must be at least 2.")
        self.stream, self.folds = check_stream(stream), folds
        self.scores = {
            f"{stream}_{name}": Score("higher", percent=True) for name in ("accuracy", "macro_f1", "majority")
        }
        super().__init__(**kwargs)
        # `evaluate.Metric` has a seed of its own, which is not 0.
        self.seed = seed

    def items(self, predictions, references=None, sampling_rate=None, failures=None) -> np.ndarray:
        """Rows of the class of the reference, that of the classifier, and the commonest, as numbers."""
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold

        self._found: list[tuple[str, np.ndarray]] = []
        # The whole set at once; what the base class calls `item` reads the codes of each.
        rows, good = self.checked_items(predictions, references, sampling_rate, failures)
        names, labels, counts = np.unique([label for label, _ in self._found], return_inverse=True, return_counts=True)
        if len(names) < 2 or counts.min() < self.folds:
            found = [f"{count} of {str(name)!r}" for name, count in zip(names, counts, strict=True)]
            raise ValueError(
                f"a probe needs two classes of {self.folds} items each, but got {', '.join(found) or 'no item'}"
            )
        features = _shares([codes for _, codes in self._found])
        folds = StratifiedKFold(self.folds, shuffle=True, random_state=self.seed)
        for train, held_out in folds.split(features, labels):
            classifier = LogisticRegression(C=10.0, max_iter=1000).fit(features[train], labels[train])
            commonest = np.bincount(labels[train]).argmax()
            for place, answer in zip(held_out, classifier.predict(features[held_out]), strict=True):
                rows[good[place]] = labels[place], answer, commonest
        return rows

    def item(self, prediction, reference, sampling_rate):
        if not (reference or "").strip():
            raise ValueError("the item has no label")
        self._found.append((reference, read_codes(prediction, self.stream)))
        return (np.nan,) * len(self.scores)

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        truth, answers, commonest = rows.T
        values = ((truth == answers).mean(), macro_f1(truth, answers), (truth == commonest).mean())
        return dict(zip(self.scores, map(float, values), strict=True))

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{self.stream}_accuracy": (rows[:, 0] == rows[:, 1]).astype(np.float64)}


def _shares(recordings: list[np.ndarray]) -> csr_matrix:
    """The square roots of the shares of all codes, of shape `(recordings, num_codebooks * codebook size)`."""
    if len({len(codes) for codes in recordings}) > 1:
        raise ValueError(f"items have {sorted({len(codes) for codes in recordings})} codebooks, but need as many each")
    size = 1 + max(int(codes.max()) for codes in recordings)
    rows = []
    for codes in recordings:
        ids, counts = np.unique(codes + size * np.arange(len(codes))[:, None], return_counts=True)
        shares = np.sqrt(counts / codes.shape[1])
        rows.append(csr_matrix((shares, ids, [0, len(ids)]), shape=(1, len(codes) * size)))
    return vstack(rows, format="csr")
