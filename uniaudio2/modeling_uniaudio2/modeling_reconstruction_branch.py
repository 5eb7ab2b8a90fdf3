"""Reconstruction branch of the codec: phone, structure and acoustic streams at 12.5 Hz, modulated by the reasoning.

Also what leads from its codes to the flow decoder's condition, and the two decoders that predict front-end features
from the quantised streams, which serve training alone.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput
from vector_quantize_pytorch import ResidualVQ

from .configuration_reasoning_codec import ReasoningCodecConfig
from .modeling_reasoning_branch import dequantize, residual_quantizer


@dataclass
class ReconstructionBranchOutput(ModelOutput):
    """
    Args:
        codes (`torch.LongTensor` of shape `(batch_size, reconstruction_frames, num_codebooks)`):
            Phone, structure and acoustic codes, in this order; -1 where `frame_mask` was `False`.
        phone, structure, acoustic (`torch.FloatTensor` of shape `(batch_size, reconstruction_frames, hidden_size)`):
            The quantised streams.
        commitment_loss (`torch.FloatTensor`): Mean over a stream's quantizers, summed over the streams; zero in
        evaluation.
    """

    codes: torch.LongTensor | None = None
    phone: torch.FloatTensor | None = None
    structure: torch.FloatTensor | None = None
    acoustic: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None

    @property
    def quantized(self) -> torch.FloatTensor:
        """Sum of the three quantised streams."""
        return self.phone + self.structure + self.acoustic


class TimeFilm(nn.Module):
    """Feature-wise modulation per frame: `(1 + gamma * tanh(scale)) * features + shift`; the shift is not squashed."""

    def __init__(self, hidden_size: int, gamma: float):
        super().__init__()
        self.gamma = gamma
        self.proj = nn.Linear(hidden_size, 2 * hidden_size)

    def forward(self, features: torch.Tensor, condition: torch.Tensor, dropout: float = 0.0) -> torch.Tensor:
        scale, shift = self.proj(condition).chunk(2, dim=-1)
        modulated = (1 + self.gamma * scale.tanh()) * features + shift
        if dropout == 0.0:
            return modulated
        keep = torch.rand(len(features), 1, 1, device=features.device) >= dropout
        return torch.where(keep, modulated, features)


class ReconstructionBranch(nn.Module):
    """Front-end features and quantised reasoning to reconstruction codes, and codes back to features.

    Args:
        config (`ReasoningCodecConfig`): Configuration of the codec.
    """

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        whisper_dim = config.whisper_config.d_model
        wavlm_dim = config.wavlm_config.hidden_size
        music_dim = config.music_encoder_config.hidden_size
        hidden_size = config.hidden_size
        self.reasoning_interval = config.reasoning_interval
        # 50 Hz and 25 Hz to 12.5 Hz.
        self.whisper_downsample = nn.Conv1d(whisper_dim, whisper_dim, kernel_size=4, stride=4)
        self.wavlm_downsample = nn.Conv1d(wavlm_dim, wavlm_dim, kernel_size=4, stride=4)
        self.semantic_downsample = nn.Conv1d(music_dim, music_dim, kernel_size=2, stride=2)
        self.acoustic_downsample = nn.Conv1d(music_dim, music_dim, kernel_size=2, stride=2)
        self.phone_proj = nn.Linear(wavlm_dim, hidden_size)
        self.structure_proj = nn.Linear(music_dim, hidden_size)
        self.acoustic_proj = nn.Linear(music_dim + whisper_dim, hidden_size)
        self.reasoning_adaptor = nn.Linear(hidden_size, hidden_size)
        self.film = config.film
        if self.film:
            self.phone_film = TimeFilm(hidden_size, config.film_gamma)
            self.structure_film = TimeFilm(hidden_size, config.film_gamma)
            self.acoustic_film = TimeFilm(hidden_size, config.film_gamma)
        self.phone_quantizer = self._quantizer(config, config.phone_num_quantizers)
        self.structure_quantizer = self._quantizer(config, config.structure_num_quantizers)
        self.acoustic_quantizer = self._quantizer(config, config.acoustic_num_quantizers)

    @staticmethod
    def _quantizer(config: ReasoningCodecConfig, num_quantizers: int) -> ResidualVQ:
        return residual_quantizer(
            dim=config.hidden_size,
            codebook_dim=config.reconstruction_codebook_dim,
            codebook_size=config.reconstruction_codebook_size,
            num_quantizers=num_quantizers,
            decay=config.codebook_ema_decay,
            threshold_ema_dead_code=config.reconstruction_dead_code_threshold,
        )

    def forward(
        self,
        whisper: torch.Tensor,
        wavlm: torch.Tensor,
        music_acoustic: torch.Tensor,
        music_semantic: torch.Tensor,
        reasoning: torch.Tensor,
        frame_mask: torch.BoolTensor | None = None,
        film_dropout: float = 0.0,
        update_codebooks: bool = False,
    ) -> ReconstructionBranchOutput:
        """
        Args:
            whisper, wavlm (`torch.FloatTensor` of shape `(batch_size, channels, frames at 50 Hz)`): Speech features.
            music_acoustic, music_semantic (`torch.FloatTensor` of shape `(batch_size, channels, frames at 25 Hz)`):
                Features of the music encoder.
            reasoning (`torch.FloatTensor` of shape `(batch_size, reasoning_frames, hidden_size)`):
                Quantised output of the reasoning branch.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, reconstruction_frames)`, *optional*):
                `False` where there is only padding: not learned from, quantised to zero.
            film_dropout (`float`, *optional*, defaults to 0.0):
                Probability, per sample and stream, that the modulation is bypassed. The released code does so even
                when it tokenises, which makes its codes random; here it belongs to training.
            update_codebooks (`bool`, *optional*, defaults to `False`):
                Whether the codebooks' moving averages follow this batch; only in training mode.

        Returns:
            [`ReconstructionBranchOutput`]
        """
        acoustic = (self.acoustic_downsample(music_acoustic), self.whisper_downsample(whisper))
        frames = min(part.shape[-1] for part in acoustic)
        acoustic = self.acoustic_proj(torch.cat([part[..., :frames] for part in acoustic], dim=1).transpose(1, 2))
        phone = self.phone_proj(self.wavlm_downsample(wavlm).transpose(1, 2))
        structure = self.structure_proj(self.semantic_downsample(music_semantic).transpose(1, 2))

        if self.film:
            condition = self.reasoning_condition(reasoning, frames)
            phone = self.phone_film(phone, condition, film_dropout)
            structure = self.structure_film(structure, condition, film_dropout)
            acoustic = self.acoustic_film(acoustic, condition, film_dropout)

        arguments = {"mask": frame_mask, "freeze_codebook": not update_codebooks}
        phone, phone_codes, phone_loss = self.phone_quantizer(phone, **arguments)
        structure, structure_codes, structure_loss = self.structure_quantizer(structure, **arguments)
        acoustic, acoustic_codes, acoustic_loss = self.acoustic_quantizer(acoustic, **arguments)
        return ReconstructionBranchOutput(
            codes=torch.cat((phone_codes, structure_codes, acoustic_codes), dim=-1),
            phone=phone,
            structure=structure,
            acoustic=acoustic,
            commitment_loss=phone_loss.mean() + structure_loss.mean() + acoustic_loss.mean(),
        )

    def reasoning_condition(self, reasoning: torch.Tensor, frames: int) -> torch.Tensor:
        """Adapted reasoning at 12.5 Hz, `(batch_size, frames, hidden_size)`: the nearest earlier reasoning frame, and
        the last one where there are too few (the released code fails there)."""
        index = 2 * torch.arange(frames, device=reasoning.device) // self.reasoning_interval
        return self.reasoning_adaptor(reasoning)[:, index.clamp(max=reasoning.shape[1] - 1)]

    def dequantize(self, codes: torch.LongTensor) -> torch.Tensor:
        """`(batch_size, T, num_codebooks)` codes to the sum of the streams, `(batch_size, T, hidden_size)`."""
        quantizers = (self.phone_quantizer, self.structure_quantizer, self.acoustic_quantizer)
        parts = codes.split([quantizer.num_quantizers for quantizer in quantizers], dim=-1)
        return sum(
            dequantize(quantizer, part, self.phone_proj.weight.dtype)
            for quantizer, part in zip(quantizers, parts, strict=True)
        )


class FlowConditioner(nn.Module):
    """Dequantised features at 12.5 Hz to the condition of the flow decoder at 25 Hz.

    Args:
        config (`ReasoningCodecConfig`): Configuration of the codec.
    """

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.padding_embedding = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, features: torch.Tensor, latent_mask: torch.BoolTensor | None = None) -> torch.Tensor:
        """
        Args:
            features (`torch.FloatTensor` of shape `(batch_size, frames, hidden_size)`): Sum of the quantised streams.
            latent_mask (`torch.BoolTensor` of shape `(batch_size, 2 * frames)`, *optional*):
                `False` for latent frames of padding, which get a learned vector instead.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, 2 * frames, hidden_size)`.
        """
        condition = self.proj(features).repeat_interleave(2, dim=1)
        if latent_mask is None:
            return condition
        return torch.where(latent_mask[..., None], condition, self.padding_embedding)


class FeatureDecoderResidualUnit(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = nn.Conv1d(channels, channels, kernel_size=3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(channels, channels, kernel_size=1, bias=False)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        residual = self.conv1(nn.functional.elu(hidden_states))
        return hidden_states + self.conv2(nn.functional.elu(residual))


class FeatureDecoderBlock(nn.Module):
    """Upsampling by `stride`, then two residual units."""

    def __init__(self, channels: int, stride: int):
        super().__init__()
        if stride == 1:
            self.conv = nn.Conv1d(channels, channels, kernel_size=3, padding=1)
        else:
            self.conv = nn.ConvTranspose1d(
                channels,
                channels,
                kernel_size=2 * stride,
                stride=stride,
                padding=(stride + 1) // 2,
                output_padding=stride % 2,
            )
        self.residual_units = nn.ModuleList(FeatureDecoderResidualUnit(channels) for _ in range(2))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states)
        for unit in self.residual_units:
            hidden_states = unit(hidden_states)
        return hidden_states


class FeatureDecoder(nn.Module):
    """Predicts features of a front end from a quantised stream: an auxiliary task of training.

    Args:
        in_channels (`int`): Channels of the stream.
        out_channels (`int`): Channels of the features, and of everything between.
        strides (`tuple[int, ...]`): Upsampling of each block; their product leads from the stream's rate to the
        features'.
    """

    def __init__(self, in_channels: int, out_channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.conv_in = nn.Conv1d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
        self.blocks = nn.ModuleList(FeatureDecoderBlock(out_channels, stride) for stride in strides)
        self.conv_out = nn.Conv1d(out_channels, out_channels, kernel_size=3, padding=1, bias=False)

    def forward(self, stream: torch.Tensor) -> torch.Tensor:
        """`(batch_size, in_channels, frames)` to `(batch_size, out_channels, frames * prod(strides))`."""
        hidden_states = self.conv_in(stream)
        for block in self.blocks:
            hidden_states = block(hidden_states)
        return self.conv_out(hidden_states)
