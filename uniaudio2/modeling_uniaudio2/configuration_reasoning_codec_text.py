"""Configuration of the codec's reasoning branch with the causal language model that writes what its tokens mean."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

from .configuration_reasoning_codec import ReasoningCodecConfig


@strict
class ReasoningCodecTextConfig(PreTrainedConfig):
    r"""
    Configuration of [`ReasoningCodecForConditionalGeneration`]. The defaults are the sizes of the paper: the released
    codec's reasoning branch and Llama-3.2-3B.

    Args:
        codec_config (`ReasoningCodecConfig` or `dict`, *optional*):
            The codec whose front ends and reasoning branch are used.
        text_config (`PreTrainedConfig` or `dict`, *optional*): The causal language model.
        audio_token_id (`int`, *optional*, defaults to 128018):
            Stands in `input_ids` once per reasoning frame, where the audio is. The default is `<reason_token>` of the
            released tokenizer.
        commitment_loss_weight (`float`, *optional*, defaults to 0.25):
            Weight of the reasoning quantizer's commitment beside the loss of the text. Not in the paper.
    """

    model_type = "reasoning_codec_text"
    # Saved folders carry the code of their classes, for processes that do not have this package.
    _auto_class: ClassVar[str | None] = "AutoConfig"
    sub_configs_defaults = {  # noqa: RUF012  (declared so by transformers)
        "codec_config": SubConfigSpec(ReasoningCodecConfig),
        "text_config": SubConfigSpec(
            AutoConfig,
            model_type="llama",
            init_kwargs={
                "vocab_size": 128256,
                "hidden_size": 3072,
                "intermediate_size": 8192,
                "num_hidden_layers": 28,
                "num_attention_heads": 24,
                "num_key_value_heads": 8,
                "head_dim": 128,
                "rms_norm_eps": 1e-5,
                "max_position_embeddings": 131072,
                "rope_parameters": {
                    "rope_type": "llama3",
                    "rope_theta": 500000.0,
                    "factor": 32.0,
                    "high_freq_factor": 4.0,
                    "low_freq_factor": 1.0,
                    "original_max_position_embeddings": 8192,
                },
                "bos_token_id": 128000,
                "eos_token_id": 128001,
                "tie_word_embeddings": True,
            },
        ),
    }

    codec_config: dict | PreTrainedConfig | None = None
    text_config: dict | PreTrainedConfig | None = None
    audio_token_id: int = 128018
    commitment_loss_weight: float | int = 0.25

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.tie_word_embeddings = self.text_config.tie_word_embeddings

    def validate_architecture(self):
        """The placeholder must be a row of the language model's table."""
        if not 0 <= self.audio_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"`audio_token_id` must lie in [0, {self.text_config.vocab_size}), the vocabulary of `text_config`, "
                f"got {self.audio_token_id}."
            )


__all__ = ["ReasoningCodecTextConfig"]
