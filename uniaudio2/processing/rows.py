"""Rows of ids: the one place that knows how text and audio are written into a sequence (`parts.py` reads them out).

A row is one position of the sequence: eight audio ids and a text id. In a text row the audio ids are 0, in an audio
row the text id is 0; which kind a row is stands beside it in `mm_token_type_ids`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .tasks import AUDIO_PROMPT, REASONING, TEXT, Segment, TaskFormat

# transformers' numbering of modalities in `mm_token_type_ids`.
TEXT_ROW, AUDIO_ROW = 0, 3
IGNORE_INDEX = -100

WRAPPERS = ("transcription", "lyric", "caption")


@dataclass(frozen=True)
class AudioCodes:
    """
    A recording as the codec tells it.

    Args:
        reasoning_codes (`torch.LongTensor` of shape `(num_codebooks, frames at 5 Hz)`, *optional*):
            What is in the recording.
        reconstruction_codes (`torch.LongTensor` of shape `(num_codebooks, frames at 12.5 Hz)`, *optional*):
            How it sounds, without the offset that these ids have inside a sequence.
    """

    reasoning_codes: torch.Tensor | None = None
    reconstruction_codes: torch.Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """
    A part of a sequence, or all of it.

    Args:
        input_ids (`torch.LongTensor` of shape `(sequence_length, num_codebooks + 1)`):
            Audio ids, then the text id.
        mm_token_type_ids (`torch.LongTensor` of shape `(sequence_length,)`):
            0 for text rows, 3 for audio rows.
        labels (`torch.LongTensor` of shape `(sequence_length, num_codebooks + 1)`):
            The ids of the streams that are learnt, -100 elsewhere. Not shifted.
    """

    input_ids: torch.Tensor
    mm_token_type_ids: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return self.input_ids.shape[0]

    @staticmethod
    def join(parts: Sequence["Rows"]) -> "Rows":
        """One after the other."""
        return Rows(
            torch.cat([part.input_ids for part in parts]),
            torch.cat([part.mm_token_type_ids for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


@dataclass(frozen=True)
class RowFormat:
    """
    The ids that sequences are written with.

    The names are those of `UniAudio2Config`. Reconstruction ids follow the reasoning ids in one table: inside a
    sequence they are offset by `reasoning_vocab_size`, their bos and eos rows too. The bos and eos rows of an audio
    prompt carry no offset (released code).

    Args:
        text_bos_token_id, text_eos_token_id, text_pad_token_id (`int`): Ids of the tokenizer.
        wrapper_token_ids (`Mapping[str, tuple[int, int]]`): Per wrapper its opening and its closing token.
    """

    num_codebooks: int
    reasoning_vocab_size: int
    reconstruction_vocab_size: int
    reasoning_codebook_size: int
    reconstruction_codebook_size: int
    reasoning_bos_token_id: int
    reasoning_eos_token_id: int
    reasoning_pad_token_id: int
    reconstruction_bos_token_id: int
    reconstruction_eos_token_id: int
    reconstruction_pad_token_id: int
    audio_prompt_bos_token_id: int
    audio_prompt_eos_token_id: int
    text_bos_token_id: int
    text_eos_token_id: int
    text_pad_token_id: int
    wrapper_token_ids: Mapping[str, tuple[int, int]]

    # Writing

    def training_rows(
        self,
        task: TaskFormat,
        values: Mapping[str, Sequence[int] | AudioCodes],
        prompt_ids: Sequence[int] | None,
        drop_condition: bool = False,
    ) -> Rows:
        """
        A whole example: task prompt, conditions, answer.

        Args:
            task (`TaskFormat`): The format.
            values (`Mapping[str, Sequence[int] | AudioCodes]`):
                Per field the ids of the text (without bos and eos) or the codes of the recording.
            prompt_ids (`Sequence[int]`, *optional*): Ids of the task prompt; `None` for the tasks without one.
            drop_condition (`bool`, *optional*, defaults to `False`):
                Blank out everything that is given, for classifier-free guidance. The length stays.
        """
        parts = self._opening(prompt_ids, drop_condition)
        parts += [self._segment(segment, values[segment.field], drop_condition) for segment in task.segments]
        return Rows.join(parts)

    def prompt_rows(
        self,
        task: TaskFormat,
        values: Mapping[str, Sequence[int] | AudioCodes],
        prompt_ids: Sequence[int] | None,
        answer_ids: Sequence[int] | None = None,
        drop_condition: bool = False,
    ) -> Rows:
        """
        What generation starts from: task prompt and conditions. The model itself writes the first row of the answer,
        unless there is nothing before it: then that row, the bos row of a recording, is what generation starts from.

        Args:
            answer_ids (`Sequence[int]`, *optional*): The beginning of a text answer, which the model then continues.
            task, values, prompt_ids, drop_condition: As in [`~RowFormat.training_rows`].
        """
        parts = self._opening(prompt_ids, drop_condition)
        parts += [self._segment(segment, values[segment.field], drop_condition) for segment in task.conditions]
        if answer_ids is not None:
            opening, _ = self._wrapper(task.targets[0])
            parts.append(self._text_rows([*opening, self.text_bos_token_id, *answer_ids], target=False))
        if not task.conditions and task.output == "audio":
            bos = torch.full((1, self.num_codebooks), self.reasoning_bos_token_id)
            parts.append(self._audio_rows(bos, target=False))
        return Rows.join(parts)

    def padding_rows(self, length: int) -> Rows:
        """Rows that fill a batch up; they are masked (ids as in the released code)."""
        input_ids = torch.full(
            (length, self.num_codebooks + 1), self.reconstruction_pad_token_id + self.reasoning_vocab_size
        )
        input_ids[:, -1] = self.text_pad_token_id
        return Rows(
            input_ids, torch.full((length,), TEXT_ROW), torch.full((length, self.num_codebooks + 1), IGNORE_INDEX)
        )

    def batch(
        self, sequences: Sequence[Rows], padding_side: str, length: int | None = None
    ) -> dict[str, torch.Tensor]:
        """
        Fill sequences up to one length and stack them.

        Args:
            sequences (`Sequence[Rows]`): The sequences of the batch.
            padding_side (`str`): `"left"` (generation) or `"right"`.
            length (`int`, *optional*): The length to fill up to; that of the longest sequence by default.

        Returns:
            `dict`: `input_ids` and `labels` of shape `(batch_size, length, num_codebooks + 1)`, `attention_mask` and
            `mm_token_type_ids` of shape `(batch_size, length)`.
        """
        longest = max(len(rows) for rows in sequences)
        if length is not None and length < longest:
            raise ValueError(
                f"A sequence has {longest} rows, more than the {length} to pad to. Sequences cannot be cut without "
                "losing what they mean: pass a longer `max_length` or shorter inputs."
            )
        padded, masks = [], []
        for rows in sequences:
            padding = self.padding_rows((length or longest) - len(rows))
            ones, zeros = torch.ones(len(rows), dtype=torch.long), torch.zeros(len(padding), dtype=torch.long)
            left = padding_side == "left"
            padded.append(Rows.join([padding, rows] if left else [rows, padding]))
            masks.append(torch.cat([zeros, ones] if left else [ones, zeros]))
        return {
            "input_ids": torch.stack([rows.input_ids for rows in padded]),
            "attention_mask": torch.stack(masks),
            "mm_token_type_ids": torch.stack([rows.mm_token_type_ids for rows in padded]),
            "labels": torch.stack([rows.labels for rows in padded]),
        }

    def _opening(self, prompt_ids: Sequence[int] | None, drop_condition: bool) -> list[Rows]:
        return [] if prompt_ids is None else [self._segment(Segment(TEXT, "prompt"), prompt_ids, drop_condition)]

    def _wrapper(self, segment: Segment) -> tuple[tuple[int, ...], tuple[int, ...]]:
        if segment.wrapper is None:
            return (), ()
        opening, closing = self.wrapper_token_ids[segment.wrapper]
        return (opening,), (closing,)

    def _segment(self, segment: Segment, value: Sequence[int] | AudioCodes, drop_condition: bool) -> Rows:
        dropped = drop_condition and not segment.target
        if segment.kind == TEXT:
            opening, closing = self._wrapper(segment)
            ids = [*opening, self.text_bos_token_id, *value, self.text_eos_token_id, *closing]
            return self._text_rows([self.text_pad_token_id] * len(ids) if dropped else ids, segment.target)

        if segment.kind == REASONING:
            frames, offset, pad = value.reasoning_codes, 0, self.reasoning_pad_token_id
            bos, eos = self.reasoning_bos_token_id, self.reasoning_eos_token_id
        else:
            frames, offset, pad = (
                value.reconstruction_codes,
                self.reasoning_vocab_size,
                self.reconstruction_pad_token_id,
            )
            bos, eos = self.reconstruction_bos_token_id + offset, self.reconstruction_eos_token_id + offset
        if segment.kind == AUDIO_PROMPT:
            bos, eos = self.audio_prompt_bos_token_id, self.audio_prompt_eos_token_id
        frames = frames[:, : segment.max_frames].T.to(torch.long) + offset
        rows = torch.cat([torch.full((1, self.num_codebooks), bos), frames, torch.full((1, self.num_codebooks), eos)])
        # The pad ids of a dropped recording carry no offset (released code).
        return self._audio_rows(torch.full_like(rows, pad) if dropped else rows, segment.target)

    def _text_rows(self, ids: Sequence[int], target: bool) -> Rows:
        input_ids = torch.zeros(len(ids), self.num_codebooks + 1, dtype=torch.long)
        input_ids[:, -1] = torch.tensor(ids, dtype=torch.long)
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        if target:
            labels[:, -1] = input_ids[:, -1]
        return Rows(input_ids, torch.full((len(ids),), TEXT_ROW), labels)

    def _audio_rows(self, frames: torch.Tensor, target: bool) -> Rows:
        input_ids = torch.nn.functional.pad(frames, (0, 1))
        labels = torch.full_like(input_ids, IGNORE_INDEX)
        if target:
            labels[:, :-1] = frames
        return Rows(input_ids, torch.full((len(frames),), AUDIO_ROW), labels)

    # Recognising

    def is_sequence(self, ids: torch.Tensor) -> bool:
        """
        Whether a two-dimensional tensor is one sequence of rows, not a batch of texts that are as long as a row.

        A sequence has rows that only have a bos of a text, or repeat one of the marker ids in all codebooks.
        """
        if ids.ndim != 2 or ids.shape[-1] != self.num_codebooks + 1:
            return False
        audio, text = ids[:, :-1], ids[:, -1]
        markers = torch.tensor(self._markers(), device=ids.device)
        is_marker = (audio == audio[:, :1]).all(-1) & torch.isin(audio[:, 0], markers)
        is_bos = (audio == 0).all(-1) & (text == self.text_bos_token_id)
        return bool((is_marker | is_bos).any())

    def split_sequences(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """
        Undo the joining of a batch of sequences, whose number is no longer known, into one tensor.

        All have the same length, and each begins with the bos row of a prompt, after padding or not, and ends with
        audio or padding. So do the turns of one conversation, if by chance they are equally long; but these have no
        padding and are complete. What might be either is taken for a conversation: an example is no answer.
        """
        kinds = "".join(map(self._kind, rows.tolist()))
        for count in range(kinds.count("b"), 1, -1):
            length, rest = divmod(len(kinds), count)
            parts = [kinds[start : start + length] for start in range(0, len(kinds), length)]
            are_sequences = rest == 0 and all(re.fullmatch("p*b.*[aep]", part) for part in parts)
            are_turns = all(re.fullmatch("b.*e", part) for part in parts[:-1]) and parts[-1].startswith("b")
            if are_sequences and not are_turns:
                return list(rows.split(length))
        return [rows]

    def _kind(self, row: list[int]) -> str:
        """
        The kind of a row as a letter: padding, bos of a text, other text, end of a recording, other audio.

        Audio rows have text id 0. Of padding rows only the text id is certain: pipelines fill in their own audio ids.
        """
        *frame, text_id = row
        if text_id == self.text_pad_token_id:
            return "p"
        if text_id == 0 or any(frame):
            return "e" if set(frame) == {self.reconstruction_eos_token_id + self.reasoning_vocab_size} else "a"
        return "b" if text_id == self.text_bos_token_id else "t"

    def text_ids(self, rows: torch.Tensor) -> torch.Tensor:
        """The ids of the text rows of a sequence `(sequence_length, num_codebooks + 1)`, without padding."""
        text = rows[:, -1]
        is_text = (rows[:, :-1] == 0).all(-1) & (text != self.text_pad_token_id)
        return text[is_text]

    def _markers(self) -> tuple[int, ...]:
        offset = self.reasoning_vocab_size
        return (
            self.reasoning_bos_token_id,
            self.reasoning_eos_token_id,
            self.reconstruction_bos_token_id + offset,
            self.reconstruction_eos_token_id + offset,
        )
