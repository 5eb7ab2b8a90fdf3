"""GRPO with audio: what is heard reaches generation, log-probabilities and rewards."""

import pytest
import torch
from datasets import Dataset
from text_head_toy import WORDS, make_processor, make_recordings, make_text_head
from trl import GRPOConfig

from uniaudio2.modeling_uniaudio2.modeling_codec_front_ends import ReasoningFrontEnds
from uniaudio2.training.codec_stages import recording_operations, text_head_adapters
from uniaudio2.training.reasoning_grpo import ReasoningGRPOArguments, ReasoningGRPOTrainer
from uniaudio2.training.text_head_data import UnderstandingCollator


@pytest.fixture(scope="module")
def processor():
    return make_processor()


@pytest.fixture(scope="module")
def rows():
    return [row | {"task": "caption"} for row in make_recordings(16)]


@pytest.fixture(scope="module")
def guessing(processor, rows):
    """Weights of a text head that hears a little: it was taught the right word three times as often as the other."""
    model = make_text_head(processor).train()
    model.model.reasoning_branch.requires_grad_(False)
    wrong = [row | {"text": WORDS[1 - index % 2]} for index, row in enumerate(rows)]
    batch = UnderstandingCollator(processor)(rows + rows + rows + wrong)
    audio = model.extract_audio_features(batch.pop("input_values"), batch.pop("padding_mask"))
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        model(**batch, **audio).loss.backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture
def make_trainer(processor, rows, guessing, tmp_path):
    def make(adapters: dict | None = None, **arguments) -> ReasoningGRPOTrainer:
        model = make_text_head(processor)
        model.load_state_dict(guessing)
        values = {
            "output_dir": str(tmp_path),
            "use_cpu": True,
            "bf16": False,
            "report_to": "none",
            "disable_tqdm": True,
            "save_strategy": "no",
            "per_device_train_batch_size": 16,
            "num_generations": 8,
            "max_completion_length": 5,
            "learning_rate": 3e-3,
            "lr_scheduler_type": "constant",
            "activation_checkpointing": False,
            "logging_steps": 1,
        }
        return ReasoningGRPOTrainer(
            model,
            [right_word],
            ReasoningGRPOArguments(**{**values, **arguments}),
            Dataset.from_list(rows),
            processor,
            peft_config=None if adapters is None else text_head_adapters(model, **adapters),
        )

    return make


def right_word(prompts, completions, text, **columns):
    return [float(completion.strip() == word) for completion, word in zip(completions, text, strict=True)]


def scored(trainer, rows):
    """Completions of some rows, as the trainer generates and scores them."""
    return trainer._generate_and_score_completions([dict(row) for row in rows])


def log_probabilities(trainer, inputs):
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    trainer._audio = {name: inputs[name] for name in ("whisper_features", "music_features", "reasoning_mask")}
    with torch.no_grad():
        found, _, _ = trainer._get_per_token_logps_and_entropies(
            trainer.model, ids, mask, inputs["completion_ids"].shape[1], batch_size=3
        )
    return found


def test_log_probabilities_are_those_of_the_model_that_hears(make_trainer):
    trainer = make_trainer()
    inputs = scored(trainer, trainer.train_dataset.select(range(8)))  # in turns low and high
    found = log_probabilities(trainer, inputs)

    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    audio = {name: inputs[name] for name in ("whisper_features", "music_features", "reasoning_mask")}
    with torch.no_grad():
        logits = trainer.model(input_ids=ids, attention_mask=mask, **audio).logits
    length = inputs["completion_ids"].shape[1]
    by_hand = logits[:, :-1].log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0][:, -length:]
    own = inputs["completion_mask"].bool()
    torch.testing.assert_close(found[own], by_hand[own], rtol=1e-4, atol=1e-4)

    swapped = inputs | {name: inputs[name].roll(1, dims=0) for name in audio}
    assert (log_probabilities(trainer, swapped) - found)[own].abs().max() > 1e-4


def test_prompts_hold_a_placeholder_for_every_frame(make_trainer, processor):
    trainer = make_trainer()
    rows = [dict(trainer.train_dataset[index]) for index in range(8)]
    for row in rows[::2]:
        row["audio"] = {"array": row["audio"]["array"][:4800], "sampling_rate": 24000}
    inputs = scored(trainer, rows)
    places = (inputs["prompt_ids"] == processor.audio_token_id).sum(dim=1)
    assert places.tolist() == inputs["reasoning_mask"].sum(dim=1).tolist() == [1, 2] * 4
    assert not (inputs["completion_ids"] == processor.audio_token_id).any()


def test_advantages_are_relative_to_the_group(make_trainer):
    trainer = make_trainer()
    trainer.reward_funcs = [lambda prompts, completions, **columns: [float(i % 8) for i in range(len(completions))]]
    inputs = scored(trainer, [trainer.train_dataset[0]] * 8 + [trainer.train_dataset[1]] * 8)
    rewards = torch.arange(8.0)
    expected = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    torch.testing.assert_close(inputs["advantages"], expected.repeat(2), rtol=1e-3, atol=1e-3)


