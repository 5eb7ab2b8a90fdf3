"""The scalar autoencoder: 24 kHz waveform to 25 Hz latents in [-1, 1], rounded to a grid, and back.

The flow decoder generates these latents; nothing autoregressive ever sees them. The shape is that of SQCodec as the
released code computes it: strided convolutions with dilated residual units, averaging of neighbouring samples at the
input instead of a first strided layer, and rounding instead of a codebook.
"""

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from .configuration_reasoning_codec import ScalarCodecConfig

RESIDUAL_DILATIONS = (1, 3, 5, 7, 9)


class ScalarCodecConv1d(nn.Module):
    """Convolution over time, of the past only (`causal`) or centred; `stride` divides the length, rounded up."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        causal: bool,
        stride: int = 1,
        dilation: int = 1,
        normalised: bool = True,
    ):
        super().__init__()
        reach = dilation * (kernel_size - 1)
        self.padding = (reach, 0) if causal else (reach // 2, reach // 2)
        conv = nn.Conv1d(in_channels, out_channels, kernel_size, stride=stride, dilation=dilation)
        self.conv = weight_norm(conv) if normalised else conv

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.conv(F.pad(hidden_states, self.padding))


class ScalarCodecConvTranspose1d(nn.Module):
    """Transposed convolution whose causal form drops what leaks past the end, so that length grows by `stride`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, *, causal: bool):
        super().__init__()
        self.surplus = stride if causal else 0
        padding = 0 if causal else (kernel_size - stride) // 2
        conv = nn.ConvTranspose1d(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        # Dimension 0 of a transposed convolution's weight is the input channel: the release normalises over that.
        self.conv = weight_norm(conv, dim=0)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)
        return hidden_states[..., : hidden_states.shape[-1] - self.surplus]


class ScalarCodecResidualUnit(nn.Module):
    def __init__(self, channels: int, kernel_size: int, dilation: int, *, causal: bool):
        super().__init__()
        self.conv1 = ScalarCodecConv1d(channels, channels, kernel_size, dilation=dilation, causal=causal)
        self.activation1 = nn.PReLU()
        self.conv2 = ScalarCodecConv1d(channels, channels, 1, causal=causal)
        self.activation2 = nn.PReLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.activation1(self.conv1(hidden_states))
        return hidden_states + self.activation2(self.conv2(residual))


def _residual_units(channels: int, config: ScalarCodecConfig) -> nn.ModuleList:
    return nn.ModuleList(
        ScalarCodecResidualUnit(channels, config.res_kernel_size, dilation, causal=config.causal)
        for dilation in RESIDUAL_DILATIONS
    )


class ScalarCodecPreProcessor(nn.Module):
    """Halves (for `num_samples=2`) the rate by averaging, after one convolution at the full rate."""

    def __init__(self, config: ScalarCodecConfig):
        super().__init__()
        channels = config.init_channel
        self.conv = ScalarCodecConv1d(
            channels, channels, config.default_kernel_size, causal=config.causal, normalised=False
        )
        self.activation = nn.PReLU()
        self.num_samples = config.num_samples

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return F.avg_pool1d(self.activation(self.conv(hidden_states)), self.num_samples)


class ScalarCodecPostProcessor(nn.Module):
    """The way back to the full rate: every sample `num_samples` times, then one convolution."""

    def __init__(self, config: ScalarCodecConfig):
        super().__init__()
        channels = config.init_channel
        self.conv = ScalarCodecConv1d(
            channels, channels, config.default_kernel_size, causal=config.causal, normalised=False
        )
        self.activation = nn.PReLU()
        self.num_samples = config.num_samples

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = hidden_states.repeat_interleave(self.num_samples, dim=-1)
        return self.activation(self.conv(hidden_states))


class ScalarCodecEncoderBlock(nn.Module):
    def __init__(self, in_channels: int, kernel_size: int, stride: int, config: ScalarCodecConfig):
        super().__init__()
        self.residual_units = _residual_units(in_channels, config)
        self.downsample = ScalarCodecConv1d(
            in_channels, 2 * in_channels, kernel_size, stride=stride, causal=config.causal
        )
        self.activation = nn.PReLU()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        for unit in self.residual_units:
            hidden_states = unit(hidden_states)
        return self.activation(self.downsample(hidden_states))


