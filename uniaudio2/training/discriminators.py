"""Discriminators of waveforms, and the losses of a generator that is to pass for real.

Two kinds, both usual for neural codecs: of spectrograms at several resolutions (EnCodec, arXiv 2210.13438, with
several window sizes), and of the waveform folded by several periods (HiFi-GAN, arXiv 2010.05646). Sizes are ours.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

# Slope of the leaky rectifier below zero (HiFi-GAN).
SLOPE = 0.1


class SpectrogramDiscriminator(nn.Module):
    """2-D convolutions over the complex spectrogram of one window size.

    Args:
        window_size (`int`): Hann window in samples; the hop is a quarter of it.
        channels (`int`): Of the hidden layers.
    """

    def __init__(self, window_size: int, channels: int):
        super().__init__()
        self.window_size = window_size
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(2 if index == 0 else channels, channels, (3, 9), stride=(1, stride), padding=(1, 4)))
            for index, stride in enumerate((1, 2, 2, 1))
        )
        self.output = weight_norm(nn.Conv2d(channels, 1, (3, 3), padding=1))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`(batch_size, num_samples)` -> scores of all places, and the hidden layers."""
        window = torch.hann_window(self.window_size, device=waveform.device)
        spectrum = torch.stft(
            waveform, self.window_size, self.window_size // 4, window=window, normalized=True, return_complex=True
        )
        return through(self.layers, self.output, torch.view_as_real(spectrum).permute(0, 3, 2, 1))


class PeriodDiscriminator(nn.Module):
    """2-D convolutions, each over one column of the waveform folded into rows of `period` samples.

    Args:
        period (`int`): Samples of a row.
        channels (`int`): Of the first hidden layer; each further one has twice as many.
    """

    def __init__(self, period: int, channels: int):
        super().__init__()
        self.period = period
        widths = (1, channels, 2 * channels, 4 * channels)
        self.layers = nn.ModuleList(
            weight_norm(nn.Conv2d(width, wider, (5, 1), stride=(3, 1), padding=(2, 0)))
            for width, wider in pairwise(widths)
        )
        self.output = weight_norm(nn.Conv2d(widths[-1], 1, (3, 1), padding=(1, 0)))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """`(batch_size, num_samples)` -> scores of all places, and the hidden layers."""
        folded = F.pad(waveform, (0, -waveform.shape[-1] % self.period)).unflatten(-1, (-1, self.period))
        return through(self.layers, self.output, folded[:, None])


def through(
    layers: nn.ModuleList, output: nn.Module, hidden_states: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The output of convolutions in a row, and what is between them."""
    features = []
    for layer in layers:
        hidden_states = F.leaky_relu(layer(hidden_states), SLOPE)
        features.append(hidden_states)
    return output(hidden_states), features


class WaveformDiscriminators(nn.Module):
    """All discriminators together.

    Args:
        window_sizes (`Sequence[int]`): One discriminator of spectrograms for each.
        periods (`Sequence[int]`): One discriminator of the folded waveform for each.
        channels (`int`): Their width.
    """

    def __init__(self, window_sizes: Sequence[int], periods: Sequence[int], channels: int):
        super().__init__()
        self.members = nn.ModuleList(
            [
                *(SpectrogramDiscriminator(size, channels) for size in window_sizes),
                *(PeriodDiscriminator(period, channels) for period in periods),
            ]
        )

    def forward(self, waveform: torch.Tensor) -> list[tuple[torch.Tensor, list[torch.Tensor]]]:
        """`(batch_size, num_samples)` -> scores and hidden layers of each."""
        return [member(waveform) for member in self.members]

    def discriminator_loss(self, real: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """Hinge loss, mean over the discriminators: real waveforms should score above 1, generated ones below -1."""
        losses = [
            F.relu(1 - on_real).mean() + F.relu(1 + on_generated).mean()
            for (on_real, _), (on_generated, _) in zip(self(real), self(generated.detach()), strict=True)
        ]
        return torch.stack(losses).mean()

    def generator_losses(self, real: torch.Tensor, generated: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        What a generator has to lower, each the mean over the discriminators.

        Returns:
            Adversarial loss: minus the score of what is generated. Feature loss: mean L1 distance of the hidden layers
            to those of the real waveform, relative to their size (EnCodec).
        """
        with torch.no_grad():
            references = self(real)
        adversarial, feature = [], []
        for (_, on_real), (score, on_generated) in zip(references, self(generated), strict=True):
            adversarial.append(-score.mean())
            distances = [
                (ours - theirs).abs().mean() / theirs.abs().mean().clamp_min(1e-6)
                for ours, theirs in zip(on_generated, on_real, strict=True)
            ]
            feature.append(torch.stack(distances).mean())
        return torch.stack(adversarial).mean(), torch.stack(feature).mean()
