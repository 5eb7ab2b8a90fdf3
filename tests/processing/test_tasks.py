"""The table of tasks: complete, consistent, and clear when a name is wrong."""

import pytest

from uniaudio2.processing.tasks import TASKS, TEXT, get_task


def test_all_26_formats_are_there():
    assert len(TASKS) == 26
    assert all(name == task.name for name, task in TASKS.items())


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_what_is_given_comes_before_what_is_written(task):
    assert task.segments == task.conditions + task.targets
    assert {segment.kind == TEXT for segment in task.targets} == {task.output == "text"}
    assert task.description and len(set(task.prompts)) == len(task.prompts)


def test_only_tasks_without_a_condition_start_without_an_instruction():
    assert {name for name, task in TASKS.items() if not task.prompts} == {"audio_only", "text_only"}
    assert {name for name, task in TASKS.items() if not task.conditions} == {"audio_only", "text_only"}


@pytest.mark.parametrize("name", ["tts", "", None, 3])
def test_an_unknown_task_lists_those_there_are(name):
    with pytest.raises(ValueError, match=r"Unknown task .*ASR.*TTS.*reason_copy"):
        get_task(name)
