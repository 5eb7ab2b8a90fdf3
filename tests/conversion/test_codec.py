"""The key table of the codec against the names and shapes of the whole released model."""

import json
import os
from pathlib import Path

import pytest
import torch

from uniaudio2.conversion.codec import codec_key_table, codec_state_dict, dropping_reason
from uniaudio2.conversion.scalar_codec import scalar_codec_key_table
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel

FOLDER = Path(os.environ.get("UNIAUDIO2_FIXTURES") or Path(__file__).resolve().parents[3] / "shared" / "reference")
KEYS = FOLDER / "codec_keys.json"

pytestmark = pytest.mark.skipif(not KEYS.is_file(), reason=f"no list of released keys in {FOLDER}")


@pytest.fixture(scope="module")
def released() -> dict:
    return json.loads(KEYS.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def released_weights(released: dict) -> dict[str, torch.Tensor]:
    """The released names, shapes and types, without memory."""
    return {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for key, (shape, dtype) in released["AudioDiffusion1D"].items()
    }


@pytest.fixture(scope="module")
def codec() -> ReasoningCodecModel:
    with torch.device("meta"):
        return ReasoningCodecModel(ReasoningCodecConfig())


def test_every_released_weight_is_kept_or_dropped_for_a_reason(released: dict):
    table = codec_key_table(ReasoningCodecConfig())
    dropped = released["AudioDiffusion1D"].keys() - table.keys()
    assert table.keys() <= released["AudioDiffusion1D"].keys()
    assert not [key for key in dropped if not dropping_reason(key)]
    assert len(dropped) == 18


def test_what_is_kept_fills_the_whole_codec_with_the_same_shapes(
    released: dict, released_weights: dict, codec: ReasoningCodecModel
):
    scalar = released["ScalarModel"]["keys"]
    scalar_weights = {key: torch.empty(shape, device="meta") for key, (shape, _) in scalar.items()}
    converted = codec_state_dict(released_weights, codec.config, scalar_weights)
    own = codec.state_dict()
    assert converted.keys() == own.keys()
    assert {name: (value.shape, value.dtype) for name, value in converted.items()} == {
        name: (value.shape, value.dtype) for name, value in own.items()
    }


def test_the_number_of_parameters_is_that_of_the_release(released: dict, codec: ReasoningCodecModel):
    """All that is not a buffer, but for the parts of the music encoder that only its own pre-training used."""
    buffers = set(released["buffers"])
    weights = released["AudioDiffusion1D"] | released["ScalarModel"]["keys"]
    kept = codec_key_table(codec.config).keys() | scalar_codec_key_table(codec.config.scalar_config).keys()
    expected = sum(
        torch.Size(shape).numel() for key, (shape, _) in weights.items() if key in kept and key not in buffers
    )
    assert sum(parameter.numel() for parameter in codec.parameters()) == expected == 1861932653


@pytest.mark.parametrize(
    "key, reason",
    [
        ("wavlm_transfer.kernel", "formula"),
        ("cfm_wrapper.estimator.pos_embed.pe", "formula"),
        ("audio_thinking.encoder_transformers.4.rope.inv_freq", "formula"),
        ("pretrained_model.model.model.quantizer_melspec_2048.codebook", "pre-training"),
        ("audio_thinking.llama_model.layers.0.weight", "text head"),
    ],
)
def test_reasons(key: str, reason: str):
    assert reason in dropping_reason(key)


def test_only_the_leading_prefix_is_taken_off(released_weights: dict):
    """The released loader splits at every `module.`, which also eats `conv_module.`."""
    config = ReasoningCodecConfig()
    prefixed = {f"module.{key}": value for key, value in released_weights.items()}
    assert codec_state_dict(prefixed, config).keys() == codec_state_dict(released_weights, config).keys()


def test_old_spelling_of_weight_norm(released_weights: dict):
    config = ReasoningCodecConfig()
    conv = "wavlm_encoder.encoder.pos_conv_embed.conv"
    old = dict(released_weights)
    old[f"{conv}.weight_g"] = old.pop(f"{conv}.parametrizations.weight.original0")
    old[f"{conv}.weight_v"] = old.pop(f"{conv}.parametrizations.weight.original1")
    assert codec_state_dict(old, config).keys() == codec_state_dict(released_weights, config).keys()


def test_lost_and_unknown_weights_are_named(released_weights: dict):
    weights = dict(released_weights) | {"mystery.weight": torch.empty(1)}
    del weights["reason_adaptor.bias"]
    with pytest.raises(ValueError, match=r"1 missing \['reason_adaptor.bias'\], 1 unexpected \['mystery.weight'\]"):
        codec_state_dict(weights, ReasoningCodecConfig())
