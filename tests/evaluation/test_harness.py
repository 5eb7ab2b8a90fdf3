"""Text benchmarks: a Llama wrapped by our classes has the numbers that lm-eval's own `hf` model has."""

import json

import datasets
import numpy as np
import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import UniAudio2Config, UniAudio2ForConditionalGeneration
from uniaudio2.cli import main
from uniaudio2.evaluation import evaluate
from uniaudio2.evaluation.compare import compare
from uniaudio2.evaluation.harness import evaluate_text
from uniaudio2.evaluation.run import score_again

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


@pytest.fixture
def llama_folder(tokenizer, tmp_path):
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
    folder = tmp_path / "llama"
    llama.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_numbers_are_those_of_the_harness_with_the_same_llama(tokenizer, llama_folder, tmp_path):
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    tasks = benchmarks(tmp_path)
    wrapped = UniAudio2ForConditionalGeneration.from_text_model(llama_folder).eval()
    ours = evaluate_text(wrapped, tokenizer, tasks, num_fewshot=None)
    own = HFLM(pretrained=str(llama_folder), device="cpu", add_bos_token=True, max_length=512)
    theirs = lm_eval.simple_evaluate(own, tasks=tasks, task_manager=TaskManager(include_defaults=False))["results"]
    for task, names in (("choice", ("acc", "acc_norm")), ("perplexity", ("word_perplexity", "bits_per_byte"))):
        for name in names:
            assert ours[task][f"{name},none"] == pytest.approx(theirs[task][f"{name},none"], rel=1e-6)
    # Not by chance: another head has other numbers.
    with torch.no_grad():
        wrapped.lm_head.weight[:] = wrapped.lm_head.weight.flip(0)
    other = evaluate_text(wrapped, tokenizer, tasks[1:], num_fewshot=None)["perplexity"]
    assert other["bits_per_byte,none"] != pytest.approx(ours["perplexity"]["bits_per_byte,none"], rel=1e-2)


