"""DNSMOS P.835: what listeners would say of speech, predicted without a reference, by the package speechmos."""

from typing import ClassVar

import numpy as np

from uniaudio2.evaluation.audio import read_audio
from uniaudio2.evaluation.metric import ItemMetric, Score

SAMPLING_RATE = 16000


class OpinionScore(ItemMetric):
    """
    Predicted mean opinion scores, 1 to 5: speech (`sig_mos`), background (`bak_mos`), overall (`ovrl_mos`), and the
    older P.808 score (`p808_mos`).

    Short recordings are repeated up to 9 s, as the original tool does. Samples beyond full scale are limited to it.
    Silence gets the predictor's answer, which means nothing; a recording shorter than 0.1 s has no value.
    """

    description = "DNSMOS P.835 and P.808 (Reddy et al. 2022)."
    inputs: ClassVar = {"predictions": "audio"}
    scores: ClassVar = {name: Score("higher") for name in ("ovrl_mos", "sig_mos", "bak_mos", "p808_mos")}
    packages = ("speechmos", "librosa", "onnxruntime")
    extra = "pip install 'uniaudio2[mos]'"

    def item(self, prediction, reference, sampling_rate):
        from speechmos import dnsmos

        waveform, _ = read_audio(prediction, sampling_rate, SAMPLING_RATE)
        if len(waveform) < SAMPLING_RATE // 10:
            raise ValueError(f"{len(waveform) / SAMPLING_RATE:.3f} s are too short: at least 0.1 s are needed")
        opinion = dnsmos.run(np.clip(waveform, -1, 1), SAMPLING_RATE)
        return tuple(opinion[name] for name in self.scores)
