"""`uniaudio2 train`: from a Llama and a manifest to a trained model, and what a recipe says before it runs."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile as sf
import torch
from peft import PeftModel, load_peft_weights
from transformers import LlamaConfig, LlamaForCausalLM

from uniaudio2 import ReasoningCodecConfig, UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.cli import main
from uniaudio2.commands.train import LANGUAGE_MODEL_STAGES
from uniaudio2.training.language_model_runs import STAGES, LanguageModelRun
from uniaudio2.training.language_model_stages import PLAN_FILE, targets_of
from uniaudio2.training.recipe import RECIPES, load_recipe, merge

TEXTS = ("seven three nine", "one two", "zero eight six five", "nine")


@pytest.fixture(scope="module")
def codes_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    for index in range(len(TEXTS)):
        waveform = 0.3 * np.sin(2 * np.pi * (200 + 50 * index) * np.arange(19_200 + 9600 * index) / 24_000)
        sf.write(folder / f"{index}.wav", waveform, 24_000)
    rows = [{"audio": f"{i}.wav", "text": text, "recording": "a", "start": i} for i, text in enumerate(TEXTS)]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["--model", str(model_folder), "--tasks", "ASR", "TTS", "--semantic-features"]
    assert main(["train", "tokenize", str(folder / "manifest.jsonl"), str(folder / "codes"), *arguments]) == 0
    return folder / "codes"


@pytest.fixture
def overrides(codes_folder, model_folder, tmp_path):
    """Values that make a shipped recipe small and point it to the fixtures."""

    def make(stage, output="run", held_out=True, **arguments):
        sources = [{"path": str(codes_folder), "task": "ASR"}, {"path": str(codes_folder), "task": "TTS"}]
        if stage == "mid-training":
            sources.append({"path": str(codes_folder), "sentences": "interleaved_speech_and_text"})
        if stage == "understanding-warmup":
            sources.pop()
        arguments = {"max_steps": 2, "report_to": "none", "disable_tqdm": True, "logging_steps": 1} | arguments
        return [
            f"model.path={model_folder}", "model.semantic_feature_size=16", f"output={tmp_path / output}",
            f"data.sources={json.dumps(sources)}", "data.context=160",
            f"data.validation={json.dumps(sources if held_out else None)}", "arguments.eval_steps=2",
            *(f"arguments.{key}={json.dumps(value)}" for key, value in arguments.items()),
        ]  # fmt: skip

    return make


def stage_recipe(stage: str) -> str:
    return stage.replace("-", "_")


@pytest.mark.parametrize("stage", LANGUAGE_MODEL_STAGES)
@pytest.mark.parametrize("adapters", [[], ["lora", "lora.rank=2", "lora.alpha=4"]])
def test_a_stage_from_its_recipe_to_a_model_folder(stage, adapters, overrides, tmp_path, model_folder):
    values = [*overrides(stage), *adapters[1:]]
    assert main(["train", stage, "--config", stage_recipe(stage), "size_tiny", *adapters[:1], *values]) == 0
    model = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    start = UniAudio2ForConditionalGeneration.from_pretrained(model_folder)
    assert model.state_dict().keys() == start.state_dict().keys()
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), start.parameters(), strict=True))
    assert model.config.trained_context_length == 160 and "ASR" in model.config.tasks
    provenance = json.loads((tmp_path / "run" / "model" / "provenance.json").read_text())
    assert provenance["made_by"] == f"uniaudio2 train {stage}"
    processor = UniAudio2Processor.from_pretrained(tmp_path / "run" / "model")
    assert processor(text="one", task="TTS")["input_ids"].shape[-1] == 9


@pytest.mark.parametrize("streamed", [False, True])
def test_stopped_in_the_middle_and_started_again(streamed, overrides, tmp_path, codes_folder, monkeypatch):
    """The second start goes on from the last checkpoint, and ends bit for bit where a run without a stop ends, and
    without the evaluations in between. Stored data is not planned again."""
    monkeypatch.setattr("uniaudio2.training.mixture.NOTED_BATCHES", 2)
    names = ["pretraining", "size_tiny"]
    data = []
    if streamed:
        stream = {"path": str(codes_folder), "streaming": True}
        sources = [
            stream | {"task": "ASR", "shuffle_buffer": 3},
            stream | {"sentences": "interleaved_speech_and_text"},
        ]
        data = [f"data.sources={json.dumps(sources)}"]
    values = overrides("pretraining", "whole", held_out=False, max_steps=5)
    whole = LanguageModelRun("pretraining", load_recipe(names, values + data))
    whole.train()
    halves = overrides("pretraining", "halves", max_steps=5, save_steps=2) + data
    LanguageModelRun("pretraining", load_recipe(names, halves)).train()
    model = tmp_path / "halves" / "model" / "model.safetensors"
    for last in (2, 4, 5):  # the last one: killed between the last step and the model folder
        model.unlink()
        for checkpoint in (tmp_path / "halves").glob("checkpoint-*"):
            if int(checkpoint.name.partition("-")[2]) > last:
                shutil.rmtree(checkpoint)
        plan = tmp_path / "halves" / f"checkpoint-{last}" / PLAN_FILE
        assert (streamed and not plan.exists()) or json.loads(plan.read_text())["num_batches"] == last // 2 * 2
        LanguageModelRun("pretraining", load_recipe(names, halves)).train()
        assert model.read_bytes() == (tmp_path / "whole" / "model" / "model.safetensors").read_bytes()


def test_with_other_batches_the_plan_is_made_anew(overrides, tmp_path, monkeypatch):
    """It says so, and skips as many of the new batches as were seen of the old."""
    said = []
    monkeypatch.setattr("uniaudio2.training.language_model_stages.logger", SimpleNamespace(warning=said.append))
    monkeypatch.setattr("uniaudio2.training.mixture.NOTED_BATCHES", 1)
    recipe = load_recipe(["pretraining", "size_tiny"], overrides("pretraining", max_steps=3, save_steps=2))
    LanguageModelRun("pretraining", recipe).train()
    shutil.rmtree(tmp_path / "run" / "checkpoint-3")
    assert not said
    changed = merge(recipe, {"arguments": {"per_device_train_batch_size": 1}})
    LanguageModelRun("pretraining", changed).train()
    assert len(said) == 1 and "not those of the checkpoint" in said[0]
    plan = json.loads((tmp_path / "run" / "checkpoint-3" / PLAN_FILE).read_text())
    assert plan["num_batches"] == 3 and plan["settings"]["sequences_per_batch"] == 1


def test_held_out_examples_are_evaluated_by_their_parts(overrides, tmp_path, codes_folder):
    """The losses of all held-out examples, each weighted by what it is the mean of."""
    run = LanguageModelRun(
        "pretraining",
        load_recipe(
            ["pretraining", "size_tiny"], overrides("pretraining", save_steps=2, per_device_eval_batch_size=3)
        ),
    )
    run.train()
    state = json.loads((tmp_path / "run" / "checkpoint-2" / "trainer_state.json").read_text())
    (logs,) = (entry for entry in state["log_history"] if "eval_loss" in entry)

    model = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "run" / "model")
    processor = UniAudio2Processor.from_pretrained(tmp_path / "run" / "model")
    examples = run.validation(processor, seed=42)  # the default of `TrainingArguments`
    assert len(examples) == 2 * len(TEXTS)
    losses, counts = [], []
    with torch.no_grad():
        for index in range(len(examples)):
            batch = examples.mixture.collate([examples[index]])
            losses.append(model(**batch).text_loss)
            counts.append((targets_of(batch)[0] != -100).sum())
    losses, counts = torch.stack(losses), torch.stack(counts)
    assert logs["eval_text_loss"] == pytest.approx(((losses * counts).sum() / counts.sum()).item(), rel=1e-4)
    assert logs["eval_loss"] > 0 and {"eval_audio_loss", "eval_codebook_8_loss", "eval_text_accuracy"} <= logs.keys()


def test_a_llama_becomes_the_start(model_folder, tokenizer, tmp_path):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.2,
    )  # fmt: skip
    llama = LlamaForCausalLM(config).eval()
    llama.save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    depth = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    arguments = ["num_understanding_layers=1", f"depth_decoder_config={depth}", "--codec", str(model_folder / "codec")]
    assert main(["train", "init", str(tmp_path / "llama"), str(tmp_path / "start"), *arguments]) == 0
    model = UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "start").eval()
    assert model.config.num_hidden_layers == 1 + 2 + 2
    ids = torch.randint(len(tokenizer), (1, 7))
    with torch.no_grad():
        assert torch.equal(model(ids).logits, llama(ids).logits)
    processor = UniAudio2Processor.from_pretrained(tmp_path / "start")
    assert processor.codec.config.num_codebooks == 8
    assert processor(text="one two", task="TTS")["input_ids"].max() < model.config.vocab_size


def test_from_a_llama_through_stages_to_speech_and_text(model_folder, codes_folder, tokenizer, tmp_path):
    """`init`, two stages, and what comes out answers in both modalities; ids that were given are those of the rows."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    codec = ReasoningCodecConfig.from_pretrained(model_folder / "codec")
    table = codec.reasoning_codebook_size + 4 + codec.reconstruction_codebook_size + 8
    ids = {"audio_prompt_bos_token_id": table - 1, "audio_prompt_eos_token_id": table - 2}
    depth = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    values = [f"depth_decoder_config={depth}", *(f"{name}={value}" for name, value in ids.items())]
    arguments = [*values, "--codec", str(model_folder / "codec")]
    assert main(["train", "init", str(tmp_path / "llama"), str(tmp_path / "start"), *arguments]) == 0

    path = tmp_path / "start"
    for stage in ("understanding-warmup", "pretraining"):
        sources = json.dumps([{"path": str(codes_folder), "task": "ASR"}, {"path": str(codes_folder), "task": "TTS"}])
        values = [f"model.path={path}", "model.semantic_feature_size=16", f"output={tmp_path / stage}",
                  f"data.sources={sources}", "data.validation=null", "data.context=160", "arguments.max_steps=2",
                  "arguments.report_to=none"]  # fmt: skip
        assert main(["train", stage, "--config", stage_recipe(stage), "size_tiny", *values]) == 0
        path = tmp_path / stage / "model"
    model = UniAudio2ForConditionalGeneration.from_pretrained(path).eval()
    processor = UniAudio2Processor.from_pretrained(path)
    for name, value in ids.items():
        assert getattr(model.config, name) == getattr(processor, name) == value

    recording = str(codes_folder.parent / "0.wav")
    inputs = processor(audio=recording, task="ASR")
    written = model.generate(**inputs, max_new_tokens=4, do_sample=False)
    assert written.shape[0] == 1 and isinstance(processor.batch_decode(written)[0], str)
    inputs = processor(text="one two", caption="calm", audio_prompt=recording, task="prompt_instruct_tts")
    assert all((inputs["input_ids"][0, :, 0] == value).any() for value in ids.values())
    spoken = model.generate(**inputs, max_new_tokens=30, return_dict_in_generate=True)
    assert spoken.reconstruction_codes[0].shape[0] == 8


