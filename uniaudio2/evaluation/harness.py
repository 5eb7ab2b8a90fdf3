"""Text benchmarks by lm-evaluation-harness (MMLU, perplexity): text rows alone, as a Llama would answer."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from .manifest import write_json
from .predict import Predictor
from .score import SCORES_FILE
from .suite import SuiteTest

# Five examples before the question, the number the harness's own leaderboard task has.
MMLU_EXAMPLES = 5
LOCAL_GROUP = "uniaudio2_local"


def language_model(model, tokenizer, batch_size: int = 1, max_length: int | None = None):
    """
    A model as the harness takes it: its own `hf` class around the model object, so nothing but the forward is ours.

    Args:
        model (`UniAudio2ForConditionalGeneration`): In evaluation mode, on its device.
        tokenizer (`PreTrainedTokenizerFast`): Of the model.
        batch_size (`int`, *optional*, defaults to 1): Requests at a time.
        max_length (`int`, *optional*): Longest text, by default the length the model was trained on.
    """
    try:
        from lm_eval.models.huggingface import HFLM
    except ImportError as error:
        raise ImportError("Text benchmarks need lm-eval: pip install 'uniaudio2[evaluate]'") from error
    # The bos token before each text, which the released code writes at the start of every sequence.
    return HFLM(
        pretrained=model,
        tokenizer=tokenizer,
        backend="causal",
        batch_size=batch_size,
        max_length=max_length or model.config.trained_context_length,
        device=str(model.device),
        add_bos_token=True,
    )


def evaluate_text(
    model,
    tokenizer,
    tasks: Sequence[str | dict[str, Any]] = ("mmlu",),
    num_fewshot: int | None = MMLU_EXAMPLES,
    limit: int | None = None,
    batch_size: int = 1,
    seed: int = 0,
    data: str | None = None,
) -> dict[str, dict[str, float]]:
    """
    Numbers of the harness, with its own standard errors.

    Args:
        model, tokenizer, batch_size: As in [`language_model`].
        tasks (`Sequence[str | dict]`, *optional*, defaults to `("mmlu",)`):
            Names of tasks, which download their data, or definitions of tasks as dictionaries.
        num_fewshot (`int`, *optional*, defaults to 5): Examples before a question; `None` for what a task says.
        limit (`int`, *optional*): Take only the first questions of every task.
        seed (`int`, *optional*, defaults to 0): Of the choice of examples and the bootstrap.
        data (`str`, *optional*):
            A folder or a Hub id in place of the data that the named tasks download, laid out as that is.

    Returns:
        `dict`: By task its numbers, as `{"acc,none": 0.44, "acc_stderr,none": 0.004}`.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    harness = language_model(model, tokenizer, batch_size)
    with torch.no_grad(), TemporaryDirectory() as folder:
        if data is not None:
            # What a group says holds for all tasks in it; the harness knows a group by a file alone.
            group = {"group": LOCAL_GROUP, "task": list(tasks), "dataset_path": data}
            Path(folder, f"{LOCAL_GROUP}.yaml").write_text(yaml.safe_dump(group), encoding="utf-8")
        results = lm_eval.simple_evaluate(
            harness,
            tasks=list(tasks) if data is None else [LOCAL_GROUP],
            num_fewshot=num_fewshot,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=False,
            task_manager=TaskManager(
                include_path=folder, include_defaults=any(isinstance(task, str) for task in tasks)
            ),
        )
    return {
        task: {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        for task, entry in results["results"].items()
        if task != LOCAL_GROUP
    }


def run_benchmark(
    test: SuiteTest,
    predictor: Predictor,
    folder: Path,
    limit: int | None,
    seed: int,
    batch_size: int = 1,
    data: str | None = None,
) -> dict[str, Any]:
    """
    The benchmarks of a test, as `scores.json` of the other tests: errors of the harness make the 95% intervals.

    A benchmark that cannot get its data is left out, with the reason.
    """
    summary: dict[str, Any] = {
        "suite": test.suite, "test": test.name, "model": predictor.name, "revision": predictor.revision, "seed": seed,
        "batch_size": batch_size, "items": 0, "failed": {}, "left_out": [], "metrics": {}, "scores": [],
    }  # fmt: skip
    try:
        numbers = evaluate_text(
            predictor.model,
            predictor.processor.tokenizer,
            **test.harness,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            data=data,
        )
    except (ImportError, OSError) as error:
        summary["left_out"].append({"metric": ", ".join(test.harness["tasks"]), "reason": str(error).splitlines()[0]})
        numbers = {}
    for task, entry in numbers.items():
        for name in ("acc", "acc_norm"):
            if f"{name},none" not in entry:
                continue
            value, error = entry[f"{name},none"], entry.get(f"{name}_stderr,none", float("nan"))
            summary["scores"].append(
                {
                    "metric": "lm-eval", "score": f"{task} {name}", "value": value, "low": value - 1.96 * error,
                    "high": value + 1.96 * error, "better": "higher", "percent": True,
                    "items": int(entry.get("sample_len", 0)), "failures": {}, "per_item": {},
                }
            )  # fmt: skip
    summary["items"] = max((entry["items"] for entry in summary["scores"]), default=0)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / SCORES_FILE, summary)
    return summary
