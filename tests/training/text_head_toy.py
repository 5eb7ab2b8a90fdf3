"""A text head for two kinds of recordings, a low tone and a high one, that a few steps can learn to tell apart."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from uniaudio2 import (
    ReasoningCodecConfig,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextProcessor,
    UniAudio2FeatureExtractor,
)
from uniaudio2.training.tokenizer import train_tokenizer

WORDS = ("low", "high")
RATE = 24000
CODEC = {
    "whisper_config": {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 32,
        "max_source_positions": 40,  # 0.8 seconds
    },
    "wavlm_config": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "conv_dim": (8,) * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "apply_spec_augment": False,
        "layerdrop": 0.0,
    },
    "music_encoder_config": {
        "conv_dim": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
    "flow_config": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "in_channels": 2 * 6 + 32,
        "out_channels": 6,
        "num_timestep_channels": 32,
        "max_positions": 100,
    },
    "scalar_config": {
        "downsample_factors": (4, 10, 12),
        "downsample_kernel_sizes": (8, 20, 24),
        "upsample_factors": (12, 10, 4),
        "upsample_kernel_sizes": (24, 20, 8),
        "latent_hidden_dim": 6,
        "init_channel": 2,
    },
    "hidden_size": 32,
    "wavlm_layers": (1, 2),
    "music_acoustic_layer": 1,
    "music_semantic_layer": 2,
    "reasoning_num_layers": 1,
    "reasoning_head_dim": 32,
    "reasoning_intermediate_size": 64,
    "reasoning_codebook_size": 16,
    "reasoning_codebook_dim": 8,
    "reconstruction_codebook_size": 16,
    "reconstruction_codebook_dim": 6,
    "window_seconds": 0.8,
    "decode_window_seconds": 0.8,
    "min_incontext_length": 2,
    "max_incontext_length": 4,
}


def make_codec(**overrides) -> ReasoningCodecModel:
    set_seed(0)
    return ReasoningCodecModel(ReasoningCodecConfig(**{**CODEC, **overrides}))


def make_processor() -> ReasoningCodecTextProcessor:
    return ReasoningCodecTextProcessor(UniAudio2FeatureExtractor(), train_tokenizer(WORDS, 300))


def make_text_head(processor: ReasoningCodecTextProcessor) -> ReasoningCodecForConditionalGeneration:
    codec, tokenizer = make_codec(), processor.tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = ReasoningCodecForConditionalGeneration.from_parts(
        codec, LlamaForCausalLM(config), processor.audio_token_id
    )
    make_it_hear(model)
    return model


def make_it_hear(model: ReasoningCodecForConditionalGeneration) -> None:
    """Fresh query tokens hardly look at the frames, and fresh codebooks lie elsewhere: here the two tones get
    different codes without training."""
    branch = model.model.reasoning_branch
    waveforms = torch.stack([torch.from_numpy(row["audio"]["array"]) for row in make_recordings(8)])
    audio = model.extract_audio_features(waveforms)
    with torch.no_grad():
        for layer in branch.layers:
            layer.self_attn_scale.fill_(5.0)
        branch.merge_proj.weight.mul_(5.0)
        branch.train()
        for _ in range(10):
            branch(audio["whisper_features"], audio["music_features"], update_codebooks=True)


def make_recordings(number: int, num_samples: int = 9600) -> list[dict]:
    """Rows with a tone of 150 Hz and "low", or of 2400 Hz and "high", in turns."""
    rng = np.random.default_rng(0)
    time = np.arange(num_samples) / RATE
    rows = []
    for index in range(number):
        tone = np.sin(2 * np.pi * (150, 2400)[index % 2] * time + rng.uniform(0, 6))
        waveform = (0.3 * tone + 0.01 * rng.standard_normal(num_samples)).astype(np.float32)
        rows.append({"audio": {"array": waveform, "sampling_rate": RATE}, "text": WORDS[index % 2]})
    return rows
