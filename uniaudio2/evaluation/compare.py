"""Two runs of the same tests, item by item: is the difference more than luck?"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from .manifest import QUESTIONS_FILE, read_json
from .metrics import load_metric
from .resampling import paired_difference
from .score import ROWS_FILE, SCORES_FILE


def compare(first: Path, second: Path, seed: int = 0) -> list[dict[str, Any]]:
    """
    Compare the scores of two output folders of `evaluate`, or two folders of one test, on the items that both have.

    Args:
        first, second (`Path`): The folders; differences are `second` minus `first`.
        seed (`int`, *optional*, defaults to 0): Of the resampling.

    Returns:
        `list[dict]`: Per score of every test that both have: `test`, `metric`, `score`, `first`, `second`,
        `difference`, its 95% interval `low` to `high`, the `p` of the permutation test and the number of `items`.

    Raises:
        ValueError: if there is nothing that both have.
    """
    runs = [_scored(Path(folder)) for folder in (first, second)]
    shared = [name for name in runs[0] if name in runs[1]]
    if not shared:
        raise ValueError(
            f"{first} has {', '.join(runs[0]) or 'no scores'} and {second} has {', '.join(runs[1]) or 'no scores'}: "
            "there is no test that both have."
        )
    return [entry for name in shared for entry in _compared(name, runs[0][name], runs[1][name], seed)]


def as_table(entries: list[dict[str, Any]]) -> str:
    """The comparison as a table in Markdown."""
    columns = ("test", "score", "first", "second", "difference", "95% interval", "p", "items")
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for entry in entries:
        name = entry["score"] if entry["score"] == entry["metric"] else f"{entry['score']} ({entry['metric']})"
        numbers = [f"{entry[key]:.4g}" for key in ("first", "second", "difference")]
        cells = [entry["test"], name, *numbers, f"{entry['low']:.4g} to {entry['high']:.4g}", f"{entry['p']:.3g}"]
        lines.append(f"| {' | '.join(cells)} | {entry['items']} |")
    return "\n".join(lines)


def _scored(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise ValueError(f"There is no folder {str(folder)!r}.")
    found = {}
    for path in sorted(folder.rglob(SCORES_FILE)):
        summary = read_json(path)
        found[f"{summary['suite']}/{summary['test']}"] = path.parent
    return found


def _compared(name: str, first: Path, second: Path, seed: int) -> list[dict[str, Any]]:
    if (first / QUESTIONS_FILE).is_file() and (second / QUESTIONS_FILE).is_file():
        return _compared_benchmarks(name, first, second, seed)
    summaries = [read_json(folder / SCORES_FILE) for folder in (first, second)]
    rows = [np.load(folder / ROWS_FILE) for folder in (first, second)]
    positions = [{item: position for position, item in enumerate(run["ids"].tolist())} for run in rows]
    shared_ids = [item for item in positions[0] if item in positions[1]]
    if not shared_ids:
        raise ValueError(f"{name}: the two runs have no item in common.")
    entries = []
    for label, use in summaries[0]["metrics"].items():
        other = summaries[1]["metrics"].get(label)
        if other is None:
            continue
        if other != use:
            raise ValueError(f"{name}: {label!r} was computed in two ways, {use} and {other}: score both again.")
        metric = load_metric(use["metric"], **use["options"])
        a, b = (run[label][[place[item] for item in shared_ids]] for run, place in zip(rows, positions, strict=True))
        # An item counts only where both systems have a value: a pair.
        is_pair = np.isfinite(a).all(axis=1) & np.isfinite(b).all(axis=1)
        a, b = a[is_pair], b[is_pair]
        if len(a) == 0:
            continue
        before, after = metric.aggregate(a), metric.aggregate(b)
        differences = paired_difference(a, b, metric.aggregate, metric.resamples, seed, metric.has_set_bias)
        for score, difference in differences.items():
            entries.append(
                {
                    "test": name,
                    "metric": label,
                    "score": score,
                    "first": before[score],
                    "second": after[score],
                    **difference,
                    "items": len(a),
                }
            )
    return entries


def _compared_benchmarks(name: str, first: Path, second: Path, seed: int) -> list[dict[str, Any]]:
    """All questions of a text benchmark that both were asked, each counting once."""
    entries = []
    runs = [
        {
            row["id"]: row["scores"]
            for row in map(json.loads, (folder / QUESTIONS_FILE).read_text("utf-8").splitlines())
        }
        for folder in (first, second)
    ]
    for score in dict.fromkeys(score for scores in runs[0].values() for score in scores):
        shared = [item for item, scores in runs[0].items() if score in scores and score in runs[1].get(item, ())]
        if not shared:
            continue
        a, b = (np.array([[run[item][score]] for item in shared], dtype=np.float64) for run in runs)
        difference = paired_difference(a, b, lambda rows, score=score: {score: float(rows.mean())}, seed=seed)[score]
        entries.append(
            {
                "test": name, "metric": "lm-eval", "score": score, "first": float(a.mean()), "second": float(b.mean()),
                **difference, "items": len(shared),
            }
        )  # fmt: skip
    return entries
