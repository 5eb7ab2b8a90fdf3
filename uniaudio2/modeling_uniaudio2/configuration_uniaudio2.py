"""Configuration of the UniAudio 2.0 language model."""

from typing import ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.utils import logging

logger = logging.get_logger(__name__)

# Kinds of rows, as in `mm_token_type_ids`: transformers' own numbers for text and audio.
TEXT_ROW = 0
AUDIO_ROW = 3

# The rotary scaling of Llama 3.2, which all stacks of the released model use.
LLAMA3_ROPE_PARAMETERS = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}

# What differs between the two sizes of the paper: the Llama 3.2 model that the cross-modal layers start from.
SIZES = {
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 3 + 16 + 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
    },
    "3b": {
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 3 + 28 + 2,
        "num_attention_heads": 24,
        "num_key_value_heads": 8,
        "head_dim": 128,
    },
}

# What a Llama hands on to the stack that is built around it.
TEXT_CONFIG_NAMES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "attention_dropout",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
)
EXPERT_COUNTS = ("num_understanding_layers", "num_generation_layers")


@strict
class UniAudio2DepthDecoderConfig(PreTrainedConfig):
    r"""
    Configuration of a [`UniAudio2DepthDecoder`], the small Llama stack that writes the codes of one audio frame one
    after the other. The defaults are those of the released model. It has no vocabulary of its own.

    Args:
        backbone_hidden_size (`int`, *optional*):
            Width of the vectors that are projected to `hidden_size`. Set by [`UniAudio2Config`] to its own width.
        hidden_size, intermediate_size, num_hidden_layers, num_attention_heads, num_key_value_heads, head_dim, ...:
            As in [`~transformers.LlamaConfig`].
    """

    model_type = "uniaudio2_depth_decoder"
    base_config_key = "depth_decoder_config"
    default_theta = 500000.0

    backbone_hidden_size: int | None = None
    hidden_size: int = 2048
    intermediate_size: int = 8192
    num_hidden_layers: int = 4
    num_attention_heads: int = 32
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    mlp_bias: bool = False

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None:
            self.rope_parameters = dict(LLAMA3_ROPE_PARAMETERS)
        super().__post_init__(**kwargs)

    def validate_architecture(self):
        _check_heads(self)


