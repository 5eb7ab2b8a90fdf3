"""Staging: folders exactly as they will be uploaded, to be looked at first."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers.utils import logging

from .. import __version__
from ..conversion.convert import RECORD_FILE as CONVERSION_FILE
from .cards import LLAMA_LICENSE, LLAMA_NOTICE, codec_card, language_model_card
from .checks import check_contents
from .facts import PROVENANCE_FILE, Facts, gather_facts
from .model_files import ModelFolder, open_model_folder, write_codec, write_json, write_language_model
from .results import RESULTS_FILE, Result, measured_results, recorded_results, records, reported_results
from .space_files import write_space
from .staging import ANY_NAMESPACE, made_in_place_of, repositories, write_record

# As the Hub allows them; a name has 96 characters at most, and the demo's is the longest of the three.
NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,80}[A-Za-z0-9])?")
PACKAGE_NAME, LLAMA_NAME = "uniaudio2", "Llama"


def stage(
    model_dir: str | Path,
    output: str | Path,
    *,
    name: str | None = None,
    namespace: str | None = None,
    evaluation: str | Path | None = None,
) -> dict[str, Any]:
    """
    Make the three repositories of a model folder: language model, codec and Space. Nothing is uploaded.

    Args:
        model_dir (`str` or `Path`): The model folder.
        output (`str` or `Path`): The folder to make. One that was made by this function is replaced.
        name (`str`, *optional*):
            Of the language model's repository; the others are called after it, `NAME-codec` and `NAME-demo`. By
            default after the folder; beginning with Llama, as its licence asks, where that holds.
        namespace (`str`, *optional*):
            The user or organisation on the Hub. Files name it then as they will be uploaded; without, they say
            `NAMESPACE`, and `push` puts the name in.
        evaluation (`str` or `Path`, *optional*):
            What `uniaudio2 evaluate --output` has made for this model. By default what `evaluation.json` in the model
            folder records, if it is there.

    Returns:
        `dict`: What was staged, as `stage.json` holds it.

    Raises:
        ValueError, OSError: If the folder is no complete model folder, if nobody says what it may be used for, if a
            file holds a secret or a path of this machine, or if `output` holds something else. Nothing is left then.
    """
    model_dir, output = Path(model_dir), Path(output)
    for option, given in (("--name", name), ("--namespace", namespace)):
        if given is not None and not NAME.fullmatch(given):
            raise ValueError(f"{option} {given!r} cannot be a name on the Hub: letters, digits, '-', '_' and '.'.")
    results = measured_results(Path(evaluation)) if evaluation is not None else _recorded(model_dir)
    with made_in_place_of(output) as folder:
        models = open_model_folder(model_dir)
        facts = gather_facts(models)
        if facts.is_released:
            results = [*reported_results(), *results]
        name = name or _default_name(facts)
        linked = _write(models, facts, results, folder, name, namespace or ANY_NAMESPACE)
        for repository in repositories(name):
            check_contents(folder / repository.folder)
        for note in _notes(facts, folder, name):
            print(f"uniaudio2: note: {note}", file=sys.stderr)
        return write_record(folder, name, namespace, linked, __version__)


def _write(
    models: ModelFolder, facts: Facts, results: Sequence[Result], folder: Path, name: str, namespace: str
) -> list[Path]:
    staged = {repository.folder: folder / repository.folder for repository in repositories(name)}
    codec, language_model, space = (f"{namespace}/{repository.name}" for repository in repositories(name))
    progress_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        linked = write_codec(models, staged["codec"]) + write_language_model(models, staged["language-model"])
    finally:
        if progress_bars:
            logging.enable_progress_bar()

    of_codec = [result for result in results if result.is_of_codec]
    of_language_model = [result for result in results if not result.is_of_codec]
    card = language_model_card(facts, of_language_model, language_model, codec, space)
    (staged["language-model"] / "README.md").write_text(card, encoding="utf-8")
    card = codec_card(facts, of_codec, codec, language_model, space)
    (staged["codec"] / "README.md").write_text(card, encoding="utf-8")
    # What was measured of the codec stands beside the language model too, which holds it.
    for part, found in (("language-model", results), ("codec", of_codec)):
        if any(result.is_measured for result in found):
            write_json(staged[part] / RESULTS_FILE, records(found))
        if facts.provenance is not None:
            write_json(staged[part] / PROVENANCE_FILE, facts.provenance)
    if facts.conversion is not None:
        write_json(staged["language-model"] / CONVERSION_FILE, facts.conversion)
        write_json(staged["codec"] / CONVERSION_FILE, _without(facts.conversion, "language_model"))
    if facts.card["language_model"]["license"] == LLAMA_LICENSE:
        (staged["language-model"] / "NOTICE").write_text(LLAMA_NOTICE, encoding="utf-8")
    write_space(facts, staged["space"], language_model, codec)
    return linked


def _recorded(model_dir: Path) -> list[Result]:
    file = model_dir / RESULTS_FILE
    return recorded_results(file) if file.is_file() else []


def _default_name(facts: Facts) -> str:
    folder = re.sub(r"[^A-Za-z0-9]+", "-", facts.folder.path.resolve().name).strip("-").lower()
    name = folder if folder.startswith(PACKAGE_NAME) else f"{PACKAGE_NAME}-{folder}"
    return f"{LLAMA_NAME}-{name}" if facts.card["language_model"]["license"] == LLAMA_LICENSE else name


def _notes(facts: Facts, folder: Path, name: str) -> list[str]:
    """What the licence of Llama asks for, and a program cannot see to."""
    if facts.card["language_model"]["license"] != LLAMA_LICENSE:
        return []
    notes = []
    if not name.startswith(LLAMA_NAME):
        notes.append(f"the licence of Llama 3.2 asks for names that begin with {LLAMA_NAME!r}; {name} does not.")
    if not any((folder / "language-model").glob("LICENSE*")):
        notes.append(
            "the licence of Llama 3.2 asks for a copy of itself: put LICENSE.txt of meta-llama/Llama-3.2-3B into the "
            "model folder, and stage again."
        )
    return notes


def _without(record: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key != name}
