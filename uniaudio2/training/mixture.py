"""Which examples a model sees, in which order and how they share rows: planned from lengths alone.

The plan is a function of the seed. Every process makes the whole plan and takes its part. Where a plan stands is a few
numbers, which a checkpoint keeps: a resumed training goes on exactly where it was, without loading or planning again
what it had seen.

Records that come as a stream have no lengths before they are read. Then the plan reads them, in every process, and a
resumed training reads the stream again from its start, without making anything of it. That is exact with a shuffle
buffer too, which the state of a stream does not hold.
"""

from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from itertools import groupby, repeat
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
from .random_order import permutation, shuffled
from .recipe import BUFFERS_ARE_FOR_STREAMS, refuse_unknown

logger = logging.get_logger(__name__)

# Packed rows that are filled side by side. More leave less padding at the ends and mix less.
OPEN_ROWS = 16
# Examples that are sorted by length before they are cut into batches, where they are not packed.
SORTED_EXAMPLES = 512
# An order is asked for example by example, by turns with those of other sources and of the time through before.
cached_permutation = lru_cache(maxsize=64)(permutation)
# After how many batches of packed sequences the state of the plan is noted.
NOTED_BATCHES = 16


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


# What is said of examples that are left out.
UNFIT_SENTENCE = "have not two segments within"
MORE_EXAMPLES = "raise data.context, or cut recordings and texts into shorter ones"


