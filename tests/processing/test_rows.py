"""Reading rows: the last audio segment, whatever stands around it and however badly it is formed."""

import pytest
import torch

from uniaudio2.processing.parts import last_audio
from uniaudio2.processing.rows import AudioCodes, RowFormat, Rows
from uniaudio2.processing.tasks import TASKS

OFFSET = 20
FORMAT = RowFormat(
    num_codebooks=8,
    reasoning_vocab_size=OFFSET,
    reconstruction_vocab_size=38,
    reasoning_codebook_size=16,
    reconstruction_codebook_size=32,
    reasoning_bos_token_id=16,
    reasoning_eos_token_id=17,
    reasoning_pad_token_id=19,
    reconstruction_bos_token_id=32,
    reconstruction_eos_token_id=33,
    reconstruction_pad_token_id=35,
    audio_prompt_bos_token_id=36,
    audio_prompt_eos_token_id=37,
    text_bos_token_id=90,
    text_eos_token_id=91,
    text_pad_token_id=99,
    wrapper_token_ids={"transcription": (92, 93), "lyric": (94, 95), "caption": (96, 97)},
)


def recording(seed, reasoning_frames=3, reconstruction_frames=7):
    generator = torch.Generator().manual_seed(seed)
    return AudioCodes(
        torch.randint(16, (8, reasoning_frames), generator=generator),
        torch.randint(32, (8, reconstruction_frames), generator=generator),
    )


def rows_of(codes):
    """The rows of an answer, as the model writes them."""
    return FORMAT.training_rows(TASKS["audio_only"], {"audio": codes}, None)


def frame(*ids):
    return torch.tensor([[*(ids * 8)[:8], 0]])


def same(answer, codes):
    return torch.equal(answer.codes.reasoning_codes, codes.reasoning_codes) and torch.equal(
        answer.codes.reconstruction_codes, codes.reconstruction_codes
    )


def test_the_answer_after_a_text_prompt_and_between_padding():
    codes = recording(1)
    prompt = FORMAT.prompt_rows(TASKS["TTS"], {"text": [5, 0, 7]}, [3, 4])
    rows = Rows.join([FORMAT.padding_rows(3), prompt, rows_of(codes), FORMAT.padding_rows(2)])
    answer = last_audio(FORMAT, rows.input_ids)
    assert same(answer, codes) and answer.num_malformed_frames == 0


def test_recordings_of_the_prompt_are_never_the_answer():
    prompt = FORMAT.prompt_rows(TASKS["speech_s2s"], {"audio": recording(1)}, [3, 4])
    codes = recording(2)
    assert same(last_audio(FORMAT, torch.cat([prompt.input_ids, rows_of(codes).input_ids])), codes)
    # Even if the model wrote nothing but the row that ends an answer.
    nothing = last_audio(FORMAT, torch.cat([prompt.input_ids, frame(33 + OFFSET)]))
    assert nothing.codes.reconstruction_codes.shape == (8, 0)


def test_examples_of_a_conversation_are_never_the_answer():
    example = FORMAT.training_rows(TASKS["TTS"], {"text": [5], "audio": recording(1)}, [3])
    prompt = FORMAT.prompt_rows(TASKS["TTS"], {"text": [6]}, [3])
    codes = recording(2)
    rows = Rows.join([example, prompt, rows_of(codes)])
    assert same(last_audio(FORMAT, rows.input_ids), codes)


def test_padding_that_a_pipeline_fills_in_is_not_audio():
    prompt = FORMAT.prompt_rows(TASKS["TTS"], {"text": [5]}, [3])
    codes = recording(1)
    filled = torch.full((4, 9), FORMAT.text_pad_token_id)
    assert same(last_audio(FORMAT, torch.cat([filled, prompt.input_ids, rows_of(codes).input_ids])), codes)


@pytest.mark.parametrize("cut", [1, 3])
def test_an_answer_without_its_end_keeps_its_frames(cut):
    codes = recording(1)
    answer = last_audio(FORMAT, rows_of(codes).input_ids[:-cut])
    assert torch.equal(answer.codes.reconstruction_codes, codes.reconstruction_codes[:, : 8 - cut])


def test_a_part_whose_bos_row_the_model_skipped_loses_no_frame():
    codes = recording(1)
    rows = rows_of(codes).input_ids
    reconstruction_bos = 1 + 3 + 1
    kept = [index for index in range(len(rows)) if index not in (0, reconstruction_bos)]
    prompt = FORMAT.prompt_rows(TASKS["TTS"], {"text": [5]}, [3])
    assert same(last_audio(FORMAT, torch.cat([prompt.input_ids, rows[kept]])), codes)