@strict
class UniAudio2Config(PreTrainedConfig):
    r"""
    Configuration of a [`UniAudio2ForConditionalGeneration`]. The defaults are the released 3B model;
    [`UniAudio2Config.from_size`] gives the two sizes of the paper:

    | size | hidden | intermediate | heads / kv / dim | understanding + cross-modal + generation | parameters |
    |------|--------|--------------|------------------|------------------------------------------|------------|
    | 1b   | 2048   | 8192         | 32 / 8 / 64      | 3 + 16 + 2 layers                        | 2,453,123,072 |
    | 3b   | 3072   | 8192         | 24 / 8 / 128     | 3 + 28 + 2 layers                        | 4,863,493,120 |

    The depth decoder is the same in both. `vocab_size`, `hidden_size`, `intermediate_size`, `num_attention_heads`,
    `num_key_value_heads`, `head_dim`, `hidden_act`, `rms_norm_eps`, `rope_parameters`, `max_position_embeddings`,
    `attention_dropout`, `attention_bias`, `mlp_bias`, `initializer_range`, `use_cache` and `tie_word_embeddings` mean
    what they mean in [`~transformers.LlamaConfig`].

    Args:
        num_hidden_layers (`int`, *optional*, defaults to 33):
            All layers of the one stack, so that caches made from the configuration have the right size.
        num_understanding_layers (`int`, *optional*, defaults to 3):
            Layers at the bottom that see audio rows only. With 0 there is no such stack, and no norm at its end (the
            paper's ablation without experts); so for those at the top.
        num_generation_layers (`int`, *optional*, defaults to 2):
            Layers at the top that see audio rows only. The layers between are the cross-modal ones.
        depth_decoder_config (`UniAudio2DepthDecoderConfig` or `dict`, *optional*):
            Configuration of the depth decoder.
        num_codebooks (`int`, *optional*, defaults to 8):
            Audio codebooks, i.e. codes per frame. A row has `num_codebooks + 1` ids, the last one text.
        reasoning_vocab_size (`int`, *optional*, defaults to 4100):
            Ids of a codebook that belong to the reasoning stream: the codes and the special ids after them. It is also
            the offset of the reconstruction ids wherever rows are built.
        reconstruction_vocab_size (`int`, *optional*, defaults to 8200):
            Ids of a codebook that belong to the reconstruction stream.
        reasoning_codebook_size (`int`, *optional*, defaults to 4096), reconstruction_codebook_size (`int`, *optional*,
            defaults to 8192): Codes of the codec in each stream; ids from there on are special.
        reasoning_bos_token_id, reasoning_eos_token_id, reasoning_pad_token_id (`int`, *optional*):
            Special ids of the reasoning stream, the same in every codebook.
        reconstruction_bos_token_id, reconstruction_eos_token_id, reconstruction_pad_token_id (`int`, *optional*):
            Special ids of the reconstruction stream, *without* the offset.
        audio_prompt_bos_token_id, audio_prompt_eos_token_id (`int`, *optional*, default to 8196 and 8197):
            Ids around an audio prompt. As in the released code they carry no offset: they are ids of the joint table.
        text_pad_token_id (`int`, *optional*, defaults to 128020):
            Text id of padding rows, and of the text that is taken away in an unconditional prompt.
        pad_token_id (`int`, *optional*):
            Id after the end of a text answer; `text_pad_token_id` if not given.
        sampling_rate (`int`, *optional*, defaults to 24000):
            Of the audio that the codes stand for, in hertz. Pipelines read it.
        trained_context_length (`int`, *optional*, defaults to 2048):
            Rows that the model was trained on; a longer prompt is allowed but warned about.
        text_loss_weight (`float`, *optional*, defaults to 1.0):
            Weight of the text loss in the total.
        codebook_loss_weights (`tuple[float, ...]`, *optional*, defaults to 1.0 for each codebook):
            Weights of the codebooks in the audio loss, which is divided by their number, not by their sum: the paper's
            2/8 for the first three and 1/8 for the other five are `(2, 2, 2, 1, 1, 1, 1, 1)`.
        tasks (`tuple[str, ...]`, *optional*):
            Names of the tasks that the checkpoint was trained on; `None` if unknown.

    Example:

    ```python
    >>> from uniaudio2 import UniAudio2Config, UniAudio2ForConditionalGeneration

    >>> config = UniAudio2Config(
    ...     vocab_size=512, hidden_size=64, intermediate_size=128, num_hidden_layers=4, num_understanding_layers=1,
    ...     num_generation_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=16, bos_token_id=500,
    ...     eos_token_id=501, text_pad_token_id=502,
    ...     depth_decoder_config={"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 8, "head_dim": 4},
    ... )
    >>> model = UniAudio2ForConditionalGeneration(config)
    ```
    """

    model_type = "uniaudio2"
    # Saved folders carry the code of their classes, for processes that do not have this package.
    _auto_class: ClassVar[str | None] = "AutoConfig"
    # Not batched along rows: `Trainer.predict` must not gather them.
    keys_to_ignore_at_inference: ClassVar[list[str]] = [
        "past_key_values",
        "text_loss",
        "audio_loss",
        "codebook_losses",
        "audio_logits",
    ]
    sub_configs_defaults: ClassVar[dict] = {"depth_decoder_config": UniAudio2DepthDecoderConfig}
    default_theta = 500000.0

    vocab_size: int = 128256
    hidden_size: int = 3072
    intermediate_size: int = 8192
    num_hidden_layers: int = 33
    num_understanding_layers: int = 3
    num_generation_layers: int = 2
    num_attention_heads: int = 24
    num_key_value_heads: int | None = 8
    head_dim: int | None = None
    hidden_act: str = "silu"
    max_position_embeddings: int = 131072
    initializer_range: float = 0.02
    rms_norm_eps: float = 1e-5
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_parameters: dict | None = None
    attention_bias: bool = False
    attention_dropout: int | float = 0.0
    mlp_bias: bool = False
    depth_decoder_config: dict | PreTrainedConfig | None = None

    num_codebooks: int = 8
    reasoning_vocab_size: int = 4100
    reconstruction_vocab_size: int = 8200
    reasoning_codebook_size: int = 4096
    reconstruction_codebook_size: int = 8192
    reasoning_bos_token_id: int = 4096
    reasoning_eos_token_id: int = 4097
    reasoning_pad_token_id: int = 4099
    reconstruction_bos_token_id: int = 8192
    reconstruction_eos_token_id: int = 8193
    reconstruction_pad_token_id: int = 8195
    audio_prompt_bos_token_id: int = 8196
    audio_prompt_eos_token_id: int = 8197
    bos_token_id: int | None = 128000
    eos_token_id: int | list[int] | None = 128001
    pad_token_id: int | None = None
    text_pad_token_id: int = 128020

    sampling_rate: int = 24000
    trained_context_length: int = 2048
    text_loss_weight: int | float = 1.0
    codebook_loss_weights: tuple[int | float, ...] | list[int | float] | None = None
    tasks: tuple[str, ...] | list[str] | None = None

    @classmethod
    def from_size(cls, size: str, **kwargs) -> "UniAudio2Config":
        """The configuration of one of the two sizes of the paper, `"1b"` or `"3b"`; `kwargs` override its values."""
        if size not in SIZES:
            raise ValueError(f"Unknown size {size!r}: choose one of {sorted(SIZES)}, or pass the values to the class.")
        return cls(**{**SIZES[size], **kwargs})

    @classmethod
    def from_text_config(cls, text_config: PreTrainedConfig, **kwargs) -> "UniAudio2Config":
        """
        The configuration of a model whose cross-modal layers are a Llama; `kwargs` give everything else.

        Args:
            text_config ([`~transformers.LlamaConfig`]): Of the text model.

        Raises:
            ValueError: If the text model is not a Llama.
        """
        if text_config.model_type != "llama":
            raise ValueError(f"The cross-modal layers are those of a Llama, but got {text_config.model_type!r}.")
        values = {name: getattr(text_config, name) for name in TEXT_CONFIG_NAMES}
        experts = {name: kwargs.get(name, getattr(cls, name)) for name in EXPERT_COUNTS}
        return cls(
            **{
                **values,
                "num_hidden_layers": text_config.num_hidden_layers + sum(experts.values()),
                **kwargs,
            }
        )

    def __post_init__(self, **kwargs):
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None:
            self.head_dim = self.hidden_size // self.num_attention_heads
        if self.rope_parameters is None:
            self.rope_parameters = dict(LLAMA3_ROPE_PARAMETERS)
        # JSON has lists only.
        self.tasks = tuple(self.tasks) if self.tasks is not None else None
        weights = self.codebook_loss_weights
        self.codebook_loss_weights = tuple(weights) if weights is not None else (1.0,) * self.num_codebooks
        super().__post_init__(**kwargs)
        if self.depth_decoder_config.backbone_hidden_size is None:
            self.depth_decoder_config.backbone_hidden_size = self.hidden_size

    @property
    def audio_vocab_size(self) -> int:
        """Ids of one codebook, both streams together."""
        return self.reasoning_vocab_size + self.reconstruction_vocab_size

    @property
    def num_cross_modal_layers(self) -> int:
        return self.num_hidden_layers - self.num_understanding_layers - self.num_generation_layers

    def validate_architecture(self):
        """Part of `@strict` validation: the shape of the stack."""
        _check_heads(self)
        if min(self.num_understanding_layers, self.num_generation_layers) < 0 or self.num_cross_modal_layers < 1:
            raise ValueError(
                f"`num_hidden_layers` ({self.num_hidden_layers}) counts all layers and must exceed "
                f"`num_understanding_layers` ({self.num_understanding_layers}) + `num_generation_layers` "
                f"({self.num_generation_layers}), neither of them negative."
            )
        if self.depth_decoder_config.backbone_hidden_size != self.hidden_size:
            raise ValueError(
                f"`depth_decoder_config.backbone_hidden_size` ({self.depth_decoder_config.backbone_hidden_size}) must "
                f"equal `hidden_size` ({self.hidden_size}); leave it out to have it set."
            )
        if len(self.codebook_loss_weights) != self.num_codebooks:
            raise ValueError(
                f"`codebook_loss_weights` needs one weight for each of the {self.num_codebooks} codebooks, got "
                f"{self.codebook_loss_weights}."
            )

    def validate_token_ids(self):
        """Part of `@strict` validation: an audio id out of its stream would silently mean another code."""
        for stream in ("reasoning", "reconstruction"):
            size = getattr(self, f"{stream}_vocab_size")
            codes = getattr(self, f"{stream}_codebook_size")
            if codes > size:
                raise ValueError(f"`{stream}_codebook_size` ({codes}) exceeds `{stream}_vocab_size` ({size}).")
            for name in ("bos", "eos", "pad"):
                value = getattr(self, f"{stream}_{name}_token_id")
                if not 0 <= value < size:
                    raise ValueError(
                        f"`{stream}_{name}_token_id` ({value}) must be an id of its stream, between 0 and {size - 1}, "
                        "without an offset."
                    )
        for name in ("audio_prompt_bos_token_id", "audio_prompt_eos_token_id"):
            if not 0 <= getattr(self, name) < self.audio_vocab_size:
                raise ValueError(
                    f"`{name}` ({getattr(self, name)}) must be an id of a codebook, between 0 and "
                    f"{self.audio_vocab_size - 1}."
                )
        for name in ("bos_token_id", "eos_token_id", "pad_token_id", "text_pad_token_id"):
            values = getattr(self, name)
            for value in values if isinstance(values, list) else [values]:
                if value is not None and not 0 <= value < self.vocab_size:
                    # A warning as in transformers: a vocabulary may be resized before its special ids are set.
                    logger.warning_once(
                        f"Model config: {name} ({value}) is not an id of the text vocabulary, between 0 and "
                        f"{self.vocab_size - 1}."
                    )


def _check_heads(config: PreTrainedConfig) -> None:
    if config.num_attention_heads % config.num_key_value_heads != 0:
        raise ValueError(
            f"`num_attention_heads` ({config.num_attention_heads}) must be a multiple of `num_key_value_heads` "
            f"({config.num_key_value_heads})."
        )


__all__ = ["UniAudio2Config", "UniAudio2DepthDecoderConfig"]
