"""Recordings and instructions to the inputs of [`ReasoningCodecForConditionalGeneration`], and its answers to text."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import BatchFeature, ProcessorMixin

from .understanding import instruction


class ReasoningCodecTextProcessor(ProcessorMixin):
    r"""
    Wraps a feature extractor and the tokenizer of any causal language model.

    The prompt is the placeholder of the audio, once per reasoning frame, and the instruction on a line of its own; the
    answer follows on the next line.

    Args:
        feature_extractor ([`UniAudio2FeatureExtractor`]): Reads recordings.
        tokenizer ([`~transformers.PreTrainedTokenizerFast`]): Of the language model.
        chat_template (`str`, *optional*): Not used; the prompt has one form.
        audio_token (`str`, *optional*, defaults to `"<reason_token>"`):
            A special token of the tokenizer that texts do not use: the placeholder. The default is in the released
            tokenizer; with that of another model name one of its reserved tokens.
        audio_token_samples (`int`, *optional*, defaults to 4800): Samples of a reasoning frame, 5 per second.
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor=None,
        tokenizer=None,
        chat_template: str | None = None,
        audio_token: str = "<reason_token>",
        audio_token_samples: int = 4800,
    ):
        ids = tokenizer(audio_token, add_special_tokens=False)["input_ids"]
        if len(ids) != 1:
            raise ValueError(
                f"`audio_token` must be one special token of the tokenizer, got {audio_token!r}, which has the ids "
                f"{ids}. Add it with `tokenizer.add_special_tokens`, or name a reserved token."
            )
        self.audio_token = audio_token
        self.audio_token_id = ids[0]
        self.audio_token_samples = audio_token_samples
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "input_values", "padding_mask"]

    def prompt(self, task: str, question: str | None = None) -> str:
        """The text of a prompt, with the placeholder once: see [`~uniaudio2.processing.understanding.instruction`]."""
        return f"{self.audio_token}{instruction(task, question)}\n"

    def num_audio_tokens(self, num_samples: int) -> int:
        """Reasoning frames of a recording: the last one may be partly silence."""
        return -(-num_samples // self.audio_token_samples)

    def expand(self, ids: Sequence[int], num_audio_tokens: int) -> list[int]:
        """Token ids with the one placeholder repeated for every reasoning frame."""
        place = list(ids).index(self.audio_token_id)
        return [*ids[:place], *[self.audio_token_id] * num_audio_tokens, *ids[place + 1 :]]

    def __call__(
        self,
        audio: Any = None,
        task: str = "analysis",
        question: str | None = None,
        sampling_rate: int | None = None,
        reasoning_codes: torch.LongTensor | None = None,
    ) -> BatchFeature:
        """
        One task on one recording or a batch of them.

        Args:
            audio (a recording or a list of recordings, *optional*): As the feature extractor takes them.
            task (`str`, *optional*, defaults to `"analysis"`):
                `"transcription"`, `"caption"`, `"analysis"` or `"question_answering"`.
            question (`str`, *optional*): For `"question_answering"`.
            sampling_rate (`int`, *optional*): Of waveforms that do not bring their own.
            reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`, *optional*):
                Instead of audio: codes, with -1 after an item's last frame.

        Returns:
            [`BatchFeature`] with `input_ids` and `attention_mask`, padded on the left, and `input_values` and
            `padding_mask`, or `reasoning_codes`.

        Raises:
            ValueError: If neither or both of audio and codes are given, or the task is not one of these.
        """
        if (audio is None) == (reasoning_codes is None):
            raise ValueError("Give either `audio` or `reasoning_codes`.")
        if audio is not None:
            inputs = dict(self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt"))
            counts = [self.num_audio_tokens(int(mask.sum())) for mask in inputs["padding_mask"]]
        else:
            inputs = {"reasoning_codes": reasoning_codes}
            counts = (reasoning_codes[:, 0] >= 0).sum(dim=1).tolist()
        ids = self.tokenizer(self.prompt(task, question))["input_ids"]
        padded = self.tokenizer.pad(
            {"input_ids": [self.expand(ids, count) for count in counts]}, padding_side="left", return_tensors="pt"
        )
        return BatchFeature({**padded, **inputs})

    def decode_answers(self, sequences: torch.LongTensor, inputs: BatchFeature) -> list[str]:
        """What `generate` wrote after the prompts of `inputs`."""
        answers = sequences[:, inputs["input_ids"].shape[1] :]
        return [text.strip() for text in self.tokenizer.batch_decode(answers, skip_special_tokens=True)]
