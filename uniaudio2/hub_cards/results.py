"""Results for the cards, each with its source: reported by the authors, or measured with `uniaudio2 evaluate`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult
from huggingface_hub.repocard_data import eval_results_to_model_index

from .model_files import read_json

if TYPE_CHECKING:
    from ..evaluation.suite import SuiteTest

PAPER_URL = "https://arxiv.org/abs/2602.04683"
# Whose numbers of the suites are those of the released models.
RELEASED_SYSTEMS = ("UniAudio 2.0 3B", "ReasoningCodec")
MEASURED = "measured with uniaudio2 evaluate"


@dataclass(frozen=True)
class Result:
    """
    One number.

    Args:
        test (`SuiteTest`): Of what.
        score (`str`): Its name.
        label (`str`): Its name for people, with the metric that it belongs to.
        value (`float`): As tables show it, percentages as percentages.
        shown (`str`): The same for people, with its interval if there is one.
        source (`str`): Where it comes from.
        items (`int`, *optional*): Of how many items, if we have measured it.
    """

    test: "SuiteTest"
    score: str
    label: str
    value: float
    shown: str
    source: str
    items: int | None = None

    @property
    def is_of_codec(self) -> bool:
        from ..evaluation.suite import RECONSTRUCTION_TASK

        return self.test.task == RECONSTRUCTION_TASK

    @property
    def is_measured(self) -> bool:
        return self.source.startswith(MEASURED)

    @property
    def data(self) -> str:
        """The name of the data."""
        return self.test.data.hub or Path(self.test.data.folder).name

    def row(self) -> dict[str, str]:
        """The result in a table."""
        return {
            "test": self.test.full_name,
            "data": f"{self.data}, {self.items} items" if self.items else self.data,
            "score": self.label,
            "result": self.shown,
            "source": self.source,
        }

    def eval_result(self, measured_url: str) -> EvalResult:
        """The result in the metadata of a card."""
        from ..evaluation.report import HUB_TASKS

        return EvalResult(
            task_type=HUB_TASKS.get(self.test.task, "audio-to-audio"),
            task_name=self.test.full_name,
            dataset_type=self.data,
            dataset_name=self.data,
            # Entries of the index are one per data set: tests on the same one are told apart by this.
            dataset_config=self.test.data.config or self.test.name,
            dataset_split=self.test.data.split,
            metric_type=self.score,
            metric_name=self.label,
            metric_value=self.value,
            source_name=self.source,
            source_url=measured_url if self.is_measured else PAPER_URL,
        )


def reported_results() -> list[Result]:
    """
    What the authors report of the released models, as the suites record it.

    Raises:
        ImportError: if the packages of the extra `uniaudio2[evaluate]` are missing.
    """
    from ..evaluation.suite import load_suite, suite_names

    return [
        Result(test, number.score, number.score, number.value, _with_system(number), number.source)
        for name in suite_names()
        for test in load_suite(name)
        for number in test.published
        if number.system.startswith(RELEASED_SYSTEMS)
    ]


def measured_results(folder: Path) -> list[Result]:
    """
    What `uniaudio2 evaluate --output FOLDER` has measured.

    Raises:
        ValueError: If there are no scores, or those of a test that no suite has.
        ImportError: if the packages of the extra `uniaudio2[evaluate]` are missing.
    """
    from ..evaluation.score import SCORES_FILE
    from ..evaluation.suite import load_suite

    files = sorted(folder.rglob(SCORES_FILE))
    if not files:
        raise ValueError(f"There is no {SCORES_FILE} in {folder}: `uniaudio2 evaluate --output {folder}` makes it.")
    results = []
    for file in files:
        summary = read_json(file)
        tests = [test for test in load_suite(summary["suite"]) if test.name == summary["test"]]
        if not tests:
            raise ValueError(f"{file} holds scores of {summary['suite']}/{summary['test']}, which no suite has.")
        # How fast it was says as much of the machine as of the model.
        of_machine = {use.label for use in tests[0].metrics if use.metric == "speed"}
        scores = [entry for entry in summary["scores"] if entry["metric"] not in of_machine]
        results += [_measured(tests[0], summary, entry) for entry in scores]
    return results


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


def records(results: Sequence[Result]) -> list[dict[str, Any]]:
    """What we have measured, as data."""
    return [{**result.row(), "value": result.value} for result in results if result.is_measured]


def _measured(test: "SuiteTest", summary: dict[str, Any], entry: dict[str, Any]) -> Result:
    from ..evaluation.report import shown

    percent = entry["percent"]
    interval = f"{shown(entry['low'], percent)} to {shown(entry['high'], percent)}"
    return Result(
        test=test,
        score=entry["score"],
        label=entry["score"] if entry["score"] == entry["metric"] else f"{entry['score']} ({entry['metric']})",
        value=round(entry["value"] * (100 if percent else 1), 4),
        shown=f"{shown(entry['value'], percent)} ({interval})",
        source=f"{MEASURED}, seed {summary['seed']}",
        items=entry["items"],
    )


def _with_system(number: Any) -> str:
    # One test has the numbers of two sets: what tells them apart stands behind the system's name.
    _, _, remark = number.system.partition(" (")
    return f"{number.value:g}{f' ({remark}' if remark else ''}"
