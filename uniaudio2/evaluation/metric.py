"""What all metrics share: numbers of every item, one number over all of them, and a word on what is not here."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from inspect import signature
from typing import Any, ClassVar, Literal

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as SequenceFeature
from tqdm import tqdm

EXTRA = "pip install 'uniaudio2[evaluate]'"

_FEATURES = {
    "text": (Value("string"),),
    "texts": (SequenceFeature(Value("string")), Value("string")),
    "audio": (SequenceFeature(Value("float32")), Value("string")),
    "number": (Value("float64"),),
    "codes": (SequenceFeature(SequenceFeature(Value("int64"))), Value("string")),
}


class MetricUnavailableError(RuntimeError):
    """A metric cannot run here: a package or a model is missing. The message says which, and how to get it."""


@dataclass(frozen=True)
class Score:
    """
    How one number of a metric is read.

    Args:
        better (`str`): `"lower"` or `"higher"`.
        percent (`bool`, *optional*, defaults to `False`): Whether tables show it as a percentage.
    """

    better: Literal["lower", "higher"]
    percent: bool = False


class ItemMetric(evaluate.Metric, ABC):
    """
    A metric in two steps: `items` gives a row of numbers per item, `aggregate` one value per score over all rows.

    The two steps make confidence intervals and paired tests the same for all: rows are drawn again, and aggregated.
    As an [`evaluate.Metric`] it computes both at once, from lists of texts, or of waveforms (with `sampling_rate`) or
    paths.
    """

    scores: ClassVar[Mapping[str, Score]]
    # What `predictions` and `references` hold: "text", "texts" (several references), "audio", "number" or "codes".
    inputs: ClassVar[Mapping[str, str]]
    description: ClassVar[str] = ""
    citation: ClassVar[str] = ""
    # Modules that must be importable, and what installs them.
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = EXTRA
    # Bootstrap resamples; fewer where one aggregation takes long.
    resamples: ClassVar[int] = 1000
    # Whether a score of drawn items is farther from what it estimates than that of all, as a distance of two sets is.
    has_set_bias: ClassVar[bool] = False
    # The title of a progress bar over the items; none without it.
    progress: str | None = None

    def __init__(self, **kwargs):
        # `evaluate.Metric` would take a misspelt option without a word.
        unknown = [name for name in kwargs if name not in signature(evaluate.Metric.__init__).parameters]
        if unknown:
            options = [name for name in signature(type(self).__init__).parameters if name not in ("self", "kwargs")]
            raise ValueError(
                f"{type(self).__name__} has no option {', '.join(map(repr, unknown))}; its options are: "
                f"{', '.join(options) or 'none'}."
            )
        super().__init__(**kwargs)

    def _info(self) -> evaluate.MetricInfo:
        kinds = [_FEATURES[kind] for kind in self.inputs.values()]
        variants = [
            Features({name: kind[min(index, len(kind) - 1)] for name, kind in zip(self.inputs, kinds, strict=True)})
            for index in range(max(map(len, kinds)))
        ]
        return evaluate.MetricInfo(
            description=self.description,
            citation=self.citation,
            inputs_description=f"Takes {' and '.join(f'{name} ({kind})' for name, kind in self.inputs.items())}.",
            features=variants,
        )

    def _compute(self, predictions, references=None, sampling_rate: int | None = None) -> dict[str, float]:
        return self.aggregate(self.items(predictions, references, sampling_rate))

    def check(self) -> list[str]:
        """
        Whether the metric can run here, before anything starts.

        Returns:
            `list[str]`: Remarks for the user, as on models that are going to be downloaded.

        Raises:
            MetricUnavailableError: if a package, a program or a model is missing.
        """
        missing = [name for name in self.packages if find_spec(name) is None]
        if missing:
            raise MetricUnavailableError(f"{type(self).__name__} needs {', '.join(missing)}: {self.extra}")
        return []

    def items(
        self,
        predictions: Sequence[Any],
        references: Sequence[Any] | None = None,
        sampling_rate: int | None = None,
        failures: dict[int, str] | None = None,
    ) -> np.ndarray:
        """
        One row of numbers per item.

        Args:
            predictions, references: As in `inputs`.
            sampling_rate (`int`, *optional*): Of audio that comes as waveforms; files know their own.
            failures (`dict[int, str]`, *optional*):
                Takes the message for every item without a value, whose row is NaN. Without it that is an error.

        Raises:
            ValueError: for an item that has no value, unless `failures` is given.
        """
        references = [None] * len(predictions) if references is None else references
        if len(predictions) != len(references):
            raise ValueError(f"{len(predictions)} predictions need as many references, but got {len(references)}.")
        if not len(predictions):
            raise ValueError("There are no predictions to score.")
        rows: list[Sequence[float] | None] = []
        bar = tqdm(predictions, desc=self.progress, unit=" items", disable=self.progress is None)
        for index, (prediction, reference) in enumerate(zip(bar, references, strict=True)):
            try:
                self._check_texts(prediction, reference)
                rows.append(self.item(prediction, reference, sampling_rate))
            except ValueError as error:
                if failures is None:
                    raise ValueError(f"Item {index}: {error}") from error
                failures[index] = str(error)
                rows.append(None)
        width = max((len(row) for row in rows if row is not None), default=len(self.scores))
        return np.array([[np.nan] * width if row is None else row for row in rows], dtype=np.float64)

    def _check_texts(self, *values: Any) -> None:
        for kind, value in zip(self.inputs.values(), values, strict=False):
            if kind == "text" and value is not None and not isinstance(value, str):
                raise ValueError(f"a text must be a string, but is {value!r}")

    def checked_items(self, predictions, references, sampling_rate, failures) -> tuple[np.ndarray, list[int]]:
        """For metrics of the whole set: the rows that `item` gives, and the indices of the items that have one."""
        found: dict[int, str] = {}
        rows = ItemMetric.items(self, predictions, references, sampling_rate, found if failures is not None else None)
        (failures if failures is not None else {}).update(found)
        return rows, [index for index in range(len(rows)) if index not in found]

    @abstractmethod
    def item(self, prediction: Any, reference: Any, sampling_rate: int | None) -> Sequence[float]:
        """The row of one item. Raises a `ValueError` if it has none."""

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        """The scores over all rows, of shape `(items, numbers)`: their means, unless a metric says otherwise."""
        return dict(zip(self.scores, rows.mean(axis=0).tolist(), strict=True))

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """The score of each item alone, for the scores that an item has."""
        return dict(zip(self.scores, rows.T, strict=True))


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Errors per reference unit; without units it is 0 for no errors and infinite otherwise."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(denominator > 0, numerator / denominator, np.where(numerator > 0, np.inf, 0.0))
