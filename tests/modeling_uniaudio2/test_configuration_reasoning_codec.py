import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError
from tiny_codec import TINY_CODEC, make_codec_config
from transformers import WavLMConfig, WhisperConfig

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import (
    FlowDecoderConfig,
    MusicEncoderConfig,
    ReasoningCodecConfig,
    ScalarCodecConfig,
)


def test_the_defaults_are_the_sizes_of_the_released_codec():
    config = ReasoningCodecConfig()
    assert (config.whisper_config.d_model, config.whisper_config.encoder_layers) == (1024, 24)
    assert (config.wavlm_config.hidden_size, config.wavlm_config.num_hidden_layers) == (768, 12)
    assert (config.music_encoder_config.hidden_size, config.music_encoder_config.conv_dim) == (1024, 512)
    assert (config.flow_config.hidden_size, config.flow_config.num_layers) == (1536, 32)
    assert (config.reasoning_codebook_size, config.reconstruction_codebook_size) == (4096, 8192)


def test_frames_in_samples():
    config = ReasoningCodecConfig()
    assert (config.latent_hop_length, config.reconstruction_hop_length, config.reasoning_hop_length) == (
        960,
        1920,
        4800,
    )
    assert config.frame_unit == 9600


def test_saved_and_loaded_it_is_the_same(tmp_path):
    config = make_codec_config(encode_mode="exact", film_dropout=0)
    config.save_pretrained(tmp_path)
    loaded = ReasoningCodecConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    parts = {
        "whisper_config": WhisperConfig,
        "wavlm_config": WavLMConfig,
        "music_encoder_config": MusicEncoderConfig,
        "flow_config": FlowDecoderConfig,
        "scalar_config": ScalarCodecConfig,
    }
    assert {name: type(getattr(loaded, name)) for name in parts} == parts


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"acoustic_num_quantizers": 5}, "must add up to `num_codebooks`"),
        ({"reasoning_head_dim": 24}, "multiple of `reasoning_head_dim`"),
        ({"reasoning_head_dim": 16}, "`reasoning_head_dim` must be at least 32"),
        ({"flow_config": {**TINY_CODEC["flow_config"], "out_channels": 7}}, "`flow_config.out_channels` \\(7\\)"),
        ({"flow_config": {**TINY_CODEC["flow_config"], "in_channels": 40}}, "two latents and one condition: 44"),
        ({"wavlm_layers": (2, 4)}, "beyond the 3 layers of WavLM"),
        ({"music_semantic_layer": 4}, "beyond the 3 layers of the music encoder"),
        (
            {"music_encoder_config": {**TINY_CODEC["music_encoder_config"], "hop_length": 120}},
            "25 frames per second, got 960 and 480",
        ),
        ({"encode_mode": "fast"}, "`encode_mode` must be one of .* got 'fast'"),
        ({"decode_mode": "fast"}, "`decode_mode` must be one of .* got 'fast'"),
        ({"window_seconds": 30.0}, "`window_seconds` must lie in \\(0, 2.0\\]"),
        ({"decode_window_seconds": 5.0}, "`decode_window_seconds` must lie in \\(0, 4.0\\]"),
    ],
)
def test_parts_that_do_not_fit_are_named(overrides: dict, message: str):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        make_codec_config(**overrides)


def test_the_scalar_codec_must_undo_what_it_reduced():
    with pytest.raises(StrictDataclassClassValidationError, match="same product"):
        ScalarCodecConfig(upsample_factors=(5, 4, 4, 3, 3))
    with pytest.raises(StrictDataclassClassValidationError, match="equally long"):
        ScalarCodecConfig(downsample_factors=(2, 3, 4))


def test_the_music_encoder_divides_bands_and_heads():
    with pytest.raises(StrictDataclassClassValidationError, match="multiple of 4"):
        MusicEncoderConfig(num_mel_bins=126)
    with pytest.raises(StrictDataclassClassValidationError, match="multiple of `num_attention_heads`"):
        MusicEncoderConfig(num_attention_heads=7)
