import json

import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config, UniAudio2DepthDecoderConfig


def test_defaults_are_the_released_model():
    config = UniAudio2Config()
    assert (config.num_understanding_layers, config.num_cross_modal_layers, config.num_generation_layers) == (3, 28, 2)
    assert (config.hidden_size, config.num_attention_heads, config.head_dim) == (3072, 24, 128)
    assert config.audio_vocab_size == 12300
    assert config.rope_parameters["rope_type"] == "llama3" and config.rope_parameters["factor"] == 32.0
    assert config.depth_decoder_config.hidden_size == 2048 and config.depth_decoder_config.head_dim == 64
    assert config.depth_decoder_config.backbone_hidden_size == 3072
    assert config.to_dict() == UniAudio2Config.from_size("3b").to_dict()


def test_1b_is_llama_3_2_1b_between_the_same_experts():
    config = UniAudio2Config.from_size("1b", vocab_size=1000)
    assert (config.hidden_size, config.num_cross_modal_layers, config.num_attention_heads) == (2048, 16, 32)
    assert config.depth_decoder_config.backbone_hidden_size == 2048
    assert config.vocab_size == 1000


def test_unknown_size_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'7b'.*1b.*3b"):
        UniAudio2Config.from_size("7b")


def test_saved_and_loaded(tmp_path):
    config = UniAudio2Config(
        num_hidden_layers=6,
        codebook_loss_weights=(2, 2, 2, 1, 1, 1, 1, 1),
        tasks=("TTS", "ASR"),
        eos_token_id=[128001, 128009],
        depth_decoder_config={"num_hidden_layers": 1},
    )
    config.save_pretrained(tmp_path)
    loaded = UniAudio2Config.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.tasks == ("TTS", "ASR") and loaded.codebook_loss_weights == (2, 2, 2, 1, 1, 1, 1, 1)
    assert isinstance(loaded.depth_decoder_config, UniAudio2DepthDecoderConfig)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "uniaudio2"


def test_types_are_strict():
    with pytest.raises(StrictDataclassFieldValidationError, match="hidden_size"):
        UniAudio2Config(hidden_size="3072")
    config = UniAudio2Config()
    config.eos_token_id = [3, 4]  # as a pipeline does with the generation config's
    with pytest.raises(StrictDataclassFieldValidationError, match="sampling_rate"):
        config.sampling_rate = "24k"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_hidden_layers": 5}, "num_understanding_layers"),
        ({"num_generation_layers": -1}, "neither of them negative"),
        ({"num_attention_heads": 10, "num_key_value_heads": 4}, "multiple"),
        ({"codebook_loss_weights": (1.0, 1.0, 1.0)}, "one weight for each of the 8 codebooks"),
        ({"depth_decoder_config": {"backbone_hidden_size": 64}}, "backbone_hidden_size"),
        ({"reasoning_eos_token_id": 4100}, r"reasoning_eos_token_id.*0 and 4099"),
        ({"reconstruction_bos_token_id": 12292}, "without an offset"),
        ({"reconstruction_codebook_size": 9000}, "reconstruction_codebook_size"),
        ({"audio_prompt_bos_token_id": 12300}, "audio_prompt_bos_token_id"),
    ],
)
def test_contradictions_are_refused(wrong, message):
    with pytest.raises((ValueError, StrictDataclassClassValidationError), match=message):
        UniAudio2Config(**wrong)
