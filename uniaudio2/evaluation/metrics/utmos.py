"""UTMOS (Saeki et al. 2022): how natural speech sounds, predicted without a reference, by tarepan/SpeechMOS."""

from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

import torch

from uniaudio2.evaluation.audio import read_audio
from uniaudio2.evaluation.metric import ItemMetric, MetricUnavailableError, Score

REPOSITORY, REVISION, PREDICTOR = "tarepan/SpeechMOS", "v1.2.0", "utmos22_strong"
WEIGHTS = "utmos22_strong_step7459_v1.pt"
SAMPLING_RATE = 16000


class Utmos(ItemMetric):
    """
    Predicted mean opinion score of naturalness, about 1 to 5, by the strong learner of UTMOS.

    The predictor is in no package: torch.hub keeps its code and its weights (0.4 GB), and its code needs torchaudio.
    Nothing is fetched here; without it the metric is left out. Silence gets the predictor's answer, which means
    nothing; a recording shorter than 0.1 s has no value.

    Args:
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    description = "UTMOS, strong learner."
    inputs: ClassVar = {"predictions": "audio"}
    scores: ClassVar = {"utmos": Score("higher")}

    def __init__(self, device: str = "cpu", **kwargs):
        self.device, self.predictor = device, None
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        remarks = super().check()
        missing = [str(path) for path in (_repository(), _weights()) if not path.exists()]
        if missing:
            raise MetricUnavailableError(
                f'UTMOS needs {" and ".join(missing)} (0.4 GB): fetch it with `python -c "import torch; '
                f"torch.hub.load('{REPOSITORY}:{REVISION}', '{PREDICTOR}', trust_repo=True)\"` where there is a "
                "network and torchaudio of the same version as torch, and copy the folder of torch.hub"
            )
        if find_spec("torchaudio") is None:
            raise MetricUnavailableError("UTMOS needs torchaudio: install that of the same version as torch")
        return remarks

    @torch.no_grad()
    def item(self, prediction, reference, sampling_rate):
        waveform, _ = read_audio(prediction, sampling_rate, SAMPLING_RATE)
        if len(waveform) < SAMPLING_RATE // 10:
            raise ValueError(f"{len(waveform) / SAMPLING_RATE:.3f} s are too short: at least 0.1 s are needed")
        if self.predictor is None:
            self.predictor = torch.hub.load(str(_repository()), PREDICTOR, source="local").to(self.device).eval()
        return (float(self.predictor(torch.from_numpy(waveform)[None].to(self.device), SAMPLING_RATE)),)


def _repository() -> Path:
    # As torch.hub names what it has fetched.
    return Path(torch.hub.get_dir(), f"{REPOSITORY.replace('/', '_')}_{REVISION}")


def _weights() -> Path:
    return Path(torch.hub.get_dir(), "checkpoints", WEIGHTS)
