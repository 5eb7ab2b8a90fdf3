"""Speech recognition from codec tokens: what does a small language model, trained on frozen tokens, write?"""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.code_recognizer import CodeRecognizer, RecognizerBudget
from uniaudio2.evaluation.codes import check_splits, check_stream, read_codes
from uniaudio2.evaluation.metric import ItemMetric

# As a module: `evaluate.load` takes the first metric that it finds in here.
from uniaudio2.evaluation.metrics import word_error_rate


class TokenRecognition(ItemMetric):
    """
    Errors per word and character, on the held-out items, of a small Llama that learnt from the codes of the training
    items to write their transcripts.

    The model reads the frames of one stream, each the sum of the embeddings of its codes, and writes characters. It
    starts from nothing and knows no language but that of the transcripts. The rates depend on the budget and on how
    much there is to learn from; only numbers of one budget and one data set compare. What network and budget the paper
    measures with is not known here.

    `references` name the split and the transcript of every item. Items of the training split have a row of NaN and
    count nowhere.

    Args:
        stream (`str`, *optional*, defaults to `"reasoning"`): `"reasoning"` or `"reconstruction"`.
        train, held_out (`str`, *optional*, default to `"train"` and `"test"`): Names of the two splits.
        normalizer (`str`, *optional*, defaults to `"english"`):
            Of what is compared, see [`get_normalizer`]; the model learns the transcripts as they are.
        seed (`int`, *optional*, defaults to 0): Of the language model.
        device (`str`, *optional*, defaults to `"cpu"`): Where it is trained.
        budget: See [`RecognizerBudget`]: `steps`, `batch_size`, `hidden_size`, `num_layers`, `num_heads`,
            `learning_rate`.
    """

    description = "Word error rate of a small language model trained to write what codec tokens say."
    inputs: ClassVar = {"predictions": "codes", "references": "texts"}
    packages = word_error_rate.WordErrorRate.packages

    def __init__(
        self,
        stream: str = "reasoning",
        train: str = "train",
        held_out: str = "test",
        normalizer: str = "english",
        seed: int = 0,
        device: str = "cpu",
        steps: int = RecognizerBudget.steps,
        batch_size: int = RecognizerBudget.batch_size,
        hidden_size: int = RecognizerBudget.hidden_size,
        num_layers: int = RecognizerBudget.num_layers,
        num_heads: int = RecognizerBudget.num_heads,
        learning_rate: float = RecognizerBudget.learning_rate,
        **kwargs,
    ):
        self.stream, self.train, self.held_out = check_stream(stream), train, held_out
        self.device = device
        self.budget = RecognizerBudget(
            steps=steps, batch_size=batch_size, hidden_size=hidden_size, num_layers=num_layers, num_heads=num_heads,
            learning_rate=learning_rate,
        )  # fmt: skip
        self.errors = word_error_rate.WordErrorRate(normalizer)
        self.scores = {f"{stream}_{name}": score for name, score in self.errors.scores.items()}
        # What was written for each held-out item, in order; filled by `items`.
        self.heard: list[str] = []
        super().__init__(**kwargs)
        # `evaluate.Metric` has a seed of its own, which is not 0.
        self.seed = seed

    def items(self, predictions, references=None, sampling_rate=None, failures=None) -> np.ndarray:
        """Rows as of [`WordErrorRate`]; NaN for items that are not held out."""
        self._found: list[tuple[str, str, np.ndarray]] = []
        # The whole set at once; what the base class calls `item` reads the codes and the transcript of each.
        rows, good = self.checked_items(predictions, references, sampling_rate, failures)
        training = [(codes, text) for split, text, codes in self._found if split == self.train]
        measured = {
            index: (codes, text)
            for index, (split, text, codes) in zip(good, self._found, strict=True)
            if split == self.held_out
        }
        recordings = [codes for codes, _ in training]
        held_out = [codes for codes, _ in measured.values()]
        codebooks, size = check_splits(recordings, held_out, self.train, self.held_out)
        transcripts = [text for _, text in training]
        alphabet = sorted(set("".join(transcripts)))
        model = CodeRecognizer(codebooks, size, alphabet, self.budget, self.seed, self.device)
        model.learn(recordings, transcripts)
        self.heard = model.write(held_out)
        for (index, (_, text)), written in zip(measured.items(), self.heard, strict=True):
            rows[index] = self.errors.item(written, text, None)
        return rows

    def item(self, prediction, reference, sampling_rate):
        if not isinstance(reference, (list, tuple)) or len(reference) != 2:
            raise ValueError(f"a reference is the split and the transcript of the item, but is {reference!r}")
        split, text = reference
        if split in (self.train, self.held_out) and not (isinstance(text, str) and self.errors.normalize(text)):
            raise ValueError(f"the transcript {text!r} holds no word after normalisation")
        self._found.append((split, text, read_codes(prediction, self.stream)))
        return (np.nan,) * 5

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        return self._named(self.errors.aggregate(rows[np.isfinite(rows).all(axis=1)]))

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._named(self.errors.values(rows))

    def _named(self, values: dict) -> dict:
        return {f"{self.stream}_{name}": value for name, value in values.items()}
