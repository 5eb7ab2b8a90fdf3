"""Captions against several references: CIDEr, BLEU, ROUGE-L, METEOR, SPICE, SPIDEr, by pycocoevalcap."""

import shutil
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.metric import ItemMetric, MetricUnavailableError, Score

BLEU = ("bleu_1", "bleu_2", "bleu_3", "bleu_4")
SCORES = {name: Score("higher") for name in (*BLEU, "rouge_l", "cider", "meteor", "spice", "spider")}
TOKENIZERS = ("ptb", "none")
SPICE_JAR = "stanford-corenlp-3.6.0.jar"


class CaptionSimilarity(ItemMetric):
    """
    Scores of COCO captions. CIDEr is CIDEr-D and weighs words by how rare they are among all references, so the score
    of an item depends on the set it is in.

    An empty caption has a score of 0. An item without a reference has no value, and CIDEr none for a single item: no
    word is rare in a set of one.

    Args:
        scores (`Sequence[str]`, *optional*, defaults to `("cider",)`):
            Of `"bleu"`, `"rouge_l"`, `"cider"`, `"meteor"` (Java), `"spice"` and `"spider"` (Java, and the CoreNLP
            models that pycocoevalcap fetches from nlp.stanford.edu).
        tokenizer (`str`, *optional*, defaults to `"ptb"`):
            `"ptb"`, the Penn Treebank tokenizer of the original tool (Java), or `"none"` for texts that are tokenised
            already, lower case, words separated by spaces.
    """

    description = "CIDEr-D, BLEU, ROUGE-L, METEOR, SPICE, SPIDEr."
    inputs: ClassVar = {"predictions": "text", "references": "texts"}
    packages = ("pycocoevalcap",)
    resamples = 1000

    def __init__(self, scores: Sequence[str] = ("cider",), tokenizer: str = "ptb", **kwargs):
        known = ("bleu", "rouge_l", "cider", "meteor", "spice", "spider")
        unknown = [name for name in scores if name not in known]
        if unknown or not scores:
            raise ValueError(f"Unknown caption scores {unknown}. There are: {', '.join(known)}.")
        if tokenizer not in TOKENIZERS:
            raise ValueError(f"`tokenizer` is {tokenizer!r}, but must be one of {', '.join(TOKENIZERS)}.")
        self.names, self.tokenizer = tuple(scores), tokenizer
        names = [name for chosen in scores for name in (BLEU if chosen == "bleu" else (chosen,))]
        self.scores = {name: SCORES[name] for name in names}
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        remarks = super().check()
        if (self.tokenizer == "ptb" or {"meteor", "spice", "spider"} & set(self.names)) and not shutil.which("java"):
            raise MetricUnavailableError(
                "caption scores need Java, for their tokenizer and for METEOR and SPICE: install a Java runtime (on "
                "Debian `apt-get install default-jre-headless`), or tokenise yourself and pass tokenizer='none'"
            )
        if {"spice", "spider"} & set(self.names):
            folder = Path(find_spec("pycocoevalcap").submodule_search_locations[0], "spice")
            if not (folder / "lib" / SPICE_JAR).is_file():
                raise MetricUnavailableError(
                    f"SPICE needs {SPICE_JAR} (0.4 GB), which is not on this machine: fetch it with "
                    "`python -m pycocoevalcap.spice.get_stanford_models` where there is a network"
                )
        return remarks

    def items(self, predictions, references=None, sampling_rate=None, failures=None) -> np.ndarray:
        # The whole set at once; what the base class calls `item` is only the check of each.
        rows, good = self.checked_items(predictions, references, sampling_rate, failures)
        if len(good) == 1 and {"cider", "spider"} & set(self.names):
            raise ValueError("CIDEr weighs words by how rare they are in the set: it needs at least two items")
        if good:
            captions = {index: [predictions[index] or ""] for index in good}
            rows[good] = self._scored(captions, {index: _listed(references[index]) for index in good})
        return rows

    def item(self, prediction, reference, sampling_rate):
        if not [text for text in _listed(reference) if text.strip()]:
            raise ValueError("there is no reference caption")
        return (0.0,) * len(self.scores)

    def _scored(self, captions: dict[int, list[str]], references: dict[int, list[str]]) -> np.ndarray:
        if self.tokenizer == "ptb":
            captions, references = _tokenized(captions), _tokenized(references)
        wanted, columns = set(self.names), {}
        if "bleu" in wanted:
            from pycocoevalcap.bleu.bleu import Bleu

            _, scores = Bleu(4).compute_score(references, captions, verbose=0)
            columns.update(zip(BLEU, scores, strict=True))
        if "rouge_l" in wanted:
            from pycocoevalcap.rouge.rouge import Rouge

            # It divides by the number of words.
            scorer = Rouge()
            columns["rouge_l"] = [
                scorer.calc_score(captions[index], references[index]) if captions[index][0] else 0.0
                for index in captions
            ]
        if wanted & {"cider", "spider"}:
            from pycocoevalcap.cider.cider import Cider

            columns["cider"] = Cider().compute_score(references, captions)[1]
        if "meteor" in wanted:
            columns["meteor"] = _meteor(references, captions)
        if wanted & {"spice", "spider"}:
            from pycocoevalcap.spice.spice import Spice

            columns["spice"] = [item["All"]["f"] for item in Spice().compute_score(references, captions)[1]]
        if "spider" in wanted:
            columns["spider"] = (np.asarray(columns["cider"]) + np.asarray(columns["spice"])) / 2
        return np.stack([np.asarray(columns[name], dtype=np.float64) for name in self.scores], axis=1)


def _listed(reference) -> list[str]:
    return [reference] if isinstance(reference, str) else [text for text in reference or [] if text is not None]


def _tokenized(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    # Its lines must not be empty: it would lose count.
    lines = {index: [{"caption": text.strip() or "."} for text in group] for index, group in texts.items()}
    return PTBTokenizer().tokenize(lines)


def _meteor(references: dict[int, list[str]], captions: dict[int, list[str]]) -> list[float]:
    from pycocoevalcap.meteor.meteor import Meteor

    scorer = Meteor()
    try:
        return scorer.compute_score(references, captions)[1]
    finally:
        scorer.meteor_p.stdin.close()
        scorer.meteor_p.wait()
