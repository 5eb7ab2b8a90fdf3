"""Recordings to vectors, for distances between sets of recordings."""

import importlib
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from transformers import (
    ASTFeatureExtractor,
    ASTForAudioClassification,
    AutoFeatureExtractor,
    ClapModel,
    ClapProcessor,
    WavLMModel,
)

from .audio import read_audio
from .pretrained import check_pretrained, load_pretrained

DEFAULT_MODELS = {
    "clap": "laion/clap-htsat-unfused",
    "ast": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "wavlm": "microsoft/wavlm-base-plus",
}


class ClapEmbedder:
    """Audio and texts in the space of a CLAP checkpoint, normalised; 48 kHz."""

    def __init__(self, model: str, device: str = "cpu"):
        self.model, self.processor = load_pretrained(ClapModel, ClapProcessor, model, device)
        self.sampling_rate = self.processor.feature_extractor.sampling_rate

    @torch.no_grad()
    def __call__(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        waveform, _ = read_audio(audio, sampling_rate, self.sampling_rate)
        inputs = self.processor.feature_extractor(
            waveform,
            sampling_rate=self.sampling_rate,
            # "fusion", the extractor's default, breaks models without it; the cut is at random, hence seeded.
            truncation="fusion" if self.model.config.audio_config.enable_fusion else "rand_trunc",
            padding="repeatpad",
            return_tensors="pt",
        ).to(self.model.device)
        return self.model.get_audio_features(**inputs).pooler_output[0].double().cpu().numpy()

    @torch.no_grad()
    def embed_text(self, text: str) -> np.ndarray:
        inputs = self.processor.tokenizer(text, truncation=True, return_tensors="pt").to(self.model.device)
        return self.model.get_text_features(**inputs).pooler_output[0].double().cpu().numpy()


class AstEmbedder:
    """AudioSet classes and pooled features of an audio spectrogram transformer; 16 kHz."""

    def __init__(self, model: str, device: str = "cpu"):
        self.model, self.extractor = load_pretrained(ASTForAudioClassification, ASTFeatureExtractor, model, device)
        self.sampling_rate = self.extractor.sampling_rate

    def __call__(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        with torch.no_grad():
            return self.model.audio_spectrogram_transformer(**self._inputs(audio, sampling_rate)).pooler_output[
                0
            ].double().cpu().numpy()  # fmt: skip

    @torch.no_grad()
    def logits(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        return self.model(**self._inputs(audio, sampling_rate)).logits[0].double().cpu().numpy()

    def _inputs(self, audio, sampling_rate: int | None) -> dict[str, torch.Tensor]:
        waveform, _ = read_audio(audio, sampling_rate, self.sampling_rate)
        # The filter bank needs one window of 25 ms.
        waveform = np.pad(waveform, (0, max(0, self.sampling_rate // 40 - len(waveform))))
        return self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").to(self.model.device)


class WavLMEmbedder:
    """Mean of the last hidden states of a WavLM checkpoint; 16 kHz."""

    def __init__(self, model: str, device: str = "cpu"):
        self.model, self.extractor = load_pretrained(WavLMModel, AutoFeatureExtractor, model, device)
        self.sampling_rate = self.extractor.sampling_rate

    @torch.no_grad()
    def __call__(self, audio, sampling_rate: int | None = None) -> np.ndarray:
        waveform, _ = read_audio(audio, sampling_rate, self.sampling_rate)
        # The convolutions need 400 samples for one frame.
        waveform = np.pad(waveform, (0, max(0, 400 - len(waveform))))
        inputs = self.extractor(waveform, sampling_rate=self.sampling_rate, return_tensors="pt").to(self.model.device)
        return self.model(**inputs).last_hidden_state[0].mean(dim=0).double().cpu().numpy()


EMBEDDERS = {"clap": ClapEmbedder, "ast": AstEmbedder, "wavlm": WavLMEmbedder}


def check_embedder(kind: str, model: str | None) -> list[str]:
    """What [`ItemMetric.check`] asks, for an embedder."""
    return [] if ":" in kind else check_pretrained(model or DEFAULT_MODELS[kind], f"the {kind} embedder")


@cache
def get_embedder(kind: str, model: str | None = None, device: str = "cpu") -> Callable[..., np.ndarray]:
    """
    An embedder, loaded once.

    Args:
        kind (`str`):
            `"clap"`, `"ast"`, `"wavlm"`, or `"package.module:name"` for a function of your own: from a path, or a
            waveform and its rate, to a vector.
        model (`str`, *optional*): A folder or a Hub id, by default that of `DEFAULT_MODELS`.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """
    check_kind(kind)
    if ":" in kind:
        module, name = kind.split(":")
        return getattr(importlib.import_module(module), name)
    return EMBEDDERS[kind](model or DEFAULT_MODELS[kind], device)


def check_kind(kind: str) -> None:
    """Raises a `ValueError` for an embedder that does not exist."""
    if kind not in EMBEDDERS and kind.count(":") != 1:
        raise ValueError(f"Unknown embedder {kind!r}. There are: {', '.join(EMBEDDERS)}, or 'package.module:name'.")
