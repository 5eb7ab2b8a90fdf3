"""Reading a sequence: from rows of ids back to the texts and recordings that it was written from."""

from dataclasses import dataclass, field

import torch

from .rows import AudioCodes, RowFormat
from .tasks import AUDIO_PROMPT, REASONING, RECONSTRUCTION, TEXT


@dataclass
class Part:
    """
    A text, or one stream of a recording, as it stands in a sequence.

    Args:
        kind (`str`): `"text"`, `"reasoning"`, `"reconstruction"` or `"audio_prompt"`.
        wrapper (`str`, *optional*): Of a text: the name of the special tokens around it.
        ids (`list[int]` or `list[list[int]]`): Ids of a text; frames of a recording, their offset taken off.
        is_complete (`bool`): Whether its end is in the sequence. A generated part may lack it.
        num_malformed_frames (`int`): Frames of ids that are no codes of this stream. They are left out.
    """

    kind: str
    wrapper: str | None = None
    ids: list = field(default_factory=list)
    is_complete: bool = False
    num_malformed_frames: int = 0


def read_parts(row_format: RowFormat, rows: torch.Tensor) -> list[Part]:
    """
    The parts of a sequence, in order.

    Nothing needs to be known of the rows but their ids: whether eight zeros are a frame or the text id 0 is clear from
    the part they stand in. Generated sequences may be ill-formed, and something is made of all of them: a recording
    may lack its bos or eos rows, a text its end, and frames that are no codes are left out and counted.

    Args:
        row_format (`RowFormat`): The ids that the sequence is written with.
        rows (`torch.LongTensor` of shape `(sequence_length, num_codebooks + 1)`): A sequence, padded or not.
    """
    return _Reader(row_format).read(rows.tolist())


@dataclass(frozen=True)
class AudioAnswer:
    """The last recording of a sequence: its codes, and how many of its frames were no codes and were left out."""

    codes: AudioCodes
    num_malformed_frames: int


def last_audio(row_format: RowFormat, rows: torch.Tensor) -> AudioAnswer:
    """
    The last recording of a sequence: what was generated, if anything was. A stream that it lacks has no frames.

    Args:
        row_format, rows: As in [`read_parts`].
    """
    parts = [part for part in read_parts(row_format, rows) if part.kind in (REASONING, RECONSTRUCTION)]
    is_pair = [part.kind for part in parts[-2:]] == [REASONING, RECONSTRUCTION]
    parts = {part.kind: part for part in parts[-2 if is_pair else -1 :]}
    codes = {kind: codes_of(row_format, parts.get(kind, Part(kind))) for kind in (REASONING, RECONSTRUCTION)}
    return AudioAnswer(
        AudioCodes(codes[REASONING], codes[RECONSTRUCTION]),
        sum(part.num_malformed_frames for part in parts.values()),
    )


def codes_of(row_format: RowFormat, part: Part) -> torch.Tensor:
    """The codes of a part, `torch.LongTensor` of shape `(num_codebooks, frames)`."""
    return torch.tensor(part.ids, dtype=torch.long).reshape(-1, row_format.num_codebooks).T.contiguous()


class _Reader:
    """Reads row after row; `part` is the part that is open, if one is."""

    def __init__(self, row_format: RowFormat):
        self.row_format = row_format
        offset = row_format.reasoning_vocab_size
        self.bos = {
            row_format.reasoning_bos_token_id: REASONING,
            row_format.reconstruction_bos_token_id + offset: RECONSTRUCTION,
        }
        self.eos = {
            row_format.reasoning_eos_token_id: REASONING,
            row_format.reconstruction_eos_token_id + offset: RECONSTRUCTION,
        }
        self.code_ranges = {
            REASONING: range(row_format.reasoning_codebook_size),
            RECONSTRUCTION: range(offset, offset + row_format.reconstruction_codebook_size),
        }
        self.code_ranges[AUDIO_PROMPT] = self.code_ranges[RECONSTRUCTION]
        self.openings = {opening: name for name, (opening, _) in row_format.wrapper_token_ids.items()}
        self.closings = {closing for _, closing in row_format.wrapper_token_ids.values()}

        self.parts: list[Part] = []
        self.part: Part | None = None
        self.wrapper: str | None = None

    def read(self, rows: list[list[int]]) -> list[Part]:
        for index, (*frame, text_id) in enumerate(rows):
            in_text = self.part is not None and self.part.kind == TEXT
            if text_id == self.row_format.text_pad_token_id:
                self.part = self.wrapper = None
            elif any(frame) or (text_id == 0 and not in_text):
                self._read_frame(frame, rows[index + 1 : index + 2])
            else:
                self._read_text(text_id)
        return self.parts

    def _open(self, kind: str, wrapper: str | None = None) -> None:
        self.part = Part(kind, wrapper)
        self.parts.append(self.part)

    def _close(self) -> None:
        self.part.is_complete = True
        self.part = None

    def _read_text(self, text_id: int) -> None:
        if text_id in self.openings:
            self.part, self.wrapper = None, self.openings[text_id]
        elif text_id == self.row_format.text_bos_token_id:
            self._open(TEXT, self.wrapper)
            self.wrapper = None
        elif text_id in self.closings:
            self.part = None
        elif text_id == self.row_format.text_eos_token_id:
            if self.part is not None and self.part.kind == TEXT:
                self._close()
        else:
            if self.part is None or self.part.kind != TEXT:
                self._open(TEXT, self.wrapper)
                self.wrapper = None
            self.part.ids.append(text_id)

    def _read_frame(self, frame: list[int], next_rows: list[list[int]]) -> None:
        kind = None if self.part is None or self.part.kind == TEXT else self.part.kind
        marker = frame[0] if len(set(frame)) == 1 else None
        if kind == AUDIO_PROMPT:
            # Its eos row looks like a frame of codes: it is the end if no frame follows.
            if marker == self.row_format.audio_prompt_eos_token_id and not self._is_frame(next_rows):
                self._close()
            else:
                self._add(frame)
        elif kind is None and marker == self.row_format.audio_prompt_bos_token_id:
            self._open(AUDIO_PROMPT)
        elif self.bos.get(marker) == RECONSTRUCTION and kind != RECONSTRUCTION:
            self._open(RECONSTRUCTION)
        elif self.bos.get(marker) == REASONING and kind is None:
            self._open(REASONING)
        elif self.eos.get(marker) == RECONSTRUCTION:
            if kind is None:
                self._open(RECONSTRUCTION)
            self.part.is_complete = self.part.kind == RECONSTRUCTION
            self.part = None
        elif self.eos.get(marker) == REASONING and kind != RECONSTRUCTION:
            if kind is None:
                self._open(REASONING)
            self._close()
        else:
            if kind is None:
                follows_reasoning = self.parts and self.parts[-1].kind == REASONING and self.parts[-1].is_complete
                self._open(RECONSTRUCTION if follows_reasoning else REASONING)
            self._add(frame)

    def _is_frame(self, next_rows: list[list[int]]) -> bool:
        return any(all(code in self.code_ranges[AUDIO_PROMPT] for code in row[:-1]) for row in next_rows)

    def _add(self, frame: list[int]) -> None:
        codes = self.code_ranges[self.part.kind]
        if all(code in codes for code in frame):
            self.part.ids.append([code - codes.start for code in frame])
        else:
            self.part.num_malformed_frames += 1
