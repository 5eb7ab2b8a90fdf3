"""A codec with random weights, small enough to run in milliseconds, with the released frame rates."""

from transformers import set_seed

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel

HIDDEN_SIZE = 32
LATENT_DIM = 6
TINY_CODEC = {
    "whisper_config": {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "max_source_positions": 100,  # two seconds
    },
    "wavlm_config": {
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
    },
    "music_encoder_config": {
        "conv_dim": 4,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "flow_config": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "in_channels": 2 * LATENT_DIM + HIDDEN_SIZE,
        "out_channels": LATENT_DIM,
        "num_timestep_channels": 32,
        "max_positions": 100,
    },
    "scalar_config": {
        "downsample_factors": (4, 10, 12),
        "downsample_kernel_sizes": (8, 20, 24),
        "upsample_factors": (12, 10, 4),
        "upsample_kernel_sizes": (24, 20, 8),
        "latent_hidden_dim": LATENT_DIM,
        "init_channel": 2,
    },
    "hidden_size": HIDDEN_SIZE,
    "wavlm_layers": (1, 2),
    "music_acoustic_layer": 1,
    "music_semantic_layer": 2,
    "reasoning_num_layers": 2,
    "reasoning_head_dim": 32,
    "reasoning_intermediate_size": 64,
    "reasoning_codebook_size": 32,
    "reasoning_codebook_dim": 8,
    "reconstruction_codebook_size": 48,
    "reconstruction_codebook_dim": 6,
    "window_seconds": 2.0,
    "decode_window_seconds": 2.0,
    "min_incontext_length": 8,
    "max_incontext_length": 12,
    "num_flow_steps": 2,
}


def make_codec_config(**overrides) -> ReasoningCodecConfig:
    return ReasoningCodecConfig(**{**TINY_CODEC, **overrides})


def make_codec(**overrides) -> ReasoningCodecModel:
    """The same codec at every call, in evaluation mode."""
    set_seed(0)
    return ReasoningCodecModel(make_codec_config(**overrides)).eval()
