"""Training the scalar decoder on painted latents: what the flow decoder makes of codes is never quite a real latent.

The waveform of a recording and the latents painted from its codes share their timing and their spectrum, not their
phase, so the loss is one that does not hear phase.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm

from ..modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from ..modeling_uniaudio2.modeling_flow_decoder import sample_flow
from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from ..modeling_uniaudio2.modeling_scalar_codec import ScalarCodec
from .spectral_loss import MultiScaleSpectralLoss
from .waveforms import WaveformDataset


@torch.no_grad()
def paint_corpus(codec: ReasoningCodecModel, rows: Sequence[dict], batch_size: int, path: Path) -> None:
    """Write the latents painted from codes, a list of float16 tensors of shape `(frames at 25 Hz, latent_dim)`.

    Args:
        codec ([`ReasoningCodecModel`]): Of which the flow decoder paints, with its default settings.
        rows (`Sequence[dict]`): As [`~uniaudio2.training.language_model.encode_corpus`] writes them, not longer than
            a window of decoding.
        batch_size (`int`): Most recordings at once.
        path (`Path`): The file.
    """
    config = codec.config
    by_length = defaultdict(list)
    for index, row in enumerate(rows):
        by_length[row["reconstruction_codes"].shape[1]].append(index)
    batches = [
        indices[start : start + batch_size]
        for indices in by_length.values()
        for start in range(0, len(indices), batch_size)
    ]
    painted: list = [None] * len(rows)
    for batch in tqdm(batches, desc="painting"):
        codes = torch.stack([rows[index]["reconstruction_codes"] for index in batch]).long().to(codec.device)
        condition = codec.flow_conditioner(codec.reconstruction_branch.dequantize(codes.transpose(1, 2)))
        latents = sample_flow(
            codec.flow_decoder,
            codec.scheduler,
            noise=torch.randn(len(batch), condition.shape[1], config.latent_dim).to(codec.device),
            condition=condition,
            num_inference_steps=config.num_flow_steps,
            guidance_scale=config.flow_guidance_scale,
            sigma_min=config.sigma_min,
        )
        for index, item in zip(batch, latents, strict=True):
            painted[index] = item.half().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(painted, path)


class PaintedRecordings(Dataset):
    """Painted latents beside the recordings: dicts of `latents (frames, latent_dim)` and `waveform (samples,)`."""

    def __init__(self, latents: Sequence[torch.Tensor], recordings: WaveformDataset):
        self.latents = latents
        self.recordings = recordings

    def __len__(self) -> int:
        return len(self.latents)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {
            "latents": self.latents[index].float(),
            "waveform": torch.from_numpy(self.recordings[index]["waveform"]),
        }


class PaintedCrops:
    """Collator: one random crop of `num_frames` frames of each, the end of a shorter one padded with zeros."""

    def __init__(self, num_frames: int, hop_length: int):
        self.num_frames = num_frames
        self.hop_length = hop_length

    def __call__(self, items: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        latents = torch.zeros(len(items), self.num_frames, items[0]["latents"].shape[1])
        waveform = torch.zeros(len(items), self.num_frames * self.hop_length)
        for row, item in enumerate(items):
            start = int(torch.randint(max(0, len(item["latents"]) - self.num_frames) + 1, ()))
            frames = item["latents"][start : start + self.num_frames]
            samples = item["waveform"][start * self.hop_length :][: self.num_frames * self.hop_length]
            latents[row, : len(frames)] = frames
            waveform[row, : len(samples)] = samples
        return {"latents": latents, "waveform": waveform}


class ScalarDecoderForTraining(nn.Module):
    """The decoder of a scalar autoencoder with a loss on given latents, which are rounded as in use.

    Args:
        config ([`ScalarCodecConfig`]): Of the autoencoder.
        spectral (`dict`): Arguments of [`MultiScaleSpectralLoss`] without the sampling rate.
    """

    def __init__(self, config: ScalarCodecConfig, spectral: dict):
        super().__init__()
        self.codec = ScalarCodec(config)
        self.codec.encoder.requires_grad_(False)
        self.spectral_loss = MultiScaleSpectralLoss(config.sampling_rate, **spectral)

    def forward(self, latents: torch.Tensor, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """`latents (batch_size, frames, latent_dim)`, `waveform (batch_size, samples)` -> `loss`, `audio_values`."""
        generated = self.codec.decode(latents.transpose(1, 2))[:, 0]
        return {"loss": self.spectral_loss(generated, waveform), "audio_values": generated}
