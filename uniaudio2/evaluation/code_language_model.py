"""A small Llama over the codes of a codec: how well can codes be predicted from those before them?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, get_cosine_schedule_with_warmup


@dataclass(frozen=True, kw_only=True)
class LearningBudget:
    """
    What a small Llama is, and how long it learns. What it achieves means something beside others of the same budget.

    Args:
        steps (`int`): Updates; the last state is taken.
        batch_size (`int`): Examples of an update.
        hidden_size, num_layers, num_heads (`int`): Of the Llama; its inner layers are four times as wide.
        learning_rate (`float`): The highest; after a twentieth of the steps, falling to 0 as a cosine.
    """

    steps: int = 2000
    batch_size: int = 16
    hidden_size: int = 256
    num_layers: int = 4
    num_heads: int = 4
    learning_rate: float = 1e-3

    def llama(self, **values: Any) -> LlamaConfig:
        """The configuration of the Llama, with further values."""
        return LlamaConfig(
            hidden_size=self.hidden_size,
            intermediate_size=4 * self.hidden_size,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            **values,
        )


@dataclass(frozen=True, kw_only=True)
class Budget(LearningBudget):
    """
    That of a language model of codes; its examples are windows.

    Args:
        window_frames (`int`): Frames that the model sees at most; recordings are cut into windows of so many.
    """

    window_frames: int = 64


class CodeLanguageModel:
    """
    A causal language model of codes, one after the other: the codebooks of the first frame, those of the second, ...

    Code `q` of a frame is predicted from the frames of the window before it and from the codes before `q`. Which
    codebook is due is known, so the choice is among the codes of that codebook.

    Args:
        num_codebooks, codebook_size (`int`): Of the stream.
        budget (`Budget`): Size and training.
        seed (`int`, *optional*, defaults to 0): Of weights and order.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    def __init__(self, num_codebooks: int, codebook_size: int, budget: Budget, seed: int = 0, device: str = "cpu"):
        self.num_codebooks, self.codebook_size, self.budget = num_codebooks, codebook_size, budget
        self.generator = torch.Generator().manual_seed(seed)
        # Every codebook has ids of its own; the last id begins a window.
        self.start_id = num_codebooks * codebook_size
        config = budget.llama(
            vocab_size=self.start_id + 1, max_position_embeddings=budget.window_frames * num_codebooks
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = LlamaForCausalLM(config).to(device)

    def learn(self, recordings: Sequence[np.ndarray]) -> None:
        """Learn from codes of shape `(num_codebooks, frames)`, each recording cut into windows."""
        windows = [window for codes in recordings for window in self._windows(codes)]

        def loss(batch: list[int]) -> torch.Tensor:
            losses, is_code = self._losses([windows[index] for index in batch])
            return losses.sum() / is_code.sum()

        self.model.train()
        descend([*self.model.parameters()], loss, len(windows), self.budget, self.generator)

    @torch.no_grad()
    def surprise(self, codes: np.ndarray) -> float:
        """The negative logarithm of the probability of all codes of a recording, in nats."""
        self.model.eval()
        return sum(self._losses([window])[0].double().sum().item() for window in self._windows(codes))

    def _windows(self, codes: np.ndarray) -> list[torch.LongTensor]:
        return list(torch.as_tensor(codes).split(self.budget.window_frames, dim=1))

    def _losses(self, windows: Sequence[torch.LongTensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """The surprise of each code, of shape `(windows, frames, num_codebooks)`, 0 where a window has ended."""
        frames = torch.nn.utils.rnn.pad_sequence([window.T for window in windows], batch_first=True, padding_value=-1)
        frames = frames.to(self.model.device)
        is_code = frames >= 0
        offsets = torch.arange(self.num_codebooks, device=frames.device) * self.codebook_size
        ids = (frames.clamp(min=0) + offsets).flatten(1)
        # Every code is predicted at the place of the one before; what follows a window's end is never looked at.
        inputs = F.pad(ids[:, :-1], (1, 0), value=self.start_id)
        hidden = self.model.model(input_ids=inputs).last_hidden_state.view(*frames.shape, -1)
        heads = self.model.lm_head.weight[: self.start_id].view(self.num_codebooks, self.codebook_size, -1)
        logits = torch.einsum("bfqh,qsh->bfqs", hidden, heads)
        losses = F.cross_entropy(logits.flatten(0, 2), frames.clamp(min=0).flatten(), reduction="none")
        return losses.view_as(frames) * is_code, is_code


def descend(
    parameters: Sequence[torch.nn.Parameter],
    loss: Callable[[list[int]], torch.Tensor],
    examples: int,
    budget: LearningBudget,
    generator: torch.Generator,
) -> None:
    """
    Train by AdamW on batches of examples, which all come up once before one comes up again.

    Args:
        parameters (`Sequence[torch.nn.Parameter]`): What is trained.
        loss (`Callable`): From the indices of a batch to its loss.
        examples (`int`): How many there are.
        budget (`LearningBudget`): How many at once, how often, how fast.
        generator (`torch.Generator`): Of the order.
    """
    optimizer = torch.optim.AdamW(parameters, lr=budget.learning_rate, betas=(0.9, 0.95), weight_decay=0.1)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, budget.steps // 20), budget.steps)
    order: list[int] = []
    for _ in range(budget.steps):
        while len(order) < budget.batch_size:
            order += torch.randperm(examples, generator=generator).tolist()
        batch, order = order[: budget.batch_size], order[budget.batch_size :]
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
