"""A processor with a small tokenizer, and the smallest real models beside it."""

import numpy as np
import pytest
import torch

from uniaudio2.feature_extraction import UniAudio2FeatureExtractor
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing import UniAudio2Processor
from uniaudio2.training.tokenizer import train_tokenizer

RATE = 24_000
CODEC_SIZES = {
    "hidden_size": 32,
    "encode_mode": "exact",
    "decode_mode": "exact",
    "window_seconds": 4.8,
    "reasoning_num_layers": 1,
    "reasoning_head_dim": 32,
    "reasoning_intermediate_size": 16,
    "reasoning_codebook_size": 16,
    "reasoning_codebook_dim": 4,
    "reconstruction_codebook_size": 32,
    "reconstruction_codebook_dim": 4,
    "wavlm_layers": [1],
    "music_acoustic_layer": 0,
    "music_semantic_layer": 1,
    "num_flow_steps": 2,
    "scalar_config": {
        "init_channel": 2,
        "num_samples": 4,
        "downsample_factors": [5, 4, 4, 3],
        "downsample_kernel_sizes": [10, 8, 8, 6],
        "upsample_factors": [3, 4, 4, 5],
        "upsample_kernel_sizes": [6, 8, 8, 10],
        "res_kernel_size": 3,
        "latent_hidden_dim": 8,
    },
    "whisper_config": {
        "d_model": 16,
        "encoder_layers": 1,
        "encoder_attention_heads": 2,
        "encoder_ffn_dim": 16,
        "max_source_positions": 240,
    },
    "wavlm_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": [8] * 7,
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 2,
        "apply_spec_augment": False,
    },
    "music_encoder_config": {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "conv_dim": 4,
        "num_mel_bins": 16,
        "conv_depthwise_kernel_size": 3,
    },
    "flow_config": {
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 1,
        "in_channels": 48,
        "out_channels": 8,
        "num_timestep_channels": 16,
        "max_positions": 512,
    },
}
# Four special ids follow the codes of each stream, and two more those of the reconstruction stream.
AUDIO_IDS = {
    "reasoning_vocab_size": 20,
    "reconstruction_vocab_size": 38,
    "reasoning_codebook_size": 16,
    "reconstruction_codebook_size": 32,
    "reasoning_bos_token_id": 16,
    "reasoning_eos_token_id": 17,
    "reasoning_pad_token_id": 19,
    "reconstruction_bos_token_id": 32,
    "reconstruction_eos_token_id": 33,
    "reconstruction_pad_token_id": 35,
    "audio_prompt_bos_token_id": 36,
    "audio_prompt_eos_token_id": 37,
}


@pytest.fixture(scope="session")
def tokenizer():
    return train_tokenizer(["seven three nine", "one two three four", "zero eight six five"] * 10, vocab_size=300)


@pytest.fixture(scope="session")
def codec():
    torch.manual_seed(0)
    return ReasoningCodecModel(ReasoningCodecConfig(**CODEC_SIZES)).eval()


@pytest.fixture
def processor(tokenizer, codec):
    processor = UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **AUDIO_IDS)
    processor.codec = codec
    return processor


@pytest.fixture(scope="session")
def model(tokenizer):
    torch.manual_seed(0)
    config = UniAudio2Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=3,
        num_understanding_layers=1,
        num_generation_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        depth_decoder_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        text_pad_token_id=tokenizer.pad_token_id,
        **AUDIO_IDS,
    )
    return UniAudio2ForConditionalGeneration(config).eval()


@pytest.fixture
def codes():
    """Makes the codes of a recording, `seconds` long, different for every seed."""

    def make(seconds=1.0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        return (
            torch.randint(AUDIO_IDS["reasoning_codebook_size"], (8, round(5 * seconds)), generator=generator),
            torch.randint(AUDIO_IDS["reconstruction_codebook_size"], (8, round(12.5 * seconds)), generator=generator),
        )

    return make


@pytest.fixture
def tone():
    def make(seconds=0.4, frequency=440.0, rate=RATE):
        return (0.3 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)

    return make


@pytest.fixture(scope="session")
def model_folder(model, codec, tokenizer, tmp_path_factory):
    """The random models as a model folder, laid out as every other."""
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    processor = UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **AUDIO_IDS)
    processor.codec = codec
    processor.save_pretrained(folder, save_codec=True)
    return folder
