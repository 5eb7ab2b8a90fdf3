"""Examples of any task become a batch that a plain `Trainer` learns from."""

import pytest
import torch
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from uniaudio2.processing import TASKS, AudioCodes, UniAudio2DataCollator


@pytest.fixture
def examples(codes):
    return [
        {"task": "TTS", "text": "seven three nine", "audio": codes(1.0, 1)},
        {"task": "ASR", "text": "one", "audio": codes(0.5, 2)},
        {"task": "TTA", "caption": "a dog barks", "audio": codes(0.6, 3)},
        {"task": "text_only", "text": "one two three"},
    ]


def test_a_batch_has_labels_where_the_answers_are(processor, examples):
    batch = UniAudio2DataCollator(processor)(examples)
    length = batch["input_ids"].shape[1]
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "input_ids": (4, length, 9),
        "labels": (4, length, 9),
        "attention_mask": (4, length),
        "mm_token_type_ids": (4, length),
    }
    learnt = batch["labels"] != -100
    assert torch.equal(batch["labels"][learnt], batch["input_ids"][learnt])
    # An audio row is learnt in its eight codebooks, a text row in its text stream.
    in_audio, in_text = learnt[..., :-1], learnt[..., -1]
    assert torch.equal(in_audio.all(-1), in_audio.any(-1))
    assert (batch["mm_token_type_ids"][in_audio.all(-1)] == 3).all()
    assert (batch["mm_token_type_ids"][in_text] == 0).all()
    # TTS learns all its audio: 5 and 12 frames, each part with bos and eos; ASR none of it.
    assert in_audio.all(-1).sum(-1)[:2].tolist() == [5 + 2 + 12 + 2, 0] and in_text.any(-1).tolist() == [
        False,
        True,
        False,
        True,
    ]
    assert not learnt[batch["attention_mask"] == 0].any()


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_every_task_takes_its_fields(processor, codes, task):
    values = {name: "a text" if task.is_text(name) else codes(1.0) for name in task.fields}
    batch = UniAudio2DataCollator(processor)([{"task": task.name, **values, "speaker": "unused"}])
    assert (batch["labels"] != -100).any()


def test_padding(processor, examples):
    right = UniAudio2DataCollator(processor, random_prompts=False)(examples)
    left = UniAudio2DataCollator(processor, random_prompts=False, padding_side="left", pad_to_multiple_of=16)(examples)
    assert left["input_ids"].shape[1] % 16 == 0
    for one, other in zip(range(4), range(4), strict=True):
        for name in ("input_ids", "labels", "mm_token_type_ids"):
            assert torch.equal(
                right[name][one][right["attention_mask"][one].bool()],
                left[name][other][left["attention_mask"][other].bool()],
            )
    assert left["attention_mask"][:, -1].all() and right["attention_mask"][:, 0].all()


def test_waveforms_are_encoded_with_the_rate_they_declare(processor, tone):
    wave = tone(0.4, rate=16_000)
    (expected,) = processor.encode_audio(wave, sampling_rate=16_000)
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    example = {"task": "ASR", "text": "one"}
    from_wave = collator([{**example, "audio": wave, "sampling_rate": 16_000}])
    from_dictionary = collator([{**example, "audio": {"array": wave, "sampling_rate": 16_000}}])
    from_codes = collator([{**example, "audio": expected}])
    assert torch.equal(from_wave["input_ids"], from_codes["input_ids"])
    assert torch.equal(from_dictionary["input_ids"], from_codes["input_ids"])
    with pytest.raises(ValueError, match="sampling rate of the audio is unknown"):
        collator([{**example, "audio": wave}])


def test_files_and_their_bytes_know_their_rate_better(processor, tone, tmp_path):
    processor.save_audio(tone(0.4, rate=16_000), tmp_path / "in.flac", sampling_rate=16_000)
    data = (tmp_path / "in.flac").read_bytes()
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    expected = collator([{"task": "ASR", "text": "one", "audio": processor.encode_audio(data)[0]}])["input_ids"]
    for audio in (data, str(tmp_path / "in.flac")):
        found = collator([{"task": "ASR", "text": "one", "audio": audio, "sampling_rate": 8_000}])["input_ids"]
        assert torch.equal(found, expected)


def test_conversations_learn_all_their_answers(processor, codes):
    question = {"role": "user", "content": [{"type": "audio", "audio": AudioCodes(*codes())}]}
    answer = {"role": "assistant", "content": "seven"}
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    once, twice = collator([{"messages": [question, answer]}]), collator([{"messages": [question, answer] * 2}])
    assert torch.equal(once["labels"].repeat(1, 2, 1), twice["labels"])
    single = collator([{"task": "ASR", "audio": codes(), "text": "seven"}])
    assert torch.equal(once["input_ids"], single["input_ids"])
    with pytest.raises(ValueError, match="no answer to learn"):
        collator([{"messages": [question]}])


