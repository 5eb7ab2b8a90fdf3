"""Generation: text answers by transformers' own methods, audio answers frame by frame."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Optional

import torch
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.utils import logging

from .configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

logger = logging.get_logger(__name__)

# Frames of an audio answer if neither the call nor the generation config limits them, as in the released code.
DEFAULT_MAX_FRAMES = 500

# Options of `generate` that speak of text ids: an error in a call for an audio answer, without effect on one where
# they are the defaults of the checkpoint.
TEXT_OPTIONS = (
    "bad_words_ids",
    "begin_suppress_tokens",
    "encoder_no_repeat_ngram_size",
    "encoder_repetition_penalty",
    "eos_token_id",
    "exponential_decay_length_penalty",
    "forced_bos_token_id",
    "forced_eos_token_id",
    "min_length",
    "min_new_tokens",
    "sequence_bias",
    "stop_strings",
    "suppress_tokens",
    "watermarking_config",
)
# Ways of generation that only text has.
TEXT_METHODS = (
    "assistant_model",
    "custom_generate",
    "inputs_embeds",
    "negative_prompt_ids",
    "prefill_chunk_size",
    "prefix_allowed_tokens_fn",
    "prompt_lookup_num_tokens",
    "token_healing",
)

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class UniAudio2GenerateOutput(GenerateDecoderOnlyOutput):
    """
    Output of `generate` for an audio answer with `return_dict_in_generate=True`.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`):
            The prompt and the generated rows, bos and eos rows included. Rows after the end of an item are padding:
            `reconstruction_pad_token_id` with its offset in the codebooks, `text_pad_token_id` in the text stream.
        scores, logits (`tuple(torch.FloatTensor)`, *optional*): For every frame the processed and the raw scores, of
            shape `(batch_size, num_codebooks, audio_vocab_size)`; with guidance the raw ones are already combined.
        attentions, hidden_states (`tuple`, *optional*): For every frame those of all layers of the stack.
        past_key_values (`Cache`, *optional*): With guidance the unconditional items follow the others.
        reasoning_codes (`list[torch.LongTensor]`): For every item its frames, of shape `(num_codebooks, frames)`.
        reconstruction_codes (`list[torch.LongTensor]`): The same, with the offset taken off: what the codec decodes.
        num_malformed_frames (`torch.LongTensor` of shape `(batch_size,)`):
            Frames that mix codes with special ids or with codes of the other stream. They are in `sequences` but not
            in the codes.
    """

    reasoning_codes: list[torch.LongTensor] | None = None
    reconstruction_codes: list[torch.LongTensor] | None = None
    num_malformed_frames: torch.LongTensor | None = None


class UniAudio2GenerationMixin(GenerationMixin):
    """
    `generate` for a model that answers in text or in audio.

    A text answer is a matter of text ids alone once the prompt has been read, so it is left to [`GenerationMixin`]:
    the rows of the prompt become `inputs_embeds`, and all its methods apply. An audio answer is made frame by frame.
    """

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.LongTensor | None = None,
        generation_config: GenerationConfig | None = None,
        logits_processor: LogitsProcessorList | None = None,
        stopping_criteria: StoppingCriteriaList | None = None,
        *,
        output_modality: torch.LongTensor | None = None,
        generation_mode: str | None = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        **kwargs,
    ) -> UniAudio2GenerateOutput | GenerateDecoderOnlyOutput | torch.LongTensor:
        """
        Generates an answer to every prompt, all in text or all in audio.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`, *optional*):
                The prompts, left-padded, also as `input_ids`. `(batch_size, sequence_length)` is plain text.
            generation_config, logits_processor, stopping_criteria (*optional*):
                As in [`~transformers.GenerationMixin.generate`]. For an audio answer a logits processor is called for
                every codebook with the codes it has generated so far, and a stopping criterion once per frame with all
                rows, of shape `(batch_size, length, num_codebooks + 1)`.
            output_modality (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 if the answer is text, 3 if it is audio; the same for all items. Text if not given.
            generation_mode (`str`, *optional*): `"text"` or `"audio"`; overrides `output_modality`.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance of an audio answer: with `c` and `u` the scores after the prompt and after the
                prompt without its text, `u + guidance_scale * (c - u)`. Off at 1. Doubles the batch.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the random numbers if `do_sample=True`; a list has one per returned item, which makes a batch
                equal to its items alone.
            kwargs:
                `attention_mask` and `mm_token_type_ids`, both of shape `(batch_size, sequence_length)` and needed with
                three-dimensional prompts (the mask only for more than one), and everything that
                [`~transformers.GenerationMixin.generate`] takes. `max_new_tokens` counts the rows of the answer.

        Returns:
            For a text answer what [`~transformers.GenerationMixin.generate`] returns: text ids, without the prompt if
            that had three dimensions. For an audio answer a [`UniAudio2GenerateOutput`], or its `sequences` if not
            `return_dict_in_generate`. Sampling stops at the end frame of each item, or after `max_new_tokens` frames
            (default 500).

        Raises:
            ValueError: If shapes, ids or row kinds are not what the model knows, if the batch is not left-padded, or
                if an option does not apply to the kind of answer.
        """
        if inputs is not None and kwargs.get("input_ids") is not None:
            raise ValueError("Pass the prompts once, as `inputs` or as `input_ids`.")
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        attention_mask = kwargs.pop("attention_mask", None)
        mm_token_type_ids = kwargs.pop("mm_token_type_ids", None)
        if input_ids is not None:
            self._check_prompt(input_ids, attention_mask, mm_token_type_ids)
            device = self.device if self.device.type != "meta" else input_ids.device
            input_ids = input_ids.to(device)
            attention_mask = attention_mask.to(device) if attention_mask is not None else None
            mm_token_type_ids = mm_token_type_ids.to(device) if mm_token_type_ids is not None else None

        generate = self._generate_text
        if self._answers_in_audio(output_modality, generation_mode):
            generate = self._generate_audio
        return generate(
            input_ids,
            attention_mask,
            mm_token_type_ids,
            generation_config=generation_config,
            logits_processor=logits_processor,
            stopping_criteria=stopping_criteria,
            guidance_scale=guidance_scale,
            generator=generator,
            **kwargs,
        )

    def _generate_text(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.LongTensor | None,
        guidance_scale: float | None,
        **kwargs,
    ) -> GenerateDecoderOnlyOutput | torch.LongTensor:
        if input_ids is None or input_ids.ndim == 2:
            return super().generate(input_ids, attention_mask=attention_mask, guidance_scale=guidance_scale, **kwargs)
        if guidance_scale not in (None, 1):
            raise ValueError(f"`guidance_scale={guidance_scale}` guides audio answers, and this answer is text.")
        if kwargs.get("prefill_chunk_size") is not None:
            raise ValueError("`prefill_chunk_size` needs plain text prompts of shape (batch_size, sequence_length).")
        if attention_mask is None:
            attention_mask = torch.ones_like(mm_token_type_ids)
        return super().generate(
            inputs_embeds=self.model.embed_rows(input_ids, mm_token_type_ids, attention_mask),
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids,
            **kwargs,
        )

    def _generate_audio(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.LongTensor | None,
        guidance_scale: float | None,
        **kwargs,
    ) -> UniAudio2GenerateOutput | torch.LongTensor:
        given = [name for name in (*TEXT_OPTIONS, *TEXT_METHODS) if kwargs.get(name) is not None]
        if given:
            raise ValueError(f"{given} work on text ids, and this answer is audio: leave them out.")
        if input_ids is None:
            raise ValueError("An audio answer needs `input_ids`.")
        configs = (kwargs["generation_config"], self.generation_config)

        def option(name: str) -> Any:
            values = (kwargs.get(name), *(getattr(config, name, None) for config in configs))
            return next((value for value in values if value is not None), None)

        if (option("num_beams") or 1) > 1:
            raise ValueError(f"`num_beams={option('num_beams')}` needs a text answer: audio frames are sampled.")
        if option("max_new_tokens") is None and option("max_length") is None:
            kwargs["max_new_tokens"] = DEFAULT_MAX_FRAMES
        guidance_scale = guidance_scale if guidance_scale is not None else option("guidance_scale")
        guidance_scale = 1.0 if guidance_scale is None else guidance_scale
        if guidance_scale < 1:
            raise ValueError(f"`guidance_scale` must be at least 1, where guidance is off; got {guidance_scale}.")

        if input_ids.ndim == 2:
            rows = input_ids.new_zeros(*input_ids.shape, self.config.num_codebooks + 1)
            rows[..., -1] = input_ids
            input_ids, mm_token_type_ids = rows, torch.full_like(input_ids, TEXT_ROW)
        if attention_mask is None:
            attention_mask = torch.ones_like(mm_token_type_ids)
        if guidance_scale > 1:
            # The unconditional prompts follow the others: the same rows, all their text taken away.
            is_text = (mm_token_type_ids == TEXT_ROW) & attention_mask.bool()
            unconditional_ids = input_ids.clone()
            unconditional_ids[..., -1].masked_fill_(is_text, self.config.text_pad_token_id)
            input_ids = torch.cat([input_ids, unconditional_ids])
            attention_mask = attention_mask.repeat(2, 1)
            mm_token_type_ids = mm_token_type_ids.repeat(2, 1)
        return super().generate(
            input_ids,
            attention_mask=attention_mask,
            mm_token_type_ids=mm_token_type_ids,
            guidance_scale=float(guidance_scale),
            answers_in_audio=True,
            **kwargs,
        )

    def _prepare_generation_config(
        self,
        generation_config: GenerationConfig | None,
        answers_in_audio: bool = False,
        guidance_scale: float | None = None,
        generator: Generators = None,
        **kwargs,
    ) -> tuple[GenerationConfig, dict]:
        """Keeps what `_sample` needs with the options, and the options of the other kind of answer out of it."""
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        generation_config.generator = generator
        generation_config.answers_in_audio = answers_in_audio
        if generation_config.pad_token_id is None:
            generation_config.pad_token_id = self.config.text_pad_token_id
        if answers_in_audio:
            for name in TEXT_OPTIONS:
                setattr(generation_config, name, None)
            generation_config.frame_guidance_scale = guidance_scale
        # Under this name it is transformers' guidance of text, by a negative prompt; the scale that a checkpoint has
        # among its defaults is for audio.
        generation_config.guidance_scale = None if answers_in_audio else guidance_scale
        return generation_config, model_kwargs

    def _get_logits_processor(
        self,
        generation_config: GenerationConfig,
        *args,
        model_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> LogitsProcessorList:
        # Continuous batching comes here with a config of its own, which `_prepare_generation_config` has not seen.
        generator = getattr(generation_config, "generator", None)
        if getattr(generation_config, "answers_in_audio", False):
            # They see what a codebook has generated and not the prompt, so its padding (`model_kwargs`) is no matter.
            return super()._get_logits_processor(generation_config, *args, **kwargs)
        processors = super()._get_logits_processor(generation_config, *args, model_kwargs=model_kwargs, **kwargs)
        if generator is not None and generation_config.do_sample:
            if generation_config.num_beams is not None and generation_config.num_beams > 1:
                raise ValueError("`generator` does not apply to beams: seed torch's own generator instead.")
            processors.append(SeededChoice(generator))
        return processors

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs,
    ) -> UniAudio2GenerateOutput | GenerateDecoderOnlyOutput | torch.LongTensor:
        sample = self._sample_frames if generation_config.answers_in_audio else super()._sample
        return sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)

    def _sample_frames(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Optional["BaseStreamer"] = None,
        **model_kwargs,
    ) -> UniAudio2GenerateOutput | torch.LongTensor:
        """
        The frame loop of an audio answer: a row through the stack, then code after code from the depth decoder.

        Every item begins with reasoning frames. A frame of nothing but `reasoning_eos_token_id` takes it to the
        reconstruction frames, in which reasoning ids are forbidden; a frame of nothing but
        `reconstruction_eos_token_id` ends it. With guidance the second half of the batch holds the unconditional
        prompts, and both halves are fed the same codes.
        """
        model_kwargs.pop("logits_to_keep")  # of the text head, which has no part in an audio answer
        guidance_scale = generation_config.frame_guidance_scale
        num_items = input_ids.shape[0] // 2 if guidance_scale > 1 else input_ids.shape[0]
        prompt_length, device = input_ids.shape[1], input_ids.device
        offset = self.config.reasoning_vocab_size
        is_reasoning_id = torch.arange(self.config.audio_vocab_size, device=device) < offset
        padding_row = torch.full_like(input_ids[0, 0], self.config.reconstruction_pad_token_id + offset)
        padding_row[-1] = self.config.text_pad_token_id

        in_reconstruction = torch.zeros(num_items, dtype=torch.bool, device=device)
        is_unfinished = ~in_reconstruction
        num_frames = torch.zeros(num_items, dtype=torch.long, device=device)
        record = {
            name: ()
            for name in ("scores", "logits", "attentions", "hidden_states")
            if generation_config.return_dict_in_generate and getattr(generation_config, f"output_{name}")
        }

        def process(codebook: int, logits: torch.FloatTensor) -> torch.FloatTensor:
            is_forbidden = in_reconstruction[:, None] & is_reasoning_id
            generated = input_ids[:num_items, prompt_length:, codebook]
            return logits_processor(generated, logits.masked_fill(is_forbidden, -torch.inf))

        def choose(scores: torch.FloatTensor) -> torch.LongTensor:
            if not generation_config.do_sample:
                return scores.argmax(dim=-1)
            return sample_ids(scores, generation_config.generator, is_unfinished)

        is_compiled = self._valid_auto_compile_criteria(model_kwargs, generation_config)
        step = self.model.get_compiled_call(generation_config.compile_config) if is_compiled else self.model
        write_frame = self._write_frame
        if is_compiled:
            depth_decoder = self.depth_decoder.get_compiled_call(generation_config.compile_config)
            write_frame = partial(self._write_frame, compiled_depth_decoder=depth_decoder)
        # A cache that is passed in holds the beginning of the prompt.
        cache = model_kwargs.get("past_key_values")
        num_new_rows = prompt_length - int(cache.get_seq_length()) if cache is not None else None
        outputs = self.model(
            **self.prepare_inputs_for_generation(
                input_ids, next_sequence_length=num_new_rows, is_first_iteration=True, **model_kwargs
            )
        )
        while True:
            frame, logits, scores = write_frame(outputs.last_hidden_state[:, -1], process, choose, guidance_scale)
            made = {"scores": scores, "logits": logits, **outputs}
            record = {name: (*values, made[name]) for name, values in record.items()}

            rows = torch.cat([frame, torch.zeros_like(frame[:, :1])], dim=-1)
            rows = torch.where(is_unfinished[:, None], rows, padding_row)
            input_ids = torch.cat([input_ids, rows.repeat(input_ids.shape[0] // num_items, 1)[:, None]], dim=1)
            num_frames += is_unfinished
            if streamer is not None:
                streamer.put(rows.cpu())

            is_end = (frame == self.config.reconstruction_eos_token_id + offset).all(dim=-1)
            is_switch = (frame == self.config.reasoning_eos_token_id).all(dim=-1)
            in_reconstruction = in_reconstruction | (is_switch & is_unfinished)
            is_stopped = stopping_criteria(input_ids[:num_items], record.get("scores"))
            is_unfinished = is_unfinished & ~is_end & ~is_stopped

            model_kwargs = self._update_model_kwargs_for_generation(outputs, model_kwargs)
            model_kwargs["mm_token_type_ids"][:, -1] = AUDIO_ROW
            if not self._has_unfinished_sequences(not is_unfinished.any(), synced_gpus, device=device):
                break
            outputs = step(
                **self.prepare_inputs_for_generation(
                    input_ids, next_sequence_length=1 if model_kwargs["use_cache"] else None, **model_kwargs
                )
            )

        if streamer is not None:
            streamer.end()
        sequences = input_ids[:num_items]
        if not generation_config.return_dict_in_generate:
            return sequences
        reasoning, reconstruction, num_malformed = zip(
            *(
                self._read_codes(frames[:length, :-1])
                for frames, length in zip(sequences[:, prompt_length:], num_frames.tolist(), strict=True)
            ),
            strict=True,
        )
        if sum(num_malformed) > 0:
            logger.warning(
                f"{sum(num_malformed)} of {int(num_frames.sum())} generated frames mix codes with special ids or with "
                "codes of the other stream. They stay in `sequences` and are left out of the codes."
            )
        return UniAudio2GenerateOutput(
            sequences=sequences,
            past_key_values=model_kwargs.get("past_key_values"),
            reasoning_codes=list(reasoning),
            reconstruction_codes=list(reconstruction),
            num_malformed_frames=torch.tensor(num_malformed, device=device),
            **record,
        )

    def _write_frame(
        self,
        hidden_states: torch.FloatTensor,
        process: Callable[[int, torch.FloatTensor], torch.FloatTensor],
        choose: Callable[[torch.FloatTensor], torch.LongTensor],
        guidance_scale: float,
        compiled_depth_decoder: Callable | None = None,
    ) -> tuple[torch.LongTensor, torch.FloatTensor, torch.FloatTensor]:
        """
        The codes of one frame for every item.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(num_prompts, hidden_size)`): Of the row before the frame.
            process (`Callable`): From a codebook and its logits to the scores that are sampled from.
            choose (`Callable`): From scores of shape `(num_items, audio_vocab_size)` to ids.
            compiled_depth_decoder (`Callable`, *optional*):
                Is run without a cache over all positions of the frame, those still unknown being zero (nothing looks
                ahead): so it has one shape, whatever the attention. Not compiled, a cache is faster.

        Returns:
            The codes, of shape `(num_items, num_codebooks)`, and the logits and scores they were chosen by, of shape
            `(num_items, num_codebooks, audio_vocab_size)`.
        """
        num_prompts, num_codebooks = hidden_states.shape[0], self.config.num_codebooks
        inputs_embeds = hidden_states.new_zeros(num_prompts, num_codebooks, hidden_states.shape[1])
        inputs_embeds[:, 0] = hidden_states
        cache = DynamicCache(config=self.config.depth_decoder_config)
        frame, all_logits, all_scores = [], [], []
        for codebook in range(num_codebooks):
            position = slice(codebook, codebook + 1)
            if compiled_depth_decoder is None:
                depth_states = self.depth_decoder(inputs_embeds[:, position], past_key_values=cache).last_hidden_state
            else:
                depth_states = compiled_depth_decoder(inputs_embeds).last_hidden_state[:, position]
            logits = self.audio_head(depth_states, first_codebook=codebook)[:, 0].float()
            if guidance_scale > 1:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            scores = process(codebook, logits)
            codes = choose(scores)
            if codebook + 1 < num_codebooks:
                fed_back = codes.repeat(num_prompts // len(codes))[:, None]
                inputs_embeds[:, codebook + 1] = self.model.audio_embeddings(fed_back, first_codebook=codebook)[:, 0]
            frame.append(codes)
            all_logits.append(logits)
            all_scores.append(scores)
        return torch.stack(frame, dim=1), torch.stack(all_logits, dim=1), torch.stack(all_scores, dim=1)

    def _read_codes(self, frames: torch.LongTensor) -> tuple[torch.LongTensor, torch.LongTensor, int]:
        """
        Reasoning codes and reconstruction codes, both of shape `(num_codebooks, frames)`, in the frames that an item
        has generated, and how many other frames there are. As in the released code the first frame of each part is
        dropped without a look: it is the bos frame.
        """
        offset = self.config.reasoning_vocab_size
        frames = frames[~(frames == self.config.reconstruction_eos_token_id + offset).all(dim=-1)]
        switches = (frames == self.config.reasoning_eos_token_id).all(dim=-1).nonzero()
        border = int(switches[0]) if len(switches) > 0 else len(frames)
        codes, num_malformed_frames = [], 0
        for part, codebook_size in (
            (frames[:border], self.config.reasoning_codebook_size),
            (frames[border + 1 :] - offset, self.config.reconstruction_codebook_size),
        ):
            part = part[1:]
            is_code = ((part >= 0) & (part < codebook_size)).all(dim=-1)
            codes.append(part[is_code].T.contiguous())
            num_malformed_frames += int((~is_code).sum())
        return *codes, num_malformed_frames

    @staticmethod
    def _answers_in_audio(output_modality: torch.LongTensor | None, generation_mode: str | None) -> bool:
        if generation_mode is not None:
            if generation_mode not in ("text", "audio"):
                raise ValueError(f"`generation_mode` must be 'text' or 'audio', got {generation_mode!r}.")
            return generation_mode == "audio"
        if output_modality is None:
            return False
        modalities = set(torch.as_tensor(output_modality).flatten().tolist())
        if modalities not in ({TEXT_ROW}, {AUDIO_ROW}):
            raise ValueError(
                f"`output_modality` must be {TEXT_ROW} (text) for all items or {AUDIO_ROW} (audio) for all items, got "
                f"{sorted(modalities)}: generate text answers and audio answers in two calls."
            )
        return modalities == {AUDIO_ROW}

    def _check_prompt(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.LongTensor | None,
    ) -> None:
        """A `ValueError` for prompts that would be misread in silence. Padding and inactive streams do not matter."""
        config = self.config
        self._check_shapes(input_ids, attention_mask, mm_token_type_ids)
        device = input_ids.device
        if attention_mask is None:
            is_row = torch.ones(input_ids.shape[:2], dtype=torch.bool, device=device)
        else:
            # Plain text may continue from a cache, with a mask that is longer than the ids.
            is_row = attention_mask[:, -input_ids.shape[1] :].to(dtype=torch.bool, device=device)

        if input_ids.ndim == 2:
            _check_ids("text", input_ids[is_row], config.vocab_size)
        else:
            if not is_row[:, -1].all():
                raise ValueError("Prompts must be padded on the left: the last row of every item must not be padding.")
            kinds = set(mm_token_type_ids.to(device)[is_row].tolist())
            if not kinds <= {TEXT_ROW, AUDIO_ROW}:
                raise ValueError(
                    f"Every row is either text ({TEXT_ROW}) or audio ({AUDIO_ROW}) in `mm_token_type_ids`, got "
                    f"{sorted(kinds)}."
                )
            is_audio = mm_token_type_ids.to(device) == AUDIO_ROW
            _check_ids("audio", input_ids[..., :-1][is_row & is_audio], config.audio_vocab_size)
            _check_ids("text", input_ids[..., -1][is_row & ~is_audio], config.vocab_size)

        longest = int(is_row.sum(dim=-1).max())
        if longest >= config.max_position_embeddings:
            raise ValueError(
                f"The prompt has {longest} rows and leaves no room in the model's {config.max_position_embeddings} "
                "positions: shorten it."
            )
        if longest > config.trained_context_length:
            logger.warning(
                f"The prompt has {longest} rows; the model was trained on at most {config.trained_context_length}, so "
                "the answer may be poor."
            )

    def _check_shapes(
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.LongTensor | None,
    ) -> None:
        num_streams = self.config.num_codebooks + 1
        shape = tuple(input_ids.shape)
        if input_ids.is_floating_point() or input_ids.ndim not in (2, 3) or shape[1] == 0:
            raise ValueError(
                f"`input_ids` must be integers of shape (batch_size, sequence_length, {num_streams}), or (batch_size, "
                f"sequence_length) for plain text, and not empty; got {input_ids.dtype} of shape {shape}."
            )
        if input_ids.ndim == 2:
            return
        if shape[2] != num_streams:
            raise ValueError(
                f"Rows of `input_ids` must have {num_streams} ids ({self.config.num_codebooks} codebooks, then text), "
                f"got shape {shape}."
            )
        if mm_token_type_ids is None:
            raise ValueError(
                "Three-dimensional `input_ids` need `mm_token_type_ids` of shape (batch_size, sequence_length): "
                f"{TEXT_ROW} for text rows, {AUDIO_ROW} for audio rows. The processor makes them."
            )
        if attention_mask is None and shape[0] > 1:
            raise ValueError(
                f"A batch of {shape[0]} prompts needs an `attention_mask` of shape (batch_size, sequence_length): "
                "padding cannot be seen in the ids. The processor makes it."
            )
        for name, value in {"attention_mask": attention_mask, "mm_token_type_ids": mm_token_type_ids}.items():
            if value is not None and tuple(value.shape) != shape[:2]:
                raise ValueError(
                    f"`{name}` must have shape {shape[:2]} like the rows of `input_ids`, got {tuple(value.shape)}."
                )


class SeededChoice(LogitsProcessor):
    """Samples by `generator` and leaves transformers' own sampling nothing to choose; it must come last."""

    def __init__(self, generator: Generators):
        self.generator = generator

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        chosen = sample_ids(scores, self.generator)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen[:, None], 0.0)


def sample_ids(
    scores: torch.FloatTensor, generator: Generators = None, is_drawn: torch.BoolTensor | None = None
) -> torch.LongTensor:
    """
    One id per item from `softmax(scores)`, by a race of exponential variables: `argmax(probabilities / noise)`.

    Args:
        scores (`torch.FloatTensor` of shape `(num_items, vocabulary_size)`).
        generator (`torch.Generator` or `list[torch.Generator]`, *optional*): A list has one for each item.
        is_drawn (`torch.BoolTensor` of shape `(num_items,)`, *optional*):
            Items whose generator of the list is used; the others get some id, and their generator stays as it is, so
            that an item leaves its generator in the same state alone and in a batch.
    """
    probabilities = scores.softmax(dim=-1)
    if isinstance(generator, list):
        if len(generator) != len(scores):
            raise ValueError(f"`generator` has {len(generator)} generators for {len(scores)} items.")
        noise = torch.ones_like(probabilities)
        for index, item_generator in enumerate(generator):
            if is_drawn is None or is_drawn[index]:
                noise[index] = _exponential(probabilities[index], item_generator)
    else:
        noise = _exponential(probabilities, generator)
    return (probabilities / noise).argmax(dim=-1)


def _exponential(like: torch.FloatTensor, generator: torch.Generator | None) -> torch.FloatTensor:
    device = like.device if generator is None else generator.device
    return torch.empty(like.shape, dtype=like.dtype, device=device).exponential_(generator=generator).to(like.device)


def _check_ids(name: str, ids: torch.LongTensor, vocab_size: int) -> None:
    if ids.numel() > 0 and not (int(ids.min()) >= 0 and int(ids.max()) < vocab_size):
        raise ValueError(
            f"The {name} ids of `input_ids` must lie between 0 and {vocab_size - 1}, got {int(ids.min())} to "
            f"{int(ids.max())}."
        )


__all__ = ["UniAudio2GenerateOutput", "UniAudio2GenerationMixin"]
