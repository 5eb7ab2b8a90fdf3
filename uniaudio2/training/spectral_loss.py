"""Spectral distance of two waveforms at several resolutions: the reconstruction loss of the scalar autoencoder."""

import torch
from torch import nn
from transformers.audio_utils import mel_filter_bank


class MultiScaleSpectralLoss(nn.Module):
    """Mean over window sizes of L1 distances between magnitudes and log-magnitudes, on mel and on linear axes.

    Args:
        sampling_rate (`int`): Of the waveforms, in Hz.
        window_sizes (`list[int]`): Hann windows in samples; the hop is a quarter of each.
        mel_bins (`list[int]`): Mel bands for each window size.
        mel_weight (`float`): Weight of the log-mel term, which is what a recogniser hears.
        linear_weight (`float`): Weight of the linear-frequency terms, which sharpen harmonics.
        floor (`float`): Added before every logarithm; 1 is a full-scale sine. Below it nothing counts.
    """

    def __init__(
        self,
        sampling_rate: int,
        window_sizes: list[int],
        mel_bins: list[int],
        mel_weight: float,
        linear_weight: float,
        floor: float,
    ):
        super().__init__()
        self.window_sizes = window_sizes
        self.mel_weight = mel_weight
        self.linear_weight = linear_weight
        self.floor = floor
        for size, bins in zip(window_sizes, mel_bins, strict=True):
            window = torch.hann_window(size)
            self.register_buffer(f"window_{size}", 2 * window / window.sum(), persistent=False)
            filters = mel_filter_bank(size // 2 + 1, bins, 0.0, sampling_rate / 2, sampling_rate, mel_scale="htk")
            self.register_buffer(f"mel_{size}", torch.from_numpy(filters).float(), persistent=False)

    def forward(self, generated: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        """Args are `torch.FloatTensor` of shape `(batch_size, num_samples)`; returns a scalar."""
        loss = generated.new_zeros(())
        both = torch.cat([generated, target])
        for size in self.window_sizes:
            window, filters = getattr(self, f"window_{size}"), getattr(self, f"mel_{size}")
            spectrum = torch.stft(both, size, size // 4, window=window, return_complex=True).transpose(1, 2)
            # The small constant keeps the gradient of the absolute value finite at zero.
            magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-12)
            for values, weight in ((magnitude @ filters, self.mel_weight), (magnitude, self.linear_weight)):
                ours, theirs = values.chunk(2)
                log_distance = ((ours + self.floor).log() - (theirs + self.floor).log()).abs().mean()
                convergence = (ours - theirs).norm() / theirs.norm().clamp_min(self.floor)
                loss = loss + weight * (log_distance + convergence)
        return loss / len(self.window_sizes)
