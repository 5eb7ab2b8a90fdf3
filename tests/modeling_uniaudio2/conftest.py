"""Tiny random language models and rows for them."""

import pytest
import torch
from transformers import set_seed

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW, UniAudio2Config
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration

TINY_LANGUAGE_MODEL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 4,
    "num_understanding_layers": 1,
    "num_generation_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "trained_context_length": 64,
    # Wide enough for the random model to have opinions.
    "initializer_range": 0.2,
    "depth_decoder_config": {
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "num_key_value_heads": 1,
        "initializer_range": 0.2,
    },
    "reasoning_vocab_size": 20,
    "reasoning_codebook_size": 16,
    "reasoning_bos_token_id": 16,
    "reasoning_eos_token_id": 17,
    "reasoning_pad_token_id": 19,
    "reconstruction_vocab_size": 28,
    "reconstruction_codebook_size": 24,
    "reconstruction_bos_token_id": 24,
    "reconstruction_eos_token_id": 25,
    "reconstruction_pad_token_id": 27,
    "audio_prompt_bos_token_id": 46,
    "audio_prompt_eos_token_id": 47,
    "bos_token_id": 60,
    "eos_token_id": 61,
    "text_pad_token_id": 62,
}


@pytest.fixture
def make_language_model():
    """A factory: `make_language_model(**config_overrides)` gives the same model at every call, not training."""

    def make(**overrides) -> UniAudio2ForConditionalGeneration:
        set_seed(0)
        return UniAudio2ForConditionalGeneration(UniAudio2Config(**{**TINY_LANGUAGE_MODEL, **overrides})).eval()

    return make


@pytest.fixture
def language_model(make_language_model) -> UniAudio2ForConditionalGeneration:
    return make_language_model()


@pytest.fixture
def make_rows():
    """A factory of random rows: `make_rows("tta", seed)` is text, text, audio; the dict is what `forward` takes."""

    def make(kinds: str, seed: int = 0) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(seed)
        is_audio = torch.tensor([kind == "a" for kind in kinds])[None]
        ids = torch.zeros(1, len(kinds), 9, dtype=torch.long)
        ids[..., :-1] = torch.randint(48, (1, len(kinds), 8), generator=generator) * is_audio[..., None]
        ids[..., -1] = torch.randint(60, (1, len(kinds)), generator=generator) * ~is_audio
        return {
            "input_ids": ids,
            "mm_token_type_ids": torch.where(is_audio, AUDIO_ROW, TEXT_ROW),
            "attention_mask": torch.ones_like(is_audio, dtype=torch.long),
        }

    return make


@pytest.fixture
def batch_rows():
    """Pads items with `padding_id` in every stream, as a tokenizer does, on the `side` asked for."""

    def batch(*items: dict[str, torch.Tensor], side: str = "left", padding_id: int = 63) -> dict[str, torch.Tensor]:
        length = max(item["attention_mask"].shape[1] for item in items)

        def pad(value: torch.Tensor, fill: int) -> torch.Tensor:
            padding = value.new_full((1, length - value.shape[1], *value.shape[2:]), fill)
            return torch.cat([padding, value] if side == "left" else [value, padding], dim=1)

        fills = {"input_ids": padding_id, "labels": -100}
        return {key: torch.cat([pad(item[key], fills.get(key, 0)) for item in items]) for key in items[0]}

    return batch


@pytest.fixture
def label_rows():
    """Adds labels for the active streams of the rows marked in `loss`, e.g. `label_rows(rows, "..xx")`."""

    def label(rows: dict[str, torch.Tensor], loss: str) -> dict[str, torch.Tensor]:
        has_loss = torch.tensor([mark == "x" for mark in loss])[None]
        is_audio = rows["mm_token_type_ids"] == AUDIO_ROW
        labels = torch.full_like(rows["input_ids"], -100)
        labels[..., :-1] = torch.where((has_loss & is_audio)[..., None], rows["input_ids"][..., :-1], -100)
        labels[..., -1] = torch.where(has_loss & ~is_audio, rows["input_ids"][..., -1], -100)
        return {**rows, "labels": labels}

    return label
