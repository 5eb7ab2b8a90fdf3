"""The whole recipe, each training two steps long: what comes out is a model folder that speaks and listens."""

import shutil

import pytest
import torch

from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing.processing_uniaudio2 import UniAudio2Processor
from uniaudio2.training.tiny import TinyRecipe


def test_finished_steps_are_not_run_again(recipe, tmp_path, monkeypatch):
    steps = TinyRecipe(recipe, tmp_path, tmp_path / "out")
    ran = []
    for name in steps.steps:
        (tmp_path / name).mkdir()
        monkeypatch.setattr(steps, name, lambda folder, name=name: ran.append(name))
    steps.run(only="features")
    steps.run()
    assert ran == ["features", *[name for name in steps.steps if name != "features"]]
    steps.run()
    assert len(ran) == len(steps.steps)


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("flite") and shutil.which("festival")), reason="flite or festival is missing")
def test_the_whole_recipe(recipe, tmp_path):
    TinyRecipe(recipe, tmp_path / "work", tmp_path / "out").run()
    processor = UniAudio2Processor.from_pretrained(tmp_path / "out")
    model = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert processor.codec.config.encode_mode == "exact"
    inputs = processor("seven three", task="TTS")
    assert model.generate(**inputs, max_new_tokens=3).shape[-1] == 9
    inputs = processor(audio=torch.zeros(24000), sampling_rate=24000, task="ASR")
    assert isinstance(processor.decode(model.generate(**inputs, max_new_tokens=3))[0], str)