def test_rows_made_before_are_taken_as_they_are(processor, examples):
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    batch = collator(examples[:1])
    ready = {name: batch[name][0].tolist() for name in ("input_ids", "mm_token_type_ids", "labels")}
    again = collator([ready])
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    with pytest.raises(ValueError, match=r"Rows have shapes \(length, 9\)"):
        collator([{**ready, "labels": ready["labels"][1:]}])
    with pytest.raises(ValueError, match=r"Rows have shapes \(length, 9\)"):
        collator([{**ready, "input_ids": [1, 2, 3]}])
    del ready["labels"]
    with pytest.raises(ValueError, match="needs 'labels' too"):
        collator([ready])


def test_conditions_are_dropped_only_where_the_release_drops_them(processor, examples):
    kept = UniAudio2DataCollator(processor, random_prompts=False)(examples)
    dropped = UniAudio2DataCollator(processor, random_prompts=False, condition_dropout=1.0)(examples)
    assert torch.equal(kept["labels"], dropped["labels"])
    changed = (kept["input_ids"] != dropped["input_ids"]).any(-1)
    assert changed.any(-1).tolist() == [True, False, True, False]  # TTS and TTA
    assert (dropped["input_ids"][changed][:, -1] == processor.row_format.text_pad_token_id).all()
    given = (kept["labels"] == -100).all(-1) & kept["attention_mask"].bool()
    assert torch.equal(changed[0], given[0])


def test_choices_come_from_the_seed_alone(processor, examples):
    def batches(seed):
        collator = UniAudio2DataCollator(processor, condition_dropout=0.5, seed=seed)
        return [collator(examples)["input_ids"] for _ in range(6)]

    torch.manual_seed(1)
    first = batches(seed=3)
    torch.manual_seed(2)
    assert all(torch.equal(one, other) for one, other in zip(first, batches(seed=3), strict=True))
    assert not all(
        one.shape == other.shape and torch.equal(one, other) for one, other in zip(first, batches(seed=4), strict=True)
    )


def test_workers_of_a_data_loader_choose_differently(processor, examples):
    loader = DataLoader(examples[:1] * 32, batch_size=8, num_workers=2, collate_fn=UniAudio2DataCollator(processor))
    first, second = list(loader)[:2]
    assert first["input_ids"].shape != second["input_ids"].shape or (first["input_ids"] != second["input_ids"]).any()


def test_the_voice_prompt_is_a_part_chosen_at_random(processor, codes):
    example = {
        "task": "prompt_instruct_tts",
        "audio_prompt": codes(10.0),
        "caption": "calm",
        "text": "one",
        "audio": codes(),
    }
    collator = UniAudio2DataCollator(processor, random_prompts=False)
    parts = {tuple(collator([example])["input_ids"][0, :, 0].tolist()) for _ in range(8)}
    assert len(parts) > 1 and len({len(part) for part in parts}) == 1


@pytest.mark.parametrize(
    "example, message",
    [
        ({"text": "one"}, "remove_unused_columns=False"),
        ({}, "remove_unused_columns=False"),
        ({"task": "TTS", "text": "one"}, "'audio' is missing"),
        ({"task": "ASR", "audio": "a.wav", "text": " "}, "'text' of ASR is empty"),
        ({"task": "sing"}, "Unknown task 'sing'"),
    ],
)
def test_examples_that_cannot_be_learnt_are_refused(processor, example, message):
    with pytest.raises(ValueError, match=message):
        UniAudio2DataCollator(processor)([example])


def test_options_are_checked(processor):
    with pytest.raises(ValueError, match="between 0 and 1"):
        UniAudio2DataCollator(processor, condition_dropout=10)
    with pytest.raises(ValueError, match="'left' or 'right'"):
        UniAudio2DataCollator(processor, padding_side="both")


def test_a_plain_trainer_trains_evaluates_and_predicts(processor, model, examples, tmp_path):
    arguments = TrainingArguments(
        tmp_path,
        max_steps=12,
        learning_rate=1e-2,
        per_device_train_batch_size=4,
        per_device_eval_batch_size=2,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    own_model = type(model)(model.config)
    trainer = Trainer(
        own_model,
        arguments,
        data_collator=UniAudio2DataCollator(processor, random_prompts=False),
        train_dataset=examples,
        eval_dataset=examples,
        processing_class=processor,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before - 0.1
    # Two batches of unequal lengths are gathered into one array.
    predictions = trainer.predict(examples)
    assert predictions.label_ids.shape[0] == 4 and predictions.label_ids.shape[2] == 9
    assert predictions.metrics["test_loss"] == pytest.approx(trainer.evaluate()["eval_loss"], rel=1e-4)
    trainer.save_model(tmp_path / "saved")
    assert (tmp_path / "saved" / "processor_config.json").is_file()


def test_a_trainer_that_takes_the_columns_away_says_what_to_do(processor, model, examples, tmp_path):
    arguments = TrainingArguments(tmp_path, max_steps=1, report_to="none", use_cpu=True, disable_tqdm=True)
    trainer = Trainer(model, arguments, data_collator=UniAudio2DataCollator(processor), train_dataset=examples)
    with pytest.raises(ValueError, match="remove_unused_columns=False"):
        trainer.train()