def test_what_generation_saw_is_what_the_learning_pass_sees(make_trainer, processor):
    """So that at the first step the ratio to the policy that answered is one: caches, padding and training mode."""
    trainer = make_trainer()
    inputs = scored(trainer, trainer.train_dataset.select(range(8)))
    audio = {name: inputs[name] for name in ("whisper_features", "music_features", "reasoning_mask")}
    trainer.model.train()
    answered = trainer.model.generate(
        input_ids=inputs["prompt_ids"], attention_mask=inputs["prompt_mask"], **audio, max_new_tokens=4,
        do_sample=True, top_k=0, output_logits=True, return_dict_in_generate=True,
    )  # fmt: skip
    ids = answered.sequences[:, inputs["prompt_ids"].shape[1] :]
    ended = ids == processor.tokenizer.eos_token_id
    own = ended.cumsum(dim=1) - ended.int() == 0
    given = torch.stack(answered.logits, dim=1).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    found = log_probabilities(trainer, inputs | {"completion_ids": ids, "completion_mask": own.long()})
    torch.testing.assert_close(found[own], given[own], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_the_reward_rises_where_hearing_helps(make_trainer):
    """Eight groups a step: with one or two, the gradient is which word is right in this batch, not which was heard.
    Without hearing, half of the answers are right at best."""
    trainer = make_trainer(max_steps=40, per_device_train_batch_size=64, learning_rate=2e-3, seed=0)
    trainer.train()
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[:4]) / 4 < 0.6
    assert sum(rewards[-8:]) / 8 > 0.75


@pytest.mark.parametrize("train_reasoning_branch", [True, False])
def test_the_supervised_model_stays_beside_the_one_that_learns(make_trainer, guessing, train_reasoning_branch):
    adapters = {"rank": 4, "alpha": 4, "dropout": 0.0, "train_reasoning_branch": train_reasoning_branch}
    trainer = make_trainer(adapters, max_steps=3, beta=0.1)
    inputs = scored(trainer, [trainer.train_dataset[i] for i in range(4)] * 2)
    own = inputs["completion_mask"].bool()
    torch.testing.assert_close(inputs["ref_per_token_logps"][own], log_probabilities(trainer, inputs)[own])

    trainer.train()
    kl = [entry["kl"] for entry in trainer.state.log_history if "kl" in entry]
    assert kl[0] < 1e-6 < kl[-1]
    learns = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    branch = {name for name in learns if "reasoning_branch" in name}
    assert bool(branch) == train_reasoning_branch
    # Under the adapter's names, the weights of the supervised model are as they were.
    kept = {
        name.removeprefix("base_model.model.").replace("base_layer.", "").replace("original_module.", ""): value
        for name, value in trainer.model.state_dict().items()
        if "lora_" not in name and "modules_to_save" not in name
    }
    assert kept.keys() == guessing.keys()
    assert all(torch.equal(value, guessing[name]) for name, value in kept.items())
    if train_reasoning_branch:
        branch = trainer.model.base_model.model.model.reasoning_branch
        learned, frozen = branch.modules_to_save["default"], branch.original_module
        assert not torch.equal(learned.query_token, frozen.query_token)
        assert torch.equal(learned.quantizer.codebooks, frozen.quantizer.codebooks)


def test_speed_is_logged_with_the_operations_of_every_pass(make_trainer):
    """One generation for two steps, so that answers are scored once before the steps."""
    trainer = make_trainer(max_steps=2, num_iterations=2, device_tflops=1e-3)
    trainer.train()
    (batch,) = trainer._buffered_inputs
    model, config = trainer.model, trainer.model.config.codec_config
    answers = int(batch["completion_mask"].sum())
    rows, frames = int(batch["prompt_mask"].sum()) + answers, batch["reasoning_mask"].numel()
    branch, projection, language_model, embedding, head = (
        sum(parameter.numel() for parameter in module.parameters())
        for module in (
            model.model.reasoning_branch,
            model.model.text_projection,
            model.model.language_model,
            model.get_input_embeddings(),
            model.lm_head,
        )
    )
    per_pass = 2 * (frames * (config.reasoning_interval + 1) * branch + frames * projection)
    per_pass += 2 * (rows * (language_model - embedding) + answers * head)
    generation = per_pass - 2 * len(batch["prompt_ids"]) * (language_model - embedding)
    heard = len(batch["prompt_ids"]) * recording_operations(ReasoningFrontEnds, config)(9600)
    assert trainer.state.total_flos == heard + generation + per_pass + 2 * 3 * per_pass
    assert trainer.tokens_seen() == rows
    logs = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(logs) == 2 and all(entry["model_flops_utilization"] > 0 for entry in logs)
    assert logs[0]["tokens_per_second"] > 0 == logs[1]["tokens_per_second"]
    trainer.model.eval()
    scored(trainer, [trainer.train_dataset[0]] * 8)
    assert trainer.floating_point_ops([]) == 0


def test_without_an_adapter_there_is_nothing_to_compare_with(make_trainer):
    with pytest.raises(ValueError, match=r"beta=0.1.*text_head_adapters"):
        make_trainer(beta=0.1)


def test_a_data_set_without_tasks_is_refused(make_trainer, rows, processor, tmp_path):
    with pytest.raises(ValueError, match=r"lacks the columns \['task'\]"):
        ReasoningGRPOTrainer(
            make_text_head(processor),
            [right_word],
            GRPOConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, num_generations=8),
            Dataset.from_list([{"audio": row["audio"], "text": row["text"]} for row in rows]),
            processor,
        )
