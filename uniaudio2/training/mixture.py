"""Which examples a model sees, in which order and how they share rows: planned from lengths alone.

The plan is a function of the seed, so its position is a number: a resumed training plans that much again, without
loading anything, and goes on exactly where it was. Every process makes the whole plan and takes its part.

Records that come as a stream have no lengths before they are read. Then the plan reads them, in every process, and a
resumed training reads the stream again from its start, without making anything of it. That is exact with a shuffle
buffer too, which the state of a stream does not hold.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count, groupby
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from torch.utils.data import Dataset
from transformers.utils import logging

from ..processing.processing_uniaudio2 import UniAudio2Processor
from ..processing.rows import AUDIO_ROW, AudioCodes, Rows
from ..processing.tasks import REASONING, TEXT, Segment, TaskFormat, get_task
from ..processing.turns import Turn, example, prompt_text
from .auditory_sentences import AudioSize, get_builder, piece_rows, plan_sentence, sentence_turn
from .manifest import import_datasets
from .recipe import refuse_unknown

logger = logging.get_logger(__name__)

# Packed rows that are filled side by side. More leave less padding at the ends and mix less.
OPEN_ROWS = 16
# Examples that are sorted by length before they are cut into batches, where they are not packed.
SORTED_EXAMPLES = 512


class Records:
    """
    Recordings as codes, with their texts: what [`~uniaudio2.training.tokenization.tokenize`] writes.

    Args:
        dataset ([`~datasets.Dataset`]): The records.
        processor (`UniAudio2Processor`): Counts tokens, knows the number of codebooks.
        audio (`Sequence[str]`), texts (`Sequence[str]`): The columns that are used.
        optional (`Collection[str]`, *optional*): Those of them that a record may leave empty.

    Raises:
        ValueError: If a column is missing, or a record leaves one empty.
    """

    def __init__(
        self,
        dataset,
        processor: UniAudio2Processor,
        audio: Sequence[str],
        texts: Sequence[str],
        optional: Collection[str] = (),
    ):
        missing = [name for name in (*audio, *texts) if name not in dataset.column_names]
        if missing:
            raise ValueError(f"The records lack {missing}; their columns are {dataset.column_names}.")
        self.dataset = dataset
        self.audio, self.texts = tuple(audio), tuple(texts)
        self.num_codebooks = processor.num_codebooks
        self._sizes: dict[str, np.ndarray] = {name: self._frames(name) for name in self.audio}
        tokenizer = processor.tokenizer
        for name in self.texts:
            # Kept by `datasets` on the disk, where it keeps what it computed.
            counts = dataset.select_columns([name]).map(
                lambda batch, name=name: {"n": text_sizes(batch[name], tokenizer)},
                batched=True, remove_columns=[name], desc=f"lengths of {name}",
            )  # fmt: skip
            self._sizes[name] = np.asarray(counts.with_format("numpy")["n"][:])
        for name in (*self.audio, *self.texts):
            empty = np.flatnonzero(self._is_empty(name))
            if len(empty) and name not in optional:
                raise ValueError(
                    f"Record {empty[0]} has no {name!r}, and so have {len(empty)} of {len(self)} records."
                )

    def _is_empty(self, name: str) -> np.ndarray:
        sizes = self._sizes[name]
        return sizes[:, 1] == 0 if name in self.audio else sizes == EMPTY

    def _frames(self, name: str) -> np.ndarray:
        import pyarrow.compute as pc

        column = self.dataset.select_columns([name]).with_format("arrow")[:].column(name)
        streams = [pc.struct_field(column, stream) for stream in ("reasoning_codes", "reconstruction_codes")]
        lengths = [pc.fill_null(pc.list_value_length(codes), 0).to_numpy() for codes in streams]
        return np.stack(lengths, axis=1) // self.num_codebooks

    def __len__(self) -> int:
        return len(self.dataset)

    def sizes(self, index: int) -> dict[str, AudioSize | int]:
        """Of every value that is used and not empty."""
        sizes = {name: AudioSize(*map(int, self._sizes[name][index])) for name in self.audio}
        sizes = {name: size for name, size in sizes.items() if size.reconstruction}
        texts = {name: int(self._sizes[name][index]) for name in self.texts}
        return sizes | {name: size for name, size in texts.items() if size != EMPTY}

    def __getitem__(self, index: int) -> dict[str, Any]:
        """The values of a record, its recordings as [`AudioCodes`]."""
        return with_codes(self.dataset[index], self.audio, self.num_codebooks)

    def groups(self, column: str | None, order: str | None) -> list[list[int]]:
        """Indices of related records."""
        if column is None:
            return [[index] for index in range(len(self))]
        values = self.dataset[column][:]
        places = self.dataset[order][:] if order is not None else range(len(values))
        groups: dict[Any, list[int]] = {}
        for index, value in enumerate(values):
            groups.setdefault(value, []).append(index)
        return [sorted(group, key=lambda index: places[index]) for group in groups.values()]


class StreamedRecords:
    """
    Records as they come, over and over.

    Args:
        dataset ([`~datasets.IterableDataset`]): The records.
        processor, audio, texts, optional: As of [`Records`].
        seed (`tuple[int, ...]`): Of the order.
        shuffle_buffer (`int`, *optional*, defaults to 0):
            How many records are held to draw the next one from; every time through is another order then. Without,
            records keep the order they have, so that related ones follow each other.

    Raises:
        ValueError: While it reads, if a record lacks a value.
    """

    def __init__(
        self,
        dataset,
        processor: UniAudio2Processor,
        audio: Sequence[str],
        texts: Sequence[str],
        seed: tuple[int, ...],
        shuffle_buffer: int = 0,
        optional: Collection[str] = (),
    ):
        self.required = [name for name in (*audio, *texts) if name not in optional]
        self.dataset, self.seed, self.shuffle_buffer = dataset, seed, shuffle_buffer
        self.audio, self.texts = tuple(audio), tuple(texts)
        self.num_codebooks, self.tokenizer = processor.num_codebooks, processor.tokenizer

    def epoch(self, number: int) -> Iterator[dict[str, Any]]:
        """Once through."""
        for record in shuffled(self.dataset, self.shuffle_buffer, np.random.default_rng([*self.seed, 2, number])):
            missing = [name for name in self.required if record.get(name) is None]
            if missing:
                raise ValueError(f"A record of the stream lacks {missing}; it has {sorted(record)}.")
            yield record

    def sizes_of(self, record: Mapping[str, Any]) -> dict[str, AudioSize | int]:
        """Of every value that is used and not empty."""
        sizes: dict[str, AudioSize | int] = {}
        for name in self.audio:
            if record.get(name) is not None:
                streams = (record[name]["reasoning_codes"], record[name]["reconstruction_codes"])
                sizes[name] = AudioSize(*(len(codes) // self.num_codebooks for codes in streams))
        for name in self.texts:
            if record.get(name) is not None:
                (sizes[name],) = text_sizes([record[name]], self.tokenizer)
        return sizes


# The size of a text that is not there; "" is there, and has no tokens.
EMPTY = -1


def text_sizes(texts: Sequence[str | None], tokenizer) -> list[int]:
    """Tokens of each text."""
    ids = tokenizer([text or "" for text in texts], add_special_tokens=False, split_special_tokens=True)["input_ids"]
    return [EMPTY if text is None else len(row) for text, row in zip(texts, ids, strict=True)]


def with_codes(record: Mapping[str, Any], audio: Sequence[str], num_codebooks: int) -> dict[str, Any]:
    """A record with its recordings as [`AudioCodes`]."""
    values = dict(record)
    for name in audio:
        if record.get(name) is None:
            continue
        codes = {
            stream: torch.as_tensor(record[name][stream], dtype=torch.long).view(-1, num_codebooks).T
            for stream in ("reasoning_codes", "reconstruction_codes")
        }
        values[name] = AudioCodes(**codes)
    return values


def shuffled(records: Iterable[Any], buffer_size: int, rng: np.random.Generator) -> Iterator[Any]:
    """
    Each record as one of those that are held, at random. `datasets` can do this too, but takes turns between shards as
    well, and how has changed between its versions; a resumed training needs the same order.
    """
    held = []
    for record in records:
        held.append(record)
        if len(held) > buffer_size:
            yield held.pop(int(rng.integers(len(held))))
    yield from (held[place] for place in rng.permutation(len(held)))


# What is said of examples that are left out.
UNFIT_SENTENCE = "have not two segments within"
MORE_EXAMPLES = "raise data.context, or cut recordings and texts into shorter ones"


def warn_of_left_out(source: "Source", place: int, number: int, max_rows: int) -> None:
    """Say how many of `number` examples of a source do not fit, if any do not, in the first process alone."""
    if source.num_left_out and PartialState().is_main_process:
        logger.warning(
            f"{source.num_left_out} of the {number} examples of source {place} ({source.name}) are left out, as they "
            f"{source.unfit} {max_rows} rows: {MORE_EXAMPLES}."
        )


@dataclass(frozen=True)
class Draw:
    """
    One example of the plan: its source, its number among those of the source, and its length. Of a source that is a
    stream also the record, or the related ones.
    """

    source: int
    number: int
    length: int
    streamed: Any = field(default=None, compare=False, repr=False)


class Source:
    """
    Examples without end: every record once, in random order, then again in another.

    Args:
        records (`Records`): The records.
        name (`str`): What messages call it.
        weight (`float`): Its share of the rows, relative to other sources.
        seed (`tuple[int, ...]`): Of all choices.
    """

    # What is said of examples that are left out, before a number of rows.
    unfit = "are longer than"

    def __init__(self, records: Records, name: str, weight: float, seed: tuple[int, ...]):
        if weight <= 0:
            raise ValueError(f"The weight of a source must be positive, but is {weight}.")
        self.records, self.name, self.weight, self.seed = records, name, weight, seed
        # Examples of the plan so far that did not fit.
        self.num_left_out = 0

    @property
    def num_items(self) -> int:
        return len(self.records)

    def item(self, number: int) -> int:
        """The record or group of an example."""
        epoch, place = divmod(number, self.num_items)
        return int(_permutation(self.num_items, (*self.seed, epoch))[place])

    def generator(self, number: int) -> np.random.Generator:
        """Of all choices that one example makes."""
        return np.random.default_rng([*self.seed, 0, number])

    def draws(self, place: int, max_rows: int) -> Iterator[Draw]:
        """
        The examples that fit, without end; `place` is that of this source among others. Those that do not are counted,
        and said after the first time through; the choices of an example may let it fit another time.
        """
        number = self.num_left_out = 0
        refused = 0  # since the last one that fitted
        for epoch in count():
            first = number
            for length, streamed in self.lengths(epoch, first, max_rows):
                if length is None:
                    self.num_left_out += 1
                    refused += 1
                else:
                    refused = 0
                    yield Draw(place, number, length, streamed)
                number += 1
            if refused >= 2 * (number - first):
                raise ValueError(
                    f"No example of source {place} ({self.name}) has at most {max_rows} rows: {MORE_EXAMPLES}."
                )
            if epoch == 0:
                warn_of_left_out(self, place, number, max_rows)

    def lengths(self, epoch: int, first: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        """Rows of each example of one time through, and what is streamed; `first` is the number of the first one."""
        for number in range(first, first + self.num_items):
            yield self.length(number, max_rows), None

    def length(self, number: int, max_rows: int) -> int | None:
        """Rows of an example; `None` if it has more than `max_rows`."""
        raise NotImplementedError

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        """The example."""
        raise NotImplementedError

    def semantic_features(self, draw: Draw) -> Sequence[float]:
        """Of the recording `audio` of an example, frame after frame."""
        return self.records.dataset[self.item(draw.number)]["semantic_features"]


class TaskSource(Source):
    """Records as examples of one task, with a random prompt and, where the release does it, condition drop-out."""

    def __init__(
        self, records: Records, task: TaskFormat, processor: UniAudio2Processor, weight: float, seed: tuple[int, ...],
        condition_dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__(records, task.name, weight, seed)
        self.task = task
        self.condition_dropout = condition_dropout if task.condition_dropout else 0.0
        tokenize = processor.tokenizer
        self.prompt_rows = [
            len(tokenize(prompt_text(prompt), add_special_tokens=False, split_special_tokens=True)["input_ids"]) + 2
            for prompt in task.prompts
        ]

    def _choices(self, number: int) -> tuple[int, bool]:
        rng = self.generator(number)
        prompt = int(rng.integers(len(self.task.prompts))) if self.task.prompts else 0
        return prompt, bool(rng.random() < self.condition_dropout)

    def length(self, number: int, max_rows: int) -> int | None:
        return self._length(number, self.records.sizes(self.item(number)), max_rows)

    def _length(self, number: int, sizes: Mapping[str, AudioSize | int], max_rows: int) -> int | None:
        rows = self.prompt_rows[self._choices(number)[0]] if self.prompt_rows else 0
        rows += sum(segment_rows(segment, sizes[segment.field]) for segment in self.task.segments)
        return rows if rows <= max_rows else None

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        return self._turn(draw, self.records[self.item(draw.number)])

    def _turn(self, draw: Draw, values: Mapping[str, Any]) -> Turn:
        prompt, dropped = self._choices(draw.number)
        turn = example(self.task, values, self.task.prompts[prompt] if self.task.prompts else None)
        turn.drop_condition = dropped
        return turn


class StreamedTaskSource(TaskSource):
    """The same of records that come as a stream."""

    records: StreamedRecords

    def lengths(self, epoch: int, first: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        for number, record in enumerate(self.records.epoch(epoch), first):
            yield self._length(number, self.records.sizes_of(record), max_rows), record

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        return self._turn(draw, with_codes(draw.streamed, self.records.audio, self.records.num_codebooks))

    def semantic_features(self, draw: Draw) -> Sequence[float]:
        return draw.streamed["semantic_features"]


class SentenceSource(Source):
    """Related records as auditory sentences."""

    unfit = UNFIT_SENTENCE

    def __init__(self, records: Records, builder_name: str, weight: float, seed: tuple[int, ...]):
        super().__init__(records, builder_name, weight, seed)
        self.builder = get_builder(builder_name)
        self.groups = records.groups(self.builder.related_by, self.builder.ordered_by)

    @property
    def num_items(self) -> int:
        return len(self.groups)

    def _plan(self, number: int, max_rows: int):
        group = self.groups[self.item(number)]
        sizes = [self.records.sizes(index) for index in group]
        return group, sizes, plan_sentence(self.builder, sizes, self.generator(number), max_rows)

    def length(self, number: int, max_rows: int) -> int | None:
        _, sizes, pieces = self._plan(number, max_rows)
        return sum(piece_rows(piece, sizes[piece.record][piece.field]) for piece in pieces) or None

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        group, _, pieces = self._plan(draw.number, max_rows)
        used = {piece.record for piece in pieces}
        return sentence_turn(pieces, {place: self.records[group[place]] for place in used})


class StreamedSentenceSource(Source):
    """The same of records that come as a stream, in which related ones follow each other."""

    records: StreamedRecords
    unfit = UNFIT_SENTENCE

    def __init__(self, records: StreamedRecords, builder_name: str, weight: float, seed: tuple[int, ...]):
        super().__init__(records, builder_name, weight, seed)
        self.builder = get_builder(builder_name)

    def _groups(self, epoch: int) -> Iterator[list[dict[str, Any]]]:
        column, order = self.builder.related_by, self.builder.ordered_by
        if column is None:
            yield from ([record] for record in self.records.epoch(epoch))
            return
        for _, related in groupby(self.records.epoch(epoch), key=lambda record: record[column]):
            group = list(related)
            yield group if order is None else sorted(group, key=lambda record: record[order])

    def _plan(self, number: int, group: Sequence[Mapping[str, Any]], max_rows: int):
        sizes = [self.records.sizes_of(record) for record in group]
        return sizes, plan_sentence(self.builder, sizes, self.generator(number), max_rows)

    def lengths(self, epoch: int, first: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        for number, group in enumerate(self._groups(epoch), first):
            sizes, pieces = self._plan(number, group, max_rows)
            yield sum(piece_rows(piece, sizes[piece.record][piece.field]) for piece in pieces) or None, group

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        _, pieces = self._plan(draw.number, draw.streamed, max_rows)
        records = [with_codes(record, self.records.audio, self.records.num_codebooks) for record in draw.streamed]
        return sentence_turn(pieces, records)


class Mixture(Dataset):
    """
    A plan over several sources and the examples in it. As a dataset it is indexed by what [`MixtureBatches`] yields.

    Sources take turns so that each has its share of the *rows* at any time, up to the length of one example.

    Args:
        sources (`Sequence[Source]`): The sources.
        processor (`UniAudio2Processor`): Makes the rows.
        max_rows (`int`): The context. Examples that are longer are left out, and counted.
        packed (`bool`, *optional*, defaults to `True`):
            Whether several examples share one sequence of exactly `max_rows`, told apart by their positions.
        semantic_features (`bool`, *optional*, defaults to `False`):
            Whether items bring the features that the understanding warm-up regresses.

    Raises:
        ValueError: While it plans, if a source has no example that fits.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        processor: UniAudio2Processor,
        max_rows: int,
        packed: bool = True,
        semantic_features: bool = False,
    ):
        self.sources, self.processor = list(sources), processor
        self.max_rows, self.packed, self.semantic_features = max_rows, packed, semantic_features

    @property
    def num_left_out(self) -> int:
        """Examples of the plan so far that did not fit."""
        return sum(source.num_left_out for source in self.sources)

    def draws(self) -> Iterator[Draw]:
        """The examples in the order of the plan, without end."""
        rows = np.zeros(len(self.sources))
        weights = np.array([source.weight for source in self.sources], dtype=float)
        streams = [source.draws(place, self.max_rows) for place, source in enumerate(self.sources)]
        while True:
            draw = next(streams[int(np.argmin(rows / weights))])
            yield draw
            rows[draw.source] += draw.length

    def sequences(self) -> Iterator[tuple[Draw, ...]]:
        """What shares a sequence: one example, or as many as fit. The fullest of `OPEN_ROWS` sequences is closed."""
        if not self.packed:
            yield from ((draw,) for draw in self.draws())
        open_: list[list[Draw]] = []
        free: list[int] = []
        for draw in self.draws():
            place = next((i for i, room in enumerate(free) if draw.length <= room), None)
            if place is None:
                if len(open_) == OPEN_ROWS:
                    fullest = free.index(min(free))
                    free.pop(fullest)
                    yield tuple(open_.pop(fullest))
                open_.append([])
                free.append(self.max_rows)
                place = -1
            open_[place].append(draw)
            free[place] -= draw.length

    def __getitem__(self, draws: tuple[Draw, ...]) -> dict[str, torch.Tensor]:
        """The rows of a sequence, and where they are packed their positions."""
        parts, features = [], []
        for draw in draws:
            source = self.sources[draw.source]
            turn = source.turn(draw, self.max_rows)
            generator = torch.Generator().manual_seed(int(source.generator(draw.number).integers(2**62)))
            (rows,) = self.processor.example_rows([[turn]], generator=generator)
            parts.append(rows)
            if self.semantic_features:
                frames = turn.values["audio"].reconstruction_codes.shape[1]
                flat = torch.as_tensor(source.semantic_features(draw), dtype=torch.float32).view(frames, -1)
                features.append(features_of_rows(turn, rows, flat))
        positions = torch.cat([torch.arange(len(rows)) for rows in parts])
        if self.packed:
            # The rest is a sequence of its own, of text rows without labels.
            rest = self.processor.row_format.padding_rows(self.max_rows - sum(map(len, parts)))
            parts.append(rest)
            positions = torch.cat([positions, torch.arange(len(rest))])
        rows = Rows.join(parts)
        item = {name: getattr(rows, name) for name in ("input_ids", "mm_token_type_ids", "labels")}
        if self.packed:
            item["position_ids"] = positions
        if self.semantic_features:
            found = torch.cat(features)
            item["semantic_features"] = found.new_zeros(len(rows), found.shape[1])
            item["semantic_features"][: len(found)] = found
            item["semantic_mask"] = item["semantic_features"].abs().sum(-1) > 0
        return item

    def collate(self, items: Sequence[Mapping[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """A batch: packed sequences have one length and no mask, others are filled up on the right."""
        if self.packed:
            return {name: torch.stack([item[name] for item in items]) for name in items[0]}
        rows = [Rows(*(item[name] for name in ("input_ids", "mm_token_type_ids", "labels"))) for item in items]
        batch = self.processor.row_format.batch(rows, "right")
        for name in ("semantic_features", "semantic_mask"):
            if name in items[0]:
                values = [item[name] for item in items]
                batch[name] = torch.nn.utils.rnn.pad_sequence(values, batch_first=True)
        return batch


class EveryExample(Dataset):
    """
    Every record of every source once, for evaluation; those that are longer than the context are left out.

    Args:
        mixture (`Mixture`): The sources; not packed. Its `collate` makes batches.

    Attributes:
        multiple (`int`): To a multiple of it the examples are filled up, with empty ones, which no loss counts.
    """

    def __init__(self, mixture: Mixture):
        self.mixture, self.draws, self.multiple = mixture, [], 1
        for place, source in enumerate(mixture.sources):
            lengths = [source.length(number, mixture.max_rows) for number in range(source.num_items)]
            self.draws += [Draw(place, number, length) for number, length in enumerate(lengths) if length is not None]
            source.num_left_out = lengths.count(None)
            warn_of_left_out(source, place, len(lengths), mixture.max_rows)

    def __len__(self) -> int:
        return -(-len(self.draws) // self.multiple) * self.multiple

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        if index < len(self.draws):
            return self.mixture[(self.draws[index],)]
        item = self.mixture[(self.draws[0],)]
        rows = self.mixture.processor.row_format.padding_rows(len(item["labels"]))
        item |= {name: getattr(rows, name) for name in ("input_ids", "mm_token_type_ids", "labels")}
        if "semantic_mask" in item:
            item["semantic_mask"] = torch.zeros_like(item["semantic_mask"])
        return item


class MixtureBatches:
    """
    The batch sampler of a [`Mixture`], without end.

    Args:
        mixture (`Mixture`): The plan.
        batch_size (`int`):
            Packed sequences of a batch. Where examples are not packed, the budget of a batch is as many rows as these
            would have, padding included: few long examples or many short ones.
        seed (`int`, *optional*, defaults to 0): Of the order of batches of similar lengths.
    """

    def __init__(self, mixture: Mixture, batch_size: int, seed: int = 0):
        self.mixture, self.sequences_per_batch, self.seed = mixture, batch_size, seed

    def __iter__(self) -> Iterator[list[tuple[Draw, ...]]]:
        sequences = self.mixture.sequences()
        if self.mixture.packed:
            while True:
                yield [next(sequences) for _ in range(self.sequences_per_batch)]
        budget, rng = self.sequences_per_batch * self.mixture.max_rows, np.random.default_rng(self.seed)
        while True:
            chunk = sorted((next(sequences) for _ in range(SORTED_EXAMPLES)), key=lambda draws: draws[0].length)
            batches, batch = [], []
            for draws in chunk:
                if batch and (len(batch) + 1) * draws[0].length > budget:
                    batches.append(batch)
                    batch = []
                batch.append(draws)
            batches.append(batch)
            yield from (batches[index] for index in rng.permutation(len(batches)))


def segment_rows(segment: Segment, size: AudioSize | int) -> int:
    """Rows of one part of a task, with its bos and eos rows."""
    if segment.kind == TEXT:
        return size + 2 + 2 * (segment.wrapper is not None)
    frames = size.reasoning if segment.kind == REASONING else size.reconstruction
    return min(frames, segment.max_frames or frames) + 2


def features_of_rows(turn: Turn, rows: Rows, features: torch.Tensor) -> torch.Tensor:
    """
    The semantic features of the recording `audio` on the rows of its frames, zero elsewhere.

    Args:
        turn (`Turn`), rows (`Rows`): An example of a task.
        features (`torch.FloatTensor` of shape `(frames at 12.5 Hz, feature_size)`):
            Reasoning frames get means of them.

    Returns:
        `torch.FloatTensor` of shape `(sequence_length, feature_size)`.
    """
    result, row = features.new_zeros(len(rows), features.shape[1]), 0
    is_audio = rows.mm_token_type_ids == AUDIO_ROW
    for segment in turn.task.segments:
        if segment.kind == TEXT:
            continue
        codes = turn.values[segment.field]
        codes = codes.reasoning_codes if segment.kind == REASONING else codes.reconstruction_codes
        count = min(codes.shape[1], segment.max_frames or codes.shape[1])
        row += int(is_audio[row:].nonzero()[0])  # past texts
        if segment.field == "audio":
            result[row + 1 : row + 1 + count] = F.adaptive_avg_pool1d(features.T[None], count)[0].T
        row += count + 2
    return result


# Keys of an entry of `data.sources`. Of these `streaming` and `split` are for reading `path`.
SOURCE_KEYS = ("path", "split", "streaming", "shuffle_buffer", "task", "sentences", "weight", "condition_dropout")


def check_source(entry: Any) -> None:
    """
    Check what a recipe says of a source, without its data.

    Raises:
        ValueError: Names the key, and what it may be.
    """
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"A source is a mapping such as {{path: codes, task: ASR, weight: 1}}, but this is {entry!r}."
        )
    refuse_unknown(entry, SOURCE_KEYS, "key of a source")
    if ("task" in entry) == ("sentences" in entry):
        raise ValueError(f"A source has a 'task' or a builder of 'sentences', but this has {dict(entry)}.")
    get_task(entry["task"]) if "task" in entry else get_builder(entry["sentences"])
    weight, dropout = entry.get("weight", 1.0), entry.get("condition_dropout", 0.0)
    if not isinstance(weight, int | float):
        raise ValueError(f"The weight of a source must be a number, but is {weight!r}.")
    if not isinstance(dropout, int | float) or not 0 <= dropout <= 1:
        raise ValueError(f"'condition_dropout' of a source must lie between 0 and 1, but is {dropout!r}.")


def make_source(entry: Mapping[str, Any], dataset, processor: UniAudio2Processor, index: int, seed: int) -> Source:
    """
    A source out of a recipe: `{"path", "weight", "task" or "sentences", "condition_dropout", "shuffle_buffer"}`.

    Args:
        entry (`Mapping[str, Any]`): The entry of the recipe.
        dataset ([`~datasets.Dataset`] or [`~datasets.IterableDataset`]): What `path` holds.
        index (`int`): Its place in the recipe.
    """
    check_source(entry)
    weight, key = float(entry.get("weight", 1.0)), (seed, index)
    is_stream, buffer = isinstance(dataset, import_datasets().IterableDataset), entry.get("shuffle_buffer", 0)
    if buffer and not is_stream:
        raise ValueError("'shuffle_buffer' is for sources with 'streaming: true'; others are in random order anyway.")

    def records(
        audio: Sequence[str], texts: Sequence[str], optional: Collection[str] = ()
    ) -> Records | StreamedRecords:
        if is_stream:
            return StreamedRecords(dataset, processor, audio, texts, key, buffer, optional)
        return Records(dataset, processor, audio, texts, optional)

    if "sentences" in entry:
        builder = get_builder(entry["sentences"])
        if buffer and builder.related_by is not None:
            raise ValueError(
                f"The records of a sentence of {entry['sentences']!r} follow each other in a stream: leave out "
                "'shuffle_buffer'."
            )
        present = set(dataset.column_names or next(iter(dataset)))
        audio = [*builder.audio, *(name for name in builder.optional_audio if name in present)]
        texts = [*builder.texts, *(name for name in builder.optional_texts if name in present)]
        make = StreamedSentenceSource if is_stream else SentenceSource
        optional = (*builder.optional_audio, *builder.optional_texts)
        return make(records(audio, texts, optional), entry["sentences"], weight, key)
    task = get_task(entry["task"])
    texts = [name for name in task.fields if task.is_text(name)]
    audio = [name for name in task.fields if not task.is_text(name)]
    make = StreamedTaskSource if is_stream else TaskSource
    return make(records(audio, texts), task, processor, weight, key, entry.get("condition_dropout", 0.0))


@lru_cache(maxsize=64)
def _permutation(length: int, seed: tuple[int, ...]) -> np.ndarray:
    return np.random.default_rng([*seed, 1]).permutation(length)
