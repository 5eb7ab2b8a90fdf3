"""Text benchmarks by lm-evaluation-harness (MMLU, perplexity): the model answers on text rows alone, as a Llama would."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from .manifest import write_json

# Five examples before the question, the number the harness's own leaderboard task has.
MMLU_EXAMPLES = 5
RESULTS_FILE = "harness.json"


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
    output: Path | None = None,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """
    Numbers of the harness, with its own standard errors.

    Args:
        model, tokenizer, batch_size: As in [`language_model`].
        tasks (`Sequence[str | dict]`, *optional*, defaults to `("mmlu",)`):
            Names of tasks, which download their data, or definitions of tasks as dictionaries.
        num_fewshot (`int`, *optional*, defaults to 5): Examples before a question; `None` for what a task says.
        limit (`int`, *optional*): Take only the first questions of every task.
        output (`Path`, *optional*): A folder to write `harness.json` into.
        seed (`int`, *optional*, defaults to 0): Of the choice of examples and the bootstrap.

    Returns:
        `dict`: By task its numbers, as `{"acc,none": 0.44, "acc_stderr,none": 0.004}`.
    """
    import lm_eval
    from lm_eval.tasks import TaskManager

    harness = language_model(model, tokenizer, batch_size)
    with torch.no_grad():
        results = lm_eval.simple_evaluate(
            harness,
            tasks=list(tasks),
            num_fewshot=num_fewshot,
            limit=limit,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            log_samples=False,
            task_manager=TaskManager(include_defaults=any(isinstance(task, str) for task in tasks)),
        )
    numbers = {
        task: {name: value for name, value in entry.items() if isinstance(value, (int, float))}
        for task, entry in results["results"].items()
    }
    if output is not None:
        write_json(output / RESULTS_FILE, {"results": numbers, "versions": results["versions"], "n-shot": results["n-shot"]})
    return numbers