class ScalarCodecDecoderBlock(nn.Module):
    def __init__(self, in_channels: int, kernel_size: int, stride: int, config: ScalarCodecConfig):
        super().__init__()
        self.upsample = ScalarCodecConvTranspose1d(
            in_channels, in_channels // 2, kernel_size, stride, causal=config.causal
        )
        self.residual_units = _residual_units(in_channels // 2, config)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.upsample(hidden_states)
        for unit in self.residual_units:
            hidden_states = unit(hidden_states)
        return hidden_states


class ScalarCodecEncoder(nn.Module):
    def __init__(self, config: ScalarCodecConfig):
        super().__init__()
        channels = config.init_channel
        self.input_conv = ScalarCodecConv1d(1, channels, config.default_kernel_size, causal=config.causal)
        self.pre_processor = ScalarCodecPreProcessor(config) if config.num_samples > 1 else nn.Identity()
        self.blocks = nn.ModuleList()
        for kernel_size, stride in zip(config.downsample_kernel_sizes, config.downsample_factors, strict=True):
            self.blocks.append(ScalarCodecEncoderBlock(channels, kernel_size, stride, config))
            channels *= 2
        self.output_conv = ScalarCodecConv1d(
            channels, config.latent_hidden_dim, config.default_kernel_size, causal=config.causal
        )

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        hidden_states = self.pre_processor(self.input_conv(waveform))
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return torch.tanh(self.output_conv(hidden_states))


class ScalarCodecDecoder(nn.Module):
    def __init__(self, config: ScalarCodecConfig):
        super().__init__()
        channels = config.init_channel * 2 ** len(config.upsample_factors)
        # Always centred: a causal decoder still looks `(delay_kernel_size - 1) / 2` latent frames ahead, here.
        self.input_conv = ScalarCodecConv1d(config.latent_hidden_dim, channels, config.delay_kernel_size, causal=False)
        self.blocks = nn.ModuleList()
        for kernel_size, stride in zip(config.upsample_kernel_sizes, config.upsample_factors, strict=True):
            self.blocks.append(ScalarCodecDecoderBlock(channels, kernel_size, stride, config))
            channels //= 2
        self.post_processor = ScalarCodecPostProcessor(config) if config.num_samples > 1 else nn.Identity()
        self.output_conv = ScalarCodecConv1d(channels, 1, config.default_kernel_size, causal=config.causal)

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        hidden_states = self.input_conv(latents)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.output_conv(self.post_processor(hidden_states))


class ScalarCodec(nn.Module):
    """Waveform to latents and back.

    Args:
        config ([`ScalarCodecConfig`]): Sizes. One latent frame stands for `num_samples * prod(downsample_factors)`
            samples: 960 in the released model, 25 frames per second.
    """

    def __init__(self, config: ScalarCodecConfig):
        super().__init__()
        self.config = config
        self.encoder = ScalarCodecEncoder(config)
        self.decoder = ScalarCodecDecoder(config)

    def encode(self, waveform: torch.Tensor) -> torch.Tensor:
        """Latents before rounding, which is what the flow decoder learns to generate.

        Args:
            waveform (`torch.FloatTensor` of shape `(batch_size, 1, num_samples)`): Audio at 24 kHz.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, latent_hidden_dim, num_frames)`, between -1 and 1. Averaging
            drops an odd last sample; every later stage rounds its length up.
        """
        return self.encoder(waveform)

    def quantize(self, latents: torch.Tensor) -> torch.Tensor:
        """Round latents to multiples of `1 / num_levels`, half to even; values beyond -1 and 1 stay, as released."""
        return torch.round(latents * self.config.num_levels) / self.config.num_levels

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Waveform of latents, which are rounded first.

        Args:
            latents (`torch.FloatTensor` of shape `(batch_size, latent_hidden_dim, num_frames)`):
                Of [`ScalarCodec.encode`] or generated.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 1, num_frames * samples_per_frame)`, not limited to [-1, 1].
        """
        return self.decoder(self.quantize(latents))

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        return self.decode(self.encode(waveform))