def warn_of_left_out(source: "Source", place: int, num_left_out: int, number: int, max_rows: int) -> None:
    """Say how many of `number` examples of a source do not fit, if any do not, in the first process alone."""
    if num_left_out and PartialState().is_main_process:
        logger.warning(
            f"{num_left_out} of the {number} examples of source {place} ({source.name}) are left out, as they "
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


@dataclass
class Position:
    """
    Where a plan stands in a source: the number of the next example, how many so far did not fit, and how many of
    these came after the last one that did.
    """

    number: int = 0
    num_left_out: int = 0
    num_refused: int = 0


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
        self._generator = np.random.Generator(np.random.Philox(np.random.SeedSequence([*seed, 0])))
        self._generator_state = self._generator.bit_generator.state

    @property
    def num_items(self) -> int:
        return len(self.records)

    def item(self, number: int) -> int:
        """The record or group of an example."""
        epoch, place = divmod(number, self.num_items)
        return int(cached_permutation(self.num_items, (*self.seed, epoch))[place])

    def generator(self, number: int) -> np.random.Generator:
        """Of all choices that one example makes. There is one, which is put to the place of that example: to make one
        for each would be half of the time of planning."""
        self._generator_state["state"]["counter"][1] = number
        self._generator.bit_generator.state = self._generator_state
        return self._generator

    def draws(self, place: int, max_rows: int, position: Position | None = None) -> Iterator[Draw]:
        """
        The examples that fit, without end. Those that do not are counted, and said after the first time through; the
        choices of an example may let it fit another time.

        Args:
            place (`int`): That of this source among others.
            max_rows (`int`): The longest example.
            position (`Position`, *optional*): Where to begin; it moves along.
        """
        position = position or Position()
        epoch, offset = divmod(position.number, self.num_items) if position.number else (0, 0)
        while True:
            first = position.number - offset
            for length, streamed in self.lengths(epoch, position.number, max_rows):
                number, position.number = position.number, position.number + 1
                if length is None:
                    position.num_left_out += 1
                    position.num_refused += 1
                else:
                    position.num_refused = 0
                    yield Draw(place, number, length, streamed)
            if position.num_refused >= 2 * (position.number - first):
                raise ValueError(
                    f"No example of source {place} ({self.name}) has at most {max_rows} rows: {MORE_EXAMPLES}."
                )
            if epoch == 0:
                warn_of_left_out(self, place, position.num_left_out, position.number, max_rows)
            epoch, offset = epoch + 1, 0

    def lengths(self, epoch: int, number: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        """Rows of each example of one time through, from `number` on, and what is streamed."""
        for following in range(number, (epoch + 1) * self.num_items):
            yield self.length(following, max_rows), None

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

    def lengths(self, epoch: int, number: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        for following, record in enumerate(self.records.epoch(epoch), number):
            yield self._length(following, self.records.sizes_of(record), max_rows), record

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

    def lengths(self, epoch: int, number: int, max_rows: int) -> Iterator[tuple[int | None, Any]]:
        for following, group in enumerate(self._groups(epoch), number):
            sizes, pieces = self._plan(following, group, max_rows)
            yield sum(piece_rows(piece, sizes[piece.record][piece.field]) for piece in pieces) or None, group

    def turn(self, draw: Draw, max_rows: int) -> Turn:
        _, pieces = self._plan(draw.number, draw.streamed, max_rows)
        records = [with_codes(record, self.records.audio, self.records.num_codebooks) for record in draw.streamed]
        return sentence_turn(pieces, records)


@dataclass
class Plan:
    """
    Where the plan of a mixture stands: in its sources, how many rows each has given, and the sequences that still have
    room.
    """

    positions: list[Position]
    rows: list[int]
    open: list[list[Draw]] = field(default_factory=list)

    @property
    def num_left_out(self) -> int:
        """Examples so far that did not fit."""
        return sum(position.num_left_out for position in self.positions)

    def state_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        open_ = [[[draw.source, draw.number, draw.length] for draw in draws] for draws in self.open]
        return {"positions": [asdict(position) for position in self.positions], "rows": [*self.rows], "open": open_}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> "Plan":
        open_ = [[Draw(*draw) for draw in draws] for draws in state["open"]]
        return cls([Position(**position) for position in state["positions"]], [*state["rows"]], open_)


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
        self.is_stored = all(isinstance(source.records, Records) for source in sources)

    def plan(self) -> Plan:
        """At its start."""
        return Plan([Position() for _ in self.sources], [0] * len(self.sources))

    def draws(self, plan: Plan | None = None) -> Iterator[Draw]:
        """The examples in the order of the plan, without end; it moves along."""
        plan = plan or self.plan()
        weights = [source.weight for source in self.sources]
        streams = [
            source.draws(place, self.max_rows, position)
            for place, (source, position) in enumerate(zip(self.sources, plan.positions, strict=True))
        ]
        while True:
            shares = [rows / weight for rows, weight in zip(plan.rows, weights, strict=True)]
            draw = next(streams[shares.index(min(shares))])
            plan.rows[draw.source] += draw.length
            yield draw

    def sequences(self, plan: Plan | None = None) -> Iterator[tuple[Draw, ...]]:
        """What shares a sequence: one example, or as many as fit. The fullest of `OPEN_ROWS` sequences is closed."""
        plan = plan or self.plan()
        if not self.packed:
            yield from ((draw,) for draw in self.draws(plan))
        free = [self.max_rows - sum(draw.length for draw in draws) for draws in plan.open]
        for draw in self.draws(plan):
            place, closed = next((i for i, room in enumerate(free) if draw.length <= room), None), None
            if place is None:
                if len(plan.open) == OPEN_ROWS:
                    fullest = free.index(min(free))
                    free.pop(fullest)
                    closed = tuple(plan.open.pop(fullest))
                plan.open.append([])
                free.append(self.max_rows)
                place = -1
            plan.open[place].append(draw)
            free[place] -= draw.length
            if closed is not None:
                yield closed

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
    """

    def __init__(self, mixture: Mixture):
        self.mixture, self.draws = mixture, []
        for place, source in enumerate(mixture.sources):
            lengths = [source.length(number, mixture.max_rows) for number in range(source.num_items)]
            self.draws += [Draw(place, number, length) for number, length in enumerate(lengths) if length is not None]
            warn_of_left_out(source, place, lengths.count(None), len(lengths), mixture.max_rows)

    def __len__(self) -> int:
        return len(self.draws)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self.mixture[(self.draws[index],)]


class MixtureBatches:
    """
    The batch sampler of a [`Mixture`], without end.

    Args:
        mixture (`Mixture`): The plan.
        batch_size (`int`):
            Packed sequences of a batch. Where examples are not packed, the budget of a batch is as many rows as these
            would have, padding included: few long examples or many short ones.
        seed (`int`, *optional*, defaults to 0): Of the order of batches of similar lengths.

    Attributes:
        plan (`Plan`): Where the plan stands, which is ahead of what a data loader has given.
    """

    def __init__(self, mixture: Mixture, batch_size: int, seed: int = 0):
        self.mixture, self.sequences_per_batch, self.seed = mixture, batch_size, seed
        self.plan = mixture.plan()
        self._start: Mapping[str, Any] | None = None
        self._noted: deque[dict[str, Any]] = deque()

    def __iter__(self) -> Iterator[list[tuple[Draw, ...]]]:
        rng, num_batches = np.random.default_rng(self.seed), 0
        self.plan = self.mixture.plan()
        if self._start is not None:
            self.plan, num_batches = Plan.from_state_dict(self._start["plan"]), self._start["num_batches"]
            rng.bit_generator.state = self._start["generator"]
        self._noted.clear()
        sequences = self.mixture.sequences(self.plan)
        yield from repeat([], num_batches)  # in place of those that whoever resumes takes off
        while True:
            if self.mixture.is_stored:
                state = {"plan": self.plan.state_dict(), "generator": rng.bit_generator.state}
                self._noted.append({"num_batches": num_batches, **state})
            for batch in self._packed(sequences) if self.mixture.packed else self._sorted(sequences, rng):
                num_batches += 1
                yield batch

    def _packed(self, sequences: Iterator[tuple[Draw, ...]]) -> Iterator[list[tuple[Draw, ...]]]:
        for _ in range(NOTED_BATCHES):
            yield [next(sequences) for _ in range(self.sequences_per_batch)]

    def _sorted(
        self, sequences: Iterator[tuple[Draw, ...]], rng: np.random.Generator
    ) -> Iterator[list[tuple[Draw, ...]]]:
        budget = self.sequences_per_batch * self.mixture.max_rows
        chunk = sorted((next(sequences) for _ in range(SORTED_EXAMPLES)), key=lambda draws: draws[0].length)
        batches, batch = [], []
        for draws in chunk:
            if batch and (len(batch) + 1) * draws[0].length > budget:
                batches.append(batch)
                batch = []
            batch.append(draws)
        batches.append(batch)
        yield from (batches[index] for index in rng.permutation(len(batches)))

    def settings(self) -> dict[str, Any]:
        """What a plan without streams is a function of, as JSON has it."""
        mixture = self.mixture
        sources = [[source.name, source.weight, source.num_items, *source.seed] for source in mixture.sources]
        return {
            "sources": sources,
            "context": mixture.max_rows,
            "packed": mixture.packed,
            "sequences_per_batch": self.sequences_per_batch,
            "seed": self.seed,
        }

    def state_dict(self, num_batches: int) -> dict[str, Any] | None:
        """
        Where the plan stood last before so many batches, as JSON has it; what was noted earlier is forgotten.

        Returns:
            `dict[str, Any]`, *optional*: `None` if a source is a stream, in which no place can be kept.
        """
        while len(self._noted) > 1 and self._noted[1]["num_batches"] <= num_batches:
            self._noted.popleft()
        return self._noted[0] if self._noted else None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there, with the same `settings`. Batches before come out empty, for those who count them."""
        self._start = state


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
        raise ValueError(BUFFERS_ARE_FOR_STREAMS)

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
