"""The staged folder: three repositories side by side, and a record of what is in them."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .model_files import read_json, write_json

RECORD_FILE = "stage.json"
# Stands for the user or organisation in files that name repositories, until `publish push` knows it.
ANY_NAMESPACE = "NAMESPACE"
BLOCK = 16 * 1024**2


@dataclass(frozen=True)
class Repository:
    """
    A repository, staged as a folder.

    Args:
        folder (`str`): The folder in the staged one.
        name (`str`): On the Hub, without the namespace.
        type (`str`): `"model"` or `"space"`.
    """

    folder: str
    name: str
    type: str


def repositories(name: str) -> tuple[Repository, ...]:
    """The three repositories, in the order of being published: each refers to those before it."""
    return (
        Repository("codec", f"{name}-codec", "model"),
        Repository("language-model", name, "model"),
        Repository("space", f"{name}-demo", "space"),
    )


@contextlib.contextmanager
def made_in_place_of(output: Path) -> Iterator[Path]:
    """
    Gives an empty folder; when the block ends without an error, it takes the place of `output`.

    Raises:
        FileExistsError: If `output` holds anything but an earlier staging.
    """
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"{output} is a file. Choose another output.")
    if output.is_dir() and any(output.iterdir()) and not (output / RECORD_FILE).is_file():
        raise FileExistsError(
            f"{output} is not empty, and was not made by `uniaudio2 publish stage`. Choose another output."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.staging")
    # What a killed run has left.
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    try:
        yield aside
        if output.is_dir():
            shutil.rmtree(output)
        aside.rename(output)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def write_record(folder: Path, name: str, namespace: str | None, linked: list[Path], version: str) -> dict[str, Any]:
    """
    Write down what was staged.

    Args:
        folder (`Path`): The staged folder.
        name (`str`): Of the language model's repository.
        namespace (`str`, *optional*): The namespace that the files name, if they name one.
        linked (`list[Path]`): Files that are links to those of the model folder.
        version (`str`): Of this package.
    """
    record = {
        "made_by": f"uniaudio2 {version}",
        "name": name,
        "namespace": namespace,
        "linked": sorted(path.relative_to(folder).as_posix() for path in linked),
        "repositories": {
            repository.folder: {
                path.relative_to(folder / repository.folder).as_posix(): {
                    "bytes": path.stat().st_size,
                    "sha256": sha256(path),
                }
                for path in files_of(folder / repository.folder)
            }
            for repository in repositories(name)
        },
    }
    write_json(folder / RECORD_FILE, record)
    return record


def read_record(folder: Path) -> dict[str, Any]:
    """
    What was staged in a folder.

    Raises:
        ValueError: If nothing was, or if weights have changed since.
    """
    file = folder / RECORD_FILE
    if not file.is_file():
        raise ValueError(
            f"{folder} holds no {RECORD_FILE}: make it with `uniaudio2 publish stage MODEL_DIR {folder}`."
        )
    record = read_json(file)
    for name in record["linked"]:
        repository, _, path = name.partition("/")
        staged = folder / name
        if not staged.is_file() or sha256(staged) != record["repositories"][repository][path]["sha256"]:
            raise ValueError(
                f"{staged} has changed since it was staged: it is a link to a file of the model folder. Stage again."
            )
    return record


def files_of(folder: Path) -> list[Path]:
    """All files in a folder and below, sorted."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()


def table(record: dict[str, Any]) -> str:
    """What was staged, for people."""
    lines = []
    for repository in repositories(record["name"]):
        files = record["repositories"][repository.folder]
        total = sum(entry["bytes"] for entry in files.values())
        address = f"{record['namespace'] or ANY_NAMESPACE}/{repository.name}"
        lines += [f"{repository.folder}/  {repository.type} {address}, {len(files)} files, {total:,} bytes"]
        for path, entry in files.items():
            link = "  linked" if f"{repository.folder}/{path}" in record["linked"] else ""
            lines += [f"  {entry['bytes']:>14,}  {entry['sha256'][:12]}  {path}{link}"]
    return "\n".join(lines)
