"""Text benchmarks by lm-evaluation-harness (MMLU, perplexity): text rows alone, as a Llama would answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from .manifest import QUESTIONS_FILE, RUN_FILE, write_atomically, write_json
from .metric import Score
from .predict import Predictor, run_description
from .score import SCORES_FILE, empty_summary
from .suite import SuiteTest

# Five examples before the question, the number the harness's own leaderboard task has.
MMLU_EXAMPLES = 5
LOCAL_GROUP = "uniaudio2_local"

# The numbers of the harness that a report shows: shares, then what a text costs.
SCORES = {
    **dict.fromkeys(("acc", "acc_norm", "exact_match"), Score("higher", percent=True)),
    **dict.fromkeys(("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte"), Score("lower")),
}


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
    questions: list[dict[str, Any]] | None = None,
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
        questions (`list[dict]`, *optional*):
            Takes, for every question, its `id`, the `prompts`, the `target`, the `replies` as the harness has them
            (log probabilities, or texts), and its `scores`.

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
            log_samples=questions is not None,
            task_manager=TaskManager(
                include_path=folder, include_defaults=any(isinstance(task, str) for task in tasks)
            ),
        )
    if questions is not None:
        questions += [
            {
                "id": f"{task}/{item['doc_id']}",
                "prompts": [prompt for prompt, *_ in item["arguments"]],
                "target": item["target"],
                "replies": item["filtered_resps"],
                "scores": {name: item[name] for name in ("acc", "acc_norm", "exact_match") if name in item},
            }
            for task, items in results["samples"].items()
            for item in items
        ]
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

    What was asked and answered goes into `questions.jsonl`. A benchmark that cannot get its data is left out, with the
    reason.
    """
    run = {**run_description(test, predictor, seed, batch_size), "harness": dict(test.harness)}
    summary = empty_summary(test, run)
    questions: list[dict[str, Any]] = []
    try:
        numbers = evaluate_text(
            predictor.model,
            predictor.processor.tokenizer,
            **test.harness,
            limit=limit,
            batch_size=batch_size,
            seed=seed,
            data=data,
            questions=questions,
        )
    except (ImportError, OSError) as error:
        reason, numbers = str(error).splitlines()[0], {}
        if isinstance(error, OSError):
            reason += (
                f": fetch its data with `hf download --repo-type dataset {test.data.hub}` where there is a network, "
                "or pass a folder with a copy as `--data`"
            )
        summary["left_out"].append({"metric": ", ".join(map(str, test.harness["tasks"])), "reason": reason})
    for task, entry in numbers.items():
        for name, kind in SCORES.items():
            if f"{name},none" not in entry:
                continue
            value, error = entry[f"{name},none"], entry.get(f"{name}_stderr,none")
            low, high = (None, None) if error is None else (value - 1.96 * error, value + 1.96 * error)
            summary["scores"].append(
                {
                    "metric": "lm-eval", "score": f"{task} {name}", "value": value, "low": low, "high": high,
                    "better": kind.better, "percent": kind.percent,
                    "items": int(entry.get("sample_len", 0)), "failures": {}, "per_item": {},
                }
            )  # fmt: skip
    if numbers and not summary["scores"]:
        summary["left_out"].append(
            {
                "metric": ", ".join(map(str, numbers)),
                "reason": f"the harness gave none of the numbers {', '.join(SCORES)}",
            }
        )
    summary["items"] = max((entry["items"] for entry in summary["scores"]), default=0)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RUN_FILE, run)
    write_atomically(folder / QUESTIONS_FILE, "".join(f"{json.dumps(row, default=str)}\n" for row in questions))
    write_json(folder / SCORES_FILE, summary)
    return summary
