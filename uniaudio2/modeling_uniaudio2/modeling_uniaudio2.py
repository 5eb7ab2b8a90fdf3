"""The UniAudio 2.0 language model: one Llama stack that reads and writes eight audio codebooks and text.

A *row* is one position of a sequence: `num_codebooks` audio ids and one text id, of which either the audio ids or the
text id are active. Rows pass through three kinds of Llama layers, bottom to top:

    audio rows --> [understanding] --+
                                     +--> [cross-modal] --+-- audio rows --> [generation] --+--> hidden states
    text rows  ----------------------+                    +-- text rows --------------------+

The layers at both ends see text rows as zero vectors. Those rows still take part in attention (a zero row offers a
zero key and a zero value, which dilutes), as in the released code. From the hidden state of a row the text head reads
the next text id, and the depth decoder writes the codes of the next audio frame, one codebook after the other.
"""

import os
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.models.llama.modeling_llama import (
    LlamaAttention,
    LlamaDecoderLayer,
    LlamaForCausalLM,
    LlamaRMSNorm,
    LlamaRotaryEmbedding,
)
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .complete_checkpoint import CompleteCheckpointMixin
from .configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW, UniAudio2Config, UniAudio2DepthDecoderConfig
from .generation_uniaudio2 import UniAudio2GenerationMixin

IGNORED_LABEL = -100


@dataclass
class UniAudio2CausalLMOutputWithPast(ModelOutput):
    """
    Output of [`UniAudio2ForConditionalGeneration`].

    Args:
        loss (`torch.FloatTensor` of shape `(1,)`, *optional*, returned when `labels` is given):
            `text_loss_weight * text_loss + audio_loss`.
        logits (`torch.FloatTensor` of shape `(batch_size, sequence_length, vocab_size)`):
            Scores of the next text id, at every row or at the last `logits_to_keep`.
        past_key_values (`Cache`, *optional*): Keys and values of all layers.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            Inputs of every layer, in the order of the stack, and last the states that the heads read.
        attentions (`tuple(torch.FloatTensor)`, *optional*, returned when `output_attentions=True`).
        text_loss (`torch.FloatTensor` of shape `(1,)`, *optional*): Mean over the text ids that have a label.
        audio_loss (`torch.FloatTensor` of shape `(1,)`, *optional*):
            Weighted sum of `codebook_losses`, divided by the number of codebooks.
        codebook_losses (`torch.FloatTensor` of shape `(num_codebooks,)`, *optional*):
            Sum over the frames that have a label, divided by the number of *all* audio frames that follow another row:
            the normaliser of the released code, which lets audio that is only read dilute the loss.
        audio_logits (`torch.FloatTensor` of shape `(num_frames, num_codebooks, audio_vocab_size)`, *optional*):
            Scores of the codes of the frames that have a label, in the order of batch, then time.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None
    text_loss: torch.FloatTensor | None = None
    audio_loss: torch.FloatTensor | None = None
    codebook_losses: torch.FloatTensor | None = None
    audio_logits: torch.FloatTensor | None = None


class UniAudio2AudioEmbedding(nn.Embedding):
    """The embeddings of all codebooks in one table: id `i` of codebook `k` is row `i + k * audio_vocab_size`."""

    def __init__(self, config: UniAudio2Config):
        super().__init__(config.num_codebooks * config.audio_vocab_size, config.hidden_size)
        self.audio_vocab_size = config.audio_vocab_size

    def forward(self, codes: torch.LongTensor, first_codebook: int = 0) -> torch.FloatTensor:
        """
        Args:
            codes (`torch.LongTensor` of shape `(..., n)`): Ids of `n` consecutive codebooks.
            first_codebook (`int`, *optional*, defaults to 0): Which codebook `codes[..., 0]` belongs to.

        Returns:
            `torch.FloatTensor` of shape `(..., n, hidden_size)`.
        """
        codebooks = torch.arange(first_codebook, first_codebook + codes.shape[-1], device=codes.device)
        return super().forward(codes + codebooks * self.audio_vocab_size)


class UniAudio2AudioHead(nn.Module):
    """One matrix per codebook, from the depth decoder's states to the scores of the codes."""

    def __init__(self, config: UniAudio2Config):
        super().__init__()
        width = config.depth_decoder_config.hidden_size
        self.weight = nn.Parameter(torch.empty(config.num_codebooks, width, config.audio_vocab_size))

    def forward(
        self, hidden_states: torch.FloatTensor, first_codebook: int = 0, first_id: int = 0
    ) -> torch.FloatTensor:
        """
        Args:
            hidden_states (`torch.FloatTensor` of shape `(batch_size, n, depth_width)`): For `n` consecutive codebooks.
            first_codebook (`int`, *optional*, defaults to 0): Which codebook `hidden_states[:, 0]` is for.
            first_id (`int`, *optional*, defaults to 0): The first id to score; those below are left out.

        Returns:
            `torch.FloatTensor` of shape `(batch_size, n, audio_vocab_size - first_id)`.
        """
        weight = self.weight[first_codebook : first_codebook + hidden_states.shape[1], :, first_id:]
        return torch.bmm(hidden_states.transpose(0, 1), weight).transpose(0, 1)


