"""Where the training of a language model starts: a Llama, its tokenizer, and the codec whose codes it will read."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer

from .. import ReasoningCodecModel, UniAudio2Config, UniAudio2FeatureExtractor, UniAudio2ForConditionalGeneration
from ..conversion.text_tokenizer import PAD_SLOT, load_text_tokenizer
from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2DepthDecoderConfig
from ..processing.processing_uniaudio2 import UniAudio2Processor
from ..processing.special_tokens import BOS_TOKEN
from .audio_ids import audio_ids
from .recipe import refuse_unknown


def start_from_text_model(
    text_model: str, codec: str, output: Path, seed: int = 0, config: Mapping[str, Any] | None = None
) -> UniAudio2ForConditionalGeneration:
    """
    Write a model folder with a new model around a Llama. Reserved tokens of its tokenizer get the names they have in
    the release.

    Args:
        text_model (`str`): Path or Hub id of the Llama with its tokenizer, such as `meta-llama/Llama-3.2-3B`.
        codec (`str`): Path or Hub id of the codec. It is copied into the folder.
        output (`Path`): The folder.
        seed (`int`, *optional*, defaults to 0): Of the new weights.
        config (`Mapping[str, Any]`, *optional*): Values of [`UniAudio2Config`] that are not the text model's.

    Raises:
        ValueError: If `config` has a key that the configuration does not have.
    """
    refuse_unknown(config or {}, UniAudio2Config.__dataclass_fields__, "value")
    depth = (config or {}).get("depth_decoder_config") or {}
    refuse_unknown(depth, UniAudio2DepthDecoderConfig.__dataclass_fields__, "value", "depth_decoder_config.")
    codec_model = ReasoningCodecModel.from_pretrained(codec)
    ids = audio_ids(codec_model.config)
    text_config = AutoConfig.from_pretrained(text_model)
    text_pad = AutoTokenizer.from_pretrained(text_model).convert_tokens_to_ids(BOS_TOKEN) + PAD_SLOT
    context = (config or {}).get("trained_context_length", UniAudio2Config.trained_context_length)
    tokenizer, _ = load_text_tokenizer(text_model, text_config.vocab_size, text_pad, context)
    values = {
        **ids,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "text_pad_token_id": text_pad,
        **(config or {}),
    }
    torch.manual_seed(seed)
    model = UniAudio2ForConditionalGeneration.from_text_model(
        text_model, UniAudio2Config.from_text_config(text_config, **values)
    )
    model.save_pretrained(output)
    # From the config, where values may have been given.
    ids = {name: getattr(model.config, name) for name in ids}
    processor = UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **ids)
    processor.codec = codec_model
    processor.save_pretrained(output, save_codec=True)
    return model
