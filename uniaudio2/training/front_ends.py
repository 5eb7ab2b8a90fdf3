"""Training the three front ends of a small codec: Whisper and WavLM by CTC, the music encoder by masked prediction.

The released codec takes pretrained encoders. Where there are none to be had, these objectives give features of the
same kind: Whisper's and WavLM's say which letter is spoken, the music encoder's what the spectrum looks like (BEST-RQ:
the encoder guesses, where the sound was hidden, the code that a fixed random projection gives to the true spectrum).
"""

from collections.abc import Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import nn
from transformers import Trainer

from ..modeling_uniaudio2.configuration_reasoning_codec import FRONT_END_SAMPLING_RATE, ReasoningCodecConfig
from ..modeling_uniaudio2.modeling_codec_front_ends import CodecFrontEnds, resample
from .waveforms import PaddedWaveforms


class LetterLabels:
    """Texts as sequences of letters and spaces for CTC; 0 is the blank, also used as padding.

    Args:
        texts (`Iterable[str]`): Every character that occurs in them gets a number.
    """

    def __init__(self, texts: Iterable[str]):
        self.letters = "".join(sorted(set("".join(texts))))

    @property
    def num_classes(self) -> int:
        return len(self.letters) + 1

    def encode(self, text: str) -> torch.Tensor:
        return torch.tensor([self.letters.index(letter) + 1 for letter in text])

    def decode(self, classes: Sequence[int]) -> str:
        """Text of the best class per frame: repetitions merged, blanks dropped."""
        frames = [int(c) for c in classes]
        kept = [c for c, before in zip(frames, [0, *frames], strict=False) if c not in (0, before)]
        return "".join(self.letters[c - 1] for c in kept)


class LabelledWaveforms:
    """Collator: padded waveforms with their letters (`labels (batch, longest)`, `label_lengths (batch,)`)."""

    def __init__(self, labels: LetterLabels, unit: int):
        self.labels = labels
        self.pad = PaddedWaveforms(unit)

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        letters = [self.labels.encode(item["text"]) for item in items]
        return {
            **self.pad(items),
            "labels": nn.utils.rnn.pad_sequence(letters, batch_first=True),
            "label_lengths": torch.tensor([len(sequence) for sequence in letters]),
        }


class RandomProjectionTargets(nn.Module):
    """The code of each frame of a spectrogram: nearest of `num_codes` random unit vectors to a random projection.

    Neither is ever trained (BEST-RQ, arXiv 2202.01855).
    """

    def __init__(self, num_features: int, num_codes: int, code_dim: int):
        super().__init__()
        self.register_buffer("projection", nn.init.xavier_normal_(torch.empty(num_features, code_dim)))
        self.register_buffer("codebook", F.normalize(torch.randn(num_codes, code_dim), dim=-1))

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """`(batch, frames, num_features)` -> codes `(batch, frames)`."""
        frames = F.layer_norm(frames, frames.shape[-1:])
        return (F.normalize(frames @ self.projection, dim=-1) @ self.codebook.T).argmax(dim=-1)