def test_through_stages_with_adapters_the_llama_stays_what_it_was(model_folder, codes_folder, tokenizer, tmp_path):
    """Of a Llama in bfloat16. The second stage goes on with the adapters of the first; with them off, text logits are
    the Llama's, bit for bit. What learns is in float32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, initializer_range=0.2,
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    depth = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_key_value_heads": 1}
    arguments = [f"depth_decoder_config={depth}", "--codec", str(model_folder / "codec")]
    assert main(["train", "init", str(tmp_path / "llama"), str(tmp_path / "start"), *arguments]) == 0

    def run(stage, path, *more):
        sources = json.dumps([{"path": str(codes_folder), "task": "ASR"}, {"path": str(codes_folder), "task": "TTS"}])
        values = [f"model.path={path}", "model.semantic_feature_size=16", f"output={tmp_path / stage}",
                  f"data.sources={sources}", "data.validation=null", "data.context=160", "arguments.max_steps=2",
                  "arguments.report_to=none", "arguments.warmup_steps=0", "lora.rank=2", "lora.alpha=4"]  # fmt: skip
        values += more
        return main(["train", stage, "--config", stage_recipe(stage), "size_tiny", "lora", *values])

    first, second = tmp_path / "understanding-warmup", tmp_path / "pretraining"
    assert run("understanding-warmup", tmp_path / "start") == 0
    assert run("pretraining", first / "model", "lora.rank=3") == 2  # other adapters than those that are there
    assert run("pretraining", first / "model") == 0

    ids = torch.randint(len(tokenizer), (1, 7))
    llama = LlamaForCausalLM.from_pretrained(tmp_path / "llama", dtype=torch.float32).eval()
    for folder in (first, second):
        model = UniAudio2ForConditionalGeneration.from_pretrained(folder / "unmerged").eval()
        merged = UniAudio2ForConditionalGeneration.from_pretrained(folder / "model").eval()
        assert {p.dtype for p in [*model.parameters(), *merged.parameters()]} == {torch.float32}
        with torch.no_grad():
            assert torch.equal(model(ids).logits, llama(ids).logits)
            assert not torch.equal(merged(ids).logits, llama(ids).logits)
            adapted = PeftModel.from_pretrained(model, folder / "adapters").eval()
            torch.testing.assert_close(adapted(ids).logits, merged(ids).logits)
            with adapted.disable_adapter():
                assert torch.equal(adapted(ids).logits, llama(ids).logits)
    before, after = (load_peft_weights(folder / "adapters") for folder in (first, second))
    starts = [name for name in before if "lora_A" in name]
    assert starts and all((after[name] - before[name]).abs().max() < 4 * 5e-4 for name in starts)  # two steps further


# --- Recipes ---


def test_the_command_line_knows_all_stages():
    assert tuple(STAGES) == LANGUAGE_MODEL_STAGES


@pytest.mark.parametrize("stage", LANGUAGE_MODEL_STAGES)
@pytest.mark.parametrize(("size", "parameters"), [("tiny", 1_647_712), ("1b", 2_453_123_072), ("3b", 4_863_493_120)])
@pytest.mark.parametrize("adapters", [[], ["lora"]])
def test_shipped_recipes_say_what_they_would_do(stage, size, parameters, adapters):
    """Every stage in every size, with and without adapters, before any of the folders in them is there."""
    run = LanguageModelRun(stage, load_recipe([stage_recipe(stage), f"size_{size}", *adapters]))
    text = run.describe()
    counts = {line[:21].strip(): line.split() for line in text.splitlines() if "trainable" in line}
    whole, learns = (int(counts["total"][place].replace(",", "")) for place in (1, 3))
    is_whole = stage in ("pretraining", "mid-training") and not adapters
    assert (whole == learns == parameters) if is_whole else (whole >= parameters and 0 < learns < parameters)
    assert ("adapters" in counts) == bool(adapters)
    assert "there yet" not in text if size == "tiny" else "not there yet" in text
    context = {"tiny": 256}.get(size, 2048 if stage == "mid-training" else 1024)
    assert run.recipe["data"]["context"] == context


@pytest.mark.parametrize(
    ("name", "stage", "parameters"),
    [("no_sentences", "mid-training", "4,863,493,120"), ("no_experts", "pretraining", "4,360,139,776")],
)
def test_ablations_lie_over_their_stage(name, stage, parameters):
    run = LanguageModelRun(stage, load_recipe([stage_recipe(stage), "size_3b", f"ablation_{name}"]))
    assert name.replace("_", "-") in run.recipe["output"]
    assert not any("sentences" in entry for entry in run.recipe["data"]["sources"])
    assert parameters in run.describe()


def test_a_dry_run_says_what_would_be_done(capsys):
    assert main(["train", "pretraining", "--config", "pretraining", "size_tiny", "lora", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "1.6 text_loss + 1 audio_loss" in text
    assert "50.0% of the rows  text_only" in text and "held out: text_only heldout-texts, ASR" in text
    assert "adapters" in text and "trained copies" in text and "GiB per device" in text
    assert "1,024 rows (1 devices), 50 steps" in text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["data.kontext=3"], "Unknown key data.kontext"),
        (["optimizer.name=adam"], "Unknown section optimizer"),
        (["model.path=null"], "lacks model.path"),
        (["model.path=some/where/else"], "There is no model folder some/where/else"),
        (["size_3b", "model.shape.hiden_size=3"], "did you mean model.shape.hidden_size"),
        (["arguments.learning_rat=1"], "did you mean arguments.learning_rate?"),
        (["arguments.max_steps=ten"], "must be a positive integer, but is 'ten'"),
        (["lora.rank=4"], "lacks lora.alpha"),
        (["lora", "lora.rnk=4"], "did you mean lora.rank?"),
        (["lora", "lora.dropout=much"], "lora.dropout must be a number"),
        (["loss.weights.txt_loss=1"], "did you mean loss.weights.text_loss?"),
        (["size_3b", "loss.codebook_weights=[1, 2]"], "has 2 values, the model 8 codebooks"),
        (["data=3"], "Section 'data' of the recipe holds keys and values"),
        (["data.sources=[]"], "data.sources is empty"),
        (["data.sources=[{task: ASR}]"], "lacks its 'path'"),
        (["data.sources=[{path: a, task: ASR, wieght: 2}]"], "did you mean weight?"),
        (["data.sources=[{path: a, task: ASR, weight: much}]"], "must be a number, but is 'much'"),
        (["data.sources=[{path: a, task: TTS, condition_dropout: 2}]"], "must lie between 0 and 1"),
        (["size_9b"], "There is no recipe size_9b"),
    ],
)
def test_mistakes_in_recipes_are_named(values, message, capsys):
    assert main(["train", "pretraining", "--config", "pretraining", *values, "--dry-run"]) == 2
    assert message in capsys.readouterr().err


def test_mistakes_in_the_values_of_a_new_model_are_named(model_folder, tmp_path, capsys):
    meant = {
        "num_understandin_layers=1": "did you mean num_understanding_layers",
        "depth_decoder_config={hiden_size: 1}": "did you mean depth_decoder_config.hidden_size",
    }
    for value, message in meant.items():
        words = ["train", "init", str(tmp_path), str(tmp_path / "out"), value, "--codec", str(model_folder / "codec")]
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_recipes_are_found_or_listed(tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {context: 3}")
    assert load_recipe([str(tmp_path / "mine.yaml")], ["data.packed=false"]) == {
        "data": {"context": 3, "packed": False}
    }
    numbers = load_recipe([], ["arguments.a=2e-4", "arguments.b=-1E5", "arguments.c=1.5e+3", "arguments.d=e3"])
    assert numbers == {"arguments": {"a": 2e-4, "b": -1e5, "c": 1500.0, "d": "e3"}}
    with pytest.raises(ValueError, match="not of the form"):
        load_recipe([], ["data.context"])
    assert merge({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}
    assert (RECIPES / "lora.yaml").exists()
