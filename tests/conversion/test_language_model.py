"""The released language model's weights under our names, and back. What they compute: `tests/parity/test_llm.py`."""

import pytest
import torch

from uniaudio2.conversion.language_model import (
    fused_attention_table,
    language_model_state_dict,
    original_language_model_state_dict,
)
from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration


@pytest.fixture
def model() -> UniAudio2ForConditionalGeneration:
    return UniAudio2ForConditionalGeneration(
        UniAudio2Config(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=32,
            num_hidden_layers=5,
            num_understanding_layers=1,
            num_generation_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=4,
            bos_token_id=1,
            eos_token_id=2,
            text_pad_token_id=3,
            reasoning_vocab_size=12,
            reasoning_codebook_size=8,
            reasoning_bos_token_id=8,
            reasoning_eos_token_id=9,
            reasoning_pad_token_id=10,
            reconstruction_vocab_size=12,
            reconstruction_codebook_size=8,
            reconstruction_bos_token_id=8,
            reconstruction_eos_token_id=9,
            reconstruction_pad_token_id=10,
            audio_prompt_bos_token_id=11,
            audio_prompt_eos_token_id=12,
            depth_decoder_config={
                "hidden_size": 16,
                "intermediate_size": 20,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
            },
        )
    )


def test_back_and_forth_changes_nothing(model):
    original = original_language_model_state_dict(model.state_dict(), model.config)
    converted = language_model_state_dict(original, model.config)
    assert converted.keys() == model.state_dict().keys()
    assert all(torch.equal(converted[name], weight) for name, weight in model.state_dict().items())


def test_layers_of_the_stacks_follow_each_other(model):
    """One understanding layer, two cross-modal ones, two generation layers."""
    original = original_language_model_state_dict(model.state_dict(), model.config)
    for stack, layer, ours in [
        ("audio_understanding_expert", 0, 0),
        ("backbone", 0, 1),
        ("backbone", 1, 2),
        ("audio_generation_expert", 0, 3),
        ("audio_generation_expert", 1, 4),
    ]:
        name = f"{stack}.transformer.h.{layer}"
        attention, mlp = model.model.layers[ours].self_attn, model.model.layers[ours].mlp
        expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
        assert torch.equal(original[f"{name}.attn.qkv.weight"], expected)
        assert torch.equal(original[f"{name}.mlp.fc_1.weight"], mlp.gate_proj.weight)
        assert torch.equal(original[f"{name}.mlp.proj.weight"], mlp.down_proj.weight)


def test_names_and_shapes_of_the_released_model():
    config = UniAudio2Config.from_size("3b")
    with torch.device("meta"):
        model = UniAudio2ForConditionalGeneration(config)
    original = original_language_model_state_dict(model.state_dict(), config)
    assert len(original) == 268
    shapes = {
        "backbone.transformer.wte.weight": (128256, 3072),
        "backbone.transformer.h.27.attn.qkv.weight": (5120, 3072),
        "decoder.transformer.h.3.attn.qkv.weight": (3072, 2048),
        "audio_generation_expert.transformer.ln_f.weight": (3072,),
        "projection.weight": (2048, 3072),
        "audio_embeddings.weight": (98400, 3072),
        "audio_head": (8, 2048, 12300),
    }
    assert {name: tuple(original[name].shape) for name in shapes} == shapes


def test_prefix_of_a_parallel_wrapper(model):
    """Only what leads is taken off: a name that goes on after another `module.` is none of the released ones."""
    original = original_language_model_state_dict(model.state_dict(), model.config)
    wrapped = {f"module.{name}": weight for name, weight in original.items()}
    converted = language_model_state_dict(wrapped, model.config)
    assert all(torch.equal(converted[name], weight) for name, weight in model.state_dict().items())
    deeper = {f"module.engine.module.{name}": weight for name, weight in original.items()}
    with pytest.raises(ValueError, match="missing"):
        language_model_state_dict(deeper, model.config)


def test_older_layout_of_fused_attention(model):
    """`attn.attn.weight`: for each key-value group its query heads, then its key, then its value."""
    original = original_language_model_state_dict(model.state_dict(), model.config)
    for name, (_, stack) in fused_attention_table(model.config).items():
        heads, groups, dim = stack.num_attention_heads, stack.num_key_value_heads, stack.head_dim
        rows = original.pop(name).split(dim)
        queries, keys, values = rows[:heads], rows[heads : heads + groups], rows[heads + groups :]
        per_group = heads // groups
        interleaved = []
        for group in range(groups):
            interleaved += [*queries[group * per_group : (group + 1) * per_group], keys[group], values[group]]
        original[name.replace("attn.qkv", "attn.attn")] = torch.cat(interleaved)
    converted = language_model_state_dict(original, model.config)
    assert all(torch.equal(converted[name], weight) for name, weight in model.state_dict().items())


@pytest.mark.parametrize("name", ["audio_head", "decoder.transformer.h.1.attn.qkv.weight"])
def test_missing_weights_are_named(model, name):
    original = original_language_model_state_dict(model.state_dict(), model.config)
    del original[name]
    with pytest.raises(ValueError, match=rf"{name}.*config"):
        language_model_state_dict(original, model.config)


def test_weights_beyond_the_config_are_refused(model):
    """A checkpoint with more layers than the config would otherwise load in silence."""
    original = original_language_model_state_dict(model.state_dict(), model.config)
    original["backbone.transformer.h.2.norm_1.weight"] = torch.ones(24)
    with pytest.raises(ValueError, match=r"1 unexpected.*backbone\.transformer\.h\.2"):
        language_model_state_dict(original, model.config)
