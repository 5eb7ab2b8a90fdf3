"""
What a system has answered, as files: everything that metrics read.

    FOLDER/run.json             what was run: suite, test, model and its revision, seed, settings, versions
    FOLDER/predictions.jsonl    one line per item: its fields, the answer, the seconds it took, or the error
    FOLDER/audio/               recordings: answers, and fields that did not come as files
    FOLDER/codes/               codes of recordings, where they are the answers

Another system's answers are scored like ours: write `predictions.jsonl` (`id`, `fields`, `answer`) and a `run.json`
with `suite` and `test`.
"""

import json
import os
import uuid
from pathlib import Path
from typing import Any

RUN_FILE, PREDICTIONS_FILE = "run.json", "predictions.jsonl"
# In the place of the predictions, where lm-evaluation-harness asks and scores.
QUESTIONS_FILE = "questions.jsonl"
AUDIO_FOLDER, CODES_FOLDER, ITEM_FOLDER = "audio", "codes", "items"


def write_atomically(path: Path, text: str) -> None:
    """A file appears when it is complete."""
    aside = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> Any:
    """Raises a `ValueError` that names the file if it is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is no JSON ({error}).") from error


def read_run(folder: Path) -> dict[str, Any]:
    """What was run. Raises a `ValueError` if the folder holds no run."""
    path = folder / RUN_FILE
    if not path.is_file():
        raise ValueError(f"{folder} holds no {RUN_FILE}: it is not the result of an evaluation.")
    return read_json(path)


def read_predictions(folder: Path) -> list[dict[str, Any]]:
    """
    The items of a finished run, with the paths of recordings and codes.

    Raises:
        ValueError: if there are none, a line is no JSON or lacks `id`, `fields` or both `answer` and `error`, or two
            items have one id.
    """
    path = folder / PREDICTIONS_FILE
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no {PREDICTIONS_FILE}: the predictions are not finished. Run the same again."
        )
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: this is no JSON ({error}).") from error
        is_row = isinstance(row, dict) and {"id", "fields"} <= row.keys() and isinstance(row["fields"], dict)
        if not is_row or not row.keys() & {"answer", "error"}:
            found = sorted(row) if isinstance(row, dict) else row
            raise ValueError(f"{path}, line {number}: an item has 'id', 'fields' and 'answer', but got {found}.")
        fields = {name: _value(value, folder) for name, value in row["fields"].items()}
        # Another system's ids may be numbers.
        rows.append({**row, "id": str(row["id"]), "fields": fields, "answer": _value(row.get("answer"), folder)})
    ids = [row["id"] for row in rows]
    twice = next((name for name in ids if ids.count(name) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise ValueError(f"{path} has two items of the id {twice!r}.")
    if not rows:
        raise ValueError(f"{path} is empty: there is nothing to score.")
    return rows


def audio_value(path: Path | str) -> dict[str, str]:
    """A recording as it stands in a manifest."""
    return {"audio": str(path)}


def codes_value(path: Path | str) -> dict[str, str]:
    """A file of codes as it stands in a manifest."""
    return {"codes": str(path)}


def _value(value: Any, folder: Path) -> Any:
    """A value as metrics read it: a file is a `Path`, all else what it is."""
    if isinstance(value, dict) and len(value) == 1 and value.keys() <= {"audio", "codes"}:
        return folder / next(iter(value.values()))
    return value
