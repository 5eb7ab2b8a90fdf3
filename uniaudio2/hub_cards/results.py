"""Results for the cards, each with its source: reported by the authors, or measured with `uniaudio2 evaluate`."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from ..evaluation.suite import CODEC_TASKS, HUB_TASKS, SUITE_FOLDER, DataSource, suite_names
from .model_files import read_json

# What we have measured of a model, in its folder.
RESULTS_FILE, SCORES_FILE = "evaluation.json", "scores.json"
PAPER_URL = "https://arxiv.org/abs/2602.04683"
# Whose numbers in the suites are those of the released models.
RELEASED_SYSTEMS = ("UniAudio 2.0 3B", "ReasoningCodec")
MEASURED = "measured with uniaudio2 evaluate"
# How fast it was says as much of the machine as of the model.
OF_THE_MACHINE = "speed"


@dataclass(frozen=True)
class Result:
    """
    One number.

    Args:
        test (`str`): Its full name, `suite/test`.
        task (`str`): The task.
        data (`str`): The name of the data.
        config (`str`, *optional*): The configuration of the data.
        split (`str`, *optional*): The split.
        score (`str`): The name of the score.
        label (`str`): The same for people, with the metric that it belongs to.
        value (`float`): As tables show it, percentages as percentages.
        shown (`str`): The same for people, with its interval if there is one.
        source (`str`): Where it comes from.
        items (`int`, *optional*): Of how many items, if we have measured it.
    """

    test: str
    task: str
    data: str
    config: str | None
    split: str | None
    score: str
    label: str
    value: float
    shown: str
    source: str
    items: int | None = None

    @property
    def is_of_codec(self) -> bool:
        return self.task in CODEC_TASKS

    @property
    def is_measured(self) -> bool:
        return self.source.startswith(MEASURED)

    def row(self) -> dict[str, str]:
        """The result in a table."""
        return {
            "test": self.test,
            "data": f"{self.data}, {self.items} items" if self.items else self.data,
            "score": self.label,
            "result": self.shown,
            "source": self.source,
        }

    def eval_result(self, measured_url: str) -> EvalResult:
        """The result in the metadata of a card."""
        return EvalResult(
            task_type=HUB_TASKS.get(self.task, "audio-to-audio"),
            task_name=self.test,
            dataset_type=self.data,
            dataset_name=self.data,
            # Entries of the index are one per data set: tests on the same one are told apart by this.
            dataset_config=self.config or self.test.rpartition("/")[2],
            dataset_split=self.split,
            metric_type=self.score,
            metric_name=self.label,
            metric_value=self.value,
            source_name=self.source,
            source_url=measured_url if self.is_measured else PAPER_URL,
        )


def reported_results() -> list[Result]:
    """What the authors report of the released models, as the suites record it."""
    return [
        Result(
            **_place(suite, name, test),
            score=number["score"],
            label=number["score"],
            value=number["value"],
            shown=f"{number['value']:g}{f' ({remark}' if remark else ''}",
            source=number["source"],
        )
        for suite in suite_names()
        for name, test in _suite(suite).items()
        for number in test.get("published", ())
        # What stands in parentheses tells the numbers of several sets apart.
        for system, _, remark in [number["system"].partition(" (")]
        if system in RELEASED_SYSTEMS
    ]


def measured_results(folder: Path) -> list[Result]:
    """
    What `uniaudio2 evaluate --output FOLDER` has measured.

    Raises:
        ValueError: If there are no scores, or those of a test that no suite of the package has.
    """
    files = sorted(folder.rglob(SCORES_FILE))
    if not files:
        raise ValueError(f"There is no {SCORES_FILE} in {folder}: `uniaudio2 evaluate --output {folder}` makes it.")
    results = []
    for file in files:
        summary = read_json(file)
        suite, name = summary["suite"], summary["test"]
        test = _suite(suite).get(name) if suite in suite_names() else None
        if test is None:
            raise ValueError(f"{file} holds scores of {suite}/{name}, which no suite has.")
        left_out = {
            use.get("label", OF_THE_MACHINE) for use in test.get("metrics", ()) if use["metric"] == OF_THE_MACHINE
        }
        results += [
            _measured(_place(suite, name, test), summary["seed"], entry)
            for entry in summary["scores"]
            if entry["metric"] not in left_out
        ]
    return results


def recorded_results(file: Path) -> list[Result]:
    """
    What stands in an `evaluation.json`.

    Raises:
        ValueError: If it is damaged.
    """
    try:
        return [Result(**entry) for entry in read_json(file)["results"]]
    except (KeyError, TypeError) as error:
        raise ValueError(f"{file} is not what `uniaudio2 publish stage --evaluation` writes: {error}.") from error


def records(results: Sequence[Result]) -> dict[str, Any]:
    """What we have measured, as an `evaluation.json` holds it."""
    return {"results": [asdict(result) for result in results if result.is_measured]}


def model_index(name: str, results: Sequence[Result], measured_url: str) -> list[dict[str, Any]]:
    """
    The entry `model-index` of a card.

    Args:
        name (`str`): Of the model.
        results (`Sequence[Result]`): What is in it.
        measured_url (`str`): Where what we have measured is written down.
    """
    entries = []
    # huggingface_hub joins results of the same task and data, and would keep the source of the first.
    for source in dict.fromkeys(result.source for result in results):
        group = [result.eval_result(measured_url) for result in results if result.source == source]
        entries += eval_results_to_model_index(name, group)[0]["results"]
    return [{"name": name, "results": entries}]


def _suite(name: str) -> Mapping[str, Any]:
    # As data: `load_suite` would load the metrics too, which are an extra.
    return yaml.safe_load((SUITE_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))["tests"]


def _place(suite: str, name: str, test: Mapping[str, Any]) -> dict[str, Any]:
    data = DataSource(**test["data"])
    return {
        "test": f"{suite}/{name}",
        "task": test["task"],
        "data": data.title,
        "config": data.config,
        "split": data.split,
    }


def _measured(place: Mapping[str, Any], seed: int, entry: Mapping[str, Any]) -> Result:
    factor, form = (100, "{:.2f}%") if entry["percent"] else (1, "{:.4g}")
    # lm-evaluation-harness has no error, so no interval, for some of its numbers.
    value, *interval = (
        form.format(factor * entry[name]) for name in ("value", "low", "high") if entry[name] is not None
    )
    return Result(
        **place,
        score=entry["score"],
        label=entry["score"] if entry["score"] == entry["metric"] else f"{entry['score']} ({entry['metric']})",
        value=round(factor * entry["value"], 4),
        shown=f"{value} ({' to '.join(interval)})" if interval else value,
        source=f"{MEASURED}, seed {seed}",
        items=entry["items"],
    )
