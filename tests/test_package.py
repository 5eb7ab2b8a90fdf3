"""`import uniaudio2`: the public names, and what transformers' Auto classes know afterwards."""

import pytest
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForAudioTokenization,
    AutoModelForMultimodalLM,
    AutoModelForTextToWaveform,
)

import uniaudio2


def test_every_public_name_can_be_imported():
    for name in uniaudio2.__all__:
        assert getattr(uniaudio2, name) is not None


def test_auto_config_knows_both_model_types():
    assert type(AutoConfig.for_model("uniaudio2")) is uniaudio2.UniAudio2Config
    assert type(AutoConfig.for_model("reasoning_codec")) is uniaudio2.ReasoningCodecConfig


@pytest.mark.parametrize(
    ("auto_class", "config_class", "model_class"),
    [
        (AutoModel, uniaudio2.UniAudio2Config, uniaudio2.UniAudio2Model),
        (AutoModelForTextToWaveform, uniaudio2.UniAudio2Config, uniaudio2.UniAudio2ForConditionalGeneration),
        (AutoModelForMultimodalLM, uniaudio2.UniAudio2Config, uniaudio2.UniAudio2ForConditionalGeneration),
        (AutoModel, uniaudio2.ReasoningCodecConfig, uniaudio2.ReasoningCodecModel),
        (AutoModelForAudioTokenization, uniaudio2.ReasoningCodecConfig, uniaudio2.ReasoningCodecModel),
    ],
)
def test_auto_models_find_the_classes(auto_class, config_class, model_class):
    assert auto_class._model_mapping[config_class] is model_class
