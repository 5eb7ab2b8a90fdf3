"""The codec's stages as recipes, one after the other on a toy."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import soundfile
import torch
import yaml
from fsdp2_on_cpu import fsdp2_launcher
from safetensors.torch import load_file
from text_head_toy import CODEC, RATE, make_codec, make_processor, make_recordings, make_text_head
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import (
    TINY,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextProcessor,
    UniAudio2FeatureExtractor,
    UniAudio2ForConditionalGeneration,
)
from uniaudio2.cli import main
from uniaudio2.training.codec_runs import CodecRun, read_rows, shipped_text_model
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


def logged(folder, name: str, step: int = 2) -> list[float]:
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
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


def test_a_dry_run_of_stage_2_needs_no_stage_1(folder, tmp_path):
    codec = ReasoningCodecModel.from_pretrained(folder / "codec")
    llama = LlamaForCausalLM.from_pretrained(folder / "llama")
    path = str(tmp_path / "text-head")
    run = make_run("reasoning-grpo", folder, text_head=path, language_model=str(folder / "llama"))
    planned = run.describe()
    ReasoningCodecForConditionalGeneration.from_parts(codec, llama, audio_token_id=0).save_pretrained(path)
    assert planned == run.describe()


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
    codec = run.codec()
    assert codec.reasoning_branch.merge_proj.in_features == CODEC["whisper_config"]["d_model"]

    # What it made goes into the codec of the last stage, whose own branch has another shape.
    llama = LlamaForCausalLM.from_pretrained(folder / "llama")
    text_head = ReasoningCodecForConditionalGeneration.from_parts(codec, llama, make_processor().audio_token_id)
    text_head.save_pretrained(folder / "one-encoder")
    model = {"text_head": str(folder / "one-encoder"), **load_recipe(["codec_ablation_one_encoder"])["model"]}
    run = make_run("reconstruction", folder, scalar_codec=None, **model)
    trainer, _ = run._reconstruction()
    assert torch.equal(trainer.model.reasoning_branch.merge_proj.weight, codec.reasoning_branch.merge_proj.weight)

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
    for values, message in (
        ({"data": {"sources": [{"path": "x", "weigth": 2}]}}, "weigth.*weight"),
        ({"arguments": {"lerning_rate": 1.0}}, "learning_rate"),
        ({"loss": {"flow": 1.0}}, "flow_loss"),
        (
            {"data": {"sources": [{"path": "x", "shuffle_buffer": 9}]}},
            "'shuffle_buffer' is for sources with 'streaming",
        ),
        ({"data": {"validation": [{"path": "x", "streaming": True}]}}, "validation are read whole"),
    ):
        with pytest.raises(ValueError, match=message):
            CodecRun("reconstruction", merge(recipe, values))
    grpo = load_recipe(["codec_reasoning_grpo"])
    with pytest.raises(ValueError, match="as many as"):
        CodecRun("reasoning-grpo", merge(grpo, {"rewards": {"functions": ["format"]}}))
    with pytest.raises(ValueError, match=r"no runs/reasoning-sft/model.*uniaudio2 train reasoning-sft"):
        CodecRun("reasoning-grpo", grpo).describe()
    with pytest.raises(ValueError, match=r"Unknown rewards \['praise'\]"):
        CodecRun("reasoning-grpo", merge(grpo, {"rewards": {"functions": ["praise"]}}))


def test_fsdp_is_refused_where_there_is_none(folder, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="no FSDP on a CPU"):
        make_run("scalar-codec", folder).train()


def test_rows_are_checked_before_anything_is_trained(folder, tmp_path):
    whole = {"audio": "a.wav", "text": "low", "question": "How?"}
    soundfile.write(tmp_path / "a.wav", torch.zeros(24000).numpy(), RATE)

    def read(*rows: dict, task: str | None = "caption", **kwargs):
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return read_rows({"path": str(tmp_path / "rows.jsonl"), "task": task}, with_texts=True, **kwargs)

    assert read(whole, task="question_answering")[0]["question"] == "How?"
    assert read(whole)[0] == {
        "audio": {"path": str(tmp_path / "a.wav"), "bytes": None}, "task": "caption", "text": "low", "question": None,
    }  # fmt: skip
    with pytest.raises(ValueError, match="Row 1: 'text' must be a text that is not empty"):
        read(whole, whole | {"text": " "})
    with pytest.raises(ValueError, match=r"Row 0: .*needs a `question`"):
        read(whole | {"question": None}, task="question_answering")
    with pytest.raises(ValueError, match="Row 0: `task` must be one of"):
        read(whole, task=None)
    with pytest.raises(ValueError, match=r"no row of at most 0\.5 s"):
        read(whole, max_seconds=0.5)
    assert len(read(whole, max_seconds=1.0)) == 1


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rows_of_a_stream_are_those_of_the_same_manifest(folder, ending):
    entry = {"path": str(folder / f"streamed.{ending}"), "task": "caption"}
    manifest = datasets.Dataset.from_json(str(folder / "data.jsonl"))
    if ending == "parquet":
        recordings = [{"bytes": (folder / name).read_bytes(), "path": name} for name in manifest["audio"]]
        manifest.remove_columns("audio").add_column("audio", recordings).to_parquet(entry["path"])
    else:
        manifest.to_json(entry["path"])
    stream = read_rows(entry | {"streaming": True}, with_texts=True)
    assert isinstance(stream, datasets.IterableDataset)
    assert list(stream) == read_rows(entry, with_texts=True).to_list()
    with pytest.raises(ValueError, match=r"no row of at most 0\.1 s"):
        read_rows(entry | {"streaming": True}, with_texts=True, max_seconds=0.1)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_on_a_stream_goes_on_bit_for_bit(folder, text_head, tmp_path, monkeypatch, stage):
    """Stopped after two of three steps, in the second time through; recordings of those two are not loaded again."""
    sources = [{"path": str(folder / "data.jsonl"), "task": "caption", "streaming": True, "shuffle_buffer": 2},
               {"path": str(folder / "heldout.jsonl"), "task": "caption"}]  # fmt: skip
    names = {"text_head": str(text_head) if stage == "reasoning-grpo" else None, "scalar_codec": None,
             "language_model": str(folder / "llama"), "audio_token": "<reason_token>", "fresh": False}  # fmt: skip
    recipe = merge(make_run(stage, folder, **names).recipe, {"data": {"sources": sources, "validation": None}})
    recipe = merge(recipe, {"arguments": {"max_steps": 3, "save_steps": 2, "save_total_limit": 5}})
    loaded, load = [], UniAudio2FeatureExtractor.__call__
    monkeypatch.setattr(
        UniAudio2FeatureExtractor,
        "__call__",
        lambda self, audio, **kw: loaded.append(audio) or load(self, audio, **kw),
    )
    for name in ("whole", "halves"):
        made = CodecRun(stage, merge(recipe, {"output": str(tmp_path / name)})).train()
    per_step = len(loaded) / 6
    for last in (made, made.parent / "checkpoint-3"):
        shutil.rmtree(last)
    loaded.clear()
    CodecRun(stage, merge(recipe, {"output": str(tmp_path / "halves")})).train()
    assert len(loaded) < 2 * per_step
    whole, halves = (tmp_path / name / "model" / "model.safetensors" for name in ("whole", "halves"))
    assert halves.read_bytes() == whole.read_bytes()


def test_the_result_of_another_stage_is_not_gone_on_with(folder, tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "provenance.json").write_text(json.dumps({"made_by": "uniaudio2 train reasoning-sft"}))
    run = make_run("reconstruction", folder)
    with pytest.raises(ValueError, match=r"reasoning-sft` made.*output=FOLDER"):
        CodecRun("reconstruction", merge(run.recipe, {"output": str(tmp_path)})).train()


@torch.no_grad()
def test_the_shipped_text_model_is_the_one_in_the_shipped_checkpoint():
    whole, text_model = UniAudio2ForConditionalGeneration.from_pretrained(TINY).eval(), shipped_text_model().eval()
    ids = torch.randint(whole.config.vocab_size, (2, 9))
    rows = torch.nn.functional.pad(ids[..., None], (8, 0))
    expected = whole(input_ids=rows, mm_token_type_ids=torch.zeros_like(ids)).logits
    assert torch.equal(text_model(input_ids=ids).logits, expected)


DDP = ["torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(28_600 + os.getpid() % 1000), "-m",
       "uniaudio2.cli"]  # fmt: skip
FSDP2 = fsdp2_launcher(28_600 + os.getpid() % 1000)


def train_in_processes(name: str, stage: str, folder, values: dict, launcher: list[str]) -> dict[str, torch.Tensor]:
    """Into `folder / name`, by what `python -m` starts. Returns the weights of the result."""
    own = merge(values, {"output": str(folder / name), "arguments": {"use_cpu": launcher != FSDP2}})
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(own))
    words = ["train", stage, "--config", STAGES[stage], "codec_size_tiny", str(folder / f"{name}.yaml")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-m", *launcher, *words], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return load_file(folder / name / "model" / "model.safetensors")


def operations_of(folder) -> float:
    return json.loads((folder / "checkpoint-6" / "trainer_state.json").read_text())["total_flos"]


@pytest.mark.slow
def test_two_processes_that_share_the_model_are_one_process(folder, zero3):
    """Adapters, the reasoning branch with its moving averages, and what is written of them at the end."""
    values = make_values("reasoning-sft", folder, language_model=str(folder / "llama"), audio_token="<reason_token>")
    values["arguments"] |= {"max_steps": 6, "save_steps": 6, "warmup_steps": 0, "per_device_eval_batch_size": 2}
    # Three held-out recordings: of its two, the second process has one.
    (folder / "three.jsonl").write_text("".join((folder / "data.jsonl").read_text().splitlines(keepends=True)[:3]))
    values["data"]["validation"] = [{"path": str(folder / "three.jsonl"), "task": "caption"}]
    values["lora"] = {"dropout": 0.0}
    made = {}
    for name, launcher, arguments in (
        ("one", ["uniaudio2.cli"], {"per_device_train_batch_size": 2}),
        ("zero3", DDP, {"per_device_train_batch_size": 1, "deepspeed": zero3()}),
        ("fsdp2", FSDP2, {"per_device_train_batch_size": 1}),
    ):
        own = merge(values, {"arguments": arguments})
        made[name] = train_in_processes(name, "reasoning-sft", folder, own, launcher)
        ReasoningCodecForConditionalGeneration.from_pretrained(folder / name / "model")
    start = ReasoningCodecModel.from_pretrained(folder / "codec").front_ends.state_dict()
    for two in ("zero3", "fsdp2"):
        for name in ("eval_loss", "eval_text_loss", "eval_commitment_loss"):
            assert logged(folder / two, name, 6) == pytest.approx(logged(folder / "one", name, 6), rel=1e-4)
        assert operations_of(folder / two) == pytest.approx(operations_of(folder / "one"))
        assert made[two].keys() == made["one"].keys()
        for name, value in made["one"].items():
            torch.testing.assert_close(made[two][name], value, atol=1e-5, rtol=0, msg=name)
            if name.startswith("model.front_ends."):
                assert torch.equal(value, start[name.removeprefix("model.front_ends.")])


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["scalar-codec", "reconstruction"])
def test_two_processes_with_fsdp2_are_two_that_have_all_of_the_model(folder, stage):
    """These stages draw at random, each process its own. Also with autocast, which codecs are trained with."""
    values = make_values(stage, folder, text_head=None, scalar_codec=None)
    values["arguments"] |= {"max_steps": 6, "save_steps": 6, "warmup_steps": 0, "per_device_train_batch_size": 1}
    values["arguments"]["bf16"] = stage == "reconstruction"
    expected = train_in_processes(f"{stage}-ddp", stage, folder, values, DDP)
    made = train_in_processes(f"{stage}-fsdp2", stage, folder, values, FSDP2)
    for name in ("loss", "grad_norm", "eval_loss"):
        ours, theirs = (logged(folder / f"{stage}-{kind}", name, 6) for kind in ("fsdp2", "ddp"))
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert made.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, atol=1e-5, rtol=0, msg=name)
    if stage == "reconstruction":
        ReasoningCodecModel.from_pretrained(folder / f"{stage}-fsdp2" / "model")
        configs = [(folder / f"{stage}-{kind}" / "model" / "config.json").read_text() for kind in ("fsdp2", "ddp")]
        assert configs[0] == configs[1]


@pytest.mark.slow
def test_grpo_in_two_processes_that_share_the_model(folder, text_head, zero3):
    """Generation, scores, the reference without adapters and the evaluation are those of two that each have all of it.
    The reward is a judge's, in whom every answer has another value."""
    values = make_values("reasoning-grpo", folder, text_head=str(text_head))
    values["arguments"] |= {"max_steps": 3, "save_steps": 3, "warmup_steps": 0, "per_device_train_batch_size": 2}
    values["rewards"] = {"functions": ["judge"], "weights": [1.0], "judge": str(folder / "llama")}
    values["lora"] = {"dropout": 0.0}
    ways = {"ddp": (DDP, {}), "zero3": (DDP, {"deepspeed": zero3()}), "fsdp2": (FSDP2, {})}
    made = {
        name: train_in_processes(
            f"grpo-{name}", "reasoning-grpo", folder, merge(values, {"arguments": more}), launcher
        )
        for name, (launcher, more) in ways.items()
    }
    assert min(logged(folder / "grpo-ddp", "reward_std", 3)) > 0 and logged(folder / "grpo-ddp", "kl", 3)[-1] > 0
    for way in ("zero3", "fsdp2"):
        for name in ("loss", "grad_norm", "reward", "kl", "eval_reward", "num_tokens"):
            ours, theirs = (logged(folder / f"grpo-{kind}", name, 3) for kind in (way, "ddp"))
            assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-7), name
        assert made[way].keys() == made["ddp"].keys()
        for name, value in made["ddp"].items():
            torch.testing.assert_close(made[way][name], value, atol=1e-5, rtol=0, msg=name)
