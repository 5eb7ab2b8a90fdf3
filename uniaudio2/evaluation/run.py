"""One call for all of it: predictions, scores, report."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Twice (listening) to three times (speaking) as fast as one by one: the shipped checkpoint, on one thread.
BATCH_SIZE = 8


def evaluate(
    suites: str | Sequence[str],
    model: str | None = None,
    data: str | None = None,
    limit: int | None = None,
    output: str | Path = "evaluation",
    tests: Sequence[str] | None = None,
    device: "torch.device | str | None" = None,
    seed: int = 0,
    batch_size: int = BATCH_SIZE,
) -> list[dict[str, Any]]:
    """
    Run suites, and write predictions, scores and a report into a folder.

    What is done already is not done again: after a kill the same call goes on, and ends with the same numbers. A test
    without data, and a metric without its model, is left out and listed with the reason.

    Args:
        suites (`str` or `Sequence[str]`): Suites of the package, or YAML files.
        model (`str`, *optional*): A model folder or a Hub id; the shipped checkpoint by default.
        data (`str`, *optional*): A folder or a Hub id to take in place of the data that the suites name.
        limit (`int`, *optional*): Take only the first items of every test.
        output (`str` or `Path`, *optional*, defaults to `"evaluation"`): One folder per test goes in here.
        tests (`Sequence[str]`, *optional*): Only these tests of the suites.
        device (`torch.device` or `str`, *optional*): Of the models; by default an accelerator if there is one.
        seed (`int`, *optional*, defaults to 0): Of the answers and of the bootstrap.
        batch_size (`int`, *optional*, defaults to 8): Items that are answered together.

    Returns:
        `list[dict]`: The scores of every test, as `scores.json` holds them. Empty in all but the first process.

    Raises:
        ValueError: for a mistake in a suite or in the data, an output folder that holds another run, or if no test has
            data.
        ImportError: if the packages of the extra `uniaudio2[evaluate]` are missing.
    """
    try:
        import evaluate as _  # noqa: F401
    except ImportError as error:
        raise ImportError("Evaluation needs more packages: pip install 'uniaudio2[evaluate]'") from error
    import torch
    from accelerate import PartialState

    from .. import TINY
    from .data import DataUnavailableError, load_items
    from .harness import run_benchmark
    from .predict import Predictor, predict
    from .report import write_report
    from .score import check_metrics, left_out, score
    from .suite import load_suite

    for name, value in (("limit", limit), ("batch_size", batch_size)):
        if value is not None and value < 1:
            raise ValueError(f"`{name}` must be at least 1, but is {value}.")
    chosen = [test for name in ([suites] if isinstance(suites, str) else suites) for test in load_suite(name)]
    unknown = [name for name in tests or () if name not in {test.name for test in chosen}]
    if unknown:
        raise ValueError(f"There is no test {unknown[0]!r}; there is {', '.join(test.name for test in chosen)}.")
    chosen = [test for test in chosen if tests is None or test.name in tests]

    # Everything that can be wrong is found before anything long begins.
    is_cpu = not torch.accelerator.is_available() or (device is not None and torch.device(device).type == "cpu")
    # Without a word on it, several processes without an accelerator would each take themselves for the only one.
    state = PartialState(cpu=is_cpu)
    device = torch.device(device) if device is not None else state.device
    if state.is_main_process:
        for test in chosen:
            check_metrics(test, str(device))
    items, without_data = {}, {}
    for test in chosen:
        try:
            items[test.full_name] = load_items(test, data) if test.harness is None else None
        except DataUnavailableError as error:
            without_data[test.full_name] = error
    if not items:
        raise next(iter(without_data.values()))
    if state.is_main_process:
        for error in without_data.values():
            print(f"left out: {error}", file=sys.stderr)
    predictor = Predictor(model or TINY, device)
    folders = {test.full_name: Path(output, test.suite, test.name) for test in chosen}
    for test in chosen:
        if items.get(test.full_name) is not None:
            predict(test, items[test.full_name], predictor, folders[test.full_name], seed, limit, batch_size)
    if not state.is_main_process:
        return []
    summaries = []
    for test in chosen:
        folder = folders[test.full_name]
        if test.full_name in without_data:
            summary = left_out(test, predictor.name, str(without_data[test.full_name]))
        elif test.harness is None:
            summary = score(test, folder, str(device), limit, seed)
        else:
            summary = run_benchmark(test, predictor, folder, limit, seed, batch_size, data)
        summaries.append(summary)
    write_report(chosen, summaries, [folders[test.full_name] for test in chosen], Path(output))
    return summaries


def score_again(
    folder: str | Path, suites: Sequence[str] | None = None, device: str = "cpu", seed: int | None = None
) -> list[dict[str, Any]]:
    """
    Compute metrics and report from the predictions in a folder, ours or another system's.

    Args:
        folder (`str` or `Path`): Holds one folder per test, with `run.json` and `predictions.jsonl`.
        suites (`Sequence[str]`, *optional*): Where the tests are defined, by default what `run.json` names.
        device (`str`, *optional*, defaults to `"cpu"`): Of metrics with a model.
        seed (`int`, *optional*): Of the bootstrap, by default that of the run: the same intervals again.

    Raises:
        ValueError: if there are no predictions, or those of a test that the suites do not have.
    """
    from .manifest import PREDICTIONS_FILE, QUESTIONS_FILE, read_json, read_run
    from .report import write_report
    from .score import SCORES_FILE, score
    from .suite import load_suite

    folders = sorted(path.parent for name in (PREDICTIONS_FILE, QUESTIONS_FILE) for path in Path(folder).rglob(name))
    if not folders:
        raise ValueError(f"There is no {PREDICTIONS_FILE} in {folder}: there is nothing to score.")
    runs = [read_run(path) for path in folders]
    names = suites or list(dict.fromkeys(str(run.get("suite")) for run in runs))
    known = {(test.suite, test.name): test for name in names for test in load_suite(name)}
    missing = [run for run in runs if (run.get("suite"), run.get("test")) not in known]
    if missing:
        raise ValueError(
            f"{folder} holds predictions of {missing[0].get('suite')}/{missing[0].get('test')}, which is not among "
            f"the tests {', '.join(f'{suite}/{test}' for suite, test in known)}."
        )
    tests = [known[run["suite"], run["test"]] for run in runs]
    summaries = [
        # A text benchmark has been scored by its harness.
        score(test, path, device, seed=seed) if test.harness is None else read_json(path / SCORES_FILE)
        for test, path in zip(tests, folders, strict=True)
    ]
    write_report(tests, summaries, folders, Path(folder))
    return summaries
