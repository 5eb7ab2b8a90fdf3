"""Generation: text answers by transformers' own methods, audio answers frame by frame."""

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Optional

import torch
from torch.nn.functional import pad
from transformers import GenerationConfig, GenerationMixin
from transformers.cache_utils import DynamicCache
from transformers.generation import (
    GenerateDecoderOnlyOutput,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteriaList,
)
from transformers.utils import logging

from .audio_answers_uniaudio2 import (
    NO_PART,
    REASONING,
    RECONSTRUCTION,
    RECONSTRUCTION_FRAME_RATE,
    AudioAnswers,
    max_part_frames,
    min_reconstruction_frames,
)
from .configuration_uniaudio2 import AUDIO_ROW, TEXT_ROW

if TYPE_CHECKING:
    from transformers.generation.streamers import BaseStreamer

logger = logging.get_logger(__name__)

# Frames of an audio answer if neither the call nor the generation config limits them, as in the released code.
DEFAULT_MAX_FRAMES = 500

# Stands in tensors of codes where an item has no more frames.
CODE_PADDING = -1

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

# Options with a value of their own for the parts of an answer: `reasoning_temperature` goes before `temperature`.
SAMPLING_OPTIONS = ("temperature", "top_k", "top_p", "min_p", "typical_p")
PART_OPTIONS = ("do_sample", *SAMPLING_OPTIONS, "repetition_penalty")
TEXT_PART_OPTIONS = tuple(f"text_{name}" for name in PART_OPTIONS)
# Options that only audio answers have.
AUDIO_PARTS = {REASONING: "reasoning", RECONSTRUCTION: "reconstruction"}
AUDIO_OPTIONS: tuple[str, ...] = (
    "min_duration",
    "max_duration",
    "repetition_window",
    *(f"{part}_{name}" for part in AUDIO_PARTS.values() for name in (*PART_OPTIONS, "repetition_window")),
)
# What `generate` cannot put together for a batch with both kinds of answers.
UNSHARED_OPTIONS = (
    "streamer",
    "past_key_values",
    "output_scores",
    "output_logits",
    "output_attentions",
    "output_hidden_states",
    *TEXT_METHODS,
)

Generators = torch.Generator | list[torch.Generator] | None


@dataclass
class UniAudio2GenerateOutput(GenerateDecoderOnlyOutput):
    """
    Output of `generate` for an audio answer with `return_dict_in_generate=True`, and for a batch with both kinds of
    answers.

    Args:
        sequences (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`):
            The prompt and the generated rows, bos and eos rows included. Rows after the end of an item are padding:
            `reconstruction_pad_token_id` with its offset in the codebooks, `text_pad_token_id` in the text stream.
            In a batch with both kinds of answers a list with one tensor per item, without padding: the rows of an
            audio answer and its prompt, the ids of a text answer.
        scores, logits (`tuple(torch.FloatTensor)`, *optional*): For every frame the processed and the raw scores, of
            shape `(batch_size, num_codebooks, audio_vocab_size)`; with guidance the raw ones are already combined.
        attentions, hidden_states (`tuple`, *optional*): For every frame those of all layers of the stack.
        past_key_values (`Cache`, *optional*): With guidance the unconditional items follow the others.
        reasoning_codes (`list[torch.LongTensor]`):
            For every item its frames, of shape `(num_codebooks, frames)`, those given to `generate` included. An item
            whose answer is several recordings has a list of them. A text answer has no frames.
        reconstruction_codes (`list[torch.LongTensor]`): The same, with the offset taken off: what the codec decodes.
        num_malformed_frames (`torch.LongTensor` of shape `(batch_size,)`):
            Frames that mix codes with special ids or with codes of the other stream. They are in `sequences` but not
            in the codes.
    """

    sequences: torch.LongTensor | list[torch.LongTensor] | None = None
    reasoning_codes: list[torch.LongTensor | list[torch.LongTensor]] | None = None
    reconstruction_codes: list[torch.LongTensor | list[torch.LongTensor]] | None = None
    num_malformed_frames: torch.LongTensor | None = None


