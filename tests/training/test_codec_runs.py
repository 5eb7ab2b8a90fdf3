"""The codec's stages as recipes, one after the other on a toy."""

import json
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from text_head_toy import CODEC, RATE, make_codec, make_processor, make_recordings, make_text_head
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import ReasoningCodecForConditionalGeneration, ReasoningCodecModel, ReasoningCodecTextProcessor
from uniaudio2.cli import main
from uniaudio2.training.codec_runs import CodecRun
from uniaudio2.training.recipe import load_recipe, merge

STAGES = {
    "scalar-codec": "codec_scalar",
    "reasoning-sft": "codec_reasoning_sft",
    "reasoning-grpo": "codec_reasoning_grpo",
    "reconstruction": "codec_reconstruction",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A manifest, a codec and a language model."""
    folder = tmp_path_factory.mktemp("codec")
    rows = []
    for index, row in enumerate(make_recordings(4)):
        soundfile.write(folder / f"{index}.wav", row["audio"]["array"], RATE)
        rows.append({"audio": f"{index}.wav", "text": row["text"]})
    for name, part in {"data": rows, "heldout": rows[2:]}.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    make_codec().save_pretrained(folder / "codec")
    tokenizer = make_processor().tokenizer
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "llama")
    tokenizer.save_pretrained(folder / "llama")
    return folder


def make_values(stage: str, folder, **model) -> dict:
    """What makes a shipped recipe two steps of the smallest size."""
    values = {
        "output": str(folder / stage),
        "model": {"codec": str(folder / "codec"), **model},
        "data": {
            "sources": [{"path": str(folder / "data.jsonl"), "task": "caption"}],
            "validation": [{"path": str(folder / "heldout.jsonl"), "task": "caption"}],
            "max_seconds": 0.4,
        },
        "arguments": {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "logging_steps": 1, "eval_steps": 1},
    }
    if stage == "scalar-codec":
        values["loss"] = {"discriminators": {"window_sizes": [256], "periods": [2], "channels": 4}}
    if stage == "reasoning-grpo":
        small = {"num_generations": 2, "max_completion_length": 3, "activation_checkpointing": True}
        values["arguments"] |= small | {"gradient_accumulation_steps": 1, "per_device_eval_batch_size": 2}
        values["rewards"] = {"functions": ["caption", "format"], "weights": [1.0, 0.2]}
    return values


def make_run(stage: str, folder, **model) -> CodecRun:
    recipe = load_recipe([STAGES[stage], "codec_size_tiny"])
    return CodecRun(stage, merge(recipe, make_values(stage, folder, **model)))


def train(stage: str, folder, **model) -> Path:
    """On the command line, with a recipe of one's own over the shipped ones. Returns the folder of the result."""
    own = folder / f"{stage}.yaml"
    own.write_text(yaml.safe_dump(make_values(stage, folder, **model)))
    assert (
        main(["train", stage, "--config", STAGES[stage], "codec_size_tiny", str(own), "arguments.save_steps=2"]) == 0
    )
    return folder / stage / "model"


def logged(folder, name: str) -> list[float]:
    state = json.loads((folder / "checkpoint-2" / "trainer_state.json").read_text())
    return [entry[name] for entry in state["log_history"] if name in entry]


# What a stage says about held-out recordings at every evaluation.
EVALUATED = {
    "scalar-codec": "eval_loss",
    "reasoning-sft": "eval_text_loss",
    "reasoning-grpo": "eval_rewards/caption_reward/mean",
    "reconstruction": "eval_flow_loss",
}


def test_the_stages_follow_each_other(folder):
    scalar = train("scalar-codec", folder)
    sft = train("reasoning-sft", folder, language_model=str(folder / "llama"), audio_token="<reason_token>")
    grpo = train("reasoning-grpo", folder, text_head=str(sft))
    made = train("reconstruction", folder, text_head=str(grpo), scalar_codec=str(scalar))
    codec = ReasoningCodecModel.from_pretrained(made)

    text_head = ReasoningCodecForConditionalGeneration.from_pretrained(grpo)
    assert ReasoningCodecTextProcessor.from_pretrained(grpo).audio_token == "<reason_token>"
    trained = text_head.model.reasoning_branch.state_dict()
    for name, value in codec.reasoning_branch.state_dict().items():
        assert torch.equal(value, trained[name]), name
    start = ReasoningCodecModel.from_pretrained(folder / "codec")
    assert torch.equal(codec.front_ends.whisper.conv1.weight, start.front_ends.whisper.conv1.weight)
    assert not torch.equal(codec.reasoning_branch.query_token, start.reasoning_branch.query_token)
    provenance = json.loads((made / "provenance.json").read_text())
    assert provenance["recipe"]["model"]["text_head"] == str(grpo)
    for stage, name in EVALUATED.items():
        assert len(logged(folder / stage, name)) == 2, stage


@pytest.fixture
def text_head(folder):
    """What stage 1 makes, untrained."""
    processor = make_processor()
    make_text_head(processor).save_pretrained(folder / "text-head")
    processor.save_pretrained(folder / "text-head")
    return folder / "text-head"


@pytest.mark.parametrize("stage", STAGES)
def test_a_dry_run_says_what_would_learn(folder, text_head, stage):
    """From shapes alone; the counts are those of the trainer that the stage then makes."""
    models = {"text_head": str(text_head) if stage == "reasoning-grpo" else None, "scalar_codec": None}
    run = make_run(stage, folder, **models, language_model=str(folder / "llama"), audio_token="<reason_token>")
    text = run.describe()
    trainer, _ = getattr(run, f"_{stage.replace('-', '_')}")()
    parameters = list(trainer.model.parameters())
    count, learn = (
        sum(p.numel() for p in found) for found in (parameters, [p for p in parameters if p.requires_grad])
    )
    assert f"parameters   {count:,}, trainable {learn:,}" in text
    assert "100.0% caption" in text and "GiB per device" in text and "2 steps" in text


def test_a_dry_run_counts_the_judge(folder, text_head, capsys):
    values = [f"model.text_head={text_head}", f"rewards.judge={folder / 'llama'}", "hardware.num_devices=4"]
    assert main(["train", "reasoning-grpo", "--config", "codec_reasoning_grpo", *values, "--dry-run"]) == 0
    text = capsys.readouterr().out
    judge = sum(p.numel() for p in LlamaForCausalLM.from_pretrained(folder / "llama").parameters())
    assert f"judge        {judge:,}, frozen" in text
    assert "40.0% analysis data/analyses.jsonl" in text and "held out     analysis" in text
    assert "256 answers, 8 to each recording (4 devices)" in text and "sharded over 4" in text


def test_ablations_are_recipes_over_recipes(folder):
    no_film = load_recipe(["codec_reconstruction", "codec_ablation_no_film"])
    assert no_film["model"]["config"] == {"film": False}
    run = CodecRun("reconstruction", merge(no_film, {"model": {"codec": str(folder / "codec")}}))
    assert not hasattr(run.codec().reconstruction_branch, "phone_film")

    one = load_recipe(["codec_reasoning_sft", "codec_ablation_one_encoder"])
    run = CodecRun("reasoning-sft", merge(one, {"model": {"codec": str(folder / "codec")}}))
    width = CODEC["whisper_config"]["d_model"]
    assert run.codec().reasoning_branch.merge_proj.in_features == width

    sft_only = load_recipe(["codec_reconstruction", "codec_ablation_sft_only"])
    assert sft_only["model"]["text_head"] == "runs/reasoning-sft/model"


def test_mistakes_in_a_recipe_are_named(folder):
    recipe = load_recipe(["codec_reconstruction"])
    with pytest.raises(ValueError, match="Unknown stage 'tuning'"):
        CodecRun("tuning", recipe)
    with pytest.raises(ValueError, match=r"Unknown key model\.kodec"):
        CodecRun("reconstruction", merge(recipe, {"model": {"kodec": "x"}}))
    with pytest.raises(ValueError, match=r"lacks model\.text_head"):
        CodecRun("reasoning-grpo", merge(recipe, {"model": {"text_head": None}}))
    grpo = load_recipe(["codec_reasoning_grpo"])
    with pytest.raises(ValueError, match=r"Unknown rewards \['praise'\]"):
        CodecRun("reasoning-grpo", merge(grpo, {"rewards": {"functions": ["praise"]}}))
