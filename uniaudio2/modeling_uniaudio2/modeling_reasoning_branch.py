"""Reasoning branch of the codec: learned query tokens read Whisper and music features, 5 of them per second.

The blocks are those of the released code: no normalisation before attention or feed-forward, weight-normalised
matrices, normalised queries and keys, rotary positions on half of each head, a sigmoid-gated feed-forward, and a
learned scale on each residual.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import ModelOutput
from vector_quantize_pytorch import ResidualVQ

from .configuration_reasoning_codec import ReasoningCodecConfig


# A `ModelOutput` for DeepSpeed's sake: ZeRO-3 gathers the parameters of a module again for the backward pass where it
# finds tensors in its output, and it does not look into classes that are no dictionaries.
@dataclass
class ReasoningBranchOutput(ModelOutput):
    """
    Args:
        quantized (`torch.FloatTensor` of shape `(batch_size, reasoning_frames, hidden_size)`):
            Query tokens after the residual quantizer.
        codes (`torch.LongTensor` of shape `(batch_size, reasoning_frames, num_codebooks)`):
            Codes of the query tokens; -1 where `frame_mask` was `False`.
        commitment_loss (`torch.FloatTensor` of shape `(num_codebooks,)`):
            Distance between the residuals and their codes; zero in evaluation.
    """

    quantized: torch.FloatTensor | None = None
    codes: torch.LongTensor | None = None
    commitment_loss: torch.FloatTensor | None = None


class WeightNormLinear(nn.Module):
    """Linear layer whose rows are `magnitude * direction / |direction|`.

    The two factors are plain parameters of the module that uses them, so ZeRO-3, `deepcopy` and `from_pretrained`
    treat them as any other; torch's parametrization fails under the first.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = True):
        super().__init__()
        self.weight_magnitude = nn.Parameter(torch.empty(out_features, 1))
        self.weight_direction = nn.Parameter(torch.empty(out_features, in_features))
        self.bias = nn.Parameter(torch.empty(out_features)) if bias else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        norm = self.weight_direction.norm(dim=1, keepdim=True)
        return nn.functional.linear(hidden_states, self.weight_direction * (self.weight_magnitude / norm), self.bias)


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention written out, in the signature of transformers' attention functions."""
    weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = nn.functional.softmax(weights, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = nn.functional.dropout(weights, p=dropout, training=module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


def rotary_tables(length: int, dim: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of shape `(length, dim)`, float32, with the frequencies repeated in both halves."""
    frequencies = 1.0 / theta ** (torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequencies)
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotates the first `cos.shape[-1]` channels of each head, half against half, and leaves the others."""
    rotated, passed = states.split((cos.shape[-1], states.shape[-1] - cos.shape[-1]), dim=-1)
    first, second = rotated.chunk(2, dim=-1)
    rotated = rotated * cos + torch.cat((-second, first), dim=-1) * sin
    return torch.cat((rotated, passed), dim=-1).to(states.dtype)


class ReasoningAttention(nn.Module):
    """Bidirectional self-attention with normalised queries and keys."""

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        self.config = config
        self.head_dim = config.reasoning_head_dim
        self.scaling = self.head_dim**-0.5
        self.is_causal = False
        self.num_key_value_groups = 1
        self.qkv_proj = WeightNormLinear(config.hidden_size, 3 * config.hidden_size, bias=False)
        self.q_norm = nn.LayerNorm(self.head_dim, eps=1e-5)
        self.k_norm = nn.LayerNorm(self.head_dim, eps=1e-5)
        self.out_proj = WeightNormLinear(config.hidden_size, config.hidden_size, bias=False)

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs) -> torch.Tensor:
        heads = (*hidden_states.shape[:-1], -1, self.head_dim)
        query, key, value = (
            part.view(heads).transpose(1, 2) for part in self.qkv_proj(hidden_states).chunk(3, dim=-1)
        )
        query = rotate(self.q_norm(query), cos, sin)
        key = rotate(self.k_norm(key), cos, sin)
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        output, _ = attention(self, query, key, value, None, scaling=self.scaling, dropout=0.0, **kwargs)
        return self.out_proj(output.flatten(2))


class SigmoidGatedProjection(nn.Module):
    """`value * sigmoid(gate)` of one projection."""

    def __init__(self, in_features: int, out_features: int):
        super().__init__()
        self.proj = WeightNormLinear(in_features, 2 * out_features)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(hidden_states).chunk(2, dim=-1)
        return value * gate.sigmoid()


class ReasoningFeedForward(nn.Module):
    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        self.gated_proj = SigmoidGatedProjection(config.hidden_size, config.reasoning_intermediate_size)
        self.down_proj = WeightNormLinear(config.reasoning_intermediate_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.gated_proj(hidden_states))


class ReasoningBlock(GradientCheckpointingLayer):
    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        self.self_attn = ReasoningAttention(config)
        self.self_attn_scale = nn.Parameter(torch.empty(config.hidden_size))
        self.feed_forward = ReasoningFeedForward(config)
        self.feed_forward_scale = nn.Parameter(torch.empty(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **kwargs) -> torch.Tensor:
        hidden_states = hidden_states + self.self_attn_scale * self.self_attn(hidden_states, cos, sin, **kwargs)
        return hidden_states + self.feed_forward_scale * self.feed_forward(hidden_states)


class Codebooks(nn.ModuleList):
    """The layers of a residual quantizer. They move with their model but never change their dtype: distances between
    nearby codes do not survive half precision, nor do moving averages of small steps, whether `model.bfloat16()` is
    called by hand or by DeepSpeed."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> "Codebooks":
        def move(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        return super()._apply(move, recurse)


def residual_quantizer(**kwargs) -> ResidualVQ:
    """[`~vector_quantize_pytorch.ResidualVQ`] whose codebooks stay in single precision."""
    quantizer = ResidualVQ(**kwargs)
    quantizer.layers = Codebooks(quantizer.layers)
    return quantizer


def dequantize(quantizer: ResidualVQ, codes: torch.LongTensor, dtype: torch.dtype) -> torch.Tensor:
    """`(batch_size, frames, num_quantizers)` codes to vectors of the width the quantizer reads.

    The library's own method does not convert between codebooks, which stay in float32, and a projection that may not.
    """
    return quantizer.project_out(quantizer.get_codes_from_indices(codes).sum(dim=0).to(dtype))


class ReasoningBranch(nn.Module):
    """Whisper and music features to quantised query tokens, one per `reasoning_interval` frames of 25 Hz.

    Args:
        config (`ReasoningCodecConfig`): Configuration of the codec.
    """

    def __init__(self, config: ReasoningCodecConfig):
        super().__init__()
        widths = {"whisper": config.whisper_config.d_model, "music": config.music_encoder_config.hidden_size}
        self.front_ends = tuple(config.reasoning_front_ends)
        self.interval = config.reasoning_interval
        self.rotary_dim = max(config.reasoning_head_dim // 2, 32)
        self.rope_theta = config.reasoning_rope_theta
        if "whisper" in self.front_ends:
            self.whisper_downsample = nn.Conv1d(widths["whisper"], widths["whisper"], kernel_size=2, stride=2)
        self.merge_proj = nn.Linear(sum(widths[name] for name in self.front_ends), config.hidden_size)
        self.query_token = nn.Parameter(torch.empty(1, config.hidden_size))
        self.layers = nn.ModuleList(ReasoningBlock(config) for _ in range(config.reasoning_num_layers))
        self.quantizer = residual_quantizer(
            dim=config.hidden_size,
            codebook_dim=config.reasoning_codebook_dim,
            codebook_size=config.reasoning_codebook_size,
            num_quantizers=config.num_codebooks,
            decay=config.codebook_ema_decay,
            threshold_ema_dead_code=config.reasoning_dead_code_threshold,
        )

    def forward(
        self,
        whisper: torch.Tensor,
        music_semantic: torch.Tensor,
        frame_mask: torch.BoolTensor | None = None,
        update_codebooks: bool = False,
        **kwargs,
    ) -> ReasoningBranchOutput:
        """
        Args:
            whisper (`torch.FloatTensor` of shape `(batch_size, whisper_dim, frames at 50 Hz)`): Whisper features.
            music_semantic (`torch.FloatTensor` of shape `(batch_size, music_dim, frames at 25 Hz)`):
                Semantic features of the music encoder. The frames must be a multiple of `reasoning_interval`.
            frame_mask (`torch.BoolTensor` of shape `(batch_size, reasoning_frames)`, *optional*):
                `False` where there is only padding: not learned from, quantised to zero.
            update_codebooks (`bool`, *optional*, defaults to `False`):
                Whether the codebooks' moving averages follow this batch; only in training mode.

        Returns:
            [`ReasoningBranchOutput`]
        """
        hidden_states = self.with_queries(self.merge(whisper, music_semantic))
        cos, sin = rotary_tables(hidden_states.shape[1], self.rotary_dim, self.rope_theta, hidden_states.device)
        for layer in self.layers:
            hidden_states = layer(hidden_states, cos, sin, **kwargs)
        queries = hidden_states[:, self.interval :: self.interval + 1]
        quantized, codes, commitment_loss = self.quantizer(
            queries, mask=frame_mask, freeze_codebook=not update_codebooks
        )
        return ReasoningBranchOutput(quantized=quantized, codes=codes, commitment_loss=commitment_loss)

    def merge(self, whisper: torch.Tensor, music_semantic: torch.Tensor) -> torch.Tensor:
        """Both features at 25 Hz, cut to the shorter, projected together: `(batch_size, frames, hidden_size)`."""
        frames = min(whisper.shape[-1] // 2, music_semantic.shape[-1])
        parts = [self.whisper_downsample(whisper)] if "whisper" in self.front_ends else []
        parts += [music_semantic] if "music" in self.front_ends else []
        return self.merge_proj(torch.cat([part[..., :frames] for part in parts], dim=1).transpose(1, 2))

    def with_queries(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """The query token after every `reasoning_interval` frames."""
        batch_size, frames, hidden_size = hidden_states.shape
        groups = hidden_states.view(batch_size, frames // self.interval, self.interval, hidden_size)
        queries = self.query_token.expand(batch_size, groups.shape[1], 1, hidden_size)
        return torch.cat((groups, queries), dim=2).flatten(1, 2)

    def dequantize(self, codes: torch.LongTensor) -> torch.Tensor:
        """`(batch_size, reasoning_frames, num_codebooks)` codes to `(batch_size, reasoning_frames, hidden_size)`."""
        return dequantize(self.quantizer, codes, self.merge_proj.weight.dtype)
