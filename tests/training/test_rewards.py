import pytest
import torch
from torch import nn
from transformers.modeling_outputs import CausalLMOutput

from uniaudio2.processing.understanding import format_analysis
from uniaudio2.training.rewards import (
    JudgeReward,
    caption_reward,
    format_reward,
    transcript_reward,
    word_overlap,
)
from uniaudio2.training.tokenizer import train_tokenizer

ANALYSIS = format_analysis({"Quality and speaker": "clean", "Prosody": "calm", "Content": "one"})


def test_format_is_rewarded_in_analyses_alone():
    assert format_reward(
        ["", "", ""], [ANALYSIS, "clean, calm, one", ANALYSIS], task=["analysis", "analysis", "caption"]
    ) == [1.0, 0.0, None]


def test_transcripts_are_rewarded_by_their_errors():
    texts = ["One two, three four!", "one two", "one", "one", ""]
    completions = ["one two three five", "ONE TWO", "one two three", "one", "noise"]
    tasks = ["transcription"] * 3 + ["caption", "transcription"]
    # One of four words is wrong; none; two words too many are more errors than words; not a transcript; silence.
    assert transcript_reward([""] * 5, completions, task=tasks, text=texts) == [0.75, 1.0, 0.0, None, 0.0]


def test_characters_count_where_words_are_not_spaced():
    """One of six wrong; the Latin word between them is one word."""
    texts, completions = ["今天天气真好", "我用 Python 写"], ["今天天气很好。", "我用Python写"]
    rewards = transcript_reward([""] * 2, completions, task=["transcription"] * 2, text=texts)
    assert rewards == pytest.approx([5 / 6, 1.0])
    assert word_overlap("一只狗在叫", "一只狗叫") == pytest.approx(2 * 4 / 9)


def test_captions_are_rewarded_by_the_words_they_share():
    assert word_overlap("a dog barks", "A dog is barking.") == pytest.approx(2 * 2 / 7)
    assert word_overlap("dog dog dog", "a dog barks") == pytest.approx(2 * 1 / 6)
    assert word_overlap("", "a dog") == 0.0
    assert caption_reward(["", ""], ["rain", "rain"], task=["caption", "transcription"], text=["rain", "rain"]) == [
        1.0,
        None,
    ]


class Digit(nn.Module):
    """A judge that says the digit which follows the word `rate` in the request, whatever stands behind it."""

    def __init__(self, ids: dict[str, int], rate: int, vocab_size: int):
        super().__init__()
        self.ids, self.rate, self.vocab_size = ids, rate, vocab_size
        self.register_buffer("place", torch.zeros(()))
        self.calls = 0

    @property
    def device(self):
        return self.place.device

    def forward(self, input_ids, attention_mask):
        self.calls += 1
        logits = torch.zeros(*input_ids.shape, self.vocab_size)
        for row, (request, mask) in enumerate(zip(input_ids, attention_mask, strict=True)):
            said = request[request.tolist().index(self.rate) + 1]
            logits[row, int(mask.sum()) - 1, said] = 100.0
        return CausalLMOutput(logits=logits)


def test_the_judge_reads_its_rating_from_the_digits():
    tokenizer = train_tokenizer(["#"], 300)
    ids = {digit: tokenizer(digit, add_special_tokens=False)["input_ids"][0] for digit in "12345"}
    mark = tokenizer("#", add_special_tokens=False)["input_ids"][0]
    judge = JudgeReward(Digit(ids, mark, len(tokenizer)), tokenizer, batch_size=2, prompt="{reference} {answer}")
    answers = ["#5", "#1 and more", "#3", " "]
    references = ["a much longer reference", "r", "r", "#5"]
    assert judge([""] * 4, answers, text=references) == pytest.approx([1.0, 0.0, 0.5, 0.0])
    assert judge.model.calls == 2 and not judge.model.training


def test_a_judge_between_two_ratings_gives_what_it_expects():
    tokenizer = train_tokenizer(["#"], 300)
    judge = JudgeReward(Digit({}, 0, len(tokenizer)), tokenizer, prompt="{reference}{answer}")

    def uncertain(input_ids, attention_mask):
        logits = torch.full((*input_ids.shape, len(tokenizer)), -50.0)
        logits[..., judge.rating_ids[3:]] = 0.0  # 4 and 5 are equally likely
        return CausalLMOutput(logits=logits)

    judge.model = uncertain
    uncertain.device = torch.device("cpu")
    assert judge([""], ["yes"], text=["no"]) == pytest.approx([0.875])
