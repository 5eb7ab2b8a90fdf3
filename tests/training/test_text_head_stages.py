"""The codec's stages of reasoning and reconstruction: what learns, what does not, and whether it learns."""

import pytest
import torch
from huggingface_hub.errors import StrictDataclassClassValidationError
from peft import get_peft_model
from text_head_toy import RATE, make_codec, make_processor, make_recordings, make_text_head
from torch.utils.flop_counter import FlopCounterMode

from uniaudio2.training.codec_stages import (
    ReasoningSFTTrainer,
    ReconstructionTrainer,
    recording_operations,
    text_head_adapters,
)
from uniaudio2.training.speed import operations
from uniaudio2.training.stage_trainer import StageTrainingArguments
from uniaudio2.training.text_head_data import RecordingCollator, UnderstandingCollator

TASKS = ("transcription", "caption", "analysis", "question_answering")


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture
def rows():
    rows = make_recordings(16)
    for index, row in enumerate(rows):
        row["task"] = TASKS[index // 2 % 4]
        if row["task"] == "question_answering":
            row["question"] = "How is the tone?"
    return rows


@pytest.fixture
def make_arguments(tmp_path):
    def make(**overrides) -> StageTrainingArguments:
        values = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "per_device_train_batch_size": 8,
            "learning_rate": 1e-2,
            "lr_scheduler_type": "constant",
            "logging_steps": 1,
            "weight_decay": 0.1,
        }
        return StageTrainingArguments(**{**values, **overrides})

    return make


def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
    assert before.keys() == after.keys()
    return {name for name, value in before.items() if not torch.equal(value, after[name])}


def copy_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def mean_loss(codec, batch: dict[str, torch.Tensor]) -> dict[str, float]:
    """Without random choices, over the same few times and noises at every call."""
    torch.manual_seed(0)
    outputs = [codec.eval()(**batch, return_loss=True) for _ in range(5)]
    return {name: sum(output[name].item() for output in outputs) for name in ("flow_loss", "phone_feature_loss")}


def test_a_batch_holds_audio_prompts_and_answers_of_all_tasks(processor, rows):
    rows[1]["audio"]["array"] = rows[1]["audio"]["array"][:5000]
    batch = UnderstandingCollator(processor)(rows[:8])
    assert batch["input_values"].shape == (8, 1, 9600)
    assert (batch["input_ids"] == processor.audio_token_id).sum(dim=1).tolist() == [2] * 8
    answered = batch["labels"] != -100
    assert torch.equal(batch["labels"][answered], batch["input_ids"][answered])
    for row, ids, own in zip(rows, batch["labels"], answered, strict=False):
        assert processor.tokenizer.decode(ids[own]) == row["text"] + processor.tokenizer.eos_token
    asked = processor.tokenizer.decode(batch["input_ids"][6], skip_special_tokens=True)
    assert asked.startswith("Answer the question about this recording: How is the tone?\nlow")


def test_a_row_without_an_answer_is_refused(processor, rows):
    rows[2]["text"] = " "
    with pytest.raises(ValueError, match=r"Row 2 of the batch has no \['text'\]"):
        UnderstandingCollator(processor)(rows)


def test_supervised_the_loss_falls_and_the_front_ends_stay(processor, rows, make_arguments):
    model = make_text_head(processor)
    before = copy_of(model)
    trainer = ReasoningSFTTrainer(
        model, make_arguments(max_steps=20), train_dataset=rows, data_collator=UnderstandingCollator(processor)
    )
    trainer.train()
    losses = [entry["text_loss"] for entry in trainer.state.log_history if "text_loss" in entry]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    moved = changed(before, copy_of(model))
    learns = ("model.reasoning_branch", "model.text_projection", "model.language_model", "lm_head")
    assert all(name.startswith(learns) for name in moved)
    still = {name for name in before if name.startswith(learns)} - moved
    # What no batch touches: flags of the library.
    assert all(name.endswith(("initted", "beam_score_weights")) for name in still)


