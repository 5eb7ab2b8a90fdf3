"""A language model as judge: how good is an answer, on a scale?"""

import re
from collections.abc import Callable
from typing import ClassVar

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from uniaudio2.evaluation.metric import ItemMetric, Score
from uniaudio2.evaluation.pretrained import check_pretrained, load_pretrained
from uniaudio2.evaluation.recognisers import check_recogniser, heard

PROMPT = """Rate how well the answer agrees with the reference, from {lowest} (wrong) to {highest} (fully right).
Reference: {reference}
Answer: {prediction}
Reply with the number alone."""


class Judge(ItemMetric):
    """
    Mean rating by a causal language model of transformers, decoding greedily.

    A reply without a number on the scale is no rating: the item has no value. An empty answer, or one in which nothing
    is heard, gets the lowest rating unasked. Ratings by different judges, or with different prompts, are not
    comparable; the paper's come from GPT.

    Args:
        model (`str` or `Callable[[str], str]`, *optional*, defaults to `"meta-llama/Llama-3.1-8B-Instruct"`):
            A folder or a Hub id, or a function from the prompt to the reply.
        prompt (`str`, *optional*): With `{reference}`, `{prediction}`, `{lowest}` and `{highest}`.
        lowest, highest (`int`, *optional*, defaults to 1 and 5): The scale.
        recogniser (`str`, *optional*): For answers that are audio: who writes them down; see [`WordErrorRate`].
        device (`str`, *optional*, defaults to `"cpu"`): Where the models run.
    """

    description = "Rating of an answer by a language model."
    scores: ClassVar = {"judge": Score("higher")}

    def __init__(
        self,
        model: str | Callable[[str], str] = "meta-llama/Llama-3.1-8B-Instruct",
        prompt: str = PROMPT,
        lowest: int = 1,
        highest: int = 5,
        recogniser: str | None = None,
        device: str = "cpu",
        **kwargs,
    ):
        self.model_name, self.prompt, self.device = model, prompt, device
        self.lowest, self.highest, self.recogniser = lowest, highest, recogniser
        self.inputs = {"predictions": "audio" if recogniser else "text", "references": "text"}
        self._reply = model if callable(model) else None
        super().__init__(**kwargs)

    def check(self) -> list[str]:
        remarks = super().check() + (check_recogniser(self.recogniser) if self.recogniser else [])
        return remarks + ([] if callable(self.model_name) else check_pretrained(self.model_name, "the judge"))

    def item(self, prediction, reference, sampling_rate):
        if not (reference or "").strip():
            raise ValueError("the reference is empty")
        if self.recogniser:
            prediction = heard(self.recogniser, prediction, sampling_rate, device=self.device)
        if not (prediction or "").strip():
            return (self.lowest,)
        if self._reply is None:
            self._reply = _language_model(self.model_name, self.device)
        reply = self._reply(
            self.prompt.format(reference=reference, prediction=prediction, lowest=self.lowest, highest=self.highest)
        )
        match = re.search(r"-?\d+(?:\.\d+)?", reply)
        if match is None or not self.lowest <= float(match[0]) <= self.highest:
            raise ValueError(f"the judge's reply holds no rating from {self.lowest} to {self.highest}: {reply!r}")
        return (float(match[0]),)


def _language_model(name: str, device: str) -> Callable[[str], str]:
    model, tokenizer = load_pretrained(AutoModelForCausalLM, AutoTokenizer, name, device)

    @torch.no_grad()
    def reply(prompt: str) -> str:
        messages = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        ).to(model.device)
        output = model.generate(**inputs, do_sample=False, max_new_tokens=16)
        return tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)

    return reply
