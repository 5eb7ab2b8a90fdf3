"""A small Llama that reads the codes of a recording and writes what was said, character by character."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaForCausalLM

from .code_language_model import LearningBudget, descend

END_ID, BEGIN_ID, FIRST_CHARACTER_ID = range(3)


@dataclass(frozen=True, kw_only=True)
class RecognizerBudget(LearningBudget):
    """That of a recogniser; its examples are recordings, and as many are written down together."""

    steps: int = 20000


class CodeRecognizer:
    """
    A causal language model that reads one vector per frame, the sum of the embeddings of its codes, then writes.

    Args:
        num_codebooks, codebook_size (`int`): Of the stream.
        alphabet (`Sequence[str]`): The characters that it can write.
        budget (`RecognizerBudget`): Size and training.
        seed (`int`, *optional*, defaults to 0): Of weights and order.
        device (`str`, *optional*, defaults to `"cpu"`): Where it runs.
    """

    def __init__(
        self,
        num_codebooks: int,
        codebook_size: int,
        alphabet: Sequence[str],
        budget: RecognizerBudget,
        seed: int = 0,
        device: str = "cpu",
    ):
        self.alphabet, self.budget = alphabet, budget
        self.generator = torch.Generator().manual_seed(seed)
        self.offsets = torch.arange(num_codebooks, device=device) * codebook_size
        config = budget.llama(
            vocab_size=FIRST_CHARACTER_ID + len(alphabet),
            bos_token_id=BEGIN_ID,
            eos_token_id=END_ID,
            pad_token_id=END_ID,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = LlamaForCausalLM(config).to(device)
            self.code_embeddings = torch.nn.Embedding(num_codebooks * codebook_size, budget.hidden_size)
            torch.nn.init.normal_(self.code_embeddings.weight, std=config.initializer_range)
        self.code_embeddings.to(device)
        self.longest = 0

    def learn(self, recordings: Sequence[np.ndarray], transcripts: Sequence[str]) -> None:
        """Learn from codes of shape `(num_codebooks, frames)` and what was said in them."""
        ids = {character: FIRST_CHARACTER_ID + index for index, character in enumerate(self.alphabet)}
        texts = [torch.tensor([*map(ids.__getitem__, text), END_ID]) for text in transcripts]
        self.longest = max(map(len, texts))

        def loss(batch: list[int]) -> torch.Tensor:
            return self._loss([recordings[index] for index in batch], [texts[index] for index in batch])

        self.model.train()
        parameters = [*self.model.parameters(), *self.code_embeddings.parameters()]
        descend(parameters, loss, len(texts), self.budget, self.generator)

    @torch.no_grad()
    def write(self, recordings: Sequence[np.ndarray]) -> list[str]:
        """What is said in each, by greedy decoding of at most twice the characters of the longest it learnt from."""
        self.model.eval()
        written: list[str] = []
        for start in range(0, len(recordings), self.budget.batch_size):
            prompts = [self._prompt(codes) for codes in recordings[start : start + self.budget.batch_size]]
            # Padded at the left, so that all begin to write at once.
            embeddings = pad_sequence(prompts, batch_first=True, padding_side="left")
            mask = pad_sequence(
                [torch.ones(len(prompt), dtype=torch.long, device=embeddings.device) for prompt in prompts],
                batch_first=True,
                padding_side="left",
            )
            ids = self.model.generate(
                inputs_embeds=embeddings, attention_mask=mask, do_sample=False, max_new_tokens=2 * self.longest
            )
            written += [
                "".join(self.alphabet[id - FIRST_CHARACTER_ID] for id in row if id >= FIRST_CHARACTER_ID)
                for row in ids.tolist()
            ]
        return written

    def _prompt(self, codes: np.ndarray) -> torch.Tensor:
        """The frames and the id that begins the text, of shape `(frames + 1, hidden_size)`."""
        ids = torch.as_tensor(codes, device=self.offsets.device).T + self.offsets
        begin = self.model.get_input_embeddings().weight[BEGIN_ID]
        return torch.cat((self.code_embeddings(ids).sum(dim=1), begin[None]))

    def _loss(self, recordings: Sequence[np.ndarray], texts: Sequence[torch.LongTensor]) -> torch.Tensor:
        """The mean surprise of a character; ends of texts are among them."""
        inputs, labels = [], []
        for codes, text in zip(recordings, texts, strict=True):
            prompt = self._prompt(codes)
            text = text.to(prompt.device)
            inputs.append(torch.cat((prompt, self.model.get_input_embeddings()(text))))
            labels.append(torch.cat((text.new_full((len(prompt),), -100), text)))
        # What follows an end is never looked at, so it needs no mask.
        return self.model(
            inputs_embeds=pad_sequence(inputs, batch_first=True),
            labels=pad_sequence(labels, batch_first=True, padding_value=-100),
        ).loss
