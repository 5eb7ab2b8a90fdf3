"""KL divergence of class posteriors: is what can be heard in the prediction what can be heard in the reference?"""

from typing import ClassVar

import numpy as np
from scipy.special import log_softmax

from uniaudio2.evaluation.embedders import DEFAULT_MODELS, get_embedder
from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.pretrained import check_pretrained


class ClassDivergence(ItemMetric):
    """
    Mean over the items of `KL(reference || prediction)`, in nats, of the softmax over AudioSet classes.

    The classifier is an audio spectrogram transformer. The published numbers use CNN14, as audioldm_eval does: the
    definition is the same, the classifier is not.

    Args:
        model (`str`, *optional*): A folder or a Hub id.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    description = "KL divergence of the class posteriors of an audio classifier."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"kl": Score("lower")}

    def __init__(self, model: str = DEFAULT_MODELS["ast"], device: str = "cpu", **kwargs):
        self.model_name, self.device = model, device
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        return super().check() + check_pretrained(self.model_name, "the audio classifier")

    def item(self, prediction, reference, sampling_rate):
        classifier = get_embedder("ast", self.model_name, self.device)
        return (divergence(*(classifier.logits(audio, sampling_rate) for audio in (reference, prediction))),)


def divergence(reference_logits: np.ndarray, predicted_logits: np.ndarray) -> float:
    """`KL(reference || prediction)` of two softmax distributions, in nats."""
    reference, predicted = log_softmax(reference_logits), log_softmax(predicted_logits)
    return float(np.exp(reference) @ (reference - predicted))
