"""The cards: templates filled with facts, and the metadata that the Hub reads."""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import CardData, ModelCardData, SpaceCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ..evaluation.suite import HUB_TASKS
from ..processing.tasks import TASKS
from .facts import Facts, requirements
from .results import RESULTS_FILE, Result, model_index

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
LLAMA_LICENSE = "llama3.2"
# The licence asks for these words in a text file beside the weights.
LLAMA_NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. "
    + "All Rights Reserved.\n"
)
# What people look for beside the tasks that the Hub has names for, and the tasks that are it.
TOPICS = {
    "audio-understanding": ("audio_caption", "music_caption", "audio_understanding"),
    "music-generation": ("TTM", "LTS"),
}
ANY_TO_ANY = "any-to-any"
CODEC_TAGS = ["uniaudio2", "audio", "audio-to-audio", "neural-audio-codec", "audio-tokenization", "custom_code"]
# Of the demo; the package is tested with it.
GRADIO_VERSION, SPACE_PYTHON = "6.31.0", "3.12"


def language_model_card(facts: Facts, results: Sequence[Result], address: str, codec: str, space: str) -> str:
    """
    The README of the language model's repository.

    Args:
        facts (`Facts`): Of the model folder.
        results (`Sequence[Result]`): Of the language model.
        address, codec, space (`str`): The three repositories, as `NAMESPACE/NAME`.
    """
    about = facts.card["language_model"]
    # The tag decides which pipeline `pipeline(model=...)` makes: that of messages, if it makes no audio out of text.
    speaks = any(_takes(name, "text") and TASKS[name].output == "audio" for name in facts.tasks)
    tags = ["uniaudio2", "audio", *task_tags(facts.tasks), "custom_code"]
    data = _metadata(facts, about, results, address, "text-to-audio" if speaks else ANY_TO_ANY, tags)
    addresses = {"address": address, "codec": codec, "space": space}
    return _card(data, "language_model.md.jinja", **_common(facts, about, results), **addresses)


def codec_card(facts: Facts, results: Sequence[Result], address: str, language_model: str, space: str) -> str:
    """As [`language_model_card`], of the codec's repository."""
    about = facts.card["codec"]
    data = _metadata(facts, about, results, address, "feature-extraction", CODEC_TAGS)
    addresses = {"address": address, "language_model": language_model, "space": space}
    return _card(data, "codec.md.jinja", **_common(facts, about, results), **addresses)


def space_card(facts: Facts, language_model: str, codec: str) -> str:
    """The README of the Space."""
    data = SpaceCardData(
        title="UniAudio 2.0",
        emoji="🎧",
        colorFrom="green",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=SPACE_PYTHON,
        app_file="app.py",
        license="apache-2.0",
        models=[language_model, codec],
        suggested_hardware=facts.space_hardware,
        short_description="Speak, listen, create and converse with UniAudio 2.0",
        tags=["audio", *task_tags(facts.tasks)],
    )
    values = {"language_model": language_model, "codec": codec, "is_llama": _is_llama(facts)}
    return _card(data, "space.md.jinja", facts=facts, **values)


def app(facts: Facts, language_model: str) -> str:
    """`app.py` of the Space."""
    return TEMPLATES.get_template("app.py.jinja").render(
        language_model=language_model, runs_on_cpu=facts.space_hardware == "cpu-basic"
    )


def task_tags(tasks: Iterable[str]) -> list[str]:
    """The tags that are true of a model trained on these tasks."""
    names = list(tasks)
    tags = [HUB_TASKS[name] for name in names if name in HUB_TASKS]
    tags += [topic for topic, members in TOPICS.items() if not set(members).isdisjoint(names)]
    # As the Hub means it: it takes text and audio, and answers with either.
    takes = {kind for name in names for kind in ("text", "audio") if _takes(name, kind)}
    if takes == {TASKS[name].output for name in names} == {"text", "audio"}:
        tags.append(ANY_TO_ANY)
    return list(dict.fromkeys(tags))


def _takes(task: str, kind: str) -> bool:
    """Whether a task is given a text, or audio."""
    known = TASKS[task]
    return any(known.is_text(field) == (kind == "text") for field in known.condition_fields)


def _is_llama(facts: Facts) -> bool:
    return facts.card["language_model"]["license"] == LLAMA_LICENSE


def _metadata(
    facts: Facts, about: Mapping[str, Any], results: Sequence[Result], address: str, pipeline_tag: str, tags: list[str]
) -> ModelCardData:
    base = about.get("base_model")
    data = ModelCardData(
        language=facts.languages,
        license=about["license"],
        license_name=about.get("license_name"),
        license_link=about.get("license_link"),
        library_name="transformers",
        pipeline_tag=pipeline_tag,
        base_model=base,
        metrics=list(dict.fromkeys(result.score for result in results)) or None,
        tags=tags,
    )
    if base is not None:
        data["base_model_relation"] = "finetune"
    if results:
        url = f"https://huggingface.co/{address}/blob/main/{RESULTS_FILE}"
        data["model-index"] = model_index(address.rpartition("/")[2], results, url)
    return data


def _common(facts: Facts, about: Mapping[str, Any], results: Sequence[Result]) -> dict[str, Any]:
    return {
        "facts": facts,
        "about": about,
        "results": [result.row() for result in results],
        "requirements": requirements(),
        "is_llama": about["license"] == LLAMA_LICENSE,
    }


def _card(data: CardData, template: str, **values: Any) -> str:
    text = TEMPLATES.get_template(template).render(**values)
    # Between parts that are there and parts that are not, templates leave more than one empty line.
    return f"---\n{data.to_yaml()}\n---\n\n" + re.sub(r"\n{3,}", "\n\n", text)
