"""Independent recognisers: what does a listener that is not the model hear?"""

import tempfile
from functools import cache
from typing import Any

import numpy as np
import soxr
import torch
from transformers import WhisperForConditionalGeneration, WhisperProcessor

from .audio import read_audio
from .metric import EXTRA
from .pretrained import check_pretrained, load_pretrained

RECOGNISER_RATE = 16000

# `wip` and `lw` were chosen on other strings; the recogniser then makes 0 to 3% errors on the voices of the shipped
# checkpoint.
GRAMMAR = """#JSGF V1.0;
grammar digits;
public <string> = (zero | one | two | three | four | five | six | seven | eight | nine)+;
"""


class DigitRecogniser:
    """Pocketsphinx with a grammar that knows the ten digits and nothing else. Needs no download."""

    def __init__(self):
        try:
            from pocketsphinx import Decoder
        except ImportError as error:
            raise ImportError(f"The digit recogniser needs pocketsphinx: {EXTRA}") from error

        with tempfile.NamedTemporaryFile("w", suffix=".jsgf") as grammar:
            grammar.write(GRAMMAR)
            grammar.flush()
            self.decoder = Decoder(jsgf=grammar.name, loglevel="FATAL", wip=1e-4, lw=6.5)

    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """What is said in a waveform of shape `(samples,)`; an empty text if nothing is heard."""
        waveform = soxr.resample(waveform, sampling_rate, RECOGNISER_RATE)
        waveform = np.pad(waveform, round(0.3 * RECOGNISER_RATE))
        waveform = 0.7 * waveform / max(np.abs(waveform).max(), 1e-9)
        self.decoder.start_utt()
        self.decoder.process_raw((waveform * 32767).astype(np.int16).tobytes(), full_utt=True)
        self.decoder.end_utt()
        hypothesis = self.decoder.hyp()
        return hypothesis.hypstr if hypothesis else ""


class WhisperRecogniser:
    """
    A Whisper checkpoint of transformers, decoding greedily (released code: large-v3).

    Args:
        model (`str`): A folder or a Hub id.
        language (`str`, *optional*): Spoken language; by default Whisper finds out.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    def __init__(self, model: str, language: str | None = None, device: str = "cpu"):
        self.model, self.processor = load_pretrained(WhisperForConditionalGeneration, WhisperProcessor, model, device)
        self.language = language

    @torch.no_grad()
    def __call__(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """What is said in a waveform of shape `(samples,)`, of any length."""
        waveform = soxr.resample(waveform, sampling_rate, RECOGNISER_RATE)
        # Whisper reads windows of 30 s; longer recordings go window by window, guided by its time stamps.
        is_long = len(waveform) > self.processor.feature_extractor.n_samples
        inputs = self.processor(
            waveform,
            sampling_rate=RECOGNISER_RATE,
            return_tensors="pt",
            return_attention_mask=True,
            **({"truncation": False, "padding": "longest"} if is_long else {}),
        ).to(self.model.device)
        options = {"language": self.language, "task": "transcribe"} if self.language else {}
        ids = self.model.generate(**inputs, do_sample=False, return_timestamps=is_long or None, **options)
        return self.processor.decode(ids[0], skip_special_tokens=True).strip()


def check_recogniser(name: str) -> list[str]:
    """What [`ItemMetric.check`] asks, for a recogniser: `"digits"`, or a Whisper folder or Hub id."""
    return [] if name == "digits" else check_pretrained(name, "the recogniser")


@cache
def get_recogniser(name: str, language: str | None = None, device: str = "cpu"):
    """The recogniser of that name, loaded once: `"digits"`, or a Whisper folder or Hub id."""
    return DigitRecogniser() if name == "digits" else WhisperRecogniser(name, language, device)


def heard(name: str, audio: Any, sampling_rate: int | None, language: str | None = None, device: str = "cpu") -> str:
    """
    What a recogniser hears in a recording, a file or a waveform.

    Audio that is missing, broken or empty is an empty text, so that a system cannot gain by answering with nothing.
    """
    recogniser = get_recogniser(name, language, device)
    try:
        waveform = read_audio(audio, sampling_rate, None)
    except ValueError:
        return ""
    return recogniser(*waveform)
