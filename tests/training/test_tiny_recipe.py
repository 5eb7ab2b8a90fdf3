"""The whole recipe, each training two steps long: what comes out is a model folder that speaks and listens."""

import shutil

import pytest
import torch
from safetensors.torch import save_model

from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing.processing_uniaudio2 import UniAudio2Processor
from uniaudio2.training.tiny import TinyRecipe, average_weights


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


def test_the_mean_of_two_stages(tmp_path):
    models = [torch.nn.Linear(3, 2) for _ in range(3)]
    for name, model in zip("ab", models, strict=False):
        (tmp_path / name).mkdir()
        save_model(model, str(tmp_path / name / "model.safetensors"))
    average_weights(models[2], {tmp_path / "a": 0.75, tmp_path / "b": 0.25})
    torch.testing.assert_close(models[2].weight, 0.75 * models[0].weight + 0.25 * models[1].weight)
    torch.testing.assert_close(models[2].bias, 0.75 * models[0].bias + 0.25 * models[1].bias)
