"""Speaker similarity: cosine of WavLM x-vectors (released code: at 16 kHz)."""

from typing import ClassVar

import numpy as np
import torch
from transformers import AutoFeatureExtractor, WavLMForXVector

from uniaudio2.evaluation.audio import read_audio
from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.pretrained import check_pretrained, load_pretrained

SAMPLING_RATE = 16000


class SpeakerSimilarity(ItemMetric):
    """
    Cosine of the x-vectors of the prediction and of a recording of the speaker, from -1 to 1.

    The two need not say the same, nor be of the same length; half a second is the least.

    Args:
        model (`str`, *optional*, defaults to `"microsoft/wavlm-base-plus-sv"`): A folder or a Hub id.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    description = "Cosine of WavLM x-vectors."
    inputs: ClassVar = {"predictions": "audio", "references": "audio"}
    scores: ClassVar = {"speaker_similarity": Score("higher")}

    def __init__(self, model: str = "microsoft/wavlm-base-plus-sv", device: str = "cpu", **kwargs):
        self.model_name, self.device, self.model = model, device, None
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        return super().check() + check_pretrained(self.model_name, "speaker similarity")

    def item(self, prediction, reference, sampling_rate):
        first, second = (self.embed(audio, sampling_rate) for audio in (prediction, reference))
        return (float(first @ second / (np.linalg.norm(first) * np.linalg.norm(second))),)

    @torch.no_grad()
    def embed(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        """The x-vector of a recording, of shape `(xvector_dim,)`."""
        waveform, _ = read_audio(audio, sampling_rate, SAMPLING_RATE)
        if len(waveform) < SAMPLING_RATE // 2:
            raise ValueError(f"{len(waveform) / SAMPLING_RATE:.2f} s are too short: at least 0.5 s are needed")
        if waveform.min() == waveform.max():
            raise ValueError("the recording is silent: nobody speaks")
        if self.model is None:
            self.model, self.extractor = load_pretrained(
                WavLMForXVector, AutoFeatureExtractor, self.model_name, self.device
            )
        inputs = self.extractor(waveform, sampling_rate=SAMPLING_RATE, return_tensors="pt").to(self.device)
        return self.model(**inputs).embeddings[0].double().cpu().numpy()