def test_an_answer_that_never_reaches_its_sound_is_empty():
    answer = last_audio(FORMAT, rows_of(recording(1)).input_ids[:3])
    assert answer.codes.reasoning_codes.shape == (8, 2)
    assert answer.codes.reconstruction_codes.shape == (8, 0)


@pytest.mark.parametrize(
    "malformed",
    [
        frame(33 + OFFSET, 3 + OFFSET),  # an end that not all codebooks agree on
        frame(5),  # a reasoning frame among reconstruction frames
        frame(34 + OFFSET),  # a special id without a meaning
        frame(35 + OFFSET),  # the id of padding, in a row that is none
    ],
)
def test_frames_that_are_no_codes_are_left_out_and_counted(malformed):
    codes = recording(1)
    rows = rows_of(codes).input_ids
    answer = last_audio(FORMAT, torch.cat([rows[:-3], malformed, rows[-3:]]))
    assert same(answer, codes) and answer.num_malformed_frames == 1


def test_frames_of_zeros_are_frames():
    codes = AudioCodes(torch.zeros(8, 2, dtype=torch.long), torch.zeros(8, 3, dtype=torch.long))
    assert same(last_audio(FORMAT, rows_of(codes).input_ids), codes)


def test_any_recording_survives_the_way_there_and_back():
    for seed in range(20):
        codes = recording(seed, 1 + seed % 4, 1 + seed % 9)
        prompt = FORMAT.prompt_rows(TASKS["speech_edit"], {"text": [1, 2], "audio": recording(seed + 100)}, [3])
        rows = Rows.join([prompt, rows_of(codes), FORMAT.padding_rows(seed % 3)])
        assert same(last_audio(FORMAT, rows.input_ids), codes)


def test_rows_of_audio_are_told_from_texts_of_nine_ids():
    assert FORMAT.is_sequence(rows_of(recording(1)).input_ids)
    assert FORMAT.is_sequence(FORMAT.prompt_rows(TASKS["TTS"], {"text": [5]}, [3]).input_ids)
    texts = torch.randint(100, (12, 9), generator=torch.Generator().manual_seed(0))
    assert not FORMAT.is_sequence(texts)
    assert not FORMAT.is_sequence(torch.full((12, 9), FORMAT.text_pad_token_id))


def answered(text, seed, frames=7):
    prompt = FORMAT.prompt_rows(TASKS["TTS"], {"text": text}, [3, 4])
    return Rows.join([prompt, rows_of(recording(seed, 3, frames))])


@pytest.mark.parametrize(
    "sequences",
    [
        [answered([5], 1)],
        [answered([5], 1), answered([5, 6], 2), answered([5, 6, 7], 3, 4)],
        [answered([5], seed) for seed in range(3)] + [answered([5], 3, 6)],
        [Rows.join([answered([5], 1), answered([5, 6, 8], 2)])],  # with an example in the prompt
        [Rows.join([answered([5], 1), answered([5, 6], 2)])],
    ],
)
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_joined_sequences_come_apart(sequences, cut):
    batch = FORMAT.batch(sequences, "left")["input_ids"]
    batch = torch.stack([rows[: len(rows) - cut] for rows in batch])
    parts = FORMAT.split_sequences(batch.flatten(0, 1))
    assert len(parts) == len(sequences) and torch.equal(torch.stack(parts), batch)


@pytest.mark.parametrize("side", ["left", "right"])
def test_a_batch_is_filled_up_and_masked(side):
    short, long = rows_of(recording(1)), rows_of(recording(2, 4, 9))
    batch = FORMAT.batch([short, long], side)
    start = len(long) - len(short) if side == "left" else 0
    own = slice(start, start + len(short))
    assert batch["attention_mask"].sum(-1).tolist() == [len(short), len(long)]
    assert batch["attention_mask"][0, own].all()
    assert torch.equal(batch["input_ids"][0, own], short.input_ids)
    padding = batch["attention_mask"][0] == 0
    assert batch["input_ids"][0, padding].tolist() == [[35 + OFFSET] * 8 + [99]] * 3
    assert (batch["labels"][0, padding] == -100).all()
    assert torch.equal(batch["input_ids"][1], long.input_ids)


def test_sequences_are_not_cut():
    with pytest.raises(ValueError, match="14 rows, more than the 5"):
        FORMAT.batch([rows_of(recording(1))], "left", 5)
