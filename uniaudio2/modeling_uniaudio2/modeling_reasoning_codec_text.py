"""Reasoning tokens read by a causal language model: how they become text-aligned, and how they are made readable.

    waveform -> [front ends, frozen] -> [reasoning branch] -> quantised frames, 5 per second
             -> [text projection] -> in the place of placeholder tokens -> [causal language model] -> text

The codec's first two training stages (supervised, then GRPO) train the branch through this model: from the tokens
alone it must write transcripts, captions, three-level analyses and answers. The released files have no text head, so
there is no converted checkpoint of it.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import AutoModel, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils import torch_compilable_check

from .complete_checkpoint import CompleteCheckpointMixin
from .configuration_reasoning_codec_text import ReasoningCodecTextConfig
from .modeling_codec_front_ends import ReasoningFrontEnds
from .modeling_reasoning_branch import ReasoningBranch
from .modeling_reasoning_codec import (
    CODE_PADDING,
    ReasoningCodecModel,
    ReasoningCodecPreTrainedModel,
    pad_recordings,
)

# What `generate` needs at its first step only: afterwards the audio is in the cache.
AUDIO_INPUTS = (
    "input_values",
    "padding_mask",
    "whisper_features",
    "music_features",
    "reasoning_mask",
    "reasoning_codes",
)


@dataclass
class ReasoningCodecTextModelOutput(BaseModelOutputWithPast):
    """
    Args:
        commitment_loss (`torch.FloatTensor`, *optional*):
            Commitment of the reasoning quantizer, mean over its codebooks; in training, where there is audio.
        reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`, *optional*):
            What the language model heard; -1 after an item's last frame.
    """

    commitment_loss: torch.FloatTensor | None = None
    reasoning_codes: torch.LongTensor | None = None


@dataclass
class ReasoningCodecTextOutput(CausalLMOutputWithPast):
    """
    Args:
        text_loss (`torch.FloatTensor`, *optional*): Cross-entropy of the labels, the part of `loss` that is text.
        commitment_loss (`torch.FloatTensor`, *optional*): The other part, before its weight.
        reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`, *optional*):
            What the language model heard; -1 after an item's last frame.
    """

    text_loss: torch.FloatTensor | None = None
    commitment_loss: torch.FloatTensor | None = None
    reasoning_codes: torch.LongTensor | None = None


class ReasoningCodecTextPreTrainedModel(CompleteCheckpointMixin, PreTrainedModel):
    config: ReasoningCodecTextConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities = ("audio", "text")
    output_modalities = ("text",)
    supports_gradient_checkpointing = True
    _no_split_modules = ("WhisperEncoderLayer", "Wav2Vec2ConformerEncoderLayer", "ReasoningBlock")
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_attention_backend = True
    _skip_keys_device_placement = "past_key_values"
    # Distances between nearby codes do not survive half precision.
    _keep_in_fp32_modules_strict = ("_codebook",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """As in the codec; the language model and Whisper initialise themselves."""
        if module is getattr(self, "lm_head", None):
            init.normal_(module.weight, std=getattr(self.config.text_config, "initializer_range", 0.02))
        else:
            ReasoningCodecPreTrainedModel._init_weights(self, module)


class ReasoningCodecTextModel(ReasoningCodecTextPreTrainedModel):
    """Front ends, reasoning branch, projection and the language model without its head.

    Args:
        config ([`ReasoningCodecTextConfig`]): Sizes.
    """

    def __init__(self, config: ReasoningCodecTextConfig):
        super().__init__(config)
        # The branch is no model of its own, to which transformers would pass this on.
        config.codec_config._attn_implementation = config._attn_implementation
        self.front_ends = ReasoningFrontEnds(config.codec_config)
        self.reasoning_branch = ReasoningBranch(config.codec_config)
        self.text_projection = nn.Linear(config.codec_config.hidden_size, config.text_config.hidden_size)
        self.language_model = AutoModel.from_config(config.text_config)
        self.front_ends.requires_grad_(False)
        self.post_init()
        self.train(self.training)

    def train(self, mode: bool = True) -> "ReasoningCodecTextModel":
        """Sets training mode, but never for the front ends: their drop-out would make features random, and their batch
        statistics must stay those of their own training."""
        super().train(mode)
        self.front_ends.eval()
        return self

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.language_model.set_input_embeddings(value)

    @torch.no_grad()
    def extract_audio_features(
        self, input_values: torch.FloatTensor, padding_mask: torch.BoolTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """
        What the frozen front ends make of a batch; `forward` takes it instead of the waveforms.

        Args:
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`):
                Mono audio at 24 kHz, at most as long as Whisper hears. It is zero-padded to the next 0.4 s, and the
                encoders hear that silence, as they do when the codec is trained.
            padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
                `True` for an item's own samples.

        Returns:
            `dict` with `whisper_features (batch_size, channels, frames at 50 Hz)`,
            `music_features (batch_size, channels, frames at 25 Hz)` and `reasoning_mask (batch_size, frames at 5 Hz)`.
        """
        config = self.config.codec_config
        waveforms, lengths = pad_recordings(input_values, padding_mask, config, self.device)
        features = self.front_ends(waveforms)
        frames = torch.arange(waveforms.shape[1] // config.reasoning_hop_length, device=self.device)
        return {
            "whisper_features": features.whisper,
            "music_features": features.music_semantic,
            "reasoning_mask": frames * config.reasoning_hop_length < lengths[:, None],
        }

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        padding_mask: torch.BoolTensor | None = None,
        whisper_features: torch.FloatTensor | None = None,
        music_features: torch.FloatTensor | None = None,
        reasoning_mask: torch.BoolTensor | None = None,
        reasoning_codes: torch.LongTensor | None = None,
        update_codebooks: bool = False,
        use_cache: bool | None = None,
        **kwargs,
    ) -> ReasoningCodecTextModelOutput:
        """See [`ReasoningCodecForConditionalGeneration.forward`]."""
        if inputs_embeds is None:
            inputs_embeds = self.get_input_embeddings()(input_ids)
        if input_values is not None:
            audio = self.extract_audio_features(input_values, padding_mask)
            whisper_features, music_features = audio["whisper_features"], audio["music_features"]
            reasoning_mask = audio["reasoning_mask"]
        commitment_loss = None
        if whisper_features is not None:
            reasoning = self.reasoning_branch(
                whisper_features, music_features, frame_mask=reasoning_mask, update_codebooks=update_codebooks
            )
            quantized, reasoning_codes = reasoning.quantized, reasoning.codes.transpose(1, 2)
            commitment_loss = reasoning.commitment_loss.mean()
        elif reasoning_codes is not None:
            quantized = self.reasoning_branch.dequantize(reasoning_codes.transpose(1, 2))
        if reasoning_codes is not None:
            own_frames = reasoning_codes[:, 0] != CODE_PADDING
            inputs_embeds = self._put_audio(input_ids, inputs_embeds, quantized, own_frames)
        outputs = self.language_model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        return ReasoningCodecTextModelOutput(
            **outputs, commitment_loss=commitment_loss, reasoning_codes=reasoning_codes
        )

    def _put_audio(
        self,
        input_ids: torch.LongTensor | None,
        inputs_embeds: torch.Tensor,
        quantized: torch.Tensor,
        own_frames: torch.BoolTensor,
    ) -> torch.Tensor:
        """Projected reasoning frames in the places of the placeholder."""
        if input_ids is None:
            raise ValueError("Audio needs `input_ids`, whose `audio_token_id` say where it belongs.")
        places = input_ids == self.config.audio_token_id
        torch_compilable_check(
            (places.sum(dim=1) == own_frames.sum(dim=1)).all(),
            lambda: (
                f"Every item of `input_ids` must hold the `audio_token_id` ({self.config.audio_token_id}) once for "
                f"every reasoning frame of its audio, {own_frames.sum(dim=1).tolist()}, got "
                f"{places.sum(dim=1).tolist()}."
            ),
        )
        frames = self.text_projection(quantized)[own_frames].to(inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(places[..., None].expand_as(inputs_embeds), frames)


class ReasoningCodecForConditionalGeneration(ReasoningCodecTextPreTrainedModel, GenerationMixin):
    r"""
    Audio to text through reasoning tokens: the codec's reasoning branch, a linear text head and a causal language
    model. `generate` is that of any causal language model.

    Args:
        config ([`ReasoningCodecTextConfig`]): Sizes.

    Example:

    ```python
    >>> from uniaudio2 import ReasoningCodecForConditionalGeneration, ReasoningCodecTextProcessor

    >>> model = ReasoningCodecForConditionalGeneration.from_pretrained(folder)
    >>> processor = ReasoningCodecTextProcessor.from_pretrained(folder)
    >>> inputs = processor(audio="speech.wav", task="analysis")
    >>> print(processor.decode_answers(model.generate(**inputs, max_new_tokens=256), inputs)[0])
    ```
    """

    _auto_class: ClassVar[str] = "AutoModelForCausalLM"

    def __init__(self, config: ReasoningCodecTextConfig):
        super().__init__(config)
        self.model = ReasoningCodecTextModel(config)
        self.lm_head = nn.Linear(config.text_config.hidden_size, config.text_config.vocab_size, bias=False)
        self._tied_weights_keys = {"lm_head.weight": self._name_of_embedding()}
        self.post_init()

    def _name_of_embedding(self) -> str:
        """Language models call their token table differently."""
        table = self.get_input_embeddings()
        return next(f"{name}.weight" for name, module in self.named_modules() if module is table)

    @classmethod
    def from_parts(
        cls, codec: ReasoningCodecModel, language_model: PreTrainedModel, audio_token_id: int
    ) -> "ReasoningCodecForConditionalGeneration":
        """
        A codec's reasoning branch and a causal language model, joined by a fresh projection. The parts are shared with
        the models they come from, not copied.

        Args:
            codec ([`ReasoningCodecModel`]): Gives front ends and reasoning branch.
            language_model ([`~transformers.PreTrainedModel`]): Any causal language model, e.g. of
                `AutoModelForCausalLM.from_pretrained`.
            audio_token_id (`int`): A token that texts do not use, e.g. a reserved one.

        Raises:
            ValueError: If the logits of the language model are not a linear function, without bias, of its last hidden
                state: then its head cannot be taken over.
        """
        head = language_model.get_output_embeddings()
        probe = torch.zeros(1, 1, dtype=torch.long, device=language_model.device)
        was_training = language_model.training
        with torch.no_grad():
            expected = language_model.eval()(input_ids=probe).logits
            found = head(language_model.base_model(input_ids=probe).last_hidden_state)
        if head.bias is not None or not torch.allclose(expected, found, rtol=1e-3, atol=1e-3):
            raise ValueError(
                f"The logits of {type(language_model).__name__} are not its last hidden state times a matrix; choose "
                "a language model without bias, cap or scale at its head, such as Llama or Qwen."
            )
        config = ReasoningCodecTextConfig(
            codec_config=codec.config, text_config=language_model.config, audio_token_id=audio_token_id
        )
        with torch.device("meta"):
            joined = cls(config)
        joined.model.front_ends.whisper = codec.front_ends.whisper
        joined.model.front_ends.music_encoder = codec.front_ends.music_encoder
        joined.model.reasoning_branch = codec.reasoning_branch
        projection = nn.Linear(config.codec_config.hidden_size, config.text_config.hidden_size)
        joined.model.text_projection = projection.to(codec.device, codec.dtype)
        joined.model.language_model = language_model.base_model
        joined.lm_head = head
        joined.generation_config = language_model.generation_config
        joined.model.front_ends.requires_grad_(False)
        return joined.train(was_training)

    def copy_reasoning_branch_to(self, codec: ReasoningCodecModel) -> None:
        """Puts the trained branch into a codec, where the reconstruction stage goes on from it.

        Raises:
            RuntimeError: If the codec's branch has other sizes.
        """
        codec.reasoning_branch.load_state_dict(self.model.reasoning_branch.state_dict())

    def extract_audio_features(
        self, input_values: torch.FloatTensor, padding_mask: torch.BoolTensor | None = None
    ) -> dict[str, torch.Tensor]:
        """See [`ReasoningCodecTextModel.extract_audio_features`]."""
        return self.model.extract_audio_features(input_values, padding_mask)

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        input_values: torch.FloatTensor | None = None,
        padding_mask: torch.BoolTensor | None = None,
        whisper_features: torch.FloatTensor | None = None,
        music_features: torch.FloatTensor | None = None,
        reasoning_mask: torch.BoolTensor | None = None,
        reasoning_codes: torch.LongTensor | None = None,
        update_codebooks: bool = False,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs,
    ) -> ReasoningCodecTextOutput:
        r"""
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`):
                Text, with `config.audio_token_id` once for every reasoning frame of the item's audio.
            attention_mask, position_ids, past_key_values, inputs_embeds, use_cache, logits_to_keep:
                As in any causal language model.
            input_values (`torch.FloatTensor` of shape `(batch_size, num_samples)` or `(batch_size, 1, num_samples)`,
                *optional*): Mono audio at 24 kHz, of at most the length that Whisper hears.
            padding_mask (`torch.BoolTensor` of shape `(batch_size, num_samples)`, *optional*):
                `True` for an item's own samples.
            whisper_features, music_features, reasoning_mask (*optional*):
                Of `extract_audio_features`, instead of `input_values`.
            reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames at 5 Hz)`, *optional*):
                Codes instead of audio, as `codec.encode` or the language model of UniAudio 2.0 write them; -1 after an
                item's last frame.
            update_codebooks (`bool`, *optional*, defaults to `False`):
                Whether the codebooks' moving averages follow this batch; only in training mode.
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                `input_ids` where there is a loss, -100 elsewhere; shifted inside.

        Returns:
            [`ReasoningCodecTextOutput`]; `loss` is that of the text plus the weighted commitment.
        """
        # Of the loss alone, and no argument of the language model.
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            input_values=input_values,
            padding_mask=padding_mask,
            whisper_features=whisper_features,
            music_features=music_features,
            reasoning_mask=reasoning_mask,
            reasoning_codes=reasoning_codes,
            update_codebooks=update_codebooks,
            use_cache=use_cache,
            **kwargs,
        )
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))
        loss = text_loss = None
        if labels is not None:
            text_loss = self.loss_function(
                logits=logits,
                labels=labels,
                vocab_size=self.config.text_config.vocab_size,
                num_items_in_batch=num_items_in_batch,
            )
            loss = text_loss
            if outputs.commitment_loss is not None:
                loss = loss + self.config.commitment_loss_weight * outputs.commitment_loss
        return ReasoningCodecTextOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_loss=text_loss,
            commitment_loss=outputs.commitment_loss,
            reasoning_codes=outputs.reasoning_codes,
        )

    def prepare_inputs_for_generation(self, *args, is_first_iteration: bool | None = False, **kwargs):
        """Audio goes in with the prompt; later steps find it in the cache."""
        inputs = super().prepare_inputs_for_generation(*args, is_first_iteration=is_first_iteration, **kwargs)
        if not is_first_iteration and kwargs.get("use_cache", True):
            inputs = {name: value for name, value in inputs.items() if name not in AUDIO_INPUTS}
        return inputs


__all__ = [
    "ReasoningCodecForConditionalGeneration",
    "ReasoningCodecTextModel",
    "ReasoningCodecTextPreTrainedModel",
]
