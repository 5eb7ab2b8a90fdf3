"""Auditory sentences: two to eight related segments in one sequence, the data of mid-training.

The paper, as reported, names five builders; how each chooses and orders its segments is ours and said at each. A
builder sees the sizes of related records only, so that sentences can be planned without loading them. Everything in a
sentence is learnt.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import numpy as np

from ..processing.rows import AudioCodes
from ..processing.tasks import REASONING, RECONSTRUCTION, TEXT, Segment, TaskFormat
from ..processing.turns import Turn

MIN_SEGMENTS, MAX_SEGMENTS = 2, 8
# Recordings are cut every 0.4 s, where frames of both streams end: 2 at 5 Hz and 5 at 12.5 Hz.
REASONING_FRAMES_PER_CUT, RECONSTRUCTION_FRAMES_PER_CUT = 2, 5
SECONDS_PER_CUT = 0.4


@dataclass(frozen=True)
class Piece:
    """
    A text, a recording or a part of one.

    Args:
        record (`int`): Which of the related records.
        field (`str`): Which of its values.
        wrapper (`str`, *optional*): For texts, the tokens around it.
        start, stop (`int`, *optional*): For recordings, the part in steps of 0.4 s; to the end without `stop`.
    """

    record: int
    field: str
    wrapper: str | None = None
    start: int = 0
    stop: int | None = None


@dataclass(frozen=True)
class AudioSize:
    """Frames of a recording in both streams."""

    reasoning: int
    reconstruction: int

    @property
    def num_cuts(self) -> int:
        return min(self.reasoning // REASONING_FRAMES_PER_CUT, self.reconstruction // RECONSTRUCTION_FRAMES_PER_CUT)

    def part(self, piece: Piece) -> "AudioSize":
        """The size of the part that a piece takes."""
        reasoning, reconstruction = frame_ranges(piece)
        return AudioSize(len(range(self.reasoning)[reasoning]), len(range(self.reconstruction)[reconstruction]))


# The values of a record by their size: a recording, or the number of tokens of a text.
RecordSizes = Mapping[str, AudioSize | int]


def frame_ranges(piece: Piece) -> tuple[slice, slice]:
    """The frames of a piece in both streams."""
    start, stop = piece.start, piece.stop
    if stop is None:
        return slice(start * REASONING_FRAMES_PER_CUT, None), slice(start * RECONSTRUCTION_FRAMES_PER_CUT, None)
    return (
        slice(start * REASONING_FRAMES_PER_CUT, stop * REASONING_FRAMES_PER_CUT),
        slice(start * RECONSTRUCTION_FRAMES_PER_CUT, stop * RECONSTRUCTION_FRAMES_PER_CUT),
    )


def consecutive_segments(records: Sequence[RecordSizes], rng: np.random.Generator) -> list[list[Piece]]:
    """One long recording, cut at random places into segments that follow each other."""
    cuts = records[0]["audio"].num_cuts
    if cuts < MIN_SEGMENTS:
        return []
    number = min(_draw_number(rng), cuts)
    places = [0, *sorted(rng.choice(np.arange(1, cuts), number - 1, replace=False).tolist()), None]
    return [[Piece(0, "audio", start=a, stop=b)] for a, b in pairwise(places)]


def interleaved_speech_and_text(records: Sequence[RecordSizes], rng: np.random.Generator) -> list[list[Piece]]:
    """Utterances of one recording in their order, each before or each after its transcript (drawn)."""
    return _interleaved(records, rng, "text", "transcription")


def interleaved_audio_and_captions(records: Sequence[RecordSizes], rng: np.random.Generator) -> list[list[Piece]]:
    """Related sounds or pieces of music, each before or each after its caption (drawn)."""
    return _interleaved(records, rng, "caption", "caption")


def mixture_and_sources(records: Sequence[RecordSizes], rng: np.random.Generator) -> list[list[Piece]]:
    """A mixture, then its clean sources in the order of their fields, `target_audio_1` and so on."""
    sources = sorted(name for name in records[0] if name.startswith("target_audio"))
    return [[Piece(0, name)] for name in ("audio", *sources[: MAX_SEGMENTS - 1])]


def same_text_in_styles(records: Sequence[RecordSizes], rng: np.random.Generator) -> list[list[Piece]]:
    """A text once, then recordings of it in random order, each after the caption of its style where there is one."""
    if len(records) < MIN_SEGMENTS:
        return []
    chosen = rng.permutation(len(records))[: _draw_number(rng)].tolist()
    spoken = [[Piece(i, "caption", "caption")] * ("caption" in records[i]) + [Piece(i, "audio")] for i in chosen]
    return [[Piece(chosen[0], "text", "transcription"), *spoken[0]], *spoken[1:]]


@dataclass(frozen=True)
class SentenceBuilder:
    """
    A builder and the records it needs.

    Args:
        build (`Callable`): From the sizes of related records to segments, a list of pieces each; `[]` if it cannot.
        audio, texts (`tuple[str, ...]`): The fields that a record must have.
        optional_audio, optional_texts (`tuple[str, ...]`): Fields that are used where records have them.
        related_by (`str`, *optional*): The column whose equal values relate records; without, each stands alone.
        ordered_by (`str`, *optional*): The column that orders them.
    """

    build: Callable[[Sequence[RecordSizes], np.random.Generator], list[list[Piece]]]
    audio: tuple[str, ...] = ("audio",)
    texts: tuple[str, ...] = ()
    optional_audio: tuple[str, ...] = ()
    optional_texts: tuple[str, ...] = ()
    related_by: str | None = None
    ordered_by: str | None = None


BUILDERS: dict[str, SentenceBuilder] = {
    "consecutive_segments": SentenceBuilder(consecutive_segments),
    "interleaved_speech_and_text": SentenceBuilder(
        interleaved_speech_and_text, texts=("text",), related_by="recording", ordered_by="start"
    ),
    "interleaved_audio_and_captions": SentenceBuilder(
        interleaved_audio_and_captions, texts=("caption",), related_by="group"
    ),
    "mixture_and_sources": SentenceBuilder(
        mixture_and_sources,
        audio=("audio", "target_audio_1"),
        optional_audio=tuple(f"target_audio_{index}" for index in range(2, MAX_SEGMENTS)),
    ),
    "same_text_in_styles": SentenceBuilder(
        same_text_in_styles, texts=("text",), optional_texts=("caption",), related_by="text"
    ),
}


def get_builder(name: str) -> SentenceBuilder:
    """Look a builder up; an unknown one is a `ValueError` that lists those there are."""
    if name not in BUILDERS:
        raise ValueError(f"Unknown builder of auditory sentences {name!r}. The builders are: {', '.join(BUILDERS)}.")
    return BUILDERS[name]


def plan_sentence(
    builder: SentenceBuilder, records: Sequence[RecordSizes], rng: np.random.Generator, max_rows: int
) -> list[Piece]:
    """
    The pieces of one sentence: what the builder makes of the records, cut after the last segment that fits.

    Returns:
        `list[Piece]`: Empty if the records do not give two segments that fit.
    """
    pieces, rows, count = [], 0, 0
    for segment in builder.build(records, rng):
        rows += sum(piece_rows(piece, records[piece.record][piece.field]) for piece in segment)
        if rows > max_rows:
            break
        pieces, count = pieces + segment, count + 1
    return pieces if count >= MIN_SEGMENTS else []


def piece_rows(piece: Piece, size: AudioSize | int) -> int:
    """Rows of a piece with the bos and eos rows around it, in both streams for a recording."""
    if isinstance(size, int):
        return size + 2 + 2 * (piece.wrapper is not None)
    part = size.part(piece)
    return part.reasoning + 2 + part.reconstruction + 2


def sentence_turn(pieces: Sequence[Piece], records: Sequence[Mapping[str, Any]]) -> Turn:
    """
    A sentence with its values, for [`~uniaudio2.UniAudio2Processor.example_rows`].

    Args:
        pieces (`Sequence[Piece]`): The plan.
        records (`Sequence[Mapping[str, Any]]`): Texts, and recordings as [`AudioCodes`].
    """
    segments, values = [], {}
    for index, piece in enumerate(pieces):
        name, value = f"{index}_{piece.field}", records[piece.record][piece.field]
        if isinstance(value, AudioCodes):
            reasoning, reconstruction = frame_ranges(piece)
            value = AudioCodes(value.reasoning_codes[:, reasoning], value.reconstruction_codes[:, reconstruction])
            segments += [Segment(kind, name, target=True) for kind in (REASONING, RECONSTRUCTION)]
        else:
            segments.append(Segment(TEXT, name, target=True, wrapper=piece.wrapper))
        values[name] = value
    return Turn(TaskFormat("auditory_sentence", "related segments", tuple(segments)), None, values, answered=True)


def stream_sentences(
    records: Iterable[Mapping[str, Any]],
    builder_name: str,
    count_tokens: Callable[[str], int],
    max_rows: int,
    seed: int = 0,
) -> Iterator[Turn]:
    """
    Sentences out of a stream of records, in which related ones follow each other. One group is held at a time.

    Args:
        records (`Iterable[Mapping[str, Any]]`): Texts, and recordings as [`AudioCodes`].
        builder_name (`str`): One of `BUILDERS`.
        count_tokens (`Callable[[str], int]`): Tokens of a text.
        max_rows (`int`): The longest sentence.
        seed (`int`, *optional*, defaults to 0): Of all choices; sentence `n` does not depend on those before.
    """
    builder = get_builder(builder_name)
    column = builder.related_by
    groups = ([record] for record in records)
    if column is not None:
        groups = (list(group) for _, group in groupby(records, key=lambda record: record[column]))
    for number, group in enumerate(groups):
        if builder.ordered_by is not None:
            group.sort(key=lambda record: record[builder.ordered_by])
        sizes = [{name: value_size(value, count_tokens) for name, value in record.items()} for record in group]
        pieces = plan_sentence(builder, sizes, np.random.default_rng([seed, number]), max_rows)
        if pieces:
            yield sentence_turn(pieces, group)


def value_size(value: Any, count_tokens: Callable[[str], int]) -> AudioSize | int:
    """The size of a value; columns that are neither text nor codes have none."""
    if isinstance(value, AudioCodes):
        return AudioSize(value.reasoning_codes.shape[1], value.reconstruction_codes.shape[1])
    return count_tokens(value) if isinstance(value, str) else 0


def draw_sentence(pieces: Sequence[Piece], records: Sequence[RecordSizes]) -> str:
    """A picture of a sentence in text: one line per part, with its rows and what they hold."""
    lines, row = [], 0
    for piece in pieces:
        size = records[piece.record][piece.field]
        if isinstance(size, int):
            label = f"<{piece.wrapper}> text </{piece.wrapper}>"
            parts = [(label, piece_rows(piece, size), "T")]
        else:
            part = size.part(piece)
            stop = piece.stop if piece.stop is not None else size.num_cuts
            span = f"{piece.start * SECONDS_PER_CUT:.1f}-{stop * SECONDS_PER_CUT:.1f} s"
            parts = [
                (f"{piece.field} {span}, reasoning", part.reasoning + 2, "r"),
                (f"{piece.field} {span}, reconstruction", part.reconstruction + 2, "a"),
            ]
        for label, length, mark in parts:
            lines.append(f"rows {row:4d}-{row + length - 1:4d}  record {piece.record}  {label:42s} {mark * length}")
            row += length
    return "\n".join(lines)


def _interleaved(
    records: Sequence[RecordSizes], rng: np.random.Generator, field: str, wrapper: str
) -> list[list[Piece]]:
    number = min(_draw_number(rng), len(records))
    first = int(rng.integers(len(records) - number + 1))
    text_first = bool(rng.integers(2))
    segments = []
    for index in range(first, first + number):
        pair = [Piece(index, "audio"), Piece(index, field, wrapper)]
        segments.append(pair[::-1] if text_first else pair)
    return segments


def _draw_number(rng: np.random.Generator) -> int:
    return int(rng.integers(MIN_SEGMENTS, MAX_SEGMENTS + 1))
