"""The four stages of the language model: what learns, what is minimised, and where it starts."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing.data_collator import UniAudio2DataCollator
from uniaudio2.training.adapters import add_adapters
from uniaudio2.training.language_model_stages import (
    AudioTextPretrainingTrainer,
    GenerationWarmupTrainer,
    MidTrainingTrainer,
    UnderstandingWarmupTrainer,
    add_semantic_decoder,
    remove_semantic_decoder,
)
from uniaudio2.training.stage_trainer import StageTrainingArguments

STAGES = (UnderstandingWarmupTrainer, GenerationWarmupTrainer, AudioTextPretrainingTrainer, MidTrainingTrainer)
FEATURE_SIZE = 6


@pytest.fixture
def batches(processor, codes):
    """Rows of ASR and TTS, one example each, with random semantic features on the audio rows."""
    collate = UniAudio2DataCollator(processor, random_prompts=False)
    rows = []
    for index in range(8):
        reasoning, reconstruction = codes(0.4 + 0.2 * (index % 3), seed=index)
        audio = {"reasoning_codes": reasoning, "reconstruction_codes": reconstruction}
        batch = collate([{"task": ("ASR", "TTS")[index % 2], "text": "seven three nine", "audio": audio}])
        features = torch.randn(len(batch["mm_token_type_ids"][0]), FEATURE_SIZE)
        is_audio = batch["mm_token_type_ids"][0] == 3
        rows.append({name: value[0] for name, value in batch.items()})
        rows[-1] |= {"semantic_features": features, "semantic_mask": is_audio}
    return rows


def stack(rows: list[dict]) -> dict[str, torch.Tensor]:
    """Right-padded. Rows of one example are taken as they are."""
    length = max(len(row["labels"]) for row in rows)
    fills = {"labels": -100}

    def pad(value, fill):
        return torch.cat([value, value.new_full((length - len(value), *value.shape[1:]), fill)])

    return {name: torch.stack([pad(row[name], fills.get(name, 0)) for row in rows]) for name in rows[0]}


@pytest.fixture
def make_trainer(model, batches, tmp_path):
    def make(stage, with_adapters=False, **arguments):
        set_seed(0)
        language_model = copy.deepcopy(model)
        if stage is UnderstandingWarmupTrainer:
            add_semantic_decoder(language_model, FEATURE_SIZE)
        if with_adapters:
            language_model = add_adapters(language_model, stage, rank=2, alpha=4, dropout=0.0)
        arguments = {"per_device_train_batch_size": 4, "max_steps": 8, "learning_rate": 5e-3} | arguments
        args = StageTrainingArguments(
            str(tmp_path / "run"), use_cpu=True, report_to=[], disable_tqdm=True, logging_steps=1,
            save_strategy="no", **arguments,
        )  # fmt: skip
        keep = set(batches[0]) if stage is UnderstandingWarmupTrainer else set(batches[0]) - {
            "semantic_features", "semantic_mask"
        }  # fmt: skip
        examples = [{name: row[name] for name in keep} for row in batches]
        return stage(language_model, args, train_dataset=examples, data_collator=stack)

    return make


def changed(before: dict[str, torch.Tensor], model) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def named(model, *prefixes: str) -> set[str]:
    return {name for name in model.state_dict() if name.startswith(prefixes)}


# The model of the tests has one layer of each kind.
LEARNS = {
    UnderstandingWarmupTrainer: (
        "model.audio_embeddings.", "model.layers.0.", "model.understanding_norm.", "semantic_decoder.",
    ),
    GenerationWarmupTrainer: ("model.layers.2.", "model.generation_norm.", "depth_decoder.", "audio_head."),
    AudioTextPretrainingTrainer: ("",),
    MidTrainingTrainer: ("",),
}  # fmt: skip


@pytest.mark.parametrize("stage", STAGES)
def test_the_loss_falls_and_exactly_what_should_learn_changes(make_trainer, stage):
    trainer = make_trainer(stage)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert sum(losses[-2:]) < sum(losses[:2])
    assert changed(before, trainer.model) == named(trainer.model, *LEARNS[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_with_adapters_the_cross_modal_layers_stay_and_new_parts_learn(make_trainer, stage):
    trainer = make_trainer(stage, with_adapters=True, max_steps=2)
    before = copy.deepcopy(trainer.model.state_dict())
    trainer.train()
    moved = changed(before, trainer.model)
    assert any("model.layers.1." in name and "lora_B" in name for name in moved)
    assert all("lora_" in name or "modules_to_save" in name for name in moved)
    assert not any("original_module" in name for name in moved)


def test_the_losses_are_the_models_with_the_weights_of_the_stage(make_trainer, batches):
    """Text 1.6 and audio 1.0 in pre-training; 2/8 for the first three codebooks and 1/8 for the others before."""
    batch = stack([{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches])
    for stage in (AudioTextPretrainingTrainer, GenerationWarmupTrainer):
        trainer = make_trainer(stage, per_device_train_batch_size=8, max_steps=1)
        with torch.no_grad():
            outputs = trainer.model(**batch)
        weights = torch.tensor([2.0, 2, 2, 1, 1, 1, 1, 1])
        expected = (
            1.6 * outputs.text_loss + outputs.codebook_losses.mean()
            if stage is AudioTextPretrainingTrainer
            else (weights * outputs.codebook_losses).sum() / 8
        )
        trainer.train()
        logs = trainer.state.log_history[0]
        assert logs["loss"] == pytest.approx(expected.item(), rel=1e-5)
        assert logs["codebook_3_loss"] == pytest.approx(outputs.codebook_losses[2].item(), rel=1e-5)


def test_the_distillation_loss_by_hand(make_trainer, batches):
    trainer = make_trainer(UnderstandingWarmupTrainer)
    batch = stack(batches[:3])
    values, _ = trainer.step_losses(trainer.model, batch)

    seen = []
    trainer.model.model.understanding_norm.register_forward_hook(lambda module, inputs, output: seen.append(output))
    trainer.step_losses(trainer.model, batch)
    decoder = trainer.model.semantic_decoder
    hidden = decoder.hidden(seen[0])
    decoded = decoder.out(hidden * hidden.sigmoid())
    squares = [
        (decoded[i, t] - batch["semantic_features"][i, t]).square().sum() / FEATURE_SIZE
        for i, t in batch["semantic_mask"].nonzero().tolist()
    ]
    torch.testing.assert_close(values["distillation_loss"], sum(squares) / len(squares))


def test_accuracies_count_what_has_a_label(make_trainer, batches):
    trainer = make_trainer(AudioTextPretrainingTrainer)
    batch = stack([{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches])
    outputs = trainer.model(**batch)
    batch["labels"][..., -1] = torch.where(
        batch["labels"][..., -1] == -100, -100, outputs.logits.argmax(-1).roll(1, dims=1)
    )
    values, _ = trainer.step_losses(trainer.model, batch)
    assert values["text_accuracy"] == 1.0
    assert 0.0 <= values["audio_accuracy"] < 0.5


@pytest.mark.parametrize("stage", [UnderstandingWarmupTrainer, AudioTextPretrainingTrainer])
@pytest.mark.parametrize(("dtype", "optimizer", "atol"), [("float32", "sgd", 1e-6), ("float64", "adamw_torch", 1e-12)])
def test_accumulated_batches_are_one_batch(make_trainer, stage, dtype, optimizer, atol):
    """Text and audio losses have two normalisers; the examples have text or audio to learn, not both. (AdamW divides
    gradients by their size, and so makes rounding large where they are small: in float32 up to 1e-5.)"""
    logs, weights = [], []
    for size, steps in ((8, 1), (1, 8)):
        trainer = make_trainer(
            stage, per_device_train_batch_size=size, gradient_accumulation_steps=steps, max_steps=2, optim=optimizer
        )
        trainer.model.to(getattr(torch, dtype))
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
        weights.append([parameter.detach() for parameter in trainer.model.parameters()])
    for at_once, accumulated in zip(*logs, strict=True):
        for name in ("loss", "text_loss", "text_accuracy", "grad_norm"):
            assert accumulated[name] == pytest.approx(at_once[name], rel=1e-5)
    for at_once, accumulated in zip(*weights, strict=True):
        torch.testing.assert_close(accumulated, at_once, atol=atol, rtol=0)


@pytest.mark.slow
def test_compiled_it_is_the_same(make_trainer):
    """Forward and backward as torch traces them; what inductor makes of the graphs is not our business."""
    logs = []
    for arguments in ({}, {"torch_compile": True, "torch_compile_backend": "aot_eager"}):
        trainer = make_trainer(AudioTextPretrainingTrainer, max_steps=1, per_device_train_batch_size=8, **arguments)
        trainer.train()
        logs.append([row for row in trainer.state.log_history if "loss" in row])
    for eager, compiled in zip(*logs, strict=True):
        for name in ("loss", "text_loss", "audio_loss", "grad_norm"):
            assert compiled[name] == pytest.approx(eager[name], rel=1e-4)


@pytest.mark.parametrize(
    "arguments",
    [{"bf16": True}, {"bf16": True, "optim": "adamw_torch_fused"}, {"activation_checkpointing": True}],
    ids=["bfloat16", "fused", "checkpointing"],
)
def test_the_loss_falls_in_other_ways_of_computing(make_trainer, arguments):
    """The first loss is that of float32 within bfloat16's three digits, and learning goes on from there."""
    first = make_trainer(AudioTextPretrainingTrainer, max_steps=1)
    trainer = make_trainer(AudioTextPretrainingTrainer, **arguments)
    for each in (first, trainer):
        each.train()
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert losses[0] == pytest.approx(first.state.log_history[0]["loss"], rel=1e-2)
    assert losses[-1] < 0.9 * losses[0]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.model.parameters())


