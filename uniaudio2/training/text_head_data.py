"""Batches for the stages that train the codec's reasoning branch through text."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..modeling_uniaudio2.modeling_uniaudio2 import IGNORED_LABEL
from ..processing.processing_reasoning_codec_text import ReasoningCodecTextProcessor
from .waveforms import random_start


class UnderstandingCollator:
    """
    Collator of the supervised stage: recordings, prompts and the answers to learn.

    A row has `audio` (anything the feature extractor reads), `task` (`"transcription"`, `"caption"`, `"analysis"` or
    `"question_answering"`), `text` (the answer) and for questions `question`. Rows of different tasks meet in a batch.

    Args:
        processor ([`~uniaudio2.ReasoningCodecTextProcessor`]): Tokenizer, feature extractor and prompts.
        sampling_rate (`int`, *optional*): Of waveforms that do not bring their own.
    """

    def __init__(self, processor: ReasoningCodecTextProcessor, sampling_rate: int | None = None):
        self.processor = processor
        self.sampling_rate = sampling_rate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Raises:
            ValueError: If a row lacks a field, its answer is empty, or its task is not one of these.
        """
        processor, tokenizer = self.processor, self.processor.tokenizer
        for number, row in enumerate(rows):
            missing = [field for field in ("audio", "task", "text") if not _is_there(row.get(field))]
            if missing:
                raise ValueError(f"Row {number} of the batch has no {missing}; it has {sorted(row)}.")
        recordings = [row["audio"] for row in rows]
        audio = processor.feature_extractor(recordings, sampling_rate=self.sampling_rate, return_tensors="pt")
        sequences = []
        for row, own in zip(rows, audio["padding_mask"], strict=True):
            prompt = tokenizer(processor.prompt(row["task"], row.get("question")))["input_ids"]
            prompt = processor.expand(prompt, processor.num_audio_tokens(int(own.sum())))
            answer = [*tokenizer(row["text"], add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
            sequences.append((prompt, answer))
        longest = max(len(prompt) + len(answer) for prompt, answer in sequences)
        input_ids = torch.full((len(rows), longest), tokenizer.pad_token_id)
        attention_mask = torch.zeros_like(input_ids)
        labels = torch.full_like(input_ids, IGNORED_LABEL)
        for index, (prompt, answer) in enumerate(sequences):
            length = len(prompt) + len(answer)
            input_ids[index, :length] = torch.tensor([*prompt, *answer])
            attention_mask[index, :length] = 1
            labels[index, len(prompt) : length] = torch.tensor(answer)
        return {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels, **audio}


class RecordingCollator:
    """
    Collator of the stages without text: recordings alone, cut at random to at most `max_samples`. A row may say by
    `place` where, see [`~uniaudio2.training.waveforms.random_start`].

    Args:
        feature_extractor ([`~uniaudio2.UniAudio2FeatureExtractor`]): Reads recordings.
        max_samples (`int`): Longest piece; what Whisper hears is the most that the codec takes in training.
        sampling_rate (`int`, *optional*): Of waveforms that do not bring their own.
    """

    def __init__(self, feature_extractor, max_samples: int, sampling_rate: int | None = None):
        self.feature_extractor = feature_extractor
        self.max_samples = max_samples
        self.sampling_rate = sampling_rate

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        pieces = []
        for row in rows:
            waveform = self.feature_extractor(row["audio"], sampling_rate=self.sampling_rate)["input_values"][0][0]
            start = random_start(row, len(waveform), self.max_samples)
            pieces.append(waveform[start : start + self.max_samples])
        rate = self.feature_extractor.sampling_rate
        return dict(self.feature_extractor(pieces, sampling_rate=rate, return_tensors="pt"))


def _is_there(value: Any) -> bool:
    return value is not None and (not isinstance(value, str) or bool(value.strip()))