class FrontEndsForTraining(nn.Module):
    """All three encoders with their objectives. They share nothing but the batch; the loss is the sum.

    Args:
        config ([`ReasoningCodecConfig`]): Of the codec.
        num_classes (`int`): Letters and the CTC blank.
        num_codes, code_dim (`int`): Of the random codebook.
        mask_probability (`float`): Share of the 25 Hz frames at which a hidden span starts.
        mask_frames (`int`): Frames of a hidden span.
        mask_level (`float`): Standard deviation of the noise that replaces the sound there.
    """

    def __init__(
        self,
        config: ReasoningCodecConfig,
        num_classes: int,
        num_codes: int,
        code_dim: int,
        mask_probability: float,
        mask_frames: int,
        mask_level: float,
    ):
        super().__init__()
        self.front_ends = CodecFrontEnds(config)
        self.sampling_rate = config.sampling_rate
        self.whisper_head = nn.Linear(config.whisper_config.d_model, num_classes)
        self.wavlm_head = nn.Linear(config.wavlm_config.hidden_size, num_classes)
        music = config.music_encoder_config
        self.targets = RandomProjectionTargets(4 * music.num_mel_bins, num_codes, code_dim)
        self.music_head = nn.Linear(music.hidden_size, num_codes)
        self.mask_probability = mask_probability
        self.mask_frames = mask_frames
        self.mask_level = mask_level

    def forward(
        self,
        waveform: torch.Tensor,
        num_samples: torch.Tensor,
        labels: torch.Tensor,
        label_lengths: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """See [`LabelledWaveforms`] for the arguments. Returns `loss`, its three parts and the CTC logits."""
        resampled = resample(waveform, self.sampling_rate, FRONT_END_SAMPLING_RATE)
        frames = waveform.shape[-1] // self.front_ends.frame_length
        whisper = self.front_ends.whisper_features(resampled, waveform.shape[-1], frames)
        wavlm = self.front_ends.wavlm_features(resampled)
        whisper_logits = self.whisper_head(whisper.transpose(1, 2))
        wavlm_logits = self.wavlm_head(wavlm.transpose(1, 2))
        # Both have 50 frames per second.
        lengths = (num_samples * 50 // self.sampling_rate).clamp(max=wavlm_logits.shape[1])
        whisper_loss = self._ctc(whisper_logits, lengths, labels, label_lengths)
        wavlm_loss = self._ctc(wavlm_logits, lengths, labels, label_lengths)
        music_loss = self._masked_prediction(waveform, num_samples)
        return {
            "loss": whisper_loss + wavlm_loss + music_loss,
            "whisper_loss": whisper_loss.detach(),
            "wavlm_loss": wavlm_loss.detach(),
            "music_loss": music_loss.detach(),
            "whisper_logits": whisper_logits.detach(),
            "wavlm_logits": wavlm_logits.detach(),
        }

    @staticmethod
    def _ctc(logits, lengths, labels, label_lengths) -> torch.Tensor:
        log_probabilities = logits.float().log_softmax(dim=-1).transpose(0, 1)
        return F.ctc_loss(log_probabilities, labels, lengths, label_lengths, zero_infinity=True)

    def _masked_prediction(self, waveform: torch.Tensor, num_samples: torch.Tensor) -> torch.Tensor:
        encoder, hop = self.front_ends.music_encoder, self.front_ends.frame_length
        mel = encoder.log_mel(waveform)
        codes = self.targets(mel.transpose(1, 2).unflatten(1, (-1, 4)).flatten(2))
        starts = torch.rand(codes.shape, device=codes.device) < self.mask_probability
        hidden = F.max_pool1d(F.pad(starts.float()[:, None], (self.mask_frames - 1, 0)), self.mask_frames, stride=1)[
            :, 0
        ].bool()
        hidden_samples = hidden.repeat_interleave(hop, dim=1)
        noise = self.mask_level * torch.randn_like(waveform)
        masked = torch.where(F.pad(hidden_samples, (0, waveform.shape[1] - hidden_samples.shape[1])), noise, waveform)
        logits = self.music_head(encoder(masked)[-1])
        spoken = torch.arange(codes.shape[1], device=codes.device) < (num_samples // hop)[:, None]
        counted = hidden & spoken
        losses = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none")
        return (losses * counted.flatten()).sum() / counted.sum().clamp_min(1)


class FrontEndTrainer(Trainer):
    """[`~transformers.Trainer`] for [`FrontEndsForTraining`]; logs the three losses and not only their sum."""

    def __init__(self, model: FrontEndsForTraining, **kwargs):
        super().__init__(model=model, **kwargs)
        self.parts: dict[str, list[float]] = {}

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name in ("whisper_loss", "wavlm_loss", "music_loss"):
            self.parts.setdefault(name, []).append(outputs[name].item())
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.parts.items()}
            self.parts.clear()
        super().log(logs, *args, **kwargs)