def test_operations_of_a_step(make_trainer, batches):
    """Six per weight and row where everything learns; without gradients at the bottom, fewer."""
    batch = stack([{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches[:1]])
    trainer = make_trainer(AudioTextPretrainingTrainer)
    model = trainer.model
    rows = batch["attention_mask"].sum().item()
    depth, head = (sum(p.numel() for p in module.parameters()) for module in (model.depth_decoder, model.audio_head))
    looked_up = model.model.audio_embeddings.weight.numel() + model.model.embed_tokens.weight.numel()
    trunk = sum(p.numel() for p in model.parameters()) - depth - head - looked_up
    assert trainer.floating_point_ops(batch) == 6 * rows * trunk  # ASR: no frame is learnt
    warm_up = make_trainer(GenerationWarmupTrainer)
    assert warm_up.floating_point_ops(batch) < 4 * rows * trunk


def test_a_packed_batch_with_a_mask_is_refused(make_trainer, batches):
    trainer = make_trainer(AudioTextPretrainingTrainer)
    batch = stack([{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches[:1]])
    batch["position_ids"] = torch.arange(batch["labels"].shape[1])[None]
    with pytest.raises(ValueError, match="must come without `attention_mask`"):
        trainer.count_items(batch)


def test_a_packed_batch_of_several_rows_with_flash_attention_is_refused(make_trainer, batches, monkeypatch):
    """transformers' flash attention would let their sequences attend to each other."""
    trainer = make_trainer(AudioTextPretrainingTrainer)
    batch = stack([{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches[:2]])
    batch["position_ids"] = torch.arange(batch["labels"].shape[1])[None].expand(2, -1)
    del batch["attention_mask"]
    trainer.count_items(batch)
    monkeypatch.setattr(trainer.model.config, "_attn_implementation_internal", "flash_attention_2")
    with pytest.raises(ValueError, match="per_device_train_batch_size=1"):
        trainer.count_items(batch)
    trainer.count_items({name: value[:1] for name, value in batch.items()})


def test_the_first_stage_asks_for_its_decoder(model, tmp_path):
    with pytest.raises(ValueError, match="add_semantic_decoder"):
        UnderstandingWarmupTrainer(copy.deepcopy(model), StageTrainingArguments(str(tmp_path), report_to=[]))


# --- The start ---


@pytest.fixture
def llama(tmp_path):
    set_seed(1)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, tie_word_embeddings=True, initializer_range=0.2, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    return LlamaForCausalLM.from_pretrained(tmp_path / "llama").eval()


@pytest.fixture
def config_around(model):
    """Audio ids and depth decoder of the tests' model, around any text model."""

    def make(text_config, **kwargs):
        names = ("depth_decoder_config", "num_understanding_layers", "num_generation_layers", "text_pad_token_id")
        values = {name: value for name, value in model.config.to_dict().items() if name in names or "reas" in name
                  or "reconstruction" in name or "audio_prompt" in name}  # fmt: skip
        return UniAudio2Config.from_text_config(text_config, **(values | kwargs))

    return make


@torch.no_grad()
def test_on_text_a_new_model_is_the_llama(llama, config_around, tmp_path):
    config = config_around(llama.config)
    model = UniAudio2ForConditionalGeneration.from_text_model(tmp_path / "llama", config).eval()
    ids = torch.randint(300, (2, 9))
    assert torch.equal(model(ids).logits, llama(ids).logits)
    assert model.lm_head.weight is not model.model.embed_tokens.weight  # untied, though the Llama was tied
    assert config.num_hidden_layers == 1 + 2 + 1


@torch.no_grad()
def test_a_larger_vocabulary_keeps_the_llamas_part(llama, config_around, tmp_path):
    config = config_around(llama.config, vocab_size=310)
    model = UniAudio2ForConditionalGeneration.from_text_model(tmp_path / "llama", config).eval()
    ids = torch.randint(300, (1, 9))
    torch.testing.assert_close(model(ids).logits[..., :300], llama(ids).logits)


def test_on_text_it_stays_the_llama_after_stages_with_adapters(llama, config_around, tmp_path, batches):
    config = config_around(llama.config)
    model = UniAudio2ForConditionalGeneration.from_text_model(tmp_path / "llama", config)
    model = add_adapters(model, AudioTextPretrainingTrainer, rank=2, alpha=4, dropout=0.0)
    args = StageTrainingArguments(str(tmp_path / "run"), use_cpu=True, report_to=[], max_steps=3, learning_rate=0.05,
                                  disable_tqdm=True, save_strategy="no")  # fmt: skip
    examples = [{k: v for k, v in row.items() if not k.startswith("semantic")} for row in batches]
    AudioTextPretrainingTrainer(model, args, train_dataset=examples, data_collator=stack).train()
    ids = torch.randint(300, (2, 9))
    model.eval()
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, llama(ids).logits)
        with model.disable_adapter():
            assert torch.equal(model(ids).logits, llama(ids).logits)


def test_sizes_must_fit(llama, config_around, tmp_path):
    with pytest.raises(ValueError, match="has 2 layers, width 32"):
        UniAudio2ForConditionalGeneration.from_text_model(
            tmp_path / "llama", config_around(llama.config, num_hidden_layers=5)
        )


def test_the_decoder_of_the_first_stage_is_taken_away(model):
    model = copy.deepcopy(model)
    names = set(model.state_dict())
    remove_semantic_decoder(add_semantic_decoder(model, FEATURE_SIZE))
    assert set(model.state_dict()) == names
