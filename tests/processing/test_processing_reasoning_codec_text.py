import numpy as np
import pytest
import torch

from uniaudio2 import ReasoningCodecTextProcessor, UniAudio2FeatureExtractor
from uniaudio2.processing.understanding import ANALYSIS_LEVELS, format_analysis, instruction, parse_analysis
from uniaudio2.training.tokenizer import train_tokenizer

ANALYSIS = {"Quality and speaker": "clean, a man", "Prosody": "calm", "Content": "He says: one two."}


@pytest.fixture(scope="module")
def processor():
    return ReasoningCodecTextProcessor(UniAudio2FeatureExtractor(), train_tokenizer(["one two three"], 300))


def test_the_placeholder_stands_once_for_every_reasoning_frame(processor):
    inputs = processor(audio=[np.ones(24000), np.ones(9601)], sampling_rate=24000, task="caption")
    assert (inputs["input_ids"] == processor.audio_token_id).sum(dim=1).tolist() == [5, 3]
    # Padded on the left; the instruction, a text of its own, comes behind the audio.
    assert inputs["attention_mask"].sum(dim=1).tolist()[0] == inputs["input_ids"].shape[1]
    assert inputs["attention_mask"][1].tolist()[:3] == [0, 0, 1]
    text = processor.tokenizer.decode(inputs["input_ids"][1], skip_special_tokens=True)
    assert text == instruction("caption") + "\n"
    assert inputs["padding_mask"].sum(dim=1).tolist() == [24000, 9601]


def test_codes_may_stand_for_audio(processor):
    codes = torch.zeros(2, 8, 4, dtype=torch.long)
    codes[1, :, 3:] = -1
    inputs = processor(reasoning_codes=codes, task="question_answering", question="who?")
    assert (inputs["input_ids"] == processor.audio_token_id).sum(dim=1).tolist() == [4, 3]
    assert torch.equal(inputs["reasoning_codes"], codes)


def test_answers_are_what_follows_the_prompt(processor):
    inputs = processor(audio=np.ones(9600), sampling_rate=24000)
    answer = processor.tokenizer("one two", add_special_tokens=False)["input_ids"]
    sequences = torch.cat([inputs["input_ids"], torch.tensor([[*answer, processor.tokenizer.eos_token_id]])], dim=1)
    assert processor.decode_answers(sequences, inputs) == ["one two"]


def test_saved_and_loaded_it_is_the_same(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = ReasoningCodecTextProcessor.from_pretrained(tmp_path)
    assert loaded.prompt("analysis") == processor.prompt("analysis")
    assert (loaded.audio_token_id, loaded.audio_token_samples) == (processor.audio_token_id, 4800)


def test_an_analysis_is_read_as_it_was_written():
    text = format_analysis(ANALYSIS)
    assert text.splitlines() == [f"{level}: {ANALYSIS[level]}" for level in ANALYSIS_LEVELS]
    assert parse_analysis(text) == ANALYSIS


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Prosody: calm\nQuality and speaker: clean\nContent: one",
        "Quality and speaker: clean\nProsody: calm",
        "Quality and speaker: clean\nProsody: \nContent: one",
        "Quality and speaker: clean\nProsody: calm\nContent: one\nAnd more",
    ],
)
def test_what_is_no_analysis_is_told_apart(text):
    assert parse_analysis(text) is None


def test_wrong_requests_say_what_is_right(processor):
    with pytest.raises(ValueError, match=r"must be one of.*'analysis'.*got 'summary'"):
        processor(audio=np.ones(9600), sampling_rate=24000, task="summary")
    with pytest.raises(ValueError, match="needs a `question`"):
        processor.prompt("question_answering")
    with pytest.raises(ValueError, match="takes no `question`"):
        processor.prompt("caption", "who?")
    with pytest.raises(ValueError, match="either `audio` or `reasoning_codes`"):
        processor(task="caption")
    with pytest.raises(ValueError, match="levels"):
        format_analysis({"Content": "one"})
    with pytest.raises(ValueError, match="one special token"):
        ReasoningCodecTextProcessor(UniAudio2FeatureExtractor(), processor.tokenizer, audio_token="<audio>")
