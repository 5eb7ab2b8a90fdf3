"""`decode` of what `generate` returns for batches with both kinds of answers and for answers of several recordings."""

import pytest
import torch

from uniaudio2.processing import AudioCodes


@pytest.fixture
def rows(processor, codes):
    """A prompt with a recording and, after it, an answer of other codes: what `generate` returns for one item."""
    prompt = processor(audio=codes(seed=1), task="speech_s2s")["input_ids"][0]
    answer = processor(audio=codes(seed=2), task="speech_s2s", prompt="x")["input_ids"][0]
    is_audio = answer[:, -1] == 0
    return torch.cat([prompt, answer[is_audio]])


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_a_list_of_texts_and_recordings(processor, rows, codes):
    """Each item as alone, and generators belong to items."""
    text_ids = torch.tensor(processor.tokenizer("one two")["input_ids"])
    decoded = processor.decode([text_ids, rows, text_ids[:4], rows], generator=seeded(0, 1, 2, 3))
    assert decoded[0] == processor.decode(text_ids) and decoded[2] == processor.decode(text_ids[:4])
    for item in (1, 3):
        alone = processor.decode(rows, generator=seeded(item))
        torch.testing.assert_close(decoded[item], alone, rtol=1e-5, atol=1e-5)
        assert len(alone) == codes(seed=2)[1].shape[1] * 1920


def test_the_output_of_a_batch_with_both_kinds(processor, rows, codes):
    text_ids = torch.tensor(processor.tokenizer("one two")["input_ids"])
    reconstruction = codes(seconds=0.4, seed=2)[1]
    output = {"sequences": [text_ids, rows], "reconstruction_codes": [torch.zeros(8, 0).long(), reconstruction]}
    text, waveform = processor.batch_decode(output)
    assert text == "one two" and len(waveform) == 5 * 1920


def test_answers_of_several_recordings(processor, codes):
    recordings = [codes(seconds=0.4, seed=1)[1], codes(seconds=0.8, seed=2)[1]]
    output = {"sequences": torch.zeros(2, 4, 9).long(), "reconstruction_codes": [recordings, recordings[0]]}
    several, one = processor.decode(output, generator=seeded(0, 1))
    assert [len(waveform) for waveform in several] == [5 * 1920, 10 * 1920] and len(one) == 5 * 1920


def test_rows_of_two_recordings_are_two_channels(processor, codes):
    """The instruction says that there are two; after another one they might be of the prompt."""

    def answered(*recordings, **question):
        prompt = processor(audio=codes(seed=9), task="speech_ss", **question)["input_ids"]
        answers = [processor(audio=recording, task="speech_denoise")["input_ids"][0] for recording in recordings]
        return torch.cat([prompt[0], *(rows[rows[:, -1] == 0] for rows in answers)])

    short, long = codes(seconds=0.4, seed=1), codes(seconds=0.8, seed=2)
    alone = [processor.decode(AudioCodes(*item), generator=seeded(0)) for item in (short, long)]
    both = processor.decode(answered(short, long), generator=seeded(0))
    assert both.shape == (2, 10 * 1920) and not both[0, 5 * 1920 :].any()
    torch.testing.assert_close(both[0, : 5 * 1920], alone[0], rtol=0, atol=1e-5)
    one = processor.decode(answered(short, long, prompt="Who speaks?"), generator=seeded(0))
    torch.testing.assert_close(one, alone[1], rtol=0, atol=1e-5)
    # An answer that ended too early.
    only = processor.decode(answered(short), generator=seeded(0))
    torch.testing.assert_close(only, torch.stack([alone[0], torch.zeros(5 * 1920)]), rtol=0, atol=1e-5)
    # In a list every item is what it is alone.
    first, second = processor.decode([answered(short, long)], generator=seeded(0))[0]
    assert (len(first), len(second)) == (5 * 1920, 10 * 1920)


def test_prompts_say_so_if_an_answer_is_not_one_recording(processor, codes):
    assert "answer_parts" not in processor(["one", "two"])
    two = processor(audio=codes(), task="speech_ss")
    assert two["answer_parts"].tolist() == [[1, 2, 1, 2]]
    tasks = ["semantic_to_reason", "reason_to_semantic", "speech_ss", "ASR", "speech_denoise", "reason_copy"]
    batch = processor(audio=[codes()] * 6, task=tasks)
    assert batch["answer_parts"].tolist() == [
        [1, 0, 0, 0],
        [2, 0, 0, 0],
        [1, 2, 1, 2],
        *[[1, 2, 0, 0]] * 2,
        [1, 0, 0, 0],
    ]


@pytest.mark.parametrize("task", ["speech_ss", "reason_to_semantic", "semantic_to_reason", "semantic_copy"])
def test_from_prompt_to_answer(model, processor, codes, task):
    """`generate` takes what the processor gives, and ends the parts it is asked for."""
    inputs = processor(audio=codes(), task=task)
    output = model.generate(**inputs, max_duration=0.4, return_dict_in_generate=True)
    rows = output.sequences[0, inputs["input_ids"].shape[1] :, :-1]
    is_end = torch.tensor([int(row[0]) in (17, 20 + 33) and len(set(row.tolist())) == 1 for row in rows])
    assert is_end[-1] and int(is_end.sum()) == {"speech_ss": 4}.get(task, 1)
    waveforms = processor.decode(output)[0]
    assert len(waveforms) == 2 if task == "speech_ss" else isinstance(waveforms, torch.Tensor)


def test_eight_tasks_in_one_batch_equal_eight_single_runs(model, processor, codes):
    """Text and audio answers to prompts of every length, greedy, id for id; and texts and waveforms come out."""
    asked = [
        {"task": "TTS", "text": "one two three"},
        {"task": "ASR", "audio": codes(seconds=1.2, seed=1)},
        {"task": "TTA", "caption": "rain"},
        {"task": "audio_understanding", "audio": codes(seconds=0.4, seed=2), "question": "how many are there"},
        {"task": "speech_s2s", "audio": codes(seconds=0.8, seed=3)},
        {"task": "music_caption", "audio": codes(seconds=2.0, seed=4)},
        {"task": "InstructTTS", "caption": "slowly", "text": "one"},
        {"task": "speech_s2t", "audio": codes(seconds=0.4, seed=5)},
    ]
    names = ("task", "text", "audio", "caption", "question")
    inputs = processor(**{name: [item.get(name) for item in asked] for name in names})
    assert inputs["output_modality"].tolist() == [3, 0, 3, 0, 3, 0, 3, 0]
    answers = model.generate(**inputs, max_new_tokens=6)
    for item, answer in zip(asked, answers, strict=True):
        assert torch.equal(answer, model.generate(**processor(**item), max_new_tokens=6)[0])
    kinds = [type(decoded) for decoded in processor.decode(answers)]
    assert kinds == [torch.Tensor, str] * 4
