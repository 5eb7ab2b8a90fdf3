"""The music front end of the codec: a BEST-RQ / MusicFM conformer over a log-mel spectrogram, 25 frames per second."""

import math
from functools import lru_cache

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.wav2vec2_conformer.modeling_wav2vec2_conformer import Wav2Vec2ConformerEncoderLayer

from .configuration_reasoning_codec import MusicEncoderConfig


@lru_cache
def htk_mel_filters(n_fft: int, num_mel_bins: int, sampling_rate: int) -> torch.Tensor:
    """Triangular filters from 0 Hz to half the sampling rate, without area normalisation.

    They are computed in single precision, as torchaudio does for the released encoder: in double precision the narrow
    low bands differ by 1e-5, which is 1e-3 dB and more than everything that follows adds.

    Returns:
        `torch.Tensor` of shape `(n_fft // 2 + 1, num_mel_bins)`, float32 on the CPU.
    """
    highest_mel = 2595.0 * math.log10(1.0 + sampling_rate / 2 / 700.0)
    mels = torch.linspace(0.0, highest_mel, num_mel_bins + 2, device="cpu")
    corners = 700.0 * (10.0 ** (mels / 2595.0) - 1.0)  # a band rises from one to the next, and falls to a third
    distances = corners - torch.linspace(0.0, sampling_rate / 2, n_fft // 2 + 1, device="cpu")[:, None]
    widths = corners.diff()
    return torch.minimum(-distances[:, :-2] / widths[:-1], distances[:, 2:] / widths[1:]).clamp(min=0.0)


def mel_decibels(wave: torch.Tensor, config: MusicEncoderConfig) -> torch.Tensor:
    """Mel power spectrogram in decibels, floored at -100 dB.

    The filters and the window are not buffers of the model: they are formulas, and have to stay in single precision
    whatever the model's is.

    Args:
        wave (`torch.Tensor` of shape `(batch_size, num_samples)`): Waveform; more than `n_fft / 2` samples.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_mel_bins, num_samples // hop_length + 1)`, float32.
    """
    spectrum = torch.stft(
        wave.float(),
        config.n_fft,
        config.hop_length,
        window=torch.hann_window(config.n_fft, device=wave.device),
        center=True,
        pad_mode="reflect",
        return_complex=True,
    )
    filters = htk_mel_filters(config.n_fft, config.num_mel_bins, config.sampling_rate).to(wave.device)
    mel = (spectrum.abs().square().transpose(1, 2) @ filters).transpose(1, 2)
    return 10 * mel.clamp(min=1e-10).log10()


class MusicEncoderConvBlock(nn.Module):
    """Two 3x3 convolutions beside one, all with batch norm; halves both axes (released code: `Res2dModule`)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv3 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.bn3 = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        shortcut = self.bn3(self.conv3(hidden_states))
        hidden_states = torch.relu(self.bn1(self.conv1(hidden_states)))
        return torch.relu(shortcut + self.bn2(self.conv2(hidden_states)))


class MusicEncoderSubsampling(nn.Module):
    """Log-mel to conformer frames: a quarter of the frames, each made of all channels of a quarter of the bands."""

    def __init__(self, config: MusicEncoderConfig):
        super().__init__()
        self.blocks = nn.Sequential(
            MusicEncoderConvBlock(1, config.conv_dim), MusicEncoderConvBlock(config.conv_dim, config.conv_dim)
        )
        self.linear = nn.Linear(config.conv_dim * config.num_mel_bins // 4, config.hidden_size)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        hidden_states = self.blocks(mel[:, None])  # [B, C, F, T]
        return self.linear(hidden_states.permute(0, 3, 1, 2).flatten(2))


class MusicEncoder(PreTrainedModel):
    """BEST-RQ / MusicFM encoder: convolutions over the log-mel, then the layers of a Wav2Vec2-Conformer.

    The codec reads hidden states from the middle (4, acoustic) and from near the end (11, semantic).
    """

    config: MusicEncoderConfig
    config_class = MusicEncoderConfig
    base_model_prefix = "music_encoder"
    main_input_name = "input_values"
    input_modalities = ("audio",)
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _no_split_modules = ("Wav2Vec2ConformerEncoderLayer",)

    def __init__(self, config: MusicEncoderConfig):
        super().__init__(config)
        self.subsampling = MusicEncoderSubsampling(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(Wav2Vec2ConformerEncoderLayer(config) for _ in range(config.num_hidden_layers))
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, (nn.Conv1d, nn.Conv2d)):
            init.kaiming_normal_(module.weight)

    def log_mel(self, input_values: torch.Tensor) -> torch.Tensor:
        """
        The normalised log-mel spectrogram that the convolutions see; random-projection targets are made from it too.

        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Waveform at `config.sampling_rate`. Samples beyond a multiple of `config.frame_length` are cut off.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_mel_bins, 4 * (num_samples // frame_length))`, float32.

        Raises:
            ValueError: If the waveform has another shape, or is too short for one analysis window.
        """
        if input_values.ndim == 3 and input_values.shape[1] == 1:
            input_values = input_values[:, 0]
        if input_values.ndim != 2:
            raise ValueError(
                "`input_values` must have the shape (batch_size, num_samples) or (batch_size, 1, num_samples), got "
                f"{tuple(input_values.shape)}."
            )
        num_samples = input_values.shape[1] // self.config.frame_length * self.config.frame_length
        if num_samples <= self.config.n_fft // 2:
            raise ValueError(
                f"The music encoder got {input_values.shape[1]} samples, of which {num_samples} fill frames of "
                f"{self.config.frame_length}; it needs more than {self.config.n_fft // 2}: pad the waveform."
            )
        # Reflected padding gives one mel frame more than the hops that fit; the released code drops it.
        decibels = mel_decibels(input_values[:, :num_samples], self.config)[..., :-1]
        return (decibels - self.config.mel_mean) / self.config.mel_std

    def rotary_embedding(self, num_frames: int, device: torch.device) -> torch.Tensor:
        """Cosines and sines in the form the conformer layers take: `(2, num_frames, 1, 1, head_dim)`, float32."""
        head_dim = self.config.hidden_size // self.config.num_attention_heads
        channels = torch.arange(0, head_dim, 2, dtype=torch.float32, device=device)
        rates = self.config.rotary_embedding_base ** (-channels / head_dim)
        angles = torch.arange(num_frames, dtype=torch.float32, device=device)[:, None] * rates
        angles = torch.cat((angles, angles), dim=-1)[:, None, None, :]
        return torch.stack((angles.cos(), angles.sin()))

    def forward(self, input_values: torch.Tensor, num_layers: int | None = None) -> list[torch.Tensor]:
        """
        Args:
            input_values (`torch.Tensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Waveform at `config.sampling_rate`. Samples beyond a multiple of `config.frame_length` are cut off.
            num_layers (`int`, *optional*): How many conformer layers to run; all of them by default.

        Returns:
            `list[torch.Tensor]`: `num_layers + 1` tensors of shape `(batch_size, num_samples // frame_length,
            hidden_size)`. The first is the input of the conformer, number `i` the output of layer `i`; that of the
            encoder's last layer has gone through the final layer norm.

        Raises:
            ValueError: If the waveform does not fit, see `log_mel`, or there are fewer layers than asked for.
        """
        num_layers = len(self.layers) if num_layers is None else num_layers
        if not 0 <= num_layers <= len(self.layers):
            raise ValueError(f"`num_layers` must lie between 0 and {len(self.layers)}, got {num_layers}.")
        hidden_states = self.subsampling(self.log_mel(input_values).to(self.subsampling.linear.weight.dtype))
        hidden_states = self.dropout(hidden_states)
        rotary = self.rotary_embedding(hidden_states.shape[1], hidden_states.device).to(hidden_states.dtype)
        all_hidden_states = [hidden_states]
        for layer in self.layers[:num_layers]:
            hidden_states = layer(hidden_states, relative_position_embeddings=rotary)
            all_hidden_states.append(hidden_states)
        if num_layers == len(self.layers):
            all_hidden_states[-1] = self.layer_norm(hidden_states)
        return all_hidden_states


__all__ = ["MusicEncoder"]
