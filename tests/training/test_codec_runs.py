"""The codec's stages as recipes, one after the other on a toy."""

import json

import pytest
import soundfile
import torch
from text_head_toy import CODEC, RATE, make_codec, make_processor, make_recordings
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import ReasoningCodecForConditionalGeneration, ReasoningCodecModel, ReasoningCodecTextProcessor
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
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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


def make_run(stage: str, folder, **model) -> CodecRun:
    """The shipped recipe with two steps of the smallest size."""
    recipe = load_recipe([STAGES[stage], "codec_size_tiny"])
    arguments = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "save_strategy": "no", "seed": 0}
    values = {
        "output": str(folder / stage),
        "model": {"codec": str(folder / "codec"), **model},
        "data": {"sources": [{"path": str(folder / "data.jsonl"), "task": "caption"}], "max_seconds": 0.4},
        "arguments": arguments,
    }
    if stage == "scalar-codec":
        values["loss"] = {"discriminators": {"window_sizes": [256], "periods": [2], "channels": 4}}
    if stage == "reasoning-grpo":
        values["arguments"] |= {"num_generations": 4, "max_completion_length": 3, "gradient_checkpointing": False}
        values["rewards"] = {"functions": ["caption", "format"], "weights": [1.0, 0.2]}
    return CodecRun(stage, merge(recipe, values))


def test_the_stages_follow_each_other(folder):
    scalar = make_run("scalar-codec", folder).train()
    sft = make_run("reasoning-sft", folder, language_model=str(folder / "llama"), audio_token="<reason_token>").train()
    grpo = make_run("reasoning-grpo", folder, text_head=str(sft)).train()
    run = make_run("reconstruction", folder, text_head=str(grpo), scalar_codec=str(scalar))
    codec = ReasoningCodecModel.from_pretrained(run.train())

    text_head = ReasoningCodecForConditionalGeneration.from_pretrained(grpo)
    assert ReasoningCodecTextProcessor.from_pretrained(grpo).audio_token == "<reason_token>"
    trained = text_head.model.reasoning_branch.state_dict()
    for name, value in codec.reasoning_branch.state_dict().items():
        assert torch.equal(value, trained[name]), name
    start = ReasoningCodecModel.from_pretrained(folder / "codec")
    assert torch.equal(codec.front_ends.whisper.conv1.weight, start.front_ends.whisper.conv1.weight)
    assert not torch.equal(codec.reasoning_branch.query_token, start.reasoning_branch.query_token)
    assert json.loads((folder / "reconstruction" / "model" / "provenance.json").read_text())["recipe"] == run.recipe


@pytest.mark.parametrize("stage", ["scalar-codec", "reconstruction"])
def test_a_dry_run_says_what_would_learn(folder, stage):
    run = make_run(stage, folder, text_head=None, scalar_codec=None)
    text = run.describe()
    assert "100.0% caption" in text and "2 steps" in text and "trainable" in text


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
