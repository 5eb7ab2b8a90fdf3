"""Rewards of the GRPO stage: plain callables `reward(prompts, completions, **columns) -> list[float | None]`.

`columns` are the other columns of the data set, one value per completion. A reward that does not apply to a row is
`None`, and trl leaves it out. All rewards lie in [0, 1]; `GRPOConfig(reward_weights=...)` weighs them. The paper says
that a Llama-3.1-8B-Instruct scored the agreement with the ground truth (as reported); its prompt and scale, and the
other rewards, are ours.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..processing.understanding import parse_analysis

JUDGE_PROMPT = (
    "Two descriptions of the same recording follow. How well does the second agree with the first, from 1 (not at "
    "all) to 5 (in everything)?\n\nFirst: {reference}\n\nSecond: {answer}\n\nReply with one digit."
)
RATINGS = ("1", "2", "3", "4", "5")
# Ideographs and kana, which are written without spaces: each counts as a word.
UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"


def format_reward(
    prompts: Sequence[str], completions: Sequence[str], task: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 for an analysis that has its three levels in their order, each with something to say; of analyses alone."""
    return [
        float(parse_analysis(completion) is not None) if name == "analysis" else None
        for completion, name in zip(completions, task, strict=True)
    ]


def transcript_reward(
    prompts: Sequence[str], completions: Sequence[str], task: Sequence[str], text: Sequence[str], **columns: Any
) -> list[float | None]:
    """1 - WER, at least 0, of transcriptions, without regard to case and punctuation; of Chinese the characters count.

    Raises:
        ImportError: If jiwer is not installed.
    """
    try:
        import jiwer
    except ImportError as error:
        raise ImportError("The transcript reward needs jiwer: pip install 'uniaudio2[evaluate]'.") from error
    rewards: list[float | None] = []
    for completion, name, reference in zip(completions, task, text, strict=True):
        if name != "transcription":
            rewards.append(None)
            continue
        reference, completion = " ".join(_words(reference)), " ".join(_words(completion))
        rewards.append(max(0.0, 1.0 - jiwer.wer(reference, completion)) if reference else float(not completion))
    return rewards


def caption_reward(
    prompts: Sequence[str], completions: Sequence[str], task: Sequence[str], text: Sequence[str], **columns: Any
) -> list[float | None]:
    """F1 of the words that a caption, an analysis or an answer shares with the reference."""
    return [
        None if name == "transcription" else word_overlap(completion, reference)
        for completion, name, reference in zip(completions, task, text, strict=True)
    ]


def word_overlap(answer: str, reference: str) -> float:
    """Harmonic mean of the shares of words that are in the other text too, repeated words counted as often."""
    ours, theirs = Counter(_words(answer)), Counter(_words(reference))
    if not ours or not theirs:
        return float(ours == theirs)
    return 2 * sum((ours & theirs).values()) / (sum(ours.values()) + sum(theirs.values()))


class JudgeReward:
    """
    Agreement with the reference, as an instructed language model sees it: the rating that it expects, from the
    probabilities of the five digits, scaled to [0, 1]. One forward pass per batch, nothing is sampled.

    Args:
        model ([`~transformers.PreTrainedModel`]): A causal language model, by the paper Llama-3.1-8B-Instruct; e.g.
            `AutoModelForCausalLM.from_pretrained("meta-llama/Llama-3.1-8B-Instruct")`. It is not trained.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): Its tokenizer; the chat template is used if it has one.
        batch_size (`int`, *optional*, defaults to 8): Completions rated together.
        prompt (`str`, *optional*): With `{reference}` and `{answer}`.

    Raises:
        ValueError: If a digit is more than one token.
    """

    # trl names the reward so in its logs.
    __name__ = "judge_reward"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        batch_size: int = 8,
        prompt: str = JUDGE_PROMPT,
    ):
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.prompt = prompt
        ids = [tokenizer(rating, add_special_tokens=False)["input_ids"] for rating in RATINGS]
        if any(len(rating) != 1 for rating in ids):
            raise ValueError(f"The judge's tokenizer must have one token for each of {RATINGS}, got {ids}.")
        self.rating_ids = [rating[0] for rating in ids]

    def __call__(
        self, prompts: Sequence[str], completions: Sequence[str], text: Sequence[str], **columns: Any
    ) -> list[float | None]:
        """0 for empty answers, unasked."""
        requests = [
            self.prompt.format(reference=reference, answer=completion)
            for completion, reference in zip(completions, text, strict=True)
        ]
        rewards = []
        for start in range(0, len(requests), self.batch_size):
            rewards += self.rate(requests[start : start + self.batch_size])
        return [reward if answer.strip() else 0.0 for reward, answer in zip(rewards, completions, strict=True)]

    @torch.no_grad()
    def rate(self, requests: Sequence[str]) -> list[float]:
        """The expected rating of each request, in [0, 1]."""
        if self.tokenizer.chat_template is not None:
            chats = [[{"role": "user", "content": request}] for request in requests]
            ids = [
                self.tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"]
                for chat in chats
            ]
        else:
            ids = self.tokenizer(list(requests))["input_ids"]
        # On the right, where positions count from 0 whatever the model; the rating is read at each request's end.
        lengths = torch.tensor([len(request) for request in ids], device=self.model.device)
        padded = torch.zeros(len(ids), max(map(len, ids)), dtype=torch.long, device=self.model.device)
        for row, request in zip(padded, ids, strict=True):
            row[: len(request)] = torch.tensor(request)
        mask = torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
        logits = self.model(input_ids=padded, attention_mask=mask.long()).logits
        last = logits[torch.arange(len(ids), device=padded.device), lengths - 1]
        probabilities = last[:, self.rating_ids].float().softmax(dim=-1)
        scale = torch.linspace(0, 1, len(RATINGS), device=probabilities.device)
        return (probabilities @ scale).tolist()


def _words(text: str) -> list[str]:
    word = rf"[^\W_{UNSPACED}]+"
    return re.findall(rf"[{UNSPACED}]|{word}(?:'{word})*", text.lower())


# By the names that recipes use; the judge needs a model and is built by itself.
REWARDS = {"format": format_reward, "transcript": transcript_reward, "caption": caption_reward}
