"""Manifests: lists of recordings with their texts, as `datasets` objects."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..processing.tasks import TASKS, get_task

# Of a mixture; the first is `target_audio_1`.
FURTHER_SOURCES = tuple(f"target_audio_{index}" for index in range(2, 8))

_FORMATS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}


def load_manifest(name: str, split: str = "train", streaming: bool = False):
    """
    Read a manifest.

    A row has a recording in `audio` (a path, which may be relative to the manifest, or `{"bytes", "path"}`), further
    recordings and texts under the names of task fields, and optionally what relates recordings (`recording` and
    `start`, `group`).

    Args:
        name (`str`): A JSONL, JSON, CSV or Parquet file, a folder made by `save_to_disk`, or a data set on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Which split of a data set on the Hub.
        streaming (`bool`, *optional*, defaults to `False`): Read rows one after the other, without a local copy.

    Returns:
        [`~datasets.Dataset`] or [`~datasets.IterableDataset`]: Recordings are not decoded.
    """
    datasets = import_datasets()
    path = Path(name)
    if path.is_dir() and (path / "state.json").exists():
        dataset = datasets.load_from_disk(name)
    elif path.suffix in _FORMATS and path.exists():
        dataset = datasets.load_dataset(_FORMATS[path.suffix], data_files=name, split="train", streaming=streaming)
    elif path.is_dir() and any(path.glob("*.parquet")):
        files = sorted(map(str, path.glob("*.parquet")))
        dataset = datasets.load_dataset("parquet", data_files=files, split="train", streaming=streaming)
    elif path.suffix in _FORMATS or path.is_absolute():
        raise FileNotFoundError(f"There is no manifest {name}.")
    else:
        try:
            dataset = datasets.load_dataset(name, split=split, streaming=streaming)
        except (OSError, datasets.exceptions.DatasetNotFoundError) as error:
            raise FileNotFoundError(
                f"There is no manifest {name}: no such file or folder here, and on the Hub: {error}"
            ) from error
    for column, feature in (dataset.features or {}).items():
        if isinstance(feature, datasets.Audio):
            dataset = dataset.cast_column(column, datasets.Audio(decode=False))
    return dataset


def audio_fields(columns: Iterable[str]) -> list[str]:
    """Those of the columns that hold recordings."""
    names = {field for task in TASKS.values() for field in task.fields if not task.is_text(field)}
    names |= {"target_audio_1", *FURTHER_SOURCES}
    return [column for column in columns if column in names]


def checked_rows(
    rows: Iterable[Mapping[str, Any]],
    audio: Sequence[str],
    folder: Path,
    tasks: Sequence[str] = (),
    texts: Sequence[str] = (),
    first_number: int = 0,
) -> Iterator[dict[str, Any]]:
    """
    The rows of a manifest with the paths of their recordings resolved.

    Args:
        rows (`Iterable[Mapping[str, Any]]`): The rows.
        audio (`Sequence[str]`): The columns with recordings.
        folder (`Path`): Where relative paths start.
        tasks (`Sequence[str]`, *optional*): Tasks whose fields every row must have.
        texts (`Sequence[str]`, *optional*): Further columns that must hold a text.
        first_number (`int`, *optional*, defaults to 0): Of the first of these rows.

    Returns:
        `Iterator[dict[str, Any]]`: Further sources of a mixture (`target_audio_2` and on) may be `None`, if no task
        needs them: mixtures differ in their number.

    Raises:
        ValueError: Names the row, counted from 0, and the field that is missing, empty or of a wrong type.
    """
    needed = {field: get_task(name).is_text(field) for name in tasks for field in get_task(name).fields}
    optional = {name for name in FURTHER_SOURCES if name not in needed}
    needed |= dict.fromkeys(audio, False) | dict.fromkeys(texts, True)
    for number, row in enumerate(rows, first_number):
        checked = dict(row)
        for field, is_text in needed.items():
            value = checked.get(field)
            if value is None and field in optional:
                continue
            if value is None:
                raise ValueError(f"Row {number} of the manifest has no {field!r}; it has {sorted(row)}.")
            if is_text and (not isinstance(value, str) or not value.strip()):
                raise ValueError(f"Row {number}: {field!r} must be a text that is not empty, but is {value!r}.")
            if not is_text:
                checked[field] = _resolved(value, folder, f"Row {number}: {field!r}")
        yield checked


def _resolved(value: Any, folder: Path, where: str) -> str | dict[str, Any]:
    if isinstance(value, Mapping) and value.get("bytes") is not None:
        return {"bytes": value["bytes"]}
    path = value.get("path") if isinstance(value, Mapping) else value
    if not isinstance(path, str):
        raise ValueError(f"{where} must be a path or a dictionary with 'bytes' or 'path', but is {value!r}.")
    return path if "://" in path else str(folder / path)


def import_datasets():
    """`datasets`, which is an extra."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError("Training data needs datasets: pip install 'uniaudio2[train]'.") from error
    return datasets
