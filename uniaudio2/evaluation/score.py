"""Metrics of a manifest, and nothing but the manifest: so they can be computed again, and for any system's answers."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

from .manifest import read_predictions, read_run, write_json
from .metric import ItemMetric, MetricUnavailableError
from .resampling import confidence_intervals
from .suite import MetricUse, SuiteTest

SCORES_FILE, ROWS_FILE = "scores.json", "rows.npz"


def check_metrics(test: SuiteTest, device: str = "cpu") -> tuple[dict[str, ItemMetric], list[dict[str, str]]]:
    """
    The metrics of a test that can run here, by label, and those that are left out, with the reason.

    What is going to be downloaded, and what is left out, is said on stderr, before anything starts.
    """
    metrics, absent = {}, []
    for use in test.metrics:
        try:
            metric = use.load(device)
            for remark in metric.check():
                print(f"{test.full_name}: {remark}", file=sys.stderr)
        except (MetricUnavailableError, ImportError) as error:
            print(f"{test.full_name}: left out {use.label}: {error}", file=sys.stderr)
            absent.append({"metric": use.label, "reason": str(error)})
        else:
            metrics[use.label] = metric
    return metrics, absent


def left_out(test: SuiteTest, model: str, reason: str) -> dict[str, Any]:
    """The summary of a test that could not be run at all: no score, and the reason for each metric's absence."""
    names = [use.label for use in test.metrics] or [test.task]
    return {**empty_summary(test, {"model": model}), "left_out": [{"metric": ", ".join(names), "reason": reason}]}


def empty_summary(test: SuiteTest, run: dict[str, Any]) -> dict[str, Any]:
    """What is known of a test before its metrics are computed."""
    described = {name: run.get(name) for name in ("model", "revision", "device", "seed", "batch_size")}
    return {
        "suite": test.suite, "test": test.name, **described,
        "items": 0, "failed": {}, "left_out": [], "metrics": {}, "scores": [],
    }  # fmt: skip


def score(
    test: SuiteTest, folder: Path, device: str = "cpu", limit: int | None = None, seed: int | None = None
) -> dict[str, Any]:
    """
    Compute the metrics of a test from the predictions in a folder, and write `scores.json` and `rows.npz` into it.

    Args:
        test (`SuiteTest`): It says which metrics, of which fields.
        folder (`Path`): Holds the manifest; see `manifest.py`.
        device (`str`, *optional*, defaults to `"cpu"`): For metrics with a model.
        limit (`int`, *optional*): Take only the first items.
        seed (`int`, *optional*): Of the bootstrap, by default that of the run.

    Returns:
        `dict`: What `scores.json` holds: per score its value, interval, the values of the items and the failures.

    Raises:
        ValueError: if the manifest is that of another suite, or lacks a field.
    """
    run = read_run(folder)
    if (run.get("suite"), run.get("test")) != (test.suite, test.name):
        raise ValueError(
            f"{folder} holds the predictions of {run.get('suite')}/{run.get('test')}, not of {test.full_name}."
        )
    seed = (run.get("seed") or 0) if seed is None else seed
    predictions = [_checked(test, row) for row in read_predictions(folder)[:limit]]
    metrics, absent = check_metrics(test, device)
    results: list[dict[str, Any]] = []
    rows: dict[str, np.ndarray] = {"ids": np.array([row["id"] for row in predictions])}
    for use in test.metrics:
        if use.label not in metrics:
            continue
        failures: dict[int, str] = {}
        metric = metrics[use.label]
        metric.progress = f"{test.full_name}: {use.label}"
        answers = _column(predictions, use.prediction)
        references = _column(predictions, use.reference) if "references" in metric.inputs else None
        try:
            # A metric of the whole set may have no value for this one, as a distance of two items.
            found = metric.items(answers, references, failures=failures)
            failed = {predictions[index]["id"]: message for index, message in failures.items()}
            good = [index for index, row in enumerate(found) if index not in failures and not np.isnan(row).all()]
            results += _results(use, metric, found, good, predictions, failed, seed)
        except (ValueError, OSError, ImportError, MetricUnavailableError) as error:
            # All but the first: a model that was to be downloaded and could not be.
            absent.append({"metric": use.label, "reason": " ".join(str(error).split())})
            found = np.full((len(predictions), len(metric.scores)), np.nan)
        rows[use.label] = found
    summary = {
        **empty_summary(test, run),
        "items": len(predictions),
        "failed": {row["id"]: row["error"] for row in predictions if row.get("error")},
        "left_out": absent,
        "metrics": {
            use.label: {**vars(use), "options": dict(use.options)} for use in test.metrics if use.label in metrics
        },
        "scores": results,
    }
    np.savez_compressed(folder / ROWS_FILE, **rows)
    write_json(folder / SCORES_FILE, summary)
    return summary


def _checked(test: SuiteTest, row: dict[str, Any]) -> dict[str, Any]:
    """
    The row of an item, failed if it has no answer or its recording is not there.

    Raises:
        ValueError: if the answer or a field is not of the kind that the test asks for.
    """
    values = [(f"field {name!r}", value, "audio") for name, value in row["fields"].items() if test.is_audio(name)]
    for name, value, kind in [*values, ("answer", row["answer"], test.answer_kind)]:
        if value is not None and not isinstance(value, str if kind == "text" else Path):
            example = '"seven three nine"' if kind == "text" else f'{{"{kind}": "{kind}/0.flac"}}'
            raise ValueError(
                f"Item {row['id']}: the {name} of {test.full_name} is {kind}, written as {example}, but is {value!r}."
            )
        if isinstance(value, Path) and not value.is_file() and not row.get("error"):
            row = {**row, "error": f"there is no file {str(value)!r}"}
    if row["answer"] is None and not row.get("error"):
        row = {**row, "error": "there is no answer"}
    return row


def _column(predictions: list[dict[str, Any]], name: str | list[str] | None) -> list[Any]:
    if isinstance(name, list):
        return [list(values) for values in zip(*(_column(predictions, entry) for entry in name), strict=True)]
    if name in ("answer", "seconds", "audio_seconds", "tokens"):
        return [row.get(name) for row in predictions]
    missing = [row["id"] for row in predictions if name not in row["fields"] and not row.get("error")]
    if missing:
        raise ValueError(f"Item {missing[0]} of the manifest has no field {name!r}, which a metric reads.")
    return [row["fields"].get(name) for row in predictions]


def _results(
    use: MetricUse,
    metric: ItemMetric,
    rows: np.ndarray,
    good: list[int],
    predictions: list[dict[str, Any]],
    failed: dict[str, str],
    seed: int,
) -> list[dict[str, Any]]:
    if not good:
        raise ValueError(f"no item has a value; the first: {next(iter(failed.values()), 'none is measured')}")
    values = metric.aggregate(rows[good])
    intervals = confidence_intervals(
        rows[good], metric.aggregate, metric.resamples, seed=seed, has_set_bias=metric.has_set_bias
    )
    per_item = metric.values(rows[good])
    heard = getattr(metric, "heard", None)
    return [
        {
            "metric": use.label,
            "score": name,
            "value": values[name],
            "low": intervals[name][0],
            "high": intervals[name][1],
            "better": entry.better,
            "percent": entry.percent,
            "items": len(good),
            "failures": failed,
            "per_item": {
                predictions[index]["id"]: float(value)
                for index, value in zip(good, per_item.get(name, ()), strict=False)
            },
            **({"heard": {predictions[i]["id"]: text for i, text in zip(good, heard, strict=True)}} if heard else {}),
        }
        for name, entry in metric.scores.items()
    ]
