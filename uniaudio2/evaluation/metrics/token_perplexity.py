"""Perplexity of codec tokens: how surprised is a small language model that was trained on the codes?"""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.code_language_model import Budget, CodeLanguageModel
from uniaudio2.evaluation.codes import check_splits, check_stream, read_codes
from uniaudio2.evaluation.metric import ItemMetric, Score


class TokenPerplexity(ItemMetric):
    """
    Perplexity per code, on the held-out items, of a small Llama that was trained on the codes of the training items.

    The codes of one stream stand in a row, frame after frame and codebook after codebook, so the perplexity is that of
    all codebooks together: `exp` of the mean surprise of a code. Uniform codes have the size of a codebook, a constant
    has 1. It depends on the budget and on how much there is to learn from; only numbers of one budget and one data set
    compare. What network and budget the paper measures with is not known here.

    `references` name the split of every item. Items of the training split have a row of NaN and count nowhere.

    Args:
        stream (`str`, *optional*, defaults to `"reconstruction"`): `"reasoning"` or `"reconstruction"`.
        train, held_out (`str`, *optional*, default to `"train"` and `"test"`): Names of the two splits.
        seed (`int`, *optional*, defaults to 0): Of the language model.
        device (`str`, *optional*, defaults to `"cpu"`): Where it is trained.
        budget: See [`Budget`]: `steps`, `batch_size`, `window_frames`, `hidden_size`, `num_layers`, `num_heads`,
            `learning_rate`.
    """

    description = "Perplexity per codec token of a small language model trained on the codes."
    inputs: ClassVar = {"predictions": "codes", "references": "text"}

    def __init__(
        self,
        stream: str = "reconstruction",
        train: str = "train",
        held_out: str = "test",
        seed: int = 0,
        device: str = "cpu",
        steps: int = Budget.steps,
        batch_size: int = Budget.batch_size,
        window_frames: int = Budget.window_frames,
        hidden_size: int = Budget.hidden_size,
        num_layers: int = Budget.num_layers,
        num_heads: int = Budget.num_heads,
        learning_rate: float = Budget.learning_rate,
        **kwargs,
    ):
        self.stream, self.train, self.held_out = check_stream(stream), train, held_out
        self.device = device
        self.budget = Budget(
            steps=steps, batch_size=batch_size, window_frames=window_frames, hidden_size=hidden_size,
            num_layers=num_layers, num_heads=num_heads, learning_rate=learning_rate,
        )  # fmt: skip
        self.scores = {f"{stream}_perplexity": Score("lower")}
        super().__init__(**kwargs)
        # `evaluate.Metric` has a seed of its own, which is not 0.
        self.seed = seed

    def items(self, predictions, references=None, sampling_rate=None, failures=None) -> np.ndarray:
        """Rows of the surprise of all codes, in nats, and their number; NaN for items that are not held out."""
        self._found: list[tuple[str, np.ndarray]] = []
        # The whole set at once; what the base class calls `item` reads the codes of each.
        rows, good = self.checked_items(predictions, references, sampling_rate, failures)
        training = [codes for split, codes in self._found if split == self.train]
        measured = {
            index: codes for index, (split, codes) in zip(good, self._found, strict=True) if split == self.held_out
        }
        codebooks, size = check_splits(training, list(measured.values()), self.train, self.held_out)
        model = CodeLanguageModel(codebooks, size, self.budget, self.seed, self.device)
        model.learn(training)
        for index, codes in measured.items():
            rows[index] = model.surprise(codes), codes.size
        return rows

    def item(self, prediction, reference, sampling_rate):
        self._found.append((reference, read_codes(prediction, self.stream)))
        return (np.nan, np.nan)

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        surprise, codes = rows[np.isfinite(rows).all(axis=1)].sum(axis=0)
        return {f"{self.stream}_perplexity": float(np.exp(surprise / codes))}

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {f"{self.stream}_perplexity": np.exp(rows[:, 0] / rows[:, 1])}
