"""Word and character error rate (jiwer), of texts or of what a recogniser hears."""

from typing import ClassVar

import jiwer
import numpy as np

from uniaudio2.evaluation.metric import ItemMetric, Score, ratio
from uniaudio2.evaluation.normalizers import get_normalizer
from uniaudio2.evaluation.recognisers import check_recogniser, heard


class WordErrorRate(ItemMetric):
    """
    Errors per word (`wer`) and character (`cer`) of the references, and the share of items that are right (`exact`).

    An empty prediction counts as everything left out. An empty reference is an error: nothing was said. Audio that is
    missing, broken or silent is heard as an empty text, so that a system cannot gain by answering with nothing.

    Args:
        normalizer (`str`, *optional*, defaults to `"english"`): See [`get_normalizer`].
        recogniser (`str`, *optional*):
            For predictions that are audio: who listens, `"digits"` or a Whisper folder or Hub id.
        language (`str`, *optional*): What the recogniser expects.
        average (`str`, *optional*, defaults to `"words"`):
            `"words"`: errors over words of all items together, as is the custom. `"items"`: the mean of the rates of
            the items, as SEED-TTS-eval has it.
        device (`str`, *optional*, defaults to `"cpu"`): Where the recogniser runs.
    """

    description = "Word and character error rate."
    scores: ClassVar = {
        "wer": Score("lower", percent=True),
        "cer": Score("lower", percent=True),
        "exact": Score("higher", True),
    }
    packages = ("jiwer",)

    def __init__(
        self,
        normalizer: str = "english",
        recogniser: str | None = None,
        language: str | None = None,
        average: str = "words",
        device: str = "cpu",
        **kwargs,
    ):
        if average not in ("words", "items"):
            raise ValueError(f"`average` is {average!r}, but must be 'words' or 'items'.")
        self.average = average
        self.normalize = get_normalizer(normalizer)
        self.recogniser, self.language, self.device = recogniser, language, device
        # What the recogniser heard in each item, in order; filled by `items`.
        self.heard: list[str] = []
        self.inputs = {"predictions": "audio" if recogniser else "text", "references": "text"}
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        if self.recogniser == "digits":
            self.packages = ("jiwer", "pocketsphinx")
        return super().check() + (check_recogniser(self.recogniser) if self.recogniser else [])

    def items(self, *args, **kwargs) -> np.ndarray:
        """Rows of word errors, words, character errors, characters, and 1 if the item is right."""
        self.heard = []
        return super().items(*args, **kwargs)

    def item(self, prediction, reference, sampling_rate):
        said = self.normalize(reference or "")
        if not said:
            raise ValueError(f"the reference {reference!r} holds no word after normalisation")
        text = prediction
        if self.recogniser:
            text = heard(self.recogniser, prediction, sampling_rate, self.language, self.device)
            self.heard.append(text)
        answer = self.normalize(text or "")
        words, characters = jiwer.process_words(said, answer), jiwer.process_characters(said, answer)
        return (
            words.substitutions + words.deletions + words.insertions,
            len(said.split()),
            characters.substitutions + characters.deletions + characters.insertions,
            len(said),
            said == answer,
        )

    def aggregate(self, rows: np.ndarray) -> dict[str, float]:
        if self.average == "items":
            return {name: float(values.mean()) for name, values in self.values(rows).items()}
        word_errors, words, character_errors, characters, exact = rows.sum(axis=0)
        return {
            "wer": float(word_errors / words),
            "cer": float(character_errors / characters),
            "exact": float(exact / len(rows)),
        }

    def values(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {"wer": ratio(rows[:, 0], rows[:, 1]), "cer": ratio(rows[:, 2], rows[:, 3]), "exact": rows[:, 4]}
