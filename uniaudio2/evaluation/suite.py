"""Suites: what is evaluated, on which data, with which metrics, against which published numbers. Data, not code."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from ..processing.tasks import TaskFormat, get_task
from .metrics import load_metric

SUITE_FOLDER = Path(__file__).parent / "suites"

# A task of the codec alone, beside those of the language model: encode a recording and decode it again.
RECONSTRUCTION_TASK = "reconstruction"
# Encode only: the answer is the codes of a recording.
CODES_TASK = "codec_tokens"
CODEC_TASKS = (RECONSTRUCTION_TASK, CODES_TASK)
# Benchmarks of lm-evaluation-harness, which asks and scores by itself.
TEXT_BENCHMARK = "text_benchmark"
# Tasks of the Hub, where they have one of the kind.
HUB_TASKS = {
    **dict.fromkeys(("ASR", "Yue_ASR", "D_ASR", "lyric_recognition"), "automatic-speech-recognition"),
    **dict.fromkeys(("TTS", "Yue_TTS", "InstructTTS", "prompt_instruct_tts"), "text-to-speech"),
    **dict.fromkeys(("TTA", "TTM", "LTS"), "text-to-audio"),
    **dict.fromkeys(("audio_caption", "music_caption", "audio_understanding", "speech_s2t"), "audio-text-to-text"),
    **dict.fromkeys(("speech_s2s", "speech_denoise", "speech_edit", "speech_ss", "music_ss"), "audio-to-audio"),
    "text_only": "text-generation",
    TEXT_BENCHMARK: "text-generation",
    CODES_TASK: "feature-extraction",
}

# What a metric may read besides the fields of the data.
ANSWER_FIELDS = ("answer", "seconds", "audio_seconds", "tokens")


@dataclass(frozen=True)
class DataSource:
    """
    Where the items of a test come from.

    Args:
        hub (`str`, *optional*): A data set on the Hub, with `config`.
        folder (`str`, *optional*):
            A folder with `manifest.jsonl` or `metadata.jsonl`, one item per line, recordings named relative to it.
            The folder itself is relative to the repository.
        split (`str`, *optional*): The split; in a folder, items with another `split` are left out.
        config (`str`, *optional*): The configuration of a data set on the Hub.
        how (`str`, *optional*): How to get or prepare the data, for people.
        name (`str`, *optional*): What the data of a folder are called; by default as the folder.
    """

    hub: str | None = None
    folder: str | None = None
    split: str | None = None
    config: str | None = None
    how: str | None = None
    name: str | None = None

    @property
    def title(self) -> str:
        """The name of the data set, as cards and tables say it."""
        return self.name or self.hub or Path(self.folder).name


@dataclass(frozen=True)
class FewShot:
    """
    Examples before the question, drawn from the other items of the data, seeded per item.

    Args:
        count (`int`, *optional*, defaults to 1): How many; with `each`, how many of every value.
        match (`str`, *optional*): A column in which examples agree with the item, as its speaker.
        each (`str`, *optional*): A column of which every value gets its examples, as the class.
    """

    count: int = 1
    match: str | None = None
    each: str | None = None


@dataclass(frozen=True)
class MetricUse:
    """
    One metric of a test.

    Args:
        metric (`str`): See [`METRICS`].
        label (`str`, *optional*): Its name in the test, if the metric is used more than once.
        prediction (`str`, *optional*, defaults to `"answer"`): What is judged: a field, or one of `ANSWER_FIELDS`.
        reference (`str` or `list[str]`, *optional*):
            What it is compared with, likewise; several fields for a metric that reads a list of them.
        options (`Mapping`, *optional*): Of the metric.
    """

    metric: str
    label: str = ""
    prediction: str = "answer"
    reference: str | list[str] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def load(self, device: str = "cpu"):
        """The metric; `device` for those with a model."""
        metric = load_metric(self.metric, **self.options)
        if hasattr(metric, "device"):
            metric.device = device
        return metric


@dataclass(frozen=True)
class Published:
    """
    A number of a paper, written as tables show it, percentages as percentages.

    Args:
        score (`str`): As the metric names it, or any name for a score that people gave (`human`).
        value (`float`): The number.
        system (`str`): Whose.
        source (`str`): Where it stands.
        human (`bool`, *optional*, defaults to `False`): People's scores are shown, and never computed.
        metric (`str`, *optional*): The label of the metric, where several have a score of that name.
    """

    score: str
    value: float
    system: str
    source: str
    human: bool = False
    metric: str | None = None


@dataclass(frozen=True)
class SuiteTest:
    """One table of a suite: a task on a data set."""

    suite: str
    name: str
    task: str
    data: DataSource
    columns: Mapping[str, str] = field(default_factory=dict)
    metrics: tuple[MetricUse, ...] = ()
    values: Mapping[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    generation: Mapping[str, Any] = field(default_factory=dict)
    codec: Mapping[str, Any] = field(default_factory=dict)
    few_shot: FewShot | None = None
    harness: Mapping[str, Any] | None = None
    published: tuple[Published, ...] = ()
    notes: str = ""

    @property
    def full_name(self) -> str:
        return f"{self.suite}/{self.name}"

    @property
    def format(self) -> TaskFormat | None:
        """The format of the task; none for those of the codec, and for text benchmarks."""
        return None if self.task in (*CODEC_TASKS, TEXT_BENCHMARK) else get_task(self.task)

    @property
    def answer_kind(self) -> str:
        """What an answer is: `"text"`, `"audio"` or `"codes"`."""
        if self.format is not None:
            return self.format.output
        return "codes" if self.task == CODES_TASK else "audio"

    @property
    def input_fields(self) -> tuple[str, ...]:
        if self.format is not None:
            return self.format.condition_fields
        return ("audio",) if self.task in CODEC_TASKS else ()

    def is_audio(self, name: str) -> bool:
        """Whether a field holds recordings."""
        if self.format is not None and name in self.format.fields:
            return not self.format.is_text(name)
        return name.endswith("audio") or name == "audio_prompt"


def suite_names() -> list[str]:
    """The suites of the package."""
    return sorted(path.stem for path in SUITE_FOLDER.glob("*.yaml"))


def load_suite(name: str | Path) -> tuple[SuiteTest, ...]:
    """
    Read and check a suite.

    Args:
        name (`str` or `Path`): A suite of the package, or the path of a YAML file.

    Raises:
        ValueError: with one message that says where the mistake is.
    """
    path = Path(name) if Path(name).suffix in (".yaml", ".yml") else SUITE_FOLDER / f"{name}.yaml"
    if not path.is_file():
        raise ValueError(
            f"There is no suite {str(name)!r}. The suites are: {', '.join(suite_names())}; or a YAML file."
        )
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(content, Mapping) or not isinstance(content.get("tests"), Mapping) or not content["tests"]:
        raise ValueError(f"Suite {path.stem!r}: it must have `tests`, one mapping for each.")
    return tuple(_test(path.stem, test_name, entry) for test_name, entry in content["tests"].items())


def _test(suite: str, name: str, entry: Any) -> SuiteTest:
    where = f"Suite {suite!r}, test {name!r}"
    entry = dict(_mapping(where, entry))
    try:
        metrics = tuple(_made(MetricUse, use) for use in entry.pop("metrics", ()))
        test = SuiteTest(
            suite=suite,
            name=name,
            data=_made(DataSource, entry.pop("data", {})),
            few_shot=_made(FewShot, entry.pop("few_shot")) if "few_shot" in entry else None,
            published=tuple(_made(Published, number) for number in entry.pop("published", ())),
            metrics=tuple(_labelled(use) for use in metrics),
            **_known(SuiteTest, entry),
        )
        _check(test)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{where}: {error}") from error
    return test


def _check(test: SuiteTest) -> None:
    if (test.data.hub is None) == (test.data.folder is None):
        raise ValueError("`data` must name either `hub` or `folder`.")
    if (test.task == TEXT_BENCHMARK) != (test.harness is not None):
        raise ValueError(f"`harness` and the task {TEXT_BENCHMARK!r} go together.")
    unfilled = [name for name in test.input_fields if name not in test.columns and name not in test.values]
    if unfilled:
        raise ValueError(f"the task {test.task} needs {unfilled}: name their columns in `columns`, or their `values`.")
    known = (*test.columns, *test.values, *ANSWER_FIELDS)
    for use in test.metrics:
        metric = use.load()
        references = use.reference if isinstance(use.reference, list) else [use.reference]
        wanted = [use.prediction] + (references if "references" in metric.inputs else [])
        for name in wanted:
            if name not in known:
                raise ValueError(
                    f"the metric {use.label!r} reads {name!r}, but there is only {', '.join(known)}: name its column."
                )
    labels = [use.label for use in test.metrics]
    if len(set(labels)) < len(labels):
        raise ValueError(f"two metrics are called alike ({labels}): give one a `label`.")


def _labelled(use: MetricUse) -> MetricUse:
    return MetricUse(**{**vars(use), "label": use.label or use.metric})


def _made(kind: type, entry: Any):
    return kind(**_known(kind, _mapping(kind.__name__, entry)))


def _known(kind: type, entry: Mapping[str, Any]) -> Mapping[str, Any]:
    names = [item.name for item in fields(kind)]
    unknown = [name for name in entry if name not in names]
    if unknown:
        raise ValueError(f"unknown {', '.join(map(repr, unknown))}; there is {', '.join(names)}.")
    return entry


def _mapping(where: str, entry: Any) -> Mapping[str, Any]:
    if not isinstance(entry, Mapping):
        raise ValueError(f"{where} must be a mapping, but is {entry!r}.")
    return entry
