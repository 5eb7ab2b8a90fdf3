"""The report: one table in Markdown, a page in HTML with the worst cases to listen to, entries for model cards."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import yaml
from huggingface_hub import EvalResult, EvalResultEntry, eval_result_entries_to_yaml
from huggingface_hub.repocard_data import eval_results_to_model_index
from jinja2 import Environment, FileSystemLoader

from .audio import read_audio
from .manifest import read_predictions, write_atomically
from .suite import HUB_TASKS, SuiteTest

NUM_WORST = 5
# The shortest picture of a recording: two windows.
SPECTRUM_SAMPLES = 1024


def write_report(
    tests: Sequence[SuiteTest], summaries: Sequence[dict[str, Any]], folders: Sequence[Path], output: Path
) -> None:
    """
    Write `report.md`, `report.html`, `model-index.yaml` and `.eval_results/uniaudio2.yaml`.

    Args:
        tests (`Sequence[SuiteTest]`): What was evaluated.
        summaries (`Sequence[dict]`): Their scores, in the same order; see [`score`].
        folders (`Sequence[Path]`): Where their manifests are, likewise.
        output (`Path`): Where the report goes.
    """
    output.mkdir(parents=True, exist_ok=True)
    tables = [_table(test, summary) for test, summary in zip(tests, summaries, strict=True)]
    write_atomically(output / "report.md", markdown(tests, summaries, tables))
    details = [
        _details(test, summary, folder, output)
        for test, summary, folder in zip(tests, summaries, folders, strict=True)
    ]
    template = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True).get_template(
        "report.jinja"
    )
    write_atomically(
        output / "report.html",
        template.render(sections=list(zip(tests, summaries, tables, details, strict=True)), described=described),
    )
    model_index, entries = card_entries(tests, summaries)
    write_atomically(output / "model-index.yaml", yaml.safe_dump({"model-index": model_index}, sort_keys=False))
    if entries:
        (output / ".eval_results").mkdir(exist_ok=True)
        write_atomically(output / ".eval_results" / "uniaudio2.yaml", yaml.safe_dump(entries, sort_keys=False))


def markdown(tests: Sequence[SuiteTest], summaries: Sequence[dict], tables: Sequence[list[dict[str, str]]]) -> str:
    """All tables of a report, and what was left out, as one text."""
    lines = []
    for test, summary, table in zip(tests, summaries, tables, strict=True):
        lines += [f"## {test.full_name}", "", described(summary), ""]
        if table:
            lines += [f"| {' | '.join(table[0])} |", f"|{' --- |' * len(table[0])}"]
            lines += [f"| {' | '.join(row.values())} |" for row in table] + [""]
        if summary["failed"]:
            lines += [f"{len(summary['failed'])} items failed: {_first(summary['failed'])}", ""]
        lines += [f"Left out: {item['metric']}: {item['reason']}" for item in summary["left_out"]]
        lines += [""] * bool(summary["left_out"])
        lines += [test.notes, ""] * bool(test.notes)
    return "\n".join(lines)


def described(summary: dict[str, Any]) -> str:
    """What was run, in a line: a speed means something only beside the device and the batch."""
    parts = [str(summary["model"]) + (f" at {summary['revision']}" if summary.get("revision") else "")]
    parts += [f"on {summary['device']}"] * bool(summary.get("device")) + [f"{summary['items']} items"]
    parts += [f"answered {summary['batch_size']} at a time"] * ((summary.get("batch_size") or 1) > 1)
    return ", ".join([*parts, *([f"seed {summary['seed']}"] if summary.get("seed") is not None else [])])


def _table(test: SuiteTest, summary: dict[str, Any]) -> list[dict[str, str]]:
    rows = []
    computed = {entry["score"] for entry in summary["scores"]}
    for entry in summary["scores"]:
        rows.append(
            {
                "score": _score_name(entry),
                "measured": shown(entry["value"], entry["percent"]),
                "95% interval": _interval(entry),
                "items": f"{entry['items']}" + (f", {len(entry['failures'])} failed" if entry["failures"] else ""),
                "published": _published(test, entry["score"], entry["metric"]),
            }
        )
    for number in test.published:
        if number.score not in computed:
            computed.add(number.score)
            remark = "scores by people, as reported" if number.human else "not measured"
            rows.append(
                {
                    "score": number.score,
                    "measured": remark,
                    "95% interval": "",
                    "items": "",
                    "published": _published(test, number.score),
                }
            )
    return rows


def _interval(entry: dict[str, Any]) -> str:
    # The harness has no error for some of its numbers.
    bounds = [entry["low"], entry["high"]]
    return "" if None in bounds else " to ".join(shown(value, entry["percent"]) for value in bounds)


def _score_name(entry: dict[str, Any]) -> str:
    score, metric = entry["score"], entry["metric"]
    return score if score == metric else f"{score} ({metric})"


def _published(test: SuiteTest, score: str, metric: str | None = None) -> str:
    return "; ".join(
        f"{item.value:g} {item.system} ({item.source})"
        for item in test.published
        if item.score == score and (metric is None or item.metric in (None, metric))
    )


def shown(value: float, percent: bool) -> str:
    """A number as tables show it."""
    return f"{100 * value:.2f}%" if percent else f"{value:.4g}"


def _first(failed: dict[str, str]) -> str:
    name, message = next(iter(failed.items()))
    return f"{name}: {message}" + (f" (and {len(failed) - 1} more)" if len(failed) > 1 else "")


def _details(test: SuiteTest, summary: dict[str, Any], folder: Path, output: Path) -> dict[str, Any]:
    if test.harness is not None or not summary["items"]:
        return {"histograms": [], "worst": []}
    predictions = {row["id"]: row for row in read_predictions(folder)}
    pictures = folder / "pictures"
    pictures.mkdir(exist_ok=True)
    histograms = []
    for entry in summary["scores"]:
        values = [value for value in entry["per_item"].values() if np.isfinite(value)]
        # Values that are one but for rounding, as of copies, have no histogram.
        if values and not np.allclose(values, values[0], rtol=1e-6):
            path = pictures / f"{entry['metric']}-{entry['score']}.png"
            _histogram(path, values, f"{_score_name(entry)} of each item")
            histograms.append(_link(path, output))
    return {"histograms": histograms, "worst": _worst(test, summary, predictions, pictures, output)}


def _worst(
    test: SuiteTest, summary: dict[str, Any], predictions: dict[str, dict[str, Any]], pictures: Path, output: Path
) -> list[dict[str, Any]]:
    """The worst items by the first score that items have: what was asked, what was answered, recordings, pictures."""
    entry = next((entry for entry in summary["scores"] if entry["per_item"]), None)
    if entry is None:
        return []
    sign = -1 if entry["better"] == "lower" else 1
    worst = sorted(entry["per_item"], key=lambda name: (sign * entry["per_item"][name], name))[:NUM_WORST]
    cases = []
    for name in worst:
        row = predictions[name]
        texts = {field: str(value) for field, value in row["fields"].items() if not test.is_audio(field)}
        audio = {field: value for field, value in row["fields"].items() if test.is_audio(field) and value is not None}
        if test.answer_kind == "text":
            texts["answer"] = str(row["answer"])
        elif test.answer_kind == "audio" and row["answer"] is not None:
            audio["answer"] = row["answer"]
        if name in entry.get("heard", {}):
            texts["heard"] = entry["heard"][name]
        picture = pictures / f"{quote(name, safe='')}.png"
        _spectrograms(picture, audio)
        cases.append(
            {
                "id": name,
                "score": f"{entry['score']} {shown(entry['per_item'][name], entry['percent'])}",
                "texts": texts,
                "audio": {
                    field: _link(_kept(value, f"{picture.stem}-{field}", output, pictures), output)
                    for field, value in audio.items()
                },
                "picture": _link(picture, output),
            }
        )
    return cases


def _kept(recording: Path, name: str, output: Path, folder: Path) -> Path:
    """A recording that lies elsewhere is copied, so that the page can be moved and sent."""
    if recording.resolve().is_relative_to(output.resolve()) or not recording.is_file():
        return recording
    return Path(shutil.copyfile(recording, folder / f"{name}{recording.suffix}"))


def _link(path: Path, output: Path) -> str:
    # A URL, so that names with spaces, `#` or `%` are found; the template escapes what HTML needs.
    return quote(Path(os.path.relpath(path.resolve(), output.resolve())).as_posix())


def _histogram(path: Path, values: list[float], title: str) -> None:
    figure, axes = _axes(1, 1, (5, 2.5))
    axes[0].hist(values, bins=min(30, max(5, len(values) // 3)))
    axes[0].set_title(title)
    figure.savefig(path, dpi=80)


def _spectrograms(path: Path, audio: dict[str, str]) -> None:
    figure, axes = _axes(1, max(len(audio), 1), (4 * max(len(audio), 1), 2.5))
    for axis, (name, recording) in zip(axes, audio.items(), strict=False):
        try:
            samples, rate = read_audio(recording, None, None)
        except ValueError as error:
            # A failed item is among the worst: the page says what is wrong with it.
            axis.set_title(f"{name}: {str(error)[-40:]}", fontsize="small")
            continue
        # One window at least; one level below 16 bits keeps silence finite in decibels.
        samples = np.pad(samples, (0, max(0, SPECTRUM_SAMPLES - len(samples))))
        noise = 1e-6 * np.random.default_rng(0).standard_normal(len(samples))
        axis.specgram(samples + noise, NFFT=SPECTRUM_SAMPLES // 2, noverlap=0, Fs=rate)
        axis.set(title=name, xlabel="s", ylabel="Hz")
    figure.savefig(path, dpi=80)


def _axes(rows: int, columns: int, size: tuple[float, float]):
    # A figure of its own, without pyplot: nothing to close, no display needed.
    from matplotlib.figure import Figure

    figure = Figure(figsize=size, layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)[0]


def card_entries(
    tests: Sequence[SuiteTest], summaries: Sequence[dict[str, Any]]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """
    Entries for a model card: `model-index`, and those of `.eval_results`, which only data sets of the Hub can have.

    Percentages are written as percentages.
    """
    results, entries = [], []
    for test, summary in zip(tests, summaries, strict=True):
        dataset = test.data.title
        for entry in summary["scores"]:
            value = round(entry["value"] * (100 if entry["percent"] else 1), 4)
            results.append(
                EvalResult(
                    task_type=HUB_TASKS.get(test.task, "audio-to-audio"),
                    task_name=test.full_name,
                    dataset_type=dataset,
                    dataset_name=dataset,
                    dataset_config=test.data.config,
                    dataset_split=test.data.split,
                    metric_type=entry["score"],
                    metric_name=f"{entry['score']} ({entry['metric']})",
                    metric_value=value,
                )
            )
            if test.data.hub is not None:
                notes = f"{entry['score']}, {summary['items']} items, uniaudio2 evaluate"
                entries.append(EvalResultEntry(test.data.hub, test.name, value, notes=notes))
    names = {str(summary["model"]) for summary in summaries}
    return (
        eval_results_to_model_index(", ".join(sorted(names)), results) if results else [],
        eval_result_entries_to_yaml(entries),
    )
