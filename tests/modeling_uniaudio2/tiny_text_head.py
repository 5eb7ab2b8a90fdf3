"""The codec's reasoning branch with a language model of a few thousand weights behind it."""

from tiny_codec import make_codec, make_codec_config
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from uniaudio2 import ReasoningCodecForConditionalGeneration, ReasoningCodecTextConfig

AUDIO_TOKEN_ID = 3
TINY_LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    # Fresh models of this size ignore the prompt; larger weights make what they hear matter.
    "initializer_range": 0.5,
}


def make_text_head_config(codec: dict | None = None, **llama) -> ReasoningCodecTextConfig:
    return ReasoningCodecTextConfig(
        codec_config=make_codec_config(**(codec or {})),
        text_config=LlamaConfig(**{**TINY_LLAMA, **llama}),
        audio_token_id=AUDIO_TOKEN_ID,
    )


def make_text_head(codec: dict | None = None, **llama) -> ReasoningCodecForConditionalGeneration:
    """The same model at every call, in evaluation mode."""
    set_seed(0)
    return ReasoningCodecForConditionalGeneration(make_text_head_config(codec, **llama)).eval()


def make_parts():
    """A codec and a language model that fit each other."""
    set_seed(0)
    return make_codec(), LlamaForCausalLM(LlamaConfig(**TINY_LLAMA)).eval()
