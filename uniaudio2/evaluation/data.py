"""The items of a test: rows of a folder or of a data set on the Hub, with the fields its task and metrics need."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .suite import SuiteTest

REPOSITORY = Path(__file__).parents[2]
LISTS = ("manifest.jsonl", "metadata.jsonl")


class DataUnavailableError(ValueError):
    """The data that a suite names are not on this machine and cannot be had. The message says how to get them."""


def load_items(test: SuiteTest, data: str | None = None) -> "Items":
    """
    The items of a test.

    Args:
        test (`SuiteTest`): It says where they are.
        data (`str`, *optional*): A folder or a Hub id to take in place of that.

    Raises:
        DataUnavailableError: if what the suite names is not here, or cannot be fetched.
        ValueError: if there is no such folder as `data`, no item of the split, or a column is missing.
    """
    source = test.data
    folder = Path(data) if data is not None and Path(data).is_dir() else None
    if folder is None and data is None and source.folder is not None:
        folder = REPOSITORY / source.folder
        if not folder.is_dir():
            raise DataUnavailableError(
                f"{test.full_name} reads {source.folder!r} of the repository, which is not beside this installation "
                f"({folder}): pass its folder as `--data`.{f' It is {source.how}.' if source.how else ''}"
            )
    if folder is not None:
        rows = _folder_rows(test, folder)
    else:
        hub = data or source.hub
        if hub is None or (data is not None and data.startswith((".", "/"))):
            raise ValueError(f"{test.full_name}: there is no folder {data!r}.")
        rows = _hub_rows(test, hub)
    columns = list(rows.column_names if hasattr(rows, "column_names") else rows[0])
    missing = sorted({column for column in _needed_columns(test) if column not in columns})
    if missing:
        raise ValueError(
            f"{test.full_name} needs the column{'s' * (len(missing) > 1)} {', '.join(map(repr, missing))}, but the "
            f"data has {', '.join(map(repr, columns))}: rename, or change `columns` of the suite."
        )
    return Items(test, rows, folder)


def _needed_columns(test: SuiteTest) -> list[str]:
    shots = test.few_shot
    return [*test.columns.values(), *(name for name in (shots and shots.match, shots and shots.each) if name)]


def _folder_rows(test: SuiteTest, folder: Path) -> list[dict[str, Any]]:
    path = next((folder / name for name in LISTS if (folder / name).is_file()), None)
    if path is None:
        raise ValueError(f"{test.full_name}: {folder} holds neither {LISTS[0]} nor {LISTS[1]}.")
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    split = test.data.split
    rows = [row for row in rows if split is None or row.get("split", split) == split]
    if not rows:
        raise ValueError(f"{test.full_name}: {path} has no item{f' of the split {split!r}' if split else ''}.")
    return rows


def _hub_rows(test: SuiteTest, hub: str):
    try:
        from datasets import Audio, load_dataset, load_dataset_builder
    except ImportError as error:
        raise ImportError("Data sets of the Hub need datasets: pip install 'uniaudio2[evaluate]'") from error

    split = test.data.split
    try:
        # Of all splits only this one is fetched; `load_dataset` alone would fetch and prepare the others too.
        files = load_dataset_builder(hub, test.data.config).config.data_files
        if files is None or split not in files:
            rows = load_dataset(hub, test.data.config, split=split)
        else:
            rows = load_dataset(hub, data_files={split: list(files[split])}, split=split)
    except OSError as error:
        raise DataUnavailableError(
            f"{test.full_name} reads {hub} of the Hub, which cannot be had ({' '.join(str(error).split())}): fetch it "
            f"with `hf download --repo-type dataset {hub}` where there is a network, or pass a folder as `--data`."
        ) from error
    # Read by soundfile here, so that no decoder of datasets is needed.
    for name, feature in rows.features.items():
        if isinstance(feature, Audio):
            rows = rows.cast_column(name, Audio(decode=False))
    return rows


class Items(Sequence):
    """
    Items as dictionaries: `id`, and `fields` by their names in the task. A recording is a path, or bytes of a file.
    """

    def __init__(self, test: SuiteTest, rows: Sequence[dict[str, Any]], folder: Path | None):
        self.test, self.rows, self.folder = test, rows, folder
        self._columns: dict[str, list[Any]] = {}

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        row = self.rows[index]
        fields: dict[str, Any] = dict(self.test.values)
        for name, column in self.test.columns.items():
            fields[name] = self._recording(row[column]) if self.test.is_audio(name) else row[column]
        return {"id": f"{index:06d}", "fields": fields}

    def _recording(self, value: Any) -> Any:
        if isinstance(value, dict):
            return value["bytes"] if value.get("bytes") else value["path"]
        return str(self.folder / value) if self.folder is not None else value

    def shots(self, index: int, seed: int) -> list[dict[str, Any]]:
        """The examples before an item, drawn from the others."""
        shots = self.test.few_shot
        if shots is None:
            return []
        column = self._column
        groups: dict[Any, list[int]] = {}
        for other in range(len(self)):
            if other == index or (shots.match and column(shots.match)[other] != column(shots.match)[index]):
                continue
            groups.setdefault(column(shots.each)[other] if shots.each else None, []).append(other)
        generator = np.random.default_rng([seed, index])
        chosen = []
        for group in groups.values():
            if len(group) >= shots.count:
                chosen += generator.choice(group, shots.count, replace=False).tolist()
        if not chosen:
            raise ValueError("the data holds too few examples for this item")
        return [self[other] for other in generator.permutation(chosen).tolist()]

    def _column(self, name: str) -> Sequence[Any]:
        if name not in self._columns:
            self._columns[name] = (
                [row[name] for row in self.rows] if isinstance(self.rows, list) else self.rows[name][:]
            )
        return self._columns[name]