class UniAudio2PreTrainedModel(CompleteCheckpointMixin, PreTrainedModel):
    config: UniAudio2Config
    config_class = UniAudio2Config
    base_model_prefix = "model"
    input_modalities = ("audio", "text")
    output_modalities = ("audio", "text")
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["LlamaDecoderLayer"]
    _skip_keys_device_placement: ClassVar[list[str]] = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict] = {"hidden_states": LlamaDecoderLayer, "attentions": LlamaAttention}

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, UniAudio2AudioHead):
            init.normal_(module.weight, mean=0.0, std=self.config.initializer_range)


class UniAudio2Model(UniAudio2PreTrainedModel):
    """Embeddings and the stack of understanding, cross-modal and generation layers, without heads."""

    _auto_class = "AutoModel"
    generation_config = None  # `get_compiled_call` asks for it

    def __init__(self, config: UniAudio2Config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.audio_embeddings = UniAudio2AudioEmbedding(config)
        # One list, and one numbering for the cache: understanding layers, cross-modal layers, generation layers.
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.understanding_norm = self._norm(config.num_understanding_layers)
        self.cross_modal_norm = self._norm(config.num_cross_modal_layers)
        self.generation_norm = self._norm(config.num_generation_layers)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    def _norm(self, num_layers: int) -> nn.Module:
        """At the end of a stack, if there is one."""
        return LlamaRMSNorm(self.config.hidden_size, eps=self.config.rms_norm_eps) if num_layers else nn.Identity()

    def embed_rows(
        self,
        input_ids: torch.LongTensor,
        mm_token_type_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.FloatTensor:
        """
        One vector per row: the text embedding, or the sum of the embeddings of the eight codes. Padding rows are zero.

        The ids of inactive streams and of padding rows are not looked at, so they may be anything.

        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)` or
                `(batch_size, sequence_length)`): As in [`UniAudio2Model.forward`].

        Returns:
            `torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`.
        """
        is_audio, is_text = row_kinds(input_ids.shape[:2], mm_token_type_ids, attention_mask, input_ids.device)
        if input_ids.ndim == 2:
            return self.embed_tokens(input_ids.masked_fill(~is_text, 0)) * is_text[..., None]
        codes = input_ids[..., :-1].masked_fill(~is_audio[..., None], 0)
        text = input_ids[..., -1].masked_fill(~is_text, 0)
        audio_embeds = self.audio_embeddings(codes).sum(dim=-2)
        return audio_embeds * is_audio[..., None] + self.embed_tokens(text) * is_text[..., None]

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            input_ids (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`, *optional*):
                Rows: the ids of the audio codebooks, then the text id. Inactive streams hold 0. Plain text may also
                come as `(batch_size, sequence_length)`.
            attention_mask (`torch.Tensor` of shape `(batch_size, past_length + sequence_length)`, *optional*):
                0 for padding rows, which no row attends to and which stay zero.
            position_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                By default the rows that are not padding are counted, so that a padded item equals the item alone.
                Positions that start again at 0 mark packed sequences, if neither mask nor cache is given.
            inputs_embeds (`torch.FloatTensor` of shape `(batch_size, sequence_length, hidden_size)`, *optional*):
                What [`UniAudio2Model.embed_rows`] gives, instead of `input_ids`.
            mm_token_type_ids (`torch.LongTensor` of shape `(batch_size, sequence_length)`, *optional*):
                0 for text rows, 3 for audio rows. Needed with three-dimensional `input_ids`.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of `input_ids` and `inputs_embeds`.")
        if input_ids is not None and input_ids.ndim == 3 and mm_token_type_ids is None:
            raise ValueError(
                "Three-dimensional `input_ids` need `mm_token_type_ids` of shape (batch_size, sequence_length), 0 for "
                "text rows and 3 for audio rows: the ids do not tell them apart."
            )
        if inputs_embeds is None:
            inputs_embeds = self.embed_rows(input_ids, mm_token_type_ids, attention_mask)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = self._count_positions(inputs_embeds, attention_mask, past_key_values)

        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        layer_kwargs = {
            "attention_mask": causal_mask,
            "position_ids": position_ids,
            "position_embeddings": self.rotary_emb(inputs_embeds, position_ids=position_ids),
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            **kwargs,
        }
        is_audio, is_text = row_kinds(inputs_embeds.shape[:2], mm_token_type_ids, attention_mask, inputs_embeds.device)
        is_audio, is_text = is_audio[..., None], is_text[..., None]
        first_cross_modal = self.config.num_understanding_layers
        first_generation = self.config.num_hidden_layers - self.config.num_generation_layers

        hidden_states = inputs_embeds * is_audio
        for layer in self.layers[:first_cross_modal]:
            hidden_states = layer(hidden_states, **layer_kwargs)
        understood = self.understanding_norm(hidden_states)

        hidden_states = understood * is_audio + inputs_embeds * is_text
        for layer in self.layers[first_cross_modal:first_generation]:
            hidden_states = layer(hidden_states, **layer_kwargs)
        merged = self.cross_modal_norm(hidden_states)

        hidden_states = merged * is_audio
        for layer in self.layers[first_generation:]:
            hidden_states = layer(hidden_states, **layer_kwargs)
        generated = self.generation_norm(hidden_states)

        return BaseModelOutputWithPast(
            last_hidden_state=generated * is_audio + merged * is_text,
            past_key_values=past_key_values,
        )

    @staticmethod
    def _count_positions(
        inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.LongTensor:
        length = inputs_embeds.shape[1]
        if attention_mask is not None and attention_mask.ndim == 2:
            return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        return (torch.arange(length, device=inputs_embeds.device) + past_length)[None]


def row_kinds(
    shape: tuple[int, int],
    mm_token_type_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    device: torch.device,
) -> tuple[torch.BoolTensor, torch.BoolTensor]:
    """
    Which rows are audio and which are text, both of shape `(batch_size, sequence_length)`; padding rows are neither.
    Without `mm_token_type_ids` all rows are text. A mask that is already four-dimensional does not tell padding rows:
    they keep their kind, which changes nothing for the rows that may not attend to them.
    """
    if mm_token_type_ids is None:
        mm_token_type_ids = torch.full(shape, TEXT_ROW, device=device)
    is_audio, is_text = mm_token_type_ids == AUDIO_ROW, mm_token_type_ids == TEXT_ROW
    if attention_mask is not None and attention_mask.ndim == 2:
        is_row = attention_mask[:, -shape[1] :].to(device=device, dtype=torch.bool)
        is_audio, is_text = is_audio & is_row, is_text & is_row
    return is_audio, is_text


def following_rows(
    shape: tuple[int, int],
    mm_token_type_ids: torch.LongTensor | None,
    attention_mask: torch.Tensor | None,
    position_ids: torch.LongTensor | None,
    device: torch.device,
) -> tuple[torch.BoolTensor, torch.BoolTensor]:
    """
    Which rows follow another row of their sequence, and which of those are audio frames, both of shape
    `(batch_size, sequence_length - 1)`: the text ids and the frames that losses may ask for.

    The first row of a sequence follows no other: neither padding nor, in packed rows, the sequence before.
    """
    is_audio, is_text = row_kinds(shape, mm_token_type_ids, attention_mask, device)
    follows = (is_audio | is_text)[:, :-1]
    if position_ids is not None:
        follows = follows & (position_ids[:, 1:] != 0).to(device)
    return follows, is_audio[:, 1:] & follows


class UniAudio2DepthDecoder(UniAudio2PreTrainedModel):
    """A short Llama stack over the codebooks of one frame: position 0 holds the row before, position k code k - 1."""

    config: UniAudio2DepthDecoderConfig
    config_class = UniAudio2DepthDecoderConfig
    base_model_prefix = "depth_decoder"
    generation_config = None  # `get_compiled_call` asks for it

    def __init__(self, config: UniAudio2DepthDecoderConfig):
        super().__init__(config)
        self.projection = nn.Linear(config.backbone_hidden_size, config.hidden_size, bias=False)
        self.layers = nn.ModuleList([LlamaDecoderLayer(config, index) for index in range(config.num_hidden_layers)])
        self.norm = LlamaRMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.rotary_emb = LlamaRotaryEmbedding(config)
        self.post_init()

    @capture_outputs
    def forward(
        self,
        inputs_embeds: torch.FloatTensor,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """
        Args:
            inputs_embeds (`torch.FloatTensor` of shape `(num_frames, n, backbone_hidden_size)`):
                Hidden state of the row before the frame, then the embeddings of the codes known so far; with a cache
                only what it does not hold yet.
        """
        hidden_states = self.projection(inputs_embeds)
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        position_ids = (torch.arange(inputs_embeds.shape[1], device=inputs_embeds.device) + past_length)[None]
        causal_mask = create_causal_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=None, past_key_values=past_key_values
        )
        position_embeddings = self.rotary_emb(hidden_states, position_ids=position_ids)
        for layer in self.layers:
            hidden_states = layer(
                hidden_states,
                attention_mask=causal_mask,
                position_ids=position_ids,
                position_embeddings=position_embeddings,
                past_key_values=past_key_values,
                use_cache=past_key_values is not None,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


class UniAudio2ForConditionalGeneration(UniAudio2PreTrainedModel, UniAudio2GenerationMixin):
    """The stack with the text head, the depth decoder and the heads of the codebooks: it reads and writes both."""

    _auto_class = "AutoModelForTextToWaveform"
    # The released text head is a tensor of its own; tied only if `config.tie_word_embeddings`.
    _tied_weights_keys: ClassVar[dict[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    # The losses have two normalisers (text ids and audio frames), `num_items_in_batch` is one number.
    accepts_loss_kwargs = False

    def __init__(self, config: UniAudio2Config):
        super().__init__(config)
        self.model = UniAudio2Model(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.depth_decoder = UniAudio2DepthDecoder(config.depth_decoder_config)
        self.audio_head = UniAudio2AudioHead(config)
        self.post_init()

    @classmethod
    def from_text_model(
        cls, pretrained_model_name_or_path: str | os.PathLike, config: UniAudio2Config | None = None, **kwargs
    ) -> "UniAudio2ForConditionalGeneration":
        """
        The start of training: a Llama becomes the cross-modal layers, text embedding and text head (a tensor of its
        own from here on); everything else is new. On text alone the logits are the Llama's, bit for bit.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): The text model.
            config (`UniAudio2Config`, *optional*):
                Of the new model; by default [`UniAudio2Config.from_text_config`]. Its text vocabulary may be larger.
            kwargs: As of [`~transformers.PreTrainedModel.from_pretrained`], for the text model.

        Raises:
            ValueError: If the sizes of `config` are not those of the text model.
        """
        text_model = LlamaForCausalLM.from_pretrained(pretrained_model_name_or_path, **kwargs)
        config = UniAudio2Config.from_text_config(text_model.config) if config is None else config
        model = cls(config).to(text_model.dtype)
        cross_modal = model.model.layers[config.num_understanding_layers :][: config.num_cross_modal_layers]
        pairs = [
            *zip(cross_modal, text_model.model.layers, strict=False),
            (model.model.cross_modal_norm, text_model.model.norm),
        ]
        theirs, ours = len(text_model.model.layers), config.num_cross_modal_layers
        shapes = [[tuple(p.shape) for p in module.parameters()] for module in pairs[0]]
        if theirs != ours or shapes[0] != shapes[1] or config.vocab_size < text_model.config.vocab_size:
            raise ValueError(
                f"The text model has {theirs} layers, width {text_model.config.hidden_size} and "
                f"{text_model.config.vocab_size} text ids, but the config {ours} cross-modal layers, width "
                f"{config.hidden_size} and {config.vocab_size} ids: make it with `UniAudio2Config.from_text_config`."
            )
        for mine, its in pairs:
            mine.load_state_dict(its.state_dict())
        with torch.no_grad():
            model.model.embed_tokens.weight[: text_model.config.vocab_size] = text_model.model.embed_tokens.weight
            model.lm_head.weight[: text_model.config.vocab_size] = text_model.lm_head.weight
        return model

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """As [`~transformers.PreTrainedModel.save_pretrained`]; the saved code serves several Auto classes."""
        module = __name__.rpartition(".")[2]
        self.config.auto_map = {
            "AutoModel": f"{module}.{UniAudio2Model.__name__}",
            "AutoModelForMultimodalLM": f"{module}.{type(self).__name__}",
        }
        # Of a generation config marked as made from the model's, transformers reads back no entries but its own.
        self.generation_config._from_model_config = False
        super().save_pretrained(save_directory, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        mm_token_type_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> UniAudio2CausalLMOutputWithPast:
        """
        Args:
            input_ids, attention_mask, position_ids, past_key_values, inputs_embeds, mm_token_type_ids:
                As in [`UniAudio2Model.forward`].
            labels (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`, *optional*):
                `labels[:, t]` are the ids of row `t` itself, -100 where there is no loss: in inactive streams and in
                rows that are only read. Text alone may come as `(batch_size, sequence_length)`.
            logits_to_keep (`int` or `torch.Tensor`, *optional*, defaults to 0):
                Rows for which `logits` are computed, 0 for all. Only without `labels`.
        """
        if labels is not None and labels.ndim == 3 and input_ids is None:
            raise ValueError("Labels of nine streams need `input_ids`: the depth decoder reads the codes of frames.")
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            mm_token_type_ids=mm_token_type_ids,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        loss = text_loss = audio_loss = codebook_losses = audio_logits = None
        if labels is None:
            logits = self.lm_head(slice_logits_to_keep(hidden_states, logits_to_keep))
        else:
            logits = self.lm_head(hidden_states)
            labels = labels.to(hidden_states.device)
            follows, is_next_audio = following_rows(
                labels.shape[:2], mm_token_type_ids, attention_mask, position_ids, labels.device
            )
            text_loss = self.text_loss(logits, labels if labels.ndim == 2 else labels[..., -1], follows)
            loss = self.config.text_loss_weight * text_loss
            if labels.ndim == 3:
                codebook_losses, audio_logits = self.codebook_losses(
                    hidden_states, input_ids.to(labels.device), labels, is_next_audio
                )
                weights = codebook_losses.new_tensor(self.config.codebook_loss_weights)
                audio_loss = (weights * codebook_losses).mean()
                loss = loss + audio_loss
        # At once: a `ModelOutput` keeps the order in which its values are set, and callers count on `loss, logits`.
        return UniAudio2CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            text_loss=text_loss,
            audio_loss=audio_loss,
            codebook_losses=codebook_losses,
            audio_logits=audio_logits,
        )

    @staticmethod
    def text_loss(logits: torch.FloatTensor, labels: torch.LongTensor, follows: torch.BoolTensor) -> torch.FloatTensor:
        """Mean cross entropy of the text ids that have a label; zero if there are none."""
        targets = labels[:, 1:].masked_fill(~follows, IGNORED_LABEL)
        losses = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), targets.flatten(), ignore_index=IGNORED_LABEL, reduction="sum"
        )
        return losses / (targets != IGNORED_LABEL).sum().clamp(min=1)

    def codebook_losses(
        self,
        hidden_states: torch.FloatTensor,
        input_ids: torch.LongTensor,
        labels: torch.LongTensor,
        is_next_audio: torch.BoolTensor,
    ) -> tuple[torch.FloatTensor, torch.FloatTensor]:
        """
        Teacher-forced losses of the codebooks, and the logits of the frames that have a label.

        Args:
            is_next_audio (`torch.BoolTensor` of shape `(batch_size, sequence_length - 1)`):
                Rows whose next row is an audio frame. The losses are divided by their number, labels or not.
        """
        has_label = is_next_audio & (labels[:, 1:, :-1] != IGNORED_LABEL).any(dim=-1)
        rows = has_label.flatten().nonzero().squeeze(-1)
        num_frames = rows.shape[0]
        if num_frames == 0:
            # Run the depth decoder all the same, on one row without a label: a batch without audio must touch the same
            # modules as any other (ZeRO-3 and DDP wait for each other), and kernels dislike empty batches.
            rows = rows.new_zeros(1)
        before = hidden_states[:, :-1].flatten(0, 1)[rows]
        targets = labels[:, 1:, :-1].masked_fill(~has_label[..., None], IGNORED_LABEL).flatten(0, 1)[rows]
        codes = input_ids[:, 1:, :-1].masked_fill(~has_label[..., None], 0).flatten(0, 1)[rows]

        known = self.model.audio_embeddings(codes[:, :-1])
        depth_states = self.depth_decoder(torch.cat([before[:, None], known], dim=1)).last_hidden_state
        audio_logits = self.audio_head(depth_states)
        losses = F.cross_entropy(
            audio_logits.transpose(1, 2).float(), targets, ignore_index=IGNORED_LABEL, reduction="none"
        )
        return losses.sum(dim=0) / is_next_audio.sum().clamp(min=1), audio_logits[:num_frames]


__all__ = [
    "UniAudio2CausalLMOutputWithPast",
    "UniAudio2DepthDecoder",
    "UniAudio2ForConditionalGeneration",
    "UniAudio2Model",
    "UniAudio2PreTrainedModel",
]
