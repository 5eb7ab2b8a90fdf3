"""CLAP score: does a recording fit its description?"""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.embedders import DEFAULT_MODELS, get_embedder
from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.pretrained import check_pretrained


class ClapScore(ItemMetric):
    """
    Cosine of the CLAP embeddings of a recording and of its text, from -1 to 1.

    What the paper abbreviates CP is taken to be this score.

    Args:
        model (`str`, *optional*, defaults to `"laion/clap-htsat-unfused"`): A folder or a Hub id.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    description = "Cosine of CLAP embeddings of audio and text."
    inputs: ClassVar = {"predictions": "audio", "references": "text"}
    scores: ClassVar = {"clap": Score("higher")}

    def __init__(self, model: str = DEFAULT_MODELS["clap"], device: str = "cpu", **kwargs):
        self.model_name, self.device = model, device
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        return super().check() + check_pretrained(self.model_name, "the CLAP score")

    def item(self, prediction, reference, sampling_rate):
        if not (reference or "").strip():
            raise ValueError("the description is empty")
        embedder = get_embedder("clap", self.model_name, self.device)
        audio, text = embedder(prediction, sampling_rate), embedder.embed_text(reference)
        return (float(audio @ text / (np.linalg.norm(audio) * np.linalg.norm(text))),)
