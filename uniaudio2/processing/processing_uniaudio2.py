"""Processor of UniAudio 2.0: texts, recordings and conversations to rows of ids, and back to texts and waveforms."""

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, ProcessorMixin
from transformers.feature_extraction_utils import BatchFeature
from transformers.utils import logging
from transformers.utils.chat_template_utils import render_jinja_template

from .audio_file import DIGITAL_SOURCE_TYPE, as_samples, write_audio
from .codec_reference import HUB_OPTIONS, Origin, load_codec, reference_from
from .parts import codes_of, last_audio, read_parts
from .rows import AUDIO_ROW, TEXT_ROW, WRAPPERS, AudioCodes, RowFormat, Rows
from .special_tokens import BOS_TOKEN, EOS_TOKEN, TEXT_PAD_TOKEN
from .tasks import AUDIO_PROMPT, REASONING, RECONSTRUCTION, TASKS, TEXT, TaskFormat, get_task
from .trained_tasks import TrainedTasks
from .turns import CODE_KEYS, Turn, check_conversation, conversation_turns, default_task_of, prompt_text
from .turns import question as make_question

logger = logging.get_logger(__name__)

# Fields of `UniAudio2Config` that the processor needs too, under the same names.
AUDIO_ID_NAMES = (
    "num_codebooks",
    "reasoning_vocab_size",
    "reconstruction_vocab_size",
    "reasoning_codebook_size",
    "reconstruction_codebook_size",
    "reasoning_bos_token_id",
    "reasoning_eos_token_id",
    "reasoning_pad_token_id",
    "reconstruction_bos_token_id",
    "reconstruction_eos_token_id",
    "reconstruction_pad_token_id",
    "audio_prompt_bos_token_id",
    "audio_prompt_eos_token_id",
)

# The parts of an audio answer, as `generate` numbers them.
ANSWER_PARTS = {REASONING: 1, RECONSTRUCTION: 2}
ONE_RECORDING = [1, 2]

TRANSCRIPTION_TASKS = {
    **dict.fromkeys(("en", "english", "zh", "chinese", "mandarin"), "ASR"),
    **dict.fromkeys(("yue", "cantonese"), "Yue_ASR"),
}


