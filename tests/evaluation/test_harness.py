"""Text benchmarks: a Llama wrapped by our classes has the numbers that lm-eval's own `hf` model has."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.evaluation.harness import evaluate_text

QUESTIONS = [(a, b) for a in ("one", "two", "three", "six") for b in ("four", "five", "nine")]
TEXTS = ("seven three nine eight", "one two three four five six", "zero eight six five")


def benchmarks(folder):
    """Multiple choice as MMLU has it, and perplexity, on data of our own."""
    rows = [
        {"question": f"{a} plus {b}", "choices": ["one", "two", "three", "four"], "answer": (7 * index) % 4}
        for index, (a, b) in enumerate(QUESTIONS)
    ]
    (folder / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text("".join(json.dumps({"page": text}) + "\n" for text in TEXTS))
    common = {"dataset_path": "json", "test_split": "test", "num_fewshot": 0}
    choice = {
        "task": "choice",
        "dataset_kwargs": {"data_files": {"test": str(folder / "questions.jsonl")}},
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    perplexity = {
        "task": "perplexity",
        "dataset_kwargs": {"data_files": {"test": str(folder / "texts.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    }
    return [{**common, **choice}, {**common, **perplexity}]


@pytest.mark.slow
def test_the_numbers_are_those_of_the_harness_with_the_same_llama(tokenizer, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    torch.manual_seed(1)
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.5,
            max_position_embeddings=512,
        )
    )
    llama.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    tasks = benchmarks(tmp_path)
    wrapped = UniAudio2ForConditionalGeneration.from_text_model(tmp_path / "llama").eval()
    ours = evaluate_text(wrapped, tokenizer, tasks, num_fewshot=None)
    own = HFLM(pretrained=str(tmp_path / "llama"), device="cpu", add_bos_token=True, max_length=512)
    theirs = lm_eval.simple_evaluate(own, tasks=tasks, task_manager=TaskManager(include_defaults=False))["results"]
    for task, names in (("choice", ("acc", "acc_norm")), ("perplexity", ("word_perplexity", "bits_per_byte"))):
        for name in names:
            assert ours[task][f"{name},none"] == pytest.approx(theirs[task][f"{name},none"], rel=1e-6)
    # Not by chance: another head has other numbers.
    with torch.no_grad():
        wrapped.lm_head.weight[:] = wrapped.lm_head.weight.flip(0)
    other = evaluate_text(wrapped, tokenizer, tasks[1:], num_fewshot=None)["perplexity"]
    assert other["bits_per_byte,none"] != pytest.approx(ours["perplexity"]["bits_per_byte,none"], rel=1e-2)