@dataclass(frozen=True)
class UniAudio2Frame:
    """
    What [`~UniAudio2GenerationMixin.iterate_frames`] gives: one row of every item, as soon as it is written.

    Args:
        rows (`torch.LongTensor` of shape `(batch_size, num_codebooks + 1)`): The rows.
        is_reconstruction (`torch.BoolTensor` of shape `(batch_size,)`):
            The items whose row holds reconstruction codes, with their offset: what will be heard.
    """

    rows: torch.LongTensor
    is_reconstruction: torch.BoolTensor


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
        reasoning_codes: torch.LongTensor | Sequence[torch.LongTensor | None] | None = None,
        answer_parts: torch.LongTensor | None = None,
        **kwargs,
    ) -> UniAudio2GenerateOutput | GenerateDecoderOnlyOutput | torch.LongTensor | list[torch.LongTensor]:
        """
        Generates an answer to every prompt, in text or in audio.

        Args:
            inputs (`torch.LongTensor` of shape `(batch_size, sequence_length, num_codebooks + 1)`, *optional*):
                The prompts, left-padded, also as `input_ids`. `(batch_size, sequence_length)` is plain text.
            generation_config, logits_processor, stopping_criteria (*optional*):
                As in [`~transformers.GenerationMixin.generate`]. For an audio answer a logits processor is called for
                every codebook with the codes it has generated so far, and a stopping criterion once per frame with all
                rows, of shape `(batch_size, length, num_codebooks + 1)`.
            output_modality (`torch.LongTensor` of shape `(batch_size,)`, *optional*):
                0 if the answer is text, 3 if it is audio. Text if not given.
            generation_mode (`str`, *optional*): `"text"` or `"audio"`; overrides `output_modality`.
            guidance_scale (`float`, *optional*):
                Classifier-free guidance of an audio answer: with `c` and `u` the scores after the prompt and after the
                prompt without its text, `u + guidance_scale * (c - u)`. Off at 1. Doubles the batch.
            generator (`torch.Generator` or `list[torch.Generator]`, *optional*):
                Source of the random numbers if `do_sample=True`; a list has one per returned item, which makes a batch
                equal to its items alone.
            min_duration, max_duration (`float`, *optional*):
                Seconds of an audio answer, each recording of it. It cannot end before the minimum; at the maximum it
                ends, well-formed, and its reasoning does where it describes that much. The maximum sets
                `max_new_tokens` unless the call does.
            reasoning_codes (`torch.LongTensor` of shape `(batch_size, num_codebooks, frames)` or `list`, *optional*):
                Reasoning codes of the audio answers, for instance those of another recording: only the reconstruction
                is generated. In a tensor -1 follows an item's last frame; a list has a tensor of shape
                `(num_codebooks, frames)` per item, or `None` where the model does its own reasoning.
            answer_parts (`torch.LongTensor` of shape `(batch_size, num_parts)`, *optional*):
                For audio answers that are not one recording: the parts to write, 1 for reasoning and 2 for
                reconstruction, then 0 if an item has fewer. `[1, 2, 1, 2]` are two recordings, `[1]` only reasoning.
            repetition_window (`int`, *optional*):
                Last frames of an audio answer that `repetition_penalty` looks at; all by default. Every codebook is
                penalised for its own codes.
            kwargs:
                `attention_mask` and `mm_token_type_ids`, both of shape `(batch_size, sequence_length)` and needed with
                three-dimensional prompts (the mask only for more than one), and everything that
                [`~transformers.GenerationMixin.generate`] takes. `max_new_tokens` counts the rows of the answer.
                `do_sample`, `temperature`, `top_k`, `top_p`, `min_p`, `typical_p` and `repetition_penalty` may have
                another value for a part of an answer: `text_temperature`, `reasoning_temperature`,
                `reconstruction_temperature` and so on. They and the options above, but for codes and parts, may also
                be entries of the generation config.

        Returns:
            For a text answer what [`~transformers.GenerationMixin.generate`] returns: text ids, without the prompt if
            that had three dimensions. For an audio answer a [`UniAudio2GenerateOutput`], or its `sequences` if not
            `return_dict_in_generate`. Sampling stops at the end frame of each item, or after `max_new_tokens` frames
            (default 500). For a batch with both kinds a list with what each item has alone, or a
            [`UniAudio2GenerateOutput`] with that list: the kinds are generated one after the other, text first, with
            the options that apply to them.

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

        is_audio = self._answers_in_audio(output_modality, generation_mode, input_ids)
        kwargs |= {
            "generation_config": generation_config,
            "logits_processor": logits_processor,
            "stopping_criteria": stopping_criteria,
        }
        if not any(is_audio):
            if reasoning_codes is not None or answer_parts is not None:
                raise ValueError("`reasoning_codes` and `answer_parts` are for audio answers: leave them out.")
            return self._generate_text(
                input_ids, attention_mask, mm_token_type_ids, guidance_scale, generator=generator, **kwargs
            )

        if input_ids is None:
            raise ValueError("An audio answer needs `input_ids`.")
        if input_ids.ndim == 2:
            input_ids, mm_token_type_ids = self._text_rows(input_ids), torch.full_like(input_ids, TEXT_ROW)
        if attention_mask is None:
            attention_mask = torch.ones_like(mm_token_type_ids)
        prompts = Prompts(input_ids, attention_mask, mm_token_type_ids)
        parts = self._answer_parts(answer_parts, len(input_ids))
        given_reasoning = [None] * len(input_ids)
        if reasoning_codes is not None:
            given_reasoning = self._given_reasoning(reasoning_codes, parts, input_ids.device)
            prompts = self._append_reasoning(prompts, given_reasoning)
            self._check_prompt(*prompts)
        generate = self._generate_audio if all(is_audio) else partial(self._generate_both, is_audio)
        return generate(prompts, parts, given_reasoning, guidance_scale=guidance_scale, generator=generator, **kwargs)

    def iterate_frames(self, *args, **kwargs) -> Iterator[UniAudio2Frame]:
        """
        As [`~UniAudio2GenerationMixin.generate`] for audio answers, but gives every row when it is written.

        Nothing runs between two frames: to stop, close the iterator or let go of it.

        Args:
            args, kwargs: As for [`~UniAudio2GenerationMixin.generate`].

        Returns:
            An iterator of [`UniAudio2Frame`]; the value that it returns at its end is what `generate` would return.
        """
        return self.generate(*args, **{**kwargs, "generation_mode": "audio"}, iterates_frames=True)

    def _generate_text(
        self,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        mm_token_type_ids: torch.LongTensor | None,
        guidance_scale: float | None,
        **kwargs,
    ) -> GenerateDecoderOnlyOutput | torch.LongTensor:
        given = [name for name in AUDIO_OPTIONS if kwargs.get(name) is not None]
        if given:
            raise ValueError(f"{given} are for audio answers, and this answer is text: leave them out.")
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
        prompts: "Prompts",
        parts: torch.LongTensor,
        given_reasoning: list[torch.LongTensor | None],
        guidance_scale: float | None,
        iterates_frames: bool = False,
        **kwargs,
    ) -> UniAudio2GenerateOutput | torch.LongTensor | Iterator[UniAudio2Frame]:
        given = [name for name in (*TEXT_OPTIONS, *TEXT_METHODS, *TEXT_PART_OPTIONS) if kwargs.get(name) is not None]
        if given:
            raise ValueError(f"{given} work on text ids, and this answer is audio: leave them out.")
        option = partial(self._option, kwargs)
        if (option("num_beams") or 1) > 1:
            raise ValueError(f"`num_beams={option('num_beams')}` needs a text answer: audio frames are sampled.")
        guidance_scale = guidance_scale if guidance_scale is not None else option("guidance_scale")
        guidance_scale = 1.0 if guidance_scale is None else guidance_scale
        if guidance_scale < 1:
            raise ValueError(f"`guidance_scale` must be at least 1, where guidance is off; got {guidance_scale}.")

        # What is given is not written.
        is_given = torch.tensor([codes is not None for codes in given_reasoning], device=parts.device)
        parts = torch.where(is_given[:, None], pad(parts[:, 1:], (0, 1), value=NO_PART), parts)
        min_duration, max_duration = option("min_duration"), option("max_duration")
        _check_durations(min_duration, max_duration)
        if max_duration is not None and kwargs.get("max_new_tokens") is None and kwargs.get("max_length") is None:
            # Every part has a bos and an eos row besides its frames.
            kwargs["max_new_tokens"] = max(
                sum(max_part_frames(max_duration, part) + 2 for part in item if part != NO_PART)
                for item in parts.tolist()
            )
        if option("max_new_tokens") is None and option("max_length") is None:
            kwargs["max_new_tokens"] = DEFAULT_MAX_FRAMES
        needed, limit = min_reconstruction_frames(min_duration or 0) + 2, option("max_new_tokens")
        if min_duration and limit is not None and needed > limit:
            raise ValueError(
                f"`min_duration={min_duration}` takes {needed} rows and more for its reasoning, but `max_new_tokens` "
                f"is {limit}: raise it, or pass `max_duration`."
            )

        if guidance_scale > 1:
            # The unconditional prompts follow the others: the same rows, all their text taken away.
            input_ids, attention_mask, mm_token_type_ids = prompts
            is_text = (mm_token_type_ids == TEXT_ROW) & attention_mask.bool()
            unconditional_ids = input_ids.clone()
            unconditional_ids[..., -1].masked_fill_(is_text, self.config.text_pad_token_id)
            prompts = Prompts(
                torch.cat([input_ids, unconditional_ids]), attention_mask.repeat(2, 1), mm_token_type_ids.repeat(2, 1)
            )
        return super().generate(
            prompts.input_ids,
            attention_mask=prompts.attention_mask,
            mm_token_type_ids=prompts.mm_token_type_ids,
            guidance_scale=float(guidance_scale),
            audio_answer=AudioRequest(parts, given_reasoning, iterates_frames),
            **kwargs,
        )

    def _generate_both(
        self,
        is_audio: list[bool],
        prompts: "Prompts",
        parts: torch.LongTensor,
        given_reasoning: list[torch.LongTensor | None],
        guidance_scale: float | None,
        generator: Generators,
        **kwargs,
    ) -> UniAudio2GenerateOutput | list[torch.LongTensor]:
        """The items with text answers, then those with audio answers, put together again."""
        given = [name for name in UNSHARED_OPTIONS if kwargs.get(name)]
        if given:
            raise ValueError(
                f"{given} need a batch with one kind of answer: generate text answers and audio answers in two calls."
            )
        if isinstance(generator, list) and len(generator) % len(is_audio) != 0:
            raise ValueError(f"`generator` has {len(generator)} generators for {len(is_audio)} items.")
        returns_dict = self._option(kwargs, "return_dict_in_generate")
        kwargs.pop("return_dict_in_generate", None)

        def select(audio: bool) -> tuple[list[int], Prompts, dict[str, Any]]:
            """Numbers of the items with this kind of answer, their prompts, and the options that apply."""
            items = [item for item, answers_in_audio in enumerate(is_audio) if answers_in_audio == audio]
            foreign = (*TEXT_OPTIONS, *TEXT_PART_OPTIONS, "num_beams") if audio else AUDIO_OPTIONS
            options = {name: value for name, value in kwargs.items() if name not in foreign}
            options |= {"return_dict_in_generate": audio, "generator": generator}
            if isinstance(generator, list):
                options["generator"] = [source for item in items for source in _share(generator, item, len(is_audio))]
            return items, Prompts(*(value[items] for value in prompts)).without_padding_columns(), options

        items, text_prompts, options = select(audio=False)
        texts = self._generate_text(*text_prompts, guidance_scale=None, **options)
        num_answers = len(texts) // len(items)
        size = len(is_audio) * num_answers
        no_codes = texts.new_zeros(self.config.num_codebooks, 0)
        sequences, num_malformed = [no_codes] * size, texts.new_zeros(size)
        codes = {"reasoning_codes": [no_codes] * size, "reconstruction_codes": [no_codes] * size}
        for index, text_ids in enumerate(texts):
            sequences[_place(items, index, num_answers)] = self._until_end(text_ids, kwargs)

        items, audio_prompts, options = select(audio=True)
        audio = self._generate_audio(
            audio_prompts, parts[items], [given_reasoning[item] for item in items], guidance_scale, **options
        )
        padding_row = self._padding_row(audio.sequences.device)
        for index, rows in enumerate(audio.sequences):
            place = _place(items, index, num_answers)
            mask = audio_prompts.attention_mask[index // num_answers]
            length = int((rows != padding_row).any(dim=-1).nonzero()[-1]) + 1
            sequences[place] = rows[len(mask) - int(mask.sum()) : length]
            num_malformed[place] = audio.num_malformed_frames[index]
            for name, values in codes.items():
                values[place] = audio[name][index]
        if not returns_dict:
            return sequences
        return UniAudio2GenerateOutput(sequences=sequences, **codes, num_malformed_frames=num_malformed)

    def _until_end(self, text_ids: torch.LongTensor, options: dict[str, Any]) -> torch.LongTensor:
        """A text answer without what follows its eos id. One that has none is as long as the batch was let go on."""
        eos = self._option(options, "eos_token_id")
        eos = torch.tensor([] if eos is None else eos, dtype=torch.long, device=text_ids.device)
        ends = torch.isin(text_ids, eos).nonzero()
        return text_ids[: int(ends[0]) + 1] if len(ends) > 0 else text_ids

    def _option(self, options: dict[str, Any], name: str) -> Any:
        """An option of a call: its own, that of the generation config it was given, or that of the checkpoint."""
        configs = (options.get("generation_config"), self.generation_config)
        values = (options.get(name), *(getattr(config, name, None) for config in configs))
        return next((value for value in values if value is not None), None)

    def _prepare_generation_config(
        self,
        generation_config: GenerationConfig | None,
        audio_answer: Optional["AudioRequest"] = None,
        guidance_scale: float | None = None,
        generator: Generators = None,
        **kwargs,
    ) -> tuple[GenerationConfig, dict]:
        """Keeps what `_sample` needs with the options, and the options of the other kind of answer out of it."""
        own = {name: kwargs.pop(name) for name in (*TEXT_PART_OPTIONS, *AUDIO_OPTIONS) if name in kwargs}
        generation_config, model_kwargs = super()._prepare_generation_config(generation_config, **kwargs)
        for name, value in own.items():
            if value is not None:
                setattr(generation_config, name, value)
        generation_config.generator = generator
        generation_config.audio_answer = audio_answer
        if generation_config.pad_token_id is None:
            generation_config.pad_token_id = self.config.text_pad_token_id
        if audio_answer is not None:
            for name in TEXT_OPTIONS:
                setattr(generation_config, name, None)
            generation_config.frame_guidance_scale = guidance_scale
        else:
            _set_part_options(generation_config, "text")
        # Under this name it is transformers' guidance of text, by a negative prompt; the scale that a checkpoint has
        # among its defaults is for audio.
        generation_config.guidance_scale = None if audio_answer is not None else guidance_scale
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
        if getattr(generation_config, "audio_answer", None) is not None:
            # They see what a codebook has generated and not the prompt, so its padding (`model_kwargs`) is no matter.
            generation_config.part_settings = {
                part: self._part_settings(generation_config, name, *args, **{**kwargs, "logits_processor": None})
                for part, name in AUDIO_PARTS.items()
            }
            shared = copy.copy(generation_config)
            shared.do_sample, shared.repetition_penalty, shared.renormalize_logits = False, None, False
            return super()._get_logits_processor(shared, *args, **kwargs)
        processors = super()._get_logits_processor(generation_config, *args, model_kwargs=model_kwargs, **kwargs)
        if generator is not None and generation_config.do_sample:
            if generation_config.num_beams is not None and generation_config.num_beams > 1:
                raise ValueError("`generator` does not apply to beams: seed torch's own generator instead.")
            processors.append(SeededChoice(generator))
        return processors

    def _part_settings(self, generation_config: GenerationConfig, name: str, *args, **kwargs) -> "PartSettings":
        """How the codes of a part are chosen, after everything that applies to both."""
        config = copy.copy(generation_config)
        _set_part_options(config, name)
        window = getattr(config, f"{name}_repetition_window", None) or getattr(config, "repetition_window", None)
        if window is not None and window < 1:
            raise ValueError(f"`repetition_window` counts frames and must be at least 1, got {window}.")
        config.no_repeat_ngram_size, config.remove_invalid_values = None, False
        return PartSettings(config.do_sample, super()._get_logits_processor(config, *args, **kwargs), window)

    def _sample(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        **kwargs,
    ) -> UniAudio2GenerateOutput | GenerateDecoderOnlyOutput | torch.LongTensor:
        if generation_config.audio_answer is None:
            return super()._sample(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        frames = self._sample_frames(input_ids, logits_processor, stopping_criteria, generation_config, **kwargs)
        return frames if generation_config.audio_answer.iterates_frames else _run(frames)

    @torch.no_grad()
    def _sample_frames(
        self,
        input_ids: torch.LongTensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        synced_gpus: bool = False,
        streamer: Optional["BaseStreamer"] = None,
        **model_kwargs,
    ) -> Iterator[UniAudio2Frame]:
        """
        The frame loop of an audio answer: a row through the stack, then code after code from the depth decoder.

        What the items may and must say next is the business of [`AudioAnswers`]. With guidance the second half of the
        batch holds the unconditional prompts, and both halves are fed the same codes.

        Returns:
            An iterator over the frames, which at its end returns what `generate` does.
        """
        model_kwargs.pop("logits_to_keep")  # of the text head, which has no part in an audio answer
        guidance_scale, request = generation_config.frame_guidance_scale, generation_config.audio_answer
        num_items = input_ids.shape[0] // 2 if guidance_scale > 1 else input_ids.shape[0]
        prompt_length, device = input_ids.shape[1], input_ids.device
        padding_row = self._padding_row(device)
        num_answers = num_items // len(request.parts)
        is_text = model_kwargs["mm_token_type_ids"][:num_items, -1:] == TEXT_ROW
        answers = AudioAnswers(
            self.config,
            request.parts.to(device).repeat_interleave(num_answers, dim=0),
            input_ids[:num_items, -1, :-1].masked_fill(is_text, -1),
            getattr(generation_config, "min_duration", None),
            getattr(generation_config, "max_duration", None),
        )
        settings = generation_config.part_settings
        record = {
            name: ()
            for name in ("scores", "logits", "attentions", "hidden_states")
            if generation_config.return_dict_in_generate and getattr(generation_config, f"output_{name}")
        }

        def process(codebook: int, logits: torch.FloatTensor) -> torch.FloatTensor:
            generated = input_ids[:num_items, prompt_length:, codebook]
            scores = logits_processor(generated, answers.forbid(logits))
            # Items may be in different parts, but they seldom are.
            by_part = {part: settings[part].process(generated, scores) for part in parts}
            scores = next(iter(by_part.values()))
            for part in parts[1:]:
                scores = torch.where((current == part)[:, None], by_part[part], scores)
            return answers.force(scores)

        def choose(scores: torch.FloatTensor) -> torch.LongTensor:
            likeliest = scores.argmax(dim=-1)
            drawn_parts = [part for part in parts if settings[part].do_sample]
            if not drawn_parts:
                return likeliest
            is_drawn = torch.isin(current, torch.tensor(drawn_parts, device=device))
            return torch.where(is_drawn, sample_ids(scores, generation_config.generator, is_drawn), likeliest)

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
            current = answers.current
            # Without `synced_gpus` some item is unfinished; with it the others may be waited for.
            parts = sorted(set(current.tolist()) - {NO_PART}) or [RECONSTRUCTION]
            # Reasoning ids that no item can say need no scores, unless the caller asks for the raw ones.
            first_id = self.config.reasoning_vocab_size if parts == [RECONSTRUCTION] and "logits" not in record else 0
            frame, logits, scores = write_frame(
                outputs.last_hidden_state[:, -1], process, choose, guidance_scale, first_id
            )
            made = {"scores": scores, "logits": logits, **outputs}
            record = {name: (*values, made[name]) for name, values in record.items()}

            rows = pad(frame, (0, 1))
            rows = torch.where(answers.is_unfinished[:, None], rows, padding_row)
            input_ids = torch.cat([input_ids, rows.repeat(input_ids.shape[0] // num_items, 1)[:, None]], dim=1)
            is_reconstruction = answers.write(frame)
            if streamer is not None:
                streamer.put(rows.cpu())
            answers.stop(stopping_criteria(input_ids[:num_items], record.get("scores")))

            model_kwargs = self._update_model_kwargs_for_generation(outputs, model_kwargs)
            model_kwargs["mm_token_type_ids"][:, -1] = AUDIO_ROW
            yield UniAudio2Frame(rows, is_reconstruction)
            is_finished = not answers.is_unfinished.any()
            if not self._has_unfinished_sequences(is_finished, synced_gpus, device=device):
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
        frames = sequences[:, prompt_length:, :-1]
        num_malformed = answers.num_malformed()
        if num_malformed.sum() > 0:
            logger.warning(
                f"{int(num_malformed.sum())} generated frames mix codes with special ids or with codes of the other "
                "stream. They stay in `sequences` and are left out of the codes."
            )
        return UniAudio2GenerateOutput(
            sequences=sequences,
            past_key_values=model_kwargs.get("past_key_values"),
            reasoning_codes=[
                _with_given(codes, given)
                for codes, given in zip(
                    answers.codes(frames, REASONING), _repeat(request.given_reasoning, num_answers), strict=True
                )
            ],
            reconstruction_codes=answers.codes(frames, RECONSTRUCTION),
            num_malformed_frames=num_malformed,
            **record,
        )

    def _write_frame(
        self,
        hidden_states: torch.FloatTensor,
        process: Callable[[int, torch.FloatTensor], torch.FloatTensor],
        choose: Callable[[torch.FloatTensor], torch.LongTensor],
        guidance_scale: float,
        first_id: int = 0,
        compiled_depth_decoder: Callable | None = None,
    ) -> tuple[torch.LongTensor, torch.FloatTensor, torch.FloatTensor]:
        """
        The codes of one frame for every item.

        Args:
            hidden_states (`torch.FloatTensor` of shape `(num_prompts, hidden_size)`): Of the row before the frame.
            process (`Callable`): From a codebook and its logits to the scores that are sampled from.
            choose (`Callable`): From scores of shape `(num_items, audio_vocab_size)` to ids.
            first_id (`int`, *optional*, defaults to 0): Ids below are not scored: their logits are minus infinity.
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
            logits = self.audio_head(depth_states, first_codebook=codebook, first_id=first_id)[:, 0].float()
            if guidance_scale > 1:
                conditional, unconditional = logits.chunk(2)
                logits = unconditional + guidance_scale * (conditional - unconditional)
            logits = pad(logits, (first_id, 0), value=-torch.inf)
            scores = process(codebook, logits)
            codes = choose(scores)
            if codebook + 1 < num_codebooks:
                fed_back = codes.repeat(num_prompts // len(codes))[:, None]
                inputs_embeds[:, codebook + 1] = self.model.audio_embeddings(fed_back, first_codebook=codebook)[:, 0]
            frame.append(codes)
            all_logits.append(logits)
            all_scores.append(scores)
        return torch.stack(frame, dim=1), torch.stack(all_logits, dim=1), torch.stack(all_scores, dim=1)

    def _padding_row(self, device: torch.device) -> torch.LongTensor:
        """The row after an item's end, of shape `(num_codebooks + 1,)`."""
        ids = [self.config.reconstruction_pad_token_id + self.config.reasoning_vocab_size] * self.config.num_codebooks
        return torch.tensor([*ids, self.config.text_pad_token_id], device=device)

    def _text_rows(self, text_ids: torch.LongTensor) -> torch.LongTensor:
        """Plain text as rows: `(batch_size, sequence_length)` to three dimensions."""
        return pad(text_ids[..., None], (self.config.num_codebooks, 0))

    def _answer_parts(self, answer_parts: torch.LongTensor | None, batch_size: int) -> torch.LongTensor:
        """The parts of every item's audio answer, of shape `(batch_size, num_parts)`."""
        if answer_parts is None:
            return torch.tensor([[REASONING, RECONSTRUCTION]]).repeat(batch_size, 1)
        parts = torch.as_tensor(answer_parts)
        is_part = (parts == REASONING) | (parts == RECONSTRUCTION)
        is_allowed = is_part | (parts == NO_PART)
        if parts.ndim != 2 or len(parts) != batch_size or not is_allowed.all() or not is_part[:, :1].all():
            raise ValueError(
                f"`answer_parts` must have shape (batch_size, num_parts), here {batch_size} rows of {REASONING} "
                f"(reasoning) and {RECONSTRUCTION} (reconstruction), {NO_PART} after an item's last part; got "
                f"{parts.tolist()}."
            )
        return parts

    def _given_reasoning(
        self,
        reasoning_codes: torch.LongTensor | Sequence[torch.LongTensor | None],
        parts: torch.LongTensor,
        device: torch.device,
    ) -> list[torch.LongTensor | None]:
        """Checks reasoning codes that the answers begin with: per item `(num_codebooks, frames)` or `None`."""
        if len(reasoning_codes) != len(parts):
            raise ValueError(f"`reasoning_codes` has {len(reasoning_codes)} items for {len(parts)} prompts.")
        size, checked = self.config.reasoning_codebook_size, []
        for item, codes in enumerate(reasoning_codes):
            if codes is not None:
                codes = torch.as_tensor(codes)
                if codes.is_floating_point() or codes.ndim != 2 or codes.shape[0] != self.config.num_codebooks:
                    raise ValueError(
                        f"`reasoning_codes` of an item are integers of shape ({self.config.num_codebooks}, frames), "
                        f"got {codes.dtype} of shape {tuple(codes.shape)} for item {item}."
                    )
                codes = codes[:, (codes != CODE_PADDING).any(dim=0)].long()
                if codes.numel() == 0 or codes.min() < 0 or codes.max() >= size:
                    found = f"{int(codes.min())} to {int(codes.max())}" if codes.numel() else "no frames"
                    raise ValueError(
                        f"`reasoning_codes` must lie between 0 and {size - 1}, got {found} in item {item}."
                    )
                if parts[item, :2].tolist() != [REASONING, RECONSTRUCTION]:
                    raise ValueError(
                        f"`reasoning_codes` are given for item {item}, whose answer does not begin with reasoning and "
                        "reconstruction."
                    )
                codes = codes.to(device)
            checked.append(codes)
        return checked

    def _append_reasoning(self, prompts: "Prompts", given_reasoning: list[torch.LongTensor | None]) -> "Prompts":
        """Prompts that go on with the given reasoning parts, padded on the left."""
        extended = []
        for ids, mask, kinds, codes in zip(*prompts, given_reasoning, strict=True):
            is_row = mask.bool()
            ids, kinds = ids[is_row], kinds[is_row]
            if codes is not None:
                if kinds[-1] == AUDIO_ROW and (ids[-1, :-1] == self.config.reasoning_bos_token_id).all():
                    ids, kinds = ids[:-1], kinds[:-1]  # the prompt had begun the part
                frames = pad(codes.T, (0, 0, 1, 0), value=self.config.reasoning_bos_token_id)
                frames = pad(frames, (0, 0, 0, 1), value=self.config.reasoning_eos_token_id)
                ids = torch.cat([ids, pad(frames, (0, 1))])
                kinds = pad(kinds, (0, len(frames)), value=AUDIO_ROW)
            extended.append((ids, torch.ones_like(kinds), kinds))
        length = max(len(kinds) for _, _, kinds in extended)
        padding_row = self._padding_row(prompts.input_ids.device)
        return Prompts(
            torch.stack([torch.cat([padding_row.expand(length - len(ids), -1), ids]) for ids, _, _ in extended]),
            torch.stack([pad(mask, (length - len(mask), 0)) for _, mask, _ in extended]),
            torch.stack([pad(kinds, (length - len(kinds), 0), value=TEXT_ROW) for _, _, kinds in extended]),
        )

    @staticmethod
    def _answers_in_audio(
        output_modality: torch.LongTensor | None, generation_mode: str | None, input_ids: torch.LongTensor | None
    ) -> list[bool]:
        """Whether the answer is audio, item by item."""
        batch_size = 1 if input_ids is None else len(input_ids)
        if generation_mode is not None:
            if generation_mode not in ("text", "audio"):
                raise ValueError(f"`generation_mode` must be 'text' or 'audio', got {generation_mode!r}.")
            return [generation_mode == "audio"] * batch_size
        if output_modality is None:
            return [False] * batch_size
        modalities = torch.as_tensor(output_modality).flatten().tolist()
        if not modalities or not set(modalities) <= {TEXT_ROW, AUDIO_ROW}:
            raise ValueError(
                f"`output_modality` must be {TEXT_ROW} (text) or {AUDIO_ROW} (audio) for every item, got {modalities}."
            )
        if len(set(modalities)) > 1 and len(modalities) != batch_size:
            raise ValueError(f"`output_modality` has {len(modalities)} entries for {batch_size} prompts.")
        return [modality == AUDIO_ROW for modality in modalities]

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
                "positions: shorten it, or take it in pieces (`transcribe_long`, `speak_long`, or `run --long`)."
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


class Prompts(NamedTuple):
    """Rows `(batch_size, sequence_length, num_codebooks + 1)`, and what they are, `(batch_size, sequence_length)`."""

    input_ids: torch.LongTensor
    attention_mask: torch.Tensor
    mm_token_type_ids: torch.LongTensor

    def without_padding_columns(self) -> "Prompts":
        """Without the columns on the left that are padding in all items."""
        start = int(self.attention_mask.any(dim=0).long().argmax())
        return Prompts(*(value[:, start:] for value in self))


@dataclass(frozen=True)
class AudioRequest:
    """What the frame loop has to write: parts of shape `(num_prompts, num_parts)`, and what of them is given."""

    parts: torch.LongTensor
    given_reasoning: list[torch.LongTensor | None]
    iterates_frames: bool


@dataclass(frozen=True)
class PartSettings:
    """How the codes of one part of an answer are chosen."""

    do_sample: bool
    logits_processor: LogitsProcessorList
    repetition_window: int | None

    def process(self, generated: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        window = generated.shape[1] if self.repetition_window is None else self.repetition_window
        return self.logits_processor(generated[:, max(generated.shape[1] - window, 0) :], scores)


def _set_part_options(config: GenerationConfig, part: str) -> None:
    """Puts the settings of a part of an answer in the place of those of all parts."""
    given = {name: getattr(config, f"{part}_{name}", None) for name in PART_OPTIONS}
    for name, value in given.items():
        if value is not None:
            setattr(config, name, value)
    idle = [f"{part}_{name}" for name in SAMPLING_OPTIONS if given[name] is not None]
    if idle and not config.do_sample:
        logger.warning(f"{idle} have no effect on greedy answers: pass `do_sample=True` or `{part}_do_sample=True`.")


def _check_durations(min_duration: float | None, max_duration: float | None) -> None:
    shortest = 1 / RECONSTRUCTION_FRAME_RATE
    if min_duration is not None and not 0 <= min_duration < torch.inf:
        raise ValueError(f"`min_duration` is a number of seconds, at least 0; got {min_duration}.")
    if max_duration is not None and not shortest <= max_duration < torch.inf:
        raise ValueError(f"`max_duration` is a number of seconds, at least one frame, {shortest}; got {max_duration}.")
    if min_duration is not None and max_duration is not None and min_duration > max_duration:
        raise ValueError(f"`min_duration` ({min_duration}) exceeds `max_duration` ({max_duration}).")


def _run(frames: Iterator[UniAudio2Frame]) -> UniAudio2GenerateOutput | torch.LongTensor:
    """What an iterator over frames returns at its end."""
    while True:
        try:
            next(frames)
        except StopIteration as end:
            return end.value


def _with_given(
    codes: torch.LongTensor | list[torch.LongTensor], given: torch.LongTensor | None
) -> torch.LongTensor | list[torch.LongTensor]:
    """The reasoning codes of an item, with what was given for its first recording."""
    if given is None:
        return codes
    return [given, *codes[1:]] if isinstance(codes, list) else given


def _repeat(values: Sequence, times: int) -> list:
    return [value for value in values for _ in range(times)]


def _share(generators: list[torch.Generator], item: int, batch_size: int) -> list[torch.Generator]:
    """The generators of an item's answers."""
    num_answers = len(generators) // batch_size
    return generators[item * num_answers : (item + 1) * num_answers]


def _place(items: list[int], index: int, num_answers: int) -> int:
    """The place in the whole batch of answer `index` to the prompts with the numbers `items`."""
    return items[index // num_answers] * num_answers + index % num_answers


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


__all__ = ["UniAudio2Frame", "UniAudio2GenerateOutput", "UniAudio2GenerationMixin"]
