"""The task formats against the rows that the released code builds (recorded with real text ids)."""

import json
import os
from pathlib import Path

import pytest
import torch

from uniaudio2.processing.rows import AUDIO_ROW, IGNORE_INDEX, TEXT_ROW, AudioCodes, RowFormat
from uniaudio2.processing.tasks import TASKS

FOLDER = Path(os.environ.get("UNIAUDIO2_FIXTURES", Path(__file__).parents[3] / "shared" / "reference"))
FIXTURES = sorted(FOLDER.glob("llm_formats*.json"))
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason=f"no fixtures in {FOLDER}")

# The recorded names of the values, per field of ours. Two recordings of one sequence are numbered there.
SINGLE = {"audio": ("reason", "semantic")}
EDITED = {"audio": ("reason_1", "semantic_1"), "target_audio": ("reason_2", "semantic_2")}
SEPARATED = {
    "audio": ("reason", "semantic"),
    "target_audio_1": ("reason_1", "semantic_1"),
    "target_audio_2": ("reason_2", "semantic_2"),
}
RECORDINGS = {
    "speech_s2s": EDITED,
    "speech_denoise": EDITED,
    "speech_edit": EDITED,
    "speech_ss": SEPARATED,
    "music_ss": SEPARATED,
}
DROPPED = ("_cfg_drop", "_if_cfg_drop_were_enabled")


def cases(key):
    return [
        pytest.param(json.loads(path.read_text()), name, id=f"{path.stem}-{name}")
        for path in FIXTURES
        for name in json.loads(path.read_text()).get(key, {})
    ]


def row_format(recorded):
    ids, special = recorded["ids"], recorded["special"]
    bos, *_, eos = recorded["inputs"]["prompt"]
    return RowFormat(
        num_codebooks=ids["num_codebooks"],
        reasoning_vocab_size=ids["reason_card"],
        reconstruction_vocab_size=ids["semantic_card"],
        reasoning_codebook_size=ids["reason_bos"],
        reconstruction_codebook_size=ids["semantic_bos"],
        reasoning_bos_token_id=ids["reason_bos"],
        reasoning_eos_token_id=ids["reason_eos"],
        reasoning_pad_token_id=ids["reason_pad_token"],
        reconstruction_bos_token_id=ids["semantic_bos"],
        reconstruction_eos_token_id=ids["semantic_eos"],
        reconstruction_pad_token_id=ids["semantic_pad_token"],
        audio_prompt_bos_token_id=ids["audio_prompt_bos"],
        audio_prompt_eos_token_id=ids["audio_prompt_eos"],
        text_bos_token_id=bos,
        text_eos_token_id=eos,
        text_pad_token_id=ids["text_pad_token"],
        wrapper_token_ids={
            name: (special[f"<{name}>"], special[f"</{name}>"]) for name in ("transcription", "lyric", "caption")
        },
    )


def values(task, inputs):
    """The recorded inputs under our field names; the rows add bos and eos, so they are taken off the texts."""
    found = {field: inputs[field][1:-1] for field in task.fields if task.is_text(field)}
    for field, (reasoning, reconstruction) in RECORDINGS.get(task.name, SINGLE).items():
        found[field] = AudioCodes(torch.tensor(inputs[reasoning]), torch.tensor(inputs[reconstruction]))
    found["audio_prompt"] = AudioCodes(None, torch.tensor(inputs["audio_prompt"]))
    return found


def task_and_dropping(name):
    for suffix in (*DROPPED, "_uncond"):
        if name.endswith(suffix):
            return TASKS[name.removesuffix(suffix)], True
    return TASKS[name], False


def check_rows(rows, expected):
    kinds = torch.tensor([AUDIO_ROW if kind == "a" else TEXT_ROW for kind in expected["kind"]])
    assert rows.mm_token_type_ids.tolist() == kinds.tolist()
    assert rows.input_ids.tolist() == expected["tokens"]


@pytest.mark.parametrize("recorded, name", cases("training_rows"))
def test_training_rows_and_their_loss(recorded, name):
    task, dropped = task_and_dropping(name)
    prompt_ids = recorded["inputs"]["prompt"][1:-1] if task.prompts else None
    rows = row_format(recorded).training_rows(task, values(task, recorded["inputs"]), prompt_ids, dropped)
    expected = recorded["training_rows"][name]
    check_rows(rows, expected)

    for ids, kind, label, loss in zip(
        rows.input_ids, rows.mm_token_type_ids, rows.labels, expected["loss"], strict=True
    ):
        active = slice(0, -1) if kind == AUDIO_ROW else slice(-1, None)
        learnt = torch.full_like(ids, IGNORE_INDEX)
        if loss == "1":
            learnt[active] = ids[active]
        assert label.tolist() == learnt.tolist()


@pytest.mark.parametrize("recorded, name", cases("inference_prompts"))
def test_generation_prompts(recorded, name):
    task, dropped = task_and_dropping(name)
    rows = row_format(recorded).prompt_rows(
        task, values(task, recorded["inputs"]), recorded["inputs"]["prompt"][1:-1], drop_condition=dropped
    )
    check_rows(rows, recorded["inference_prompts"][name])
    assert (rows.labels == IGNORE_INDEX).all()


@pytest.mark.parametrize("path", FIXTURES, ids=lambda path: path.stem)
def test_the_same_tasks_exist_and_the_same_drop_their_condition(path):
    recorded = json.loads(path.read_text())
    whole = {name for name in recorded["training_rows"] if not name.endswith(DROPPED)}
    assert whole == set(TASKS)
    # Two of the recorded names belong to tasks that the released code never defines.
    dropping = set(recorded["training_cfg_drop_tasks"]) & whole
    assert dropping == {name for name, task in TASKS.items() if task.condition_dropout}
