"""What transformers' pipelines ask of a processor."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from uniaudio2.processing import TASKS, AudioCodes

TEXTS = ["one", "two three four five", "six"]
FRAMES = {"max_new_tokens": 6, "do_sample": True}


def chat(content):
    return [{"role": "user", "content": content}]


@pytest.fixture
def speak(model, processor):
    return pipeline("text-to-audio", model=model, tokenizer=processor.tokenizer, processor=processor, device="cpu")


@pytest.fixture
def any_to_any(model, processor):
    return pipeline("any-to-any", model=model, processor=processor, device="cpu")


@pytest.fixture
def prompts(model, monkeypatch):
    """Records what reaches `generate`."""
    recorded = []
    generate = type(model).generate

    def recording(self, *args, **kwargs):
        recorded.append(kwargs)
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(type(model), "generate", recording)
    return recorded


def own_rows(prompt, index):
    return prompt["input_ids"][index][prompt["attention_mask"][index].bool()]


def test_text_to_audio_takes_texts_lists_and_chats(speak, processor, prompts):
    expected = processor("one")["input_ids"][0]
    for given in ("one", ["one"], chat("one"), [chat("one")]):
        output = speak(given, generate_kwargs=FRAMES)
        output = output[0] if isinstance(output, list) else output
        assert output["sampling_rate"] == 24_000 and output["audio"].dtype == np.float32
        assert torch.equal(own_rows(prompts[-1], 0), expected)
        assert prompts[-1]["output_modality"].tolist() == [3]


@pytest.mark.parametrize("given", [TEXTS, [chat(text) for text in TEXTS]])
def test_text_to_audio_in_batches_gives_every_item_its_own_prompt(speak, processor, prompts, given):
    outputs = speak(given, batch_size=3, generate_kwargs=FRAMES)
    assert len(outputs) == 3 and len(prompts) == 1
    for index, text in enumerate(TEXTS):
        assert torch.equal(own_rows(prompts[0], index), processor(text)["input_ids"][0])


def test_text_to_audio_returns_the_audio_of_each_item(speak, model, processor, codes, monkeypatch):
    """With answers that are audio, which a model of random weights seldom writes."""
    answers = [codes(1.0, 1), codes(2.0, 2), codes(3.0, 3)]

    def generate(self, input_ids, **_):
        row_format = processor.row_format
        rows = [
            row_format.training_rows(TASKS["audio_only"], {"audio": AudioCodes(*answer)}, None) for answer in answers
        ]
        return {"sequences": torch.cat([input_ids, row_format.batch(rows, "right")["input_ids"]], dim=1)}

    monkeypatch.setattr(type(model), "generate", generate)
    outputs = speak(TEXTS, batch_size=3)
    lengths = [output["audio"].shape[0] for output in outputs]
    assert lengths == [processor.decode(AudioCodes(*answer)).shape[0] for answer in answers]


def test_text_to_audio_chooses_other_tasks(speak, processor, prompts):
    speak("a dog barks", preprocess_params={"task": "TTA"}, generate_kwargs=FRAMES)
    assert torch.equal(own_rows(prompts[-1], 0), processor("a dog barks", task="TTA")["input_ids"][0])
    speak(chat("a dog barks"), processor_kwargs={"task": "TTA"}, generate_kwargs=FRAMES)
    assert torch.equal(own_rows(prompts[-1], 0), processor("a dog barks", task="TTA")["input_ids"][0])


def test_any_to_any_answers_a_chat_in_text(any_to_any, processor, prompts, codes):
    messages = chat([{"type": "audio", "audio": codes()}])
    (output,) = any_to_any(text=messages, max_new_tokens=4)
    answer = output["generated_text"][-1]
    assert answer["role"] == "assistant" and isinstance(answer["content"], str)
    assert torch.equal(own_rows(prompts[-1], 0), processor(audio=codes())["input_ids"][0])
    (output,) = any_to_any(text=messages, max_new_tokens=4, return_full_text=False)
    assert output["generated_text"] == answer["content"]


def test_any_to_any_continues_an_answer(any_to_any, codes):
    messages = [
        *chat([{"type": "audio", "audio": codes()}]),
        {"role": "assistant", "content": [{"type": "text", "text": "seven "}]},
    ]
    (output,) = any_to_any(text=messages, max_new_tokens=3)
    assert output["generated_text"][-1]["content"][0]["text"].startswith("seven ")


def test_any_to_any_reads_files_and_arrays(any_to_any, processor, prompts, tone, tmp_path):
    processor.save_audio(tone(0.4, rate=16_000), tmp_path / "in.wav", sampling_rate=16_000)
    expected = processor("How many?", audio=str(tmp_path / "in.wav"))["input_ids"][0]
    any_to_any(text="How many?", audio=str(tmp_path / "in.wav"), max_new_tokens=2)
    assert torch.equal(own_rows(prompts[-1], 0), expected)
    any_to_any(text="How many?", audio=tone(0.4), sampling_rate=24_000, max_new_tokens=2)
    assert torch.equal(
        own_rows(prompts[-1], 0), processor("How many?", audio=tone(0.4), sampling_rate=24_000)["input_ids"][0]
    )


def test_any_to_any_in_batches(any_to_any, processor, prompts, codes):
    chats = [chat([{"type": "audio", "audio": codes(seconds, 1)}]) for seconds in (1.0, 2.0)]
    outputs = any_to_any(text=chats, batch_size=2, max_new_tokens=4)
    assert len(prompts) == 1 and [len(output) for output in outputs] == [1, 1]
    for index, seconds in enumerate((1.0, 2.0)):
        expected = processor(audio=codes(seconds, 1))["input_ids"][0]
        assert torch.equal(own_rows(prompts[0], index), expected)
        assert isinstance(outputs[index][0]["generated_text"][-1]["content"], str)
    for given in (TEXTS, [chat(text) for text in TEXTS]):
        outputs = any_to_any(text=given, generation_mode="audio", batch_size=3, max_new_tokens=4)
        outputs = [output[0] if isinstance(output, list) else output for output in outputs]
        assert [isinstance(output["generated_audio"], np.ndarray) for output in outputs] == [True] * 3


def test_any_to_any_speaks(any_to_any, prompts):
    for given in ("one", chat("one")):
        (output,) = any_to_any(text=given, generation_mode="audio", max_new_tokens=4)
        assert isinstance(output["generated_audio"], np.ndarray) and output["generated_audio"].ndim == 1
        assert prompts[-1]["generation_mode"] == "audio"