def save_wrapped(llama_folder, processor, folder):
    """The Llama as a model folder of ours, with small audio parts."""
    config = UniAudio2Config.from_text_config(
        LlamaConfig.from_pretrained(llama_folder),
        num_understanding_layers=1,
        num_generation_layers=1,
        depth_decoder_config={
            "hidden_size": 16,
            "intermediate_size": 16,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        trained_context_length=512,
    )
    UniAudio2ForConditionalGeneration.from_text_model(llama_folder, config).save_pretrained(folder)
    processor.save_pretrained(folder, save_codec=True)


SUBJECTS = ("anatomy", "astronomy", "machine_learning")


@pytest.fixture
def mmlu_folder(tmp_path):
    """The data set as cais/mmlu lays it out: a configuration per subject, Parquet files, a card that lists them."""
    folder = tmp_path / "mmlu"
    generator = np.random.default_rng(0)
    configs = []
    for subject in SUBJECTS:
        (folder / subject).mkdir(parents=True)
        for split, count in (("test", 9), ("dev", 5)):
            rows = {
                "question": [" ".join(generator.choice(["one", "two", "three", "six"], 4)) for _ in range(count)],
                "subject": [subject] * count,
                "choices": [generator.permutation(["zero", "four", "five", "nine"]).tolist() for _ in range(count)],
                "answer": generator.integers(0, 4, count).tolist(),
            }
            datasets.Dataset.from_dict(rows).to_parquet(folder / subject / f"{split}-00000-of-00001.parquet")
        files = [{"split": split, "path": f"{subject}/{split}-*"} for split in ("test", "dev")]
        configs.append({"config_name": subject, "data_files": files})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': configs})}---\n")
    return folder


def from_folder(folder, load_dataset):
    """`load_dataset`, which finds cais/mmlu in a folder."""

    def load(path, name=None, **options):
        assert path == "cais/mmlu"
        return load_dataset(str(folder), name, **options)

    return load


@pytest.mark.slow
def test_the_mmlu_suite_has_the_numbers_of_the_harness(llama_folder, mmlu_folder, processor, tmp_path, monkeypatch):
    """The suite of the package with three of its 57 subjects: command, five examples, local data, report."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from uniaudio2.evaluation.suite import SUITE_FOLDER

    names = [f"mmlu_{subject}" for subject in SUBJECTS]
    suite = yaml.safe_load((SUITE_FOLDER / "mmlu.yaml").read_text())
    assert suite["tests"]["mmlu"]["harness"] == {"tasks": ["mmlu"], "num_fewshot": 5}
    suite["tests"]["mmlu"]["harness"]["tasks"] = names
    (tmp_path / "mmlu.yaml").write_text(yaml.safe_dump(suite))
    save_wrapped(llama_folder, processor, tmp_path / "model")

    arguments = [
        "--suite",
        str(tmp_path / "mmlu.yaml"),
        "--model",
        str(tmp_path / "model"),
        "--data",
        str(mmlu_folder),
    ]
    assert main(["evaluate", *arguments, "--output", str(tmp_path / "out"), "--device", "cpu"]) == 0

    own = HFLM(pretrained=str(llama_folder), device="cpu", add_bos_token=True, max_length=512, batch_size=1)
    # The harness's own tasks, and the harness's own way to its data.
    monkeypatch.setattr(datasets, "load_dataset", from_folder(mmlu_folder, datasets.load_dataset))
    theirs = lm_eval.simple_evaluate(own, tasks=names, num_fewshot=5, task_manager=TaskManager())["results"]
    scores = json.loads((tmp_path / "out/mmlu/mmlu/scores.json").read_text())["scores"]
    ours = {entry["score"]: entry for entry in scores}
    for name in names:
        entry = ours[f"{name} acc"]
        assert entry["value"] == theirs[name]["acc,none"] and entry["items"] == 9
        error = theirs[name]["acc_stderr,none"]
        assert entry["high"] - entry["low"] == pytest.approx(2 * 1.96 * error)
    assert len({entry["value"] for entry in scores}) > 1
    assert "mmlu_anatomy acc (lm-eval)" in (tmp_path / "out/report.md").read_text()
    # Every question is kept, with what was asked and answered; a run differs from itself by nothing.
    lines = (tmp_path / "out/mmlu/mmlu/questions.jsonl").read_text().splitlines()
    kept = [json.loads(line) for line in lines if "mmlu_anatomy/" in line]
    assert np.mean([row["scores"]["acc"] for row in kept]) == pytest.approx(ours["mmlu_anatomy acc"]["value"])
    assert all(len(row["prompts"]) == len(row["replies"]) == 4 for row in kept) and "Answer:" in kept[0]["prompts"][0]
    (entry,) = compare(tmp_path / "out", tmp_path / "out")
    assert entry["items"] == 27 and entry["difference"] == 0 and entry["p"] == 1
    assert entry["first"] == pytest.approx(np.mean([ours[f"{name} acc"]["value"] for name in names]))


def test_perplexity_is_reported(llama_folder, processor, tokenizer, tmp_path):
    """A suite of one's own with a task of the harness that has no accuracy."""
    perplexity = benchmarks(tmp_path)[1]
    suite = {
        "task": "text_benchmark",
        "data": {"hub": "none"},
        "harness": {"tasks": [perplexity], "num_fewshot": None},
    }
    (tmp_path / "texts.yaml").write_text(yaml.safe_dump({"tests": {"own": suite}}))
    save_wrapped(llama_folder, processor, tmp_path / "model")
    options = {"model": str(tmp_path / "model"), "output": tmp_path / "out", "device": "cpu", "batch_size": 1}
    (summary,) = evaluate(str(tmp_path / "texts.yaml"), **options)
    wrapped = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    expected = evaluate_text(wrapped, tokenizer, [perplexity], num_fewshot=None)["perplexity"]
    scores = {entry["score"]: entry for entry in summary["scores"]}
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        assert scores[f"perplexity {name}"]["value"] == pytest.approx(expected[f"{name},none"])
        assert scores[f"perplexity {name}"]["better"] == "lower"
    # Scoring again leaves it in the report.
    report = (tmp_path / "out/report.md").read_text()
    assert score_again(tmp_path / "out", [str(tmp_path / "texts.yaml")]) == [summary]
    assert (tmp_path / "out/report.md").read_text() == report


def test_mmlu_without_its_data_is_left_out_with_the_reason(llama_folder, processor, tmp_path, monkeypatch):
    def no_network(*_, **__):
        raise ConnectionError("Couldn't reach 'cais/mmlu' on the Hub")

    monkeypatch.setattr("uniaudio2.evaluation.harness.evaluate_text", no_network)
    save_wrapped(llama_folder, processor, tmp_path / "model")
    (summary,) = evaluate("mmlu", model=str(tmp_path / "model"), output=tmp_path / "out", device="cpu")
    assert summary["scores"] == []
    (absent,) = summary["left_out"]
    assert absent["metric"] == "mmlu" and absent["reason"].startswith(
        "Couldn't reach 'cais/mmlu' on the Hub: fetch its data"
    )
    assert "Left out: mmlu: Couldn't reach" in (tmp_path / "out/report.md").read_text()