def test_with_adapters_the_language_model_stays_and_without_them_all_is_as_before(processor, rows, make_arguments):
    model = make_text_head(processor)
    before = copy_of(model)
    batch = UnderstandingCollator(processor)(rows[:4])
    with torch.no_grad():
        expected = model.eval()(**batch).logits
    adapted = get_peft_model(model, text_head_adapters(model, rank=4, alpha=4))
    trainer = ReasoningSFTTrainer(
        adapted, make_arguments(max_steps=3), train_dataset=rows, data_collator=UnderstandingCollator(processor)
    )
    trainer.train()
    names = {name for name, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert all("lora_" in name or "modules_to_save" in name for name in names)
    adapted.eval()
    with torch.no_grad():
        assert not torch.allclose(adapted(**batch).logits, expected)
        with adapted.disable_adapter():
            assert torch.equal(adapted(**batch).logits, expected)
        heard = adapted(**batch).logits
        merged = adapted.merge_and_unload()
        torch.testing.assert_close(merged(**batch).logits, heard, rtol=1e-4, atol=1e-4)
    moved = changed(before, copy_of(merged))
    assert all(
        name.startswith(("model.reasoning_branch", "model.text_projection", "model.language_model")) for name in moved
    )
    assert any(name.endswith("_codebook.embed") for name in moved)


def test_eight_micro_batches_of_one_are_one_batch_of_eight(processor, rows, make_arguments):
    """Up to the codebooks, which follow every micro-batch and are held here."""
    gradients = []
    for batch_size, steps in ((8, 1), (1, 8)):
        model = make_text_head(processor)
        for row, length in zip(rows, (9600, 5000, 9600, 4800, 7000, 9600, 9600, 300), strict=False):
            row["audio"]["array"] = row["audio"]["array"][:length]
        collator = UnderstandingCollator(processor)
        arguments = make_arguments(
            max_steps=1, per_device_train_batch_size=batch_size, gradient_accumulation_steps=steps, max_grad_norm=1e9
        )

        def collate(batch, collator=collator):
            """The encoders hear the silence that fills a batch: all recordings are filled to the same length."""
            made = collator(batch)
            missing = 9600 - made["input_values"].shape[-1]
            made["input_values"] = torch.nn.functional.pad(made["input_values"], (0, missing))
            made["padding_mask"] = torch.nn.functional.pad(made["padding_mask"], (0, missing))
            return made

        trainer = ReasoningSFTTrainer(model, arguments, train_dataset=rows[:8], data_collator=collate)
        for codebook in model.modules():
            if hasattr(codebook, "embed_avg"):
                codebook.decay, codebook.threshold_ema_dead_code = 1.0, 0
                codebook.has_dead_code_replacement = codebook.ema_update = False
        trainer.train()
        gradients.append(next(entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry))
    assert gradients[0] == pytest.approx(gradients[1], rel=1e-4)


def test_reconstruction_learns_and_leaves_the_frozen_parts_alone(processor, rows, make_arguments):
    codec = make_codec()
    before = copy_of(codec)
    batch = RecordingCollator(processor.feature_extractor, 9600)(rows)
    loss_before = mean_loss(codec, batch)
    trainer = ReconstructionTrainer(
        codec,
        make_arguments(max_steps=20),
        train_dataset=rows,
        data_collator=RecordingCollator(processor.feature_extractor, 9600),
    )
    trainer.train()
    loss_after = mean_loss(codec, batch)
    assert loss_after["phone_feature_loss"] < 0.7 * loss_before["phone_feature_loss"]
    assert loss_after["flow_loss"] < 0.97 * loss_before["flow_loss"]
    logged = {name for entry in trainer.state.log_history for name in entry}
    assert {"flow_loss", "phone_feature_loss", "structure_feature_loss", "commitment_loss"} <= logged
    moved = changed(before, copy_of(codec))
    learns = ("reconstruction_branch", "flow_conditioner", "flow_decoder", "phone_feature_decoder")
    assert all(name.startswith(learns) for name in moved)
    still = {name for name in before if name.startswith(learns)} - moved
    assert all(name.endswith(("initted", "beam_score_weights", "pos_embed.pe")) for name in still)


def test_without_film_the_reasoning_has_no_say_in_the_codes(processor, rows, make_arguments):
    codec = make_codec(film=False)
    before = copy_of(codec)
    assert not any("film" in name for name in before)
    trainer = ReconstructionTrainer(
        codec,
        make_arguments(max_steps=2),
        train_dataset=rows,
        data_collator=RecordingCollator(processor.feature_extractor, 9600),
    )
    trainer.train()
    assert not any("reasoning" in name for name in changed(before, copy_of(codec)))
    waveform = torch.from_numpy(rows[0]["audio"]["array"])[None]
    codes = codec.eval().encode(waveform, encode_mode="exact").reconstruction_codes
    with torch.no_grad():
        codec.reasoning_branch.query_token.add_(10)
    assert torch.equal(codes, codec.encode(waveform, encode_mode="exact").reconstruction_codes)


@pytest.mark.parametrize(("listens", "deaf"), [("whisper", "music_semantic"), ("music", "whisper")])
def test_one_semantic_encoder_does_not_hear_the_other(listens, deaf, rows):
    codec = make_codec(reasoning_front_ends=(listens,)).eval()
    waveform = torch.from_numpy(rows[0]["audio"]["array"])[None]
    with torch.no_grad():
        features = codec.front_ends(waveform)
        given = {"whisper": features.whisper, "music_semantic": features.music_semantic}
        heard = codec.reasoning_branch(**given).quantized
        assert torch.equal(codec.reasoning_branch(**given | {deaf: torch.randn_like(given[deaf])}).quantized, heard)
    with pytest.raises(StrictDataclassClassValidationError, match="reasoning_front_ends"):
        make_codec(reasoning_front_ends=("wavlm",))


@torch.no_grad()
def test_the_losses_are_those_of_a_computation_by_hand(rows):
    """Random choices of training are off, so only noise and time of the flow are drawn; seeded, they are known."""
    codec = make_codec(
        film_dropout=0.0,
        incontext_probability=0.0,
        unconditional_probability=0.0,
        reconstruction_dead_code_threshold=0,
        structure_feature_loss_weight=0.3,
    ).eval()
    waveform = torch.stack([torch.from_numpy(row["audio"]["array"]) for row in rows[:2]])
    mask = torch.arange(9600) < torch.tensor([[9600], [5000]])
    features = codec.extract_features(waveform, mask)
    own = features.latent_mask  # 9600 samples are ten latent frames; 5000 are six
    assert own.sum(dim=1).tolist() == [10, 6]
    streams = codec.reconstruction_branch(
        features.whisper,
        features.wavlm,
        features.music_acoustic,
        features.music_semantic,
        features.reasoning,
        frame_mask=own[:, ::2],
    )

    predicted = codec.phone_feature_decoder(streams.phone.transpose(1, 2))
    errors = (predicted - features.wavlm) ** 2
    phone = (errors[0].sum() + errors[1, :, :12].sum()) / (32 * errors.shape[1])
    predicted = codec.structure_feature_decoder(streams.structure.transpose(1, 2))
    errors = (predicted - features.music_semantic) ** 2
    structure = (errors[0].sum() + errors[1, :, :6].sum()) / (16 * errors.shape[1])

    torch.manual_seed(3)
    torch.randint(2, (2, 1)), torch.rand(1, 1), torch.rand(2, 1, 1)  # the choices that are off
    noise, time = torch.randn_like(features.latents), torch.rand(2)
    t, sigma = time[:, None, None], codec.config.sigma_min
    point = (1 - (1 - sigma) * t) * noise + t * features.latents
    condition = codec.flow_conditioner.proj(streams.quantized).repeat_interleave(2, dim=1)
    condition[~own] = codec.flow_conditioner.padding_embedding
    velocity = codec.flow_decoder(torch.cat([point, torch.zeros_like(point), condition], dim=-1), time)
    velocity = getattr(velocity, "sample", velocity)
    weight = torch.where(own, 1.0, 0.01)[..., None].expand_as(point)
    flow = ((weight * (velocity - (features.latents - (1 - sigma) * noise))) ** 2).sum() / weight.sum()

    codec.train()
    torch.manual_seed(3)
    output = codec(features=features)
    torch.testing.assert_close(output.phone_feature_loss, phone)
    torch.testing.assert_close(output.structure_feature_loss, structure)
    torch.testing.assert_close(output.flow_loss, flow, rtol=1e-4, atol=1e-5)
    assert output.commitment_loss > 0
    expected = flow + 0.1 * phone + 0.3 * structure + 0.5 * output.commitment_loss
    torch.testing.assert_close(output.loss, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_random_choices_come_as_often_as_the_config_says():
    """A tenth without a condition, half of the batches with 32 to 64 latents given, a fifth without modulation."""
    codec = make_codec(min_incontext_length=32, max_incontext_length=64).train()
    seen = []
    codec.flow_decoder = torch.nn.Module()
    codec.flow_decoder.forward = lambda inputs, time: seen.append(inputs) or torch.zeros_like(inputs[..., :6])
    latents, condition = torch.randn(20, 150, 6), torch.ones(20, 150, 32)
    torch.manual_seed(0)
    for _ in range(400):
        codec._flow_loss(latents, condition, None)
    dropped = torch.stack([(inputs[..., 12:] == 0).all(dim=(1, 2)) for inputs in seen]).float().mean()
    given = torch.stack([(inputs[..., 6:12] != 0).any(dim=-1).sum(dim=1) for inputs in seen])
    present = (given > 0).any(dim=1)
    assert dropped.item() == pytest.approx(0.1, abs=0.015)
    assert present.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert given[present].min() == 32 and given[present].max() == 64 and (given[~present] == 0).all()
    for inputs, lengths in zip(seen[:20], given, strict=False):
        for row, length in zip(inputs, lengths, strict=True):
            assert (row[length:, 6:12] == 0).all()

    film, features = codec.reconstruction_branch.phone_film, torch.randn(4000, 1, 32)
    kept = film(features, torch.randn_like(features), codec.config.film_dropout) == features
    assert kept.all(dim=(1, 2)).float().mean().item() == pytest.approx(0.2, abs=0.03)


def test_operations_are_those_that_torch_counts():
    """Frozen below what learns, learning, and frozen above it."""
    layers = torch.nn.Sequential(*(torch.nn.Linear(size, size + 3, bias=False) for size in (5, 8, 11)))
    layers[0].requires_grad_(False), layers[2].requires_grad_(False)
    with FlopCounterMode(display=False) as counter:
        layers(torch.randn(7, 5)).sum().backward()
    # The gradient does not go below the second layer; the formula lets it leave the layer that learns.
    assert operations([(layer, 7) for layer in layers]) == counter.get_total_flops() + 2 * 7 * 8 * 11


@torch.no_grad()
def test_operations_on_a_recording_are_those_that_torch_counts():
    codec = make_codec().eval()
    codec.front_ends.whisper.set_attn_implementation("eager")  # torch does not count that of its own for a CPU
    with FlopCounterMode(display=False) as counter:
        codec.front_ends(torch.randn(1, 9600)), codec.scalar_codec.encode(torch.randn(1, 1, 9600))
    assert recording_operations(type(codec.front_ends), codec.config)(9600) == counter.get_total_flops()


def test_the_operations_of_a_stage_grow_with_what_learns(processor, rows, make_arguments):
    model = make_text_head(processor)
    collator = UnderstandingCollator(processor)
    batch, counted = collator(rows[:4]), []
    for learns in (get_peft_model(make_text_head(processor), text_head_adapters(model, rank=1)), model):
        trainer = ReasoningSFTTrainer(learns, make_arguments(), train_dataset=rows, data_collator=collator)
        counted.append(trainer.floating_point_ops(batch))
        assert trainer.floating_point_ops(collator(rows[:4] * 2)) == pytest.approx(2 * counted[-1])
    assert 0 < counted[0] < counted[1]


def test_recordings_are_cut_to_what_the_codec_takes(processor):
    collate = RecordingCollator(processor.feature_extractor, 4800)
    rows = make_recordings(2)
    rows[1]["audio"]["array"] = rows[1]["audio"]["array"][:1000]
    batch = collate(rows)
    assert batch["input_values"].shape == (2, 1, 4800)
    assert batch["padding_mask"].sum(dim=1).tolist() == [4800, 1000]
    whole = torch.from_numpy(rows[0]["audio"]["array"]).unfold(0, 4800, 1)
    assert (whole == batch["input_values"][0, 0]).all(dim=1).any()
    assert processor.feature_extractor.sampling_rate == RATE
