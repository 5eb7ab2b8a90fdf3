"""A checkpoint says which tasks it knows; asking for another is possible and not silent."""

import json

import pytest

from uniaudio2.processing import UniAudio2Processor


@pytest.fixture
def loaded(processor, tmp_path):
    """A processor beside the configuration of a model that was trained on these tasks."""

    def load(tasks):
        processor.save_pretrained(tmp_path)
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "uniaudio2", "tasks": tasks}))
        return UniAudio2Processor.from_pretrained(tmp_path)

    return load


def test_a_task_that_the_checkpoint_does_not_know_warns_once(loaded, caplog):
    processor = loaded(["TTS", "ASR"])
    processor("one")
    assert "not trained" not in caplog.text
    processor("rain", task="TTA")
    assert "not trained on TTA (a description to a sound) but on TTS, ASR" in caplog.text
    caplog.clear()
    processor(["rain", "wind"], task="TTA")
    assert "not trained" not in caplog.text
    processor.apply_chat_template([{"role": "user", "content": "la", "task": "LTS"}], tokenize=True)
    assert "not trained on LTS" in caplog.text


@pytest.mark.parametrize("tasks", [None, []])
def test_a_checkpoint_that_does_not_say_is_asked_for_anything(loaded, caplog, tasks):
    loaded(tasks)("rain", task="TTA")
    assert "not trained" not in caplog.text


def test_a_processor_without_a_model_is_asked_for_anything(processor, caplog, tmp_path):
    processor("rain", task="TTA")
    processor.save_pretrained(tmp_path)
    UniAudio2Processor.from_pretrained(tmp_path)("rain", task="TTA")
    assert "not trained" not in caplog.text
