"""Every name of the released files, as recorded from the released classes: mapped, or dropped for a reason."""

import json
import os
from pathlib import Path

import pytest
import torch

from uniaudio2.conversion.codec import codec_origins, dropping_reason
from uniaudio2.conversion.language_model import language_model_origins
from uniaudio2.conversion.scalar_codec import scalar_codec_origins
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration

FOLDER = Path(os.environ.get("UNIAUDIO2_FIXTURES") or Path(__file__).resolve().parents[3] / "shared" / "reference")


def recorded(name: str) -> dict:
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no list of released keys in {FOLDER}")
    return json.loads(path.read_text(encoding="utf-8"))


def on_meta(entries: dict) -> dict[str, torch.Tensor]:
    return {
        name: torch.empty(shape, dtype=getattr(torch, dtype), device="meta")
        for name, (shape, dtype) in entries.items()
    }


def assert_fills(model: torch.nn.Module, weights: dict, origins: dict) -> None:
    """Every weight of the model comes from somewhere, in its shape."""
    expected = {name: weight.shape for name, weight in model.state_dict().items()}
    assert {name: origin.take(weights).shape for name, origin in origins.items()} == expected


def test_every_key_of_the_language_model_is_mapped():
    weights, config = on_meta(recorded("llm_keys.json")), UniAudio2Config.from_size("3b")
    origins = language_model_origins(weights.keys(), config)
    assert {origin.key for origin in origins.values()} == weights.keys()
    with torch.device("meta"):
        assert_fills(UniAudio2ForConditionalGeneration(config), weights, origins)


def test_every_key_of_the_codec_is_mapped_or_dropped_for_a_reason():
    keys, config = recorded("codec_keys.json"), ReasoningCodecConfig()
    weights, scalar = on_meta(keys["AudioDiffusion1D"]), on_meta(keys["ScalarModel"]["keys"])
    origins = codec_origins(weights.keys(), config)
    scalar_origins = scalar_codec_origins(scalar.keys(), config.scalar_config)
    assert {origin.key for origin in scalar_origins.values()} == scalar.keys()
    unmapped = weights.keys() - {origin.key for origin in origins.values()}
    assert all(dropping_reason(name) for name in unmapped)

    with torch.device("meta"):
        codec = ReasoningCodecModel(config)
    assert_fills(codec.scalar_codec, scalar, scalar_origins)
    del codec.scalar_codec
    assert_fills(codec, weights, origins)