class UniAudio2Processor(ProcessorMixin):
    r"""
    Puts a feature extractor, a tokenizer, the task formats and the codec behind one interface.

    Going in, [`~UniAudio2Processor.__call__`] and [`~UniAudio2Processor.apply_chat_template`] turn texts, recordings
    and conversations into `input_ids` of nine streams. Coming out, [`~UniAudio2Processor.decode`] turns what
    `generate` returns into texts and waveforms. The codec is loaded when it is first needed.

    Args:
        feature_extractor (`UniAudio2FeatureExtractor`):
            Prepares recordings.
        tokenizer (`PreTrainedTokenizerFast`):
            Has the special tokens of the released tokenizer: `<|begin_of_text|>`, `<|end_of_text|>`,
            `<text_pad_token>`, `<transcription>`, `</transcription>`, `<lyric>`, `</lyric>`, `<caption>` and
            `</caption>`.
        chat_template (`str`, *optional*):
            Template for [`~UniAudio2Processor.apply_chat_template`] with `tokenize=False`.
        codec_name_or_path (`str`, *optional*, defaults to `"codec"`):
            The codec. A relative path is inside the folder or the repository that the processor is loaded from; an
            absolute path or a Hub id (`"org/name"`, with an optional `"/folder"` and `"@revision"`) is elsewhere.
        num_codebooks, reasoning_vocab_size, ..., audio_prompt_eos_token_id (`int`, *optional*):
            The ids of the audio streams, as in `UniAudio2Config`.
        default_task (`str`, *optional*, defaults to `"TTS"`):
            The task for text alone. Recordings alone are transcribed, both together are a question and its subject.

    Example:

    ```python
    >>> processor = AutoProcessor.from_pretrained(folder)
    >>> inputs = processor("seven three nine")
    >>> waveform = processor.decode(model.generate(**inputs))[0]
    >>> processor.save_audio(waveform, "out.wav")

    >>> inputs = processor(audio="in.wav", task="ASR")
    >>> text = processor.decode(model.generate(**inputs))[0]
    ```
    """

    _auto_class = "AutoProcessor"

    def __init__(
        self,
        feature_extractor,
        tokenizer,
        chat_template=None,
        codec_name_or_path: str = "codec",
        num_codebooks: int = 8,
        reasoning_vocab_size: int = 4100,
        reconstruction_vocab_size: int = 8200,
        reasoning_codebook_size: int = 4096,
        reconstruction_codebook_size: int = 8192,
        reasoning_bos_token_id: int = 4096,
        reasoning_eos_token_id: int = 4097,
        reasoning_pad_token_id: int = 4099,
        reconstruction_bos_token_id: int = 8192,
        reconstruction_eos_token_id: int = 8193,
        reconstruction_pad_token_id: int = 8195,
        audio_prompt_bos_token_id: int = 8196,
        audio_prompt_eos_token_id: int = 8197,
        default_task: str = "TTS",
    ):
        if chat_template is None:
            chat_template = Path(__file__).with_name("chat_template.jinja").read_text(encoding="utf-8")
        super().__init__(feature_extractor, tokenizer, chat_template=chat_template)
        self.codec_name_or_path = codec_name_or_path
        self.num_codebooks = num_codebooks
        self.reasoning_vocab_size = reasoning_vocab_size
        self.reconstruction_vocab_size = reconstruction_vocab_size
        self.reasoning_codebook_size = reasoning_codebook_size
        self.reconstruction_codebook_size = reconstruction_codebook_size
        self.reasoning_bos_token_id = reasoning_bos_token_id
        self.reasoning_eos_token_id = reasoning_eos_token_id
        self.reasoning_pad_token_id = reasoning_pad_token_id
        self.reconstruction_bos_token_id = reconstruction_bos_token_id
        self.reconstruction_eos_token_id = reconstruction_eos_token_id
        self.reconstruction_pad_token_id = reconstruction_pad_token_id
        self.audio_prompt_bos_token_id = audio_prompt_bos_token_id
        self.audio_prompt_eos_token_id = audio_prompt_eos_token_id
        self.default_task = get_task(default_task).name

        self._codec: PreTrainedModel | None = None
        self._codec_is_set = False
        self._codec_device: torch.device | None = None
        self._origin: Origin | None = None
        self._trained_tasks = TrainedTasks(None)

    # Ids

    @property
    def row_format(self) -> RowFormat:
        """The ids that rows are written with, those of the text looked up in the tokenizer."""
        return RowFormat(
            **{name: getattr(self, name) for name in AUDIO_ID_NAMES},
            text_bos_token_id=self._special_token_id(BOS_TOKEN),
            text_eos_token_id=self._special_token_id(EOS_TOKEN),
            text_pad_token_id=self._special_token_id(TEXT_PAD_TOKEN),
            wrapper_token_ids={
                name: (self._special_token_id(f"<{name}>"), self._special_token_id(f"</{name}>")) for name in WRAPPERS
            },
        )

    def _special_token_id(self, token: str) -> int:
        token_id = self.tokenizer.convert_tokens_to_ids(token)
        if token_id is None or self.tokenizer.convert_ids_to_tokens(token_id) != token:
            raise ValueError(
                f"The tokenizer has no token {token!r}. Use the tokenizer of a UniAudio 2.0 checkpoint, or add the "
                f"token with `tokenizer.add_tokens([{token!r}], special_tokens=True)`."
            )
        return token_id

    @property
    def model_input_names(self) -> list[str]:
        return ["input_ids", "attention_mask", "mm_token_type_ids", "output_modality"]

    # Loading, saving and the codec

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *args,
        codec_device: torch.device | str | None = None,
        **kwargs,
    ) -> "UniAudio2Processor":
        """
        Load a processor, and remember from where, so that the codec is found later.

        Args:
            pretrained_model_name_or_path (`str` or `os.PathLike`): A local folder or a Hub id.
            codec_device (`torch.device` or `str`, *optional*): See [`~UniAudio2Processor.codec_device`].
            kwargs: As in [`~ProcessorMixin.from_pretrained`]. `trust_remote_code` is forwarded to the codec.
        """
        processor = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        processor._origin = Origin(
            path=os.fspath(pretrained_model_name_or_path),
            subfolder=kwargs.get("subfolder", ""),
            revision=kwargs.get("revision"),
            trust_remote_code=kwargs.get("trust_remote_code"),
            hub_options={name: kwargs[name] for name in HUB_OPTIONS if kwargs.get(name) is not None},
        )
        processor._trained_tasks = TrainedTasks(processor._origin)
        if codec_device is not None:
            processor.codec_device = codec_device
        return processor

    def save_pretrained(
        self, save_directory: str | os.PathLike, push_to_hub: bool = False, save_codec: bool = False, **kwargs
    ) -> list[str]:
        """
        Save the processor, and with `save_codec=True` the codec beside it.

        Args:
            save_directory (`str` or `os.PathLike`): The folder.
            push_to_hub (`bool`, *optional*, defaults to `False`): As in [`~ProcessorMixin.save_pretrained`].
            save_codec (`bool`, *optional*, defaults to `False`):
                `True` puts the codec into `save_directory/codec`. `False` writes where the codec is.
        """
        if save_codec and push_to_hub:
            raise ValueError(
                "`save_codec=True` and `push_to_hub=True` do not go together: save to a folder, then upload it with "
                "`huggingface_hub.upload_folder`, so that processor and codec arrive in one commit."
            )
        if save_codec:
            reference = "codec"
            self.codec.save_pretrained(Path(save_directory, reference))
        else:
            reference = self._reference_from(save_directory)
        own_reference, self.codec_name_or_path = self.codec_name_or_path, reference
        try:
            return super().save_pretrained(save_directory, push_to_hub=push_to_hub, **kwargs)
        finally:
            self.codec_name_or_path = own_reference

    def _reference_from(self, save_directory: str | os.PathLike) -> str:
        if not self._codec_is_set:
            return reference_from(self.codec_name_or_path, self._origin, save_directory)
        name = self._codec.name_or_path
        if name:
            return str(Path(name).resolve()) if Path(name).is_dir() else name
        if not Path(save_directory, self.codec_name_or_path).is_dir():
            logger.warning(
                f"The codec of this processor was set in memory and is not saved with it: {str(save_directory)!r} "
                f"refers to {self.codec_name_or_path!r}. Pass `save_codec=True` to save it too."
            )
        return self.codec_name_or_path

    def to_dict(self) -> dict[str, Any]:
        """The configuration as plain data, without the codec (which must not be copied either)."""
        codec, self._codec = self._codec, None
        try:
            return super().to_dict()
        finally:
            self._codec = codec

    @property
    def codec(self) -> PreTrainedModel:
        """The codec, loaded on first use."""
        if self._codec is None:
            self._codec = load_codec(self.codec_name_or_path, self._origin, self.codec_device)
        return self._codec

    @codec.setter
    def codec(self, codec: PreTrainedModel | None):
        self._codec = codec
        self._codec_is_set = codec is not None

    @property
    def codec_device(self) -> torch.device:
        """
        Where the codec is, or will be loaded: the current accelerator, or the CPU if there is none.

        A pipeline hands the processor rows on the CPU, so their device says nothing. Setting it moves the codec.
        """
        if self._codec is not None:
            return self._codec.device
        if self._codec_device is None:
            # A PyTorch built for an accelerator names it even where there is none.
            available = torch.accelerator.is_available()
            return torch.accelerator.current_accelerator() if available else torch.device("cpu")
        return self._codec_device

    @codec_device.setter
    def codec_device(self, device: torch.device | str):
        self._codec_device = torch.device(device)
        if self._codec is not None:
            self._codec.to(self._codec_device)

    # Going in

    def __call__(
        self,
        text: str | list[str] | None = None,
        audio: Any = None,
        task: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        caption: str | list[str] | None = None,
        lyric: str | list[str] | None = None,
        question: str | list[str] | None = None,
        audio_prompt: Any = None,
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        padding_side: str = "left",
        return_tensors: str | None = "pt",
        images: None = None,
        videos: None = None,
    ) -> BatchFeature:
        """
        Prepare prompts for `generate`.

        Args:
            text (`str` or `list[str]`, *optional*):
                What is spoken, or the only text that the task takes.
            audio (recording or `list` of recordings, *optional*):
                A recording is a waveform, a path or a dictionary as the feature extractor takes them; or codes of
                shape `(num_codebooks, frames)`, as a tuple `(reasoning_codes, reconstruction_codes)`, a dictionary
                with these names, or [`AudioCodes`].
            task (`str` or `list[str]`, *optional*):
                What to do; see `TASKS`. Texts alone are spoken (`default_task`), recordings alone are transcribed
                (`"ASR"`), both together are a question about a recording (`"audio_understanding"`).
            prompt (`str` or `list[str]`, *optional*):
                An instruction in place of the task's own.
            caption, lyric, question (`str` or `list[str]`), audio_prompt (as `audio`), *optional*:
                Further values, for the tasks that take them.
            sampling_rate (`int`, *optional*):
                Rate of the waveforms in hertz. Required unless all recordings bring their own.
            padding (`bool` or `str`, *optional*, defaults to `True`):
                `True` or `"longest"`, or `"max_length"` to fill up to `max_length` rows.
            max_length (`int`, *optional*):
                Rows to fill up to.
            padding_side (`str`, *optional*, defaults to `"left"`):
                `"left"`, for generation, or `"right"`.
            return_tensors (`str`, *optional*, defaults to `"pt"`):
                Only PyTorch tensors are made.
            images, videos: Only here because transformers passes them; must be `None`.

        Returns:
            [`BatchFeature`] with **input_ids** of shape `(batch_size, sequence_length, num_codebooks + 1)`,
            **attention_mask** and **mm_token_type_ids** (0 text, 3 audio) of shape `(batch_size, sequence_length)`,
            and **output_modality** of shape `(batch_size,)`: 0 if the answer is text, 3 if it is audio. If the answer
            to one of the tasks is audio but not one recording, also **answer_parts** of shape `(batch_size, parts)`:
            1 for a reasoning part, 2 for a reconstruction part, 0 for none.

        Raises:
            ValueError, TypeError: for a value that is missing, superfluous, empty or of the wrong kind, an unknown
                task, or batches of different sizes. The message says what the task takes.
        """
        if images is not None or videos is not None:
            raise ValueError("UniAudio 2.0 reads texts and recordings, not images or videos: leave them out.")
        texts = {"text": text, "caption": caption, "lyric": lyric, "question": question}
        recordings = {"audio": audio, "audio_prompt": audio_prompt}
        given = {name: value for name, value in {**texts, **recordings}.items() if value is not None}
        if not given and task is None:
            raise ValueError("There is nothing to process: pass `text`, `audio` or both.")
        has_text, has_audio = any(name in texts for name in given), any(name in recordings for name in given)
        items = _items({**given, "task": task, "prompt": prompt})
        conversations = [
            [
                make_question(
                    get_task(item.pop("task") or default_task_of(has_text, has_audio, self.default_task)),
                    prompt=item.pop("prompt"),
                    given=item,
                )
            ]
            for item in items
        ]
        return self._prompts(conversations, sampling_rate, padding, max_length, padding_side, return_tensors)

    def apply_chat_template(
        self,
        conversation: list[dict[str, Any]] | list[list[dict[str, Any]]],
        chat_template: str | None = None,
        tokenize: bool = False,
        return_dict: bool = False,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        task: str | None = None,
        return_tensors: str | None = "pt",
        processor_kwargs: dict[str, Any] | None = None,
        **kwargs,
    ) -> str | list[str] | torch.Tensor | BatchFeature:
        """
        Prepare conversations for `generate`.

        A user message asks and an assistant message answers, each with texts and recordings as parts. Turns that are
        answered are examples for those that follow. See [`conversation_turns`] for how parts become the values of a
        task.

        Args:
            conversation (`list[dict]` or `list[list[dict]]`):
                One conversation or a batch. A message is `{"role", "content"}`, and may have a `"task"`. Content is a
                text or a list of parts: `{"type": "text", "text"}` or `{"type": "audio", "audio" | "path"}`.
                Waveforms without a `"sampling_rate"` beside them are taken to have that of the feature extractor, as
                everywhere in transformers.
            chat_template (`str`, *optional*):
                With `tokenize=False`: a template in place of the processor's own. It is given `segments`.
            tokenize (`bool`, *optional*, defaults to `False`):
                Whether to return rows of ids. Otherwise the text of the conversation is returned, for people to read:
                rows are never made out of it, so that nothing a user writes can become a special token.
            return_dict (`bool`, *optional*, defaults to `False`):
                Whether to return everything that [`~UniAudio2Processor.__call__`] does, and not only `input_ids`.
            add_generation_prompt (`bool`, *optional*, defaults to `False`):
                Whether an answer is to be generated; then the last message must be the user's.
            continue_final_message (`bool`, *optional*, defaults to `False`):
                Whether the last message is the beginning of a text answer.
            task (`str`, *optional*):
                The task of the messages that do not name one.
            processor_kwargs (`dict`, *optional*), kwargs:
                `sampling_rate`, `padding`, `max_length`, `padding_side` as in [`~UniAudio2Processor.__call__`].
        """
        options = {"task": task, **kwargs, **(processor_kwargs or {})}
        task = options.pop("task")
        check_conversation(conversation)
        conversations, is_batch = self._normalize_conversations(conversation)
        if add_generation_prompt and continue_final_message:
            raise ValueError("`add_generation_prompt` and `continue_final_message` exclude each other.")
        turns = [
            conversation_turns(messages, self.default_task, task, continue_final_message) for messages in conversations
        ]
        if add_generation_prompt and any(conversation[-1].answered for conversation in turns):
            raise ValueError("The last message is an answer already: end the conversation with a user message.")

        if not tokenize:
            template = self._resolve_chat_template(chat_template)
            rendered = [
                render_jinja_template([[]], chat_template=template, segments=_segments(conversation))[0][0]
                for conversation in turns
            ]
            return rendered if is_batch else rendered[0]
        if chat_template is not None:
            raise ValueError("`chat_template` is for `tokenize=False`; the rows of a task have a fixed format.")
        options = {
            "sampling_rate": self.feature_extractor.sampling_rate,
            "padding": True,
            "max_length": None,
            "padding_side": "left",
            "return_tensors": "pt" if return_tensors == "auto" else return_tensors,
            **options,
        }
        inputs = self._prompts(turns, **options)
        return inputs if return_dict else inputs["input_ids"]

    def apply_transcription_request(
        self,
        audio: Any,
        language: str | list[str] | None = None,
        prompt: str | list[str] | None = None,
        sampling_rate: int | None = None,
        **kwargs,
    ) -> BatchFeature:
        """
        Prepare recordings for transcription.

        Args:
            audio (recording or `list` of recordings): As in [`~UniAudio2Processor.__call__`].
            language (`str` or `list[str]`, *optional*):
                `"en"`, `"zh"` or `"yue"` (Cantonese); English and Chinese are told apart without it.
            prompt (`str` or `list[str]`, *optional*): An instruction in place of the task's own.
            sampling_rate (`int`, *optional*): Rate of the waveforms in hertz.
            kwargs: Padding options of [`~UniAudio2Processor.__call__`].
        """
        if isinstance(language, (list, tuple)):
            tasks = [_transcription_task(name) for name in language]
        else:
            tasks = _transcription_task(language)
        return self(audio=audio, task=tasks, prompt=prompt, sampling_rate=sampling_rate, **kwargs)

    def encode_audio(self, audio: Any, sampling_rate: int | None = None) -> list[AudioCodes]:
        """
        Run the codec on recordings, for example to prepare training data once.

        Args:
            audio (recording or `list` of recordings): As in [`~UniAudio2Processor.__call__`].
            sampling_rate (`int`, *optional*): Rate of the waveforms in hertz.

        Returns:
            `list[AudioCodes]`: The codes of each recording, on the CPU. They can be passed as `audio` anywhere.
        """
        inputs = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt")
        # Samples may stay on the CPU: the codec moves them window by window.
        encoded = self.codec.encode(input_values=inputs["input_values"], padding_mask=inputs["padding_mask"])
        return [
            AudioCodes(reasoning[:, reasoning_mask].cpu(), reconstruction[:, reconstruction_mask].cpu())
            for reasoning, reasoning_mask, reconstruction, reconstruction_mask in zip(
                encoded.reasoning_codes,
                encoded.reasoning_mask,
                encoded.reconstruction_codes,
                encoded.reconstruction_mask,
                strict=True,
            )
        ]

    def example_rows(
        self,
        examples: Sequence[Sequence[Turn]],
        sampling_rate: int | None = None,
        generator: torch.Generator | None = None,
    ) -> list[Rows]:
        """
        The rows of conversations, with labels where they hold answers.

        Args:
            examples (`Sequence[Sequence[Turn]]`): The turns of each conversation.
            sampling_rate (`int`, *optional*): Rate of the waveforms that bring none.
            generator (`torch.Generator`, *optional*):
                Where an audio prompt is longer than its task uses: chooses the part. Otherwise it is the beginning.
        """
        self._encode_recordings([turn for turns in examples for turn in turns], sampling_rate)
        row_format = self.row_format
        return [Rows.join([self._turn_rows(turn, row_format, generator) for turn in turns]) for turns in examples]

    def _prompts(
        self,
        conversations: list[list[Turn]],
        sampling_rate: int | None,
        padding: bool | str,
        max_length: int | None,
        padding_side: str,
        return_tensors: str | None,
    ) -> BatchFeature:
        if return_tensors not in ("pt", None):
            raise ValueError(f"`return_tensors` is {return_tensors!r}, but only PyTorch tensors are made: pass 'pt'.")
        if padding not in (True, False, "longest", "max_length", "do_not_pad"):
            raise ValueError(f"`padding` is {padding!r}, but must be True, 'longest', 'max_length' or False.")
        if padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` is {padding_side!r}, but must be 'left' or 'right'.")
        if padding == "max_length" and max_length is None:
            raise ValueError("`padding='max_length'` needs `max_length`, the number of rows to fill up to.")
        for turns in conversations:
            self._trained_tasks.warn(turns[-1].task.name)
        sequences = self.example_rows(conversations, sampling_rate)
        if padding in (False, "do_not_pad") and len({len(rows) for rows in sequences}) > 1:
            raise ValueError("Items of different lengths cannot be stacked without padding: pass `padding=True`.")

        batch = self.row_format.batch(sequences, padding_side, max_length if padding == "max_length" else None)
        del batch["labels"]
        batch["output_modality"] = torch.tensor(
            [TEXT_ROW if turns[-1].task.output == "text" else AUDIO_ROW for turns in conversations]
        )
        parts = [_answer_parts(turns[-1].task) for turns in conversations]
        if any(item != ONE_RECORDING for item in parts):
            # Most answers are one recording, which needs no saying.
            parts = [torch.tensor(item) for item in parts]
            batch["answer_parts"] = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
        return BatchFeature(batch)

    def _turn_rows(self, turn: Turn, row_format: RowFormat, generator: torch.Generator | None) -> Rows:
        values = {
            name: self._text_ids(value) if turn.task.is_text(name) else value for name, value in turn.values.items()
        }
        for segment in turn.task.segments:
            if segment.max_frames is not None and generator is not None:
                values[segment.field] = _cropped(values[segment.field], segment.max_frames, generator)
        prompt_ids = None if turn.prompt is None else self._text_ids(prompt_text(turn.prompt))
        if turn.answered:
            return row_format.training_rows(turn.task, values, prompt_ids, turn.drop_condition)
        answer_ids = None if turn.answer_start is None else self._text_ids(turn.answer_start)
        return row_format.prompt_rows(turn.task, values, prompt_ids, answer_ids, turn.drop_condition)

    def _text_ids(self, text: str) -> list[int]:
        # Special tokens that a user types are text; bos and eos are part of the row format.
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]

    def _encode_recordings(self, turns: list[Turn], sampling_rate: int | None) -> None:
        """Replace all recordings of a batch by their codes, in one run of the codec."""
        raw = []
        for turn in turns:
            for name, value in turn.values.items():
                if turn.task.is_text(name):
                    continue
                codes = _given_codes(value)
                if codes is None:
                    raw.append((turn, name))
                else:
                    turn.values[name] = self._checked_codes(turn.task, name, codes, turn.answered)
        if raw:
            encoded = self.encode_audio([turn.values[name] for turn, name in raw], sampling_rate)
            for (turn, name), codes in zip(raw, encoded, strict=True):
                turn.values[name] = codes

    def _checked_codes(self, task: TaskFormat, name: str, codes: AudioCodes, answered: bool) -> AudioCodes:
        """Codes that a user passes, as int64 tensors of shape `(num_codebooks, frames)`."""
        checked = {}
        for key, size in zip(
            CODE_KEYS, (self.reasoning_codebook_size, self.reconstruction_codebook_size), strict=True
        ):
            kinds = (REASONING,) if key == "reasoning_codes" else (RECONSTRUCTION, AUDIO_PROMPT)
            segments = task.segments if answered else task.conditions
            values = getattr(codes, key)
            if values is None:
                if any(segment.field == name and segment.kind in kinds for segment in segments):
                    raise ValueError(f"{name!r} of {task.name} needs {key!r}, but they are missing.")
                continue
            try:
                values = torch.as_tensor(values).cpu()
            except (TypeError, ValueError) as error:  # a text, or rows of different lengths
                raise TypeError(
                    f"{key!r} of {name!r} must be integers of shape ({self.num_codebooks}, frames), but are no tensor "
                    f"({error})."
                ) from error
            if values.ndim == 3 and values.shape[0] == 1:
                values = values[0]
            if values.is_floating_point() or values.ndim != 2 or values.shape[0] != self.num_codebooks:
                raise ValueError(
                    f"{key!r} of {name!r} must be integers of shape ({self.num_codebooks}, frames), but are "
                    f"{values.dtype} of shape {tuple(values.shape)}."
                )
            if values.shape[1] == 0 or values.min() < 0 or values.max() >= size:
                found = f"between {values.min()} and {values.max()}" if values.numel() else "empty"
                raise ValueError(f"{key!r} of {name!r} must lie between 0 and {size - 1}, but are {found}.")
            checked[key] = values.to(torch.long)
        return AudioCodes(**checked)

    # Coming out

    def decode(
        self,
        sequences: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs,
    ) -> str | list[str] | torch.Tensor | list[torch.Tensor]:
        """
        Turn what `generate` returns into texts or waveforms.

        Of a sequence with audio only the end is decoded, which is what was generated: never the recordings of the
        prompt. Frames that are no codes are left out with a warning. Rows do not say where an answer begins. So of
        rows alone it is taken to be the last recording, or the last two if the instruction before is one of a task
        that answers with two; `generate(..., return_dict_in_generate=True)` tells for certain.

        Args:
            sequences (`torch.Tensor`, `list`, [`AudioCodes`] or the output of `generate`):
                Text ids of shape `(length,)` or `(batch_size, length)`; rows of shape `(length, num_codebooks + 1)` or
                `(batch_size, length, num_codebooks + 1)`; a list of such ids and rows, one for each item; or an output
                with `reconstruction_codes`.
            skip_special_tokens (`bool`, *optional*, defaults to `True`):
                Whether to leave special tokens out of texts.
            generation_mode (`str`, *optional*):
                `"text"` or `"audio"`; found out from the shape and the markers of the rows by default.
            kwargs:
                For texts options of the tokenizer; for audio those of the codec's `decode`, as `generator` (one, or a
                list with one per item), `num_inference_steps` or `guidance_scale`. For a batch with both, of audio.

        Returns:
            `str`, `list[str]`, `torch.Tensor` of shape `(samples,)` or a list of these: texts, or float32 waveforms on
            the CPU. A list for a batch, with a list of waveforms for an item whose answer is several recordings. For a
            tensor of rows these are the channels of one tensor, which is what pipelines take, the shorter being
            followed by silence.
        """
        if generation_mode not in (None, "text", "audio"):
            raise ValueError(f"`generation_mode` is {generation_mode!r}, but must be 'text', 'audio' or None.")
        if isinstance(sequences, AudioCodes):
            return self._waveforms([sequences], **kwargs)[0]
        if isinstance(sequences, Mapping):
            codes = sequences.get("reconstruction_codes")
            sequences = sequences["sequences"]
            if generation_mode != "text" and codes is not None:
                return self._decode_items(sequences, codes, skip_special_tokens, **kwargs)
        if isinstance(sequences, list) and sequences and all(isinstance(item, torch.Tensor) for item in sequences):
            codes = [self._answered_codes(rows) if rows.ndim == 2 else None for rows in sequences]
            return self._decode_items(sequences, codes, skip_special_tokens, **kwargs)
        ids = sequences if isinstance(sequences, torch.Tensor) else torch.as_tensor(np.asarray(sequences))
        is_rows = ids.ndim == 3 or self.row_format.is_sequence(ids)
        if (generation_mode or ("audio" if is_rows else "text")) == "audio":
            rows = list(ids if ids.ndim == 3 else ids[None])
            codes = [self._answered_codes(item) for item in rows]
            waveforms = [
                torch.nn.utils.rnn.pad_sequence(item, batch_first=True) if isinstance(item, list) else item
                for item in self._decode_items(rows, codes, skip_special_tokens, **kwargs)
            ]
            return waveforms if ids.ndim == 3 else waveforms[0]
        if ids.ndim == 3:
            # A prompt: special tokens are what keeps its parts apart.
            return [self.tokenizer.decode(self.row_format.text_ids(rows), **kwargs) for rows in ids]
        if is_rows:
            raise ValueError("These are rows of audio, not text. Pass `generation_mode='audio'`.")
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens, **kwargs)

    def parse_sequence(self, rows: torch.Tensor) -> list[dict[str, Any]]:
        """
        Read a sequence: the texts and the recordings of its prompt and of its answer, in order.

        What [`~UniAudio2Processor.__call__`] or [`~UniAudio2Processor.apply_chat_template`] has built comes apart into
        the same parts, the instructions being texts too. Frames that are no codes are left out.

        Args:
            rows (`torch.Tensor` of shape `(sequence_length, num_codebooks + 1)`): A sequence, padded or not.

        Returns:
            `list[dict]`: Parts of messages, `{"type": "text", "text", "wrapper"}` (the name of the special tokens
            around it, or `None`) and `{"type": "audio", "reasoning_codes", "reconstruction_codes"}`, with those codes
            that are there, each of shape `(num_codebooks, frames)`.
        """
        if rows.ndim != 2 or rows.shape[-1] != self.num_codebooks + 1:
            raise ValueError(
                f"A sequence has shape (sequence_length, {self.num_codebooks + 1}), but got {tuple(rows.shape)}. "
                "Pass the items of a batch one by one."
            )
        row_format = self.row_format
        found, previous = [], None
        for part in read_parts(row_format, rows):
            if part.kind == TEXT:
                found.append({"type": "text", "text": self.tokenizer.decode(part.ids), "wrapper": part.wrapper})
            else:
                if part.kind != RECONSTRUCTION or previous != REASONING:
                    found.append({"type": "audio"})
                name = "reasoning_codes" if part.kind == REASONING else "reconstruction_codes"
                found[-1][name] = codes_of(row_format, part)
            previous = part.kind
        return found

    def batch_decode(self, sequences: Any, **kwargs) -> list[str] | list[torch.Tensor]:
        """[`~UniAudio2Processor.decode`] for a batch: always a list, also of one."""
        decoded = self.decode(sequences, **kwargs)
        return decoded if isinstance(decoded, list) else [decoded]

    def post_process_multimodal_output(
        self,
        generated_outputs: Any,
        skip_special_tokens: bool = True,
        generation_mode: str | None = None,
        **kwargs,
    ) -> list[str] | list[np.ndarray]:
        """
        Decode for the any-to-any pipeline.

        Args:
            generated_outputs: As in [`~UniAudio2Processor.decode`].
            skip_special_tokens (`bool`, *optional*, defaults to `True`): Whether to leave special tokens out of texts.
            generation_mode (`str`, *optional*): `"text"` (also if `None`) or `"audio"`.
        """
        if generation_mode == "audio" and isinstance(generated_outputs, torch.Tensor) and generated_outputs.ndim == 2:
            # The pipeline joins the sequences of a batch.
            generated_outputs = torch.stack(self.row_format.split_sequences(generated_outputs))
        decoded = self.batch_decode(
            generated_outputs,
            skip_special_tokens=skip_special_tokens,
            generation_mode=generation_mode or "text",
            **kwargs,
        )
        return [item.numpy() for item in decoded] if generation_mode == "audio" else decoded

    def save_audio(
        self,
        audio: Any,
        saving_path: str | os.PathLike | list[str | os.PathLike],
        sampling_rate: int | None = None,
        task: str | None = None,
        provenance: bool = True,
        watermark: Callable[[np.ndarray, int], Any] | None = None,
    ) -> None:
        """
        Write waveforms to files, whose suffix says the format (wav, flac, ogg, opus, mp3, ...).

        A file appears when it is complete: an interrupted call leaves no half of one behind. Its comment says what
        made it, as JSON: the model (its Hub id, or the name of its folder), the task, the software, the date, and
        IPTC's `digitalSourceType` for media that a trained model has made; `uniaudio2 info FILE` reads it. WAV, FLAC,
        OGG, OPUS, MP3, AIFF and CAF have comments; other formats are written without, with a warning.

        Args:
            audio (`torch.Tensor`, `np.ndarray` or a `list` of these):
                Waveforms of shape `(samples,)` or `(channels, samples)`; a list for several.
            saving_path (`str`, `os.PathLike` or a `list` of these):
                One path per waveform.
            sampling_rate (`int`, *optional*):
                Rate of the waveforms in hertz; that of the model by default.
            task (`str`, *optional*):
                The task that the waveforms answer, to be noted in the files.
            provenance (`bool`, *optional*, defaults to `True`):
                Whether to note what made the files. Say `False` for recordings that the model did not make.
            watermark (`Callable`, *optional*):
                `(waveform, sampling_rate) -> waveform`, applied to each waveform before it is written: an inaudible
                mark that survives where metadata does not. It is given and returns the samples, an array or a tensor
                of the same shape. None is applied by default.
        """
        audios = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        paths = list(saving_path) if isinstance(saving_path, (list, tuple)) else [saving_path]
        if len(audios) != len(paths):
            raise ValueError(f"{len(audios)} waveforms need as many paths, but got {len(paths)}.")
        rate = sampling_rate or self.feature_extractor.sampling_rate
        made_by = self._provenance(task) if provenance else None
        for waveform, path in zip(audios, map(Path, paths), strict=True):
            samples = as_samples(waveform)
            if watermark is not None:
                marked = as_samples(watermark(samples, rate))
                if marked.shape != samples.shape:
                    raise ValueError(
                        f"`watermark` must keep the shape of a waveform, but made {marked.shape} of {samples.shape}."
                    )
                samples = marked
            write_audio(samples, path, rate, made_by)

    def _provenance(self, task: str | None) -> dict[str, str]:
        model = None if self._origin is None else self._origin.path
        if model is not None and Path(model).is_dir():
            # Where a folder lies on this machine is nobody else's business.
            model = Path(model).resolve().name
        facts = {
            "model": model,
            "task": task,
            "software": "uniaudio2",
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "digitalSourceType": DIGITAL_SOURCE_TYPE,
        }
        return {name: value for name, value in facts.items() if value is not None}

    def _decode_items(
        self,
        sequences: Sequence[torch.Tensor],
        codes: Sequence[torch.Tensor | list[torch.Tensor] | None],
        skip_special_tokens: bool,
        generator: Any = None,
        **kwargs,
    ) -> list[str | torch.Tensor | list[torch.Tensor]]:
        """Texts for the items whose sequence is text ids, waveforms of their codes for the others, in one run."""
        is_text = [ids.ndim == 1 for ids in sequences]
        recordings, owners = [], []
        for item, item_codes in enumerate(codes):
            if not is_text[item]:
                own = item_codes if isinstance(item_codes, list) else [item_codes]
                recordings += [AudioCodes(reconstruction_codes=recording) for recording in own]
                owners += [item] * len(own)
        if isinstance(generator, (list, tuple)):
            generator = [generator[item] for item in owners]
        waveforms = iter(self._waveforms(recordings, generator=generator, **kwargs))
        decoded = []
        for item, ids in enumerate(sequences):
            if is_text[item]:
                decoded.append(self.tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
            elif isinstance(codes[item], list):
                decoded.append([next(waveforms) for _ in codes[item]])
            else:
                decoded.append(next(waveforms))
        return decoded

    def _answered_codes(self, rows: torch.Tensor) -> torch.Tensor | list[torch.Tensor]:
        """The reconstruction codes of the answer at the end of a sequence, a list if it is several recordings."""
        if rows.shape[-1] != self.num_codebooks + 1:
            raise ValueError(
                f"Rows of audio have {self.num_codebooks + 1} ids, but these have shape {tuple(rows.shape)}. "
                "For texts pass `generation_mode='text'`."
            )
        answer = last_audio(self.row_format, rows)
        if answer.num_malformed_frames:
            logger.warning(
                f"{answer.num_malformed_frames} generated frames mix codes with other ids and are left out."
            )
        num_recordings, following = self._last_instruction(rows)
        if num_recordings < 2:
            return answer.codes.reconstruction_codes
        no_codes = torch.zeros(self.num_codebooks, 0, dtype=torch.long)
        # What is taken apart comes first.
        codes = [part.get("reconstruction_codes", no_codes) for part in following[1:]]
        return [*codes, *[no_codes] * num_recordings][:num_recordings]

    def _last_instruction(self, rows: torch.Tensor) -> tuple[int, list[dict[str, Any]]]:
        """How many recordings the last text of a sequence asks for, and the recordings after it."""
        parts = self.parse_sequence(rows)
        texts = [index for index, part in enumerate(parts) if part["type"] == "text"]
        if not texts:
            return 1, parts
        instruction = parts[texts[-1]]["text"].strip()
        asked = [task.num_recordings for task in TASKS.values() if instruction in task.prompts]
        return (asked[0] if asked else 1), parts[texts[-1] + 1 :]

    def _waveforms(self, codes: list[AudioCodes], generator: Any = None, **kwargs) -> list[torch.Tensor]:
        """Run the codec once for all items that have frames."""
        frames = [item.reconstruction_codes for item in codes]
        present = [index for index, item in enumerate(frames) if item is not None and item.shape[-1] > 0]
        if len(present) < len(codes):
            logger.warning(f"{len(codes) - len(present)} items have no frames to decode: their waveforms are empty.")
        waveforms = [torch.zeros(0) for _ in codes]
        if not present:
            return waveforms
        if isinstance(generator, (list, tuple)):
            generator = [generator[index] for index in present]
        padded = torch.nn.utils.rnn.pad_sequence([frames[index].T for index in present], True, padding_value=-1)
        decoded = self.codec.decode(
            reconstruction_codes=padded.transpose(1, 2).to(self.codec.device), generator=generator, **kwargs
        )
        for index, audio, mask in zip(present, decoded.audio_values, decoded.padding_mask, strict=True):
            waveforms[index] = audio[0, mask].float().cpu()
        return waveforms


def _answer_parts(task: TaskFormat) -> list[int]:
    """The parts of an audio answer in the numbers of `generate`; a text answer counts as one recording."""
    if task.output == "text":
        return ONE_RECORDING
    return [ANSWER_PARTS[segment.kind] for segment in task.targets]


def _items(given: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One dictionary per item of a batch; what is not a batch is the same for all items."""
    batches = {name: value for name, value in given.items() if _is_batch(value)}
    sizes = {name: len(value) for name, value in batches.items()}
    if len(set(sizes.values())) > 1 or 0 in sizes.values():
        raise ValueError(
            "Batches must have the same number of items, at least one, but got "
            + ", ".join(f"{size} in {name!r}" for name, size in sizes.items())
            + "."
        )
    size = next(iter(sizes.values()), 1)
    return [
        {name: value[index] if name in batches else value for name, value in given.items()} for index in range(size)
    ]


def _is_batch(value: Any) -> bool:
    """A list is a batch, except for the samples of one waveform. A tuple is a pair of codes."""
    return isinstance(value, list) and not (value and isinstance(value[0], Number))


def _segments(turns: Sequence[Turn]) -> list[dict[str, Any]]:
    return [segment for turn in turns for segment in turn.segments()]


def _transcription_task(language: str | None) -> str:
    if language is None:
        return "ASR"
    if language.lower() not in TRANSCRIPTION_TASKS:
        raise ValueError(
            f"Unknown language {language!r}: choose one of {', '.join(TRANSCRIPTION_TASKS)}, or leave it out."
        )
    return TRANSCRIPTION_TASKS[language.lower()]


def _given_codes(value: Any) -> AudioCodes | None:
    """The codes in a value, or `None` if it is a recording."""
    if isinstance(value, AudioCodes):
        return value
    if isinstance(value, Mapping) and any(value.get(key) is not None for key in CODE_KEYS):
        return AudioCodes(*(value.get(key) for key in CODE_KEYS))
    if isinstance(value, tuple):
        if len(value) != 2:
            raise ValueError(f"A tuple is (reasoning_codes, reconstruction_codes), but got {len(value)} entries.")
        return AudioCodes(*value)
    return None


def _cropped(codes: AudioCodes, max_frames: int, generator: torch.Generator) -> AudioCodes:
    spare = codes.reconstruction_codes.shape[1] - max_frames
    start = int(torch.randint(max(spare, 0) + 1, (), generator=generator))
    return AudioCodes(codes.reasoning_codes, codes.reconstruction_codes[:, start : start + max_frames])


__all__ = ["UniAudio2Processor"]
