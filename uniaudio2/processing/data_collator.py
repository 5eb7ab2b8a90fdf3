"""Data collator of UniAudio 2.0: examples of any task to a padded batch with labels."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from .processing_uniaudio2 import UniAudio2Processor
from .rows import AudioCodes, Rows
from .tasks import TaskFormat, get_task
from .turns import Turn, conversation_turns, example


@dataclass
class UniAudio2DataCollator:
    r"""
    Makes a training batch out of examples. For `Trainer`, pass `remove_unused_columns=False` in its arguments: the
    columns of an example are names of values, which the model does not know.

    An example is one of

    - a task with its values, `{"task": "ASR", "audio": ..., "text": ...}`, optionally with a `"prompt"` and with the
      `"sampling_rate"` of its waveforms. `TASKS["ASR"].fields` lists the names. Recordings are whatever the processor
      takes, best of all codes that were computed before.
    - a conversation, `{"messages": [...]}`, as for [`~UniAudio2Processor.apply_chat_template`]; all answers count.
    - rows that were made before, `{"input_ids", "mm_token_type_ids", "labels"}`.

    Args:
        processor (`UniAudio2Processor`):
            Tokenizes texts and, where an example has no codes, runs the codec.
        padding_side (`str`, *optional*, defaults to `"right"`):
            Where shorter examples are filled up.
        pad_to_multiple_of (`int`, *optional*):
            Round the length of the batch up, for kernels that like it.
        condition_dropout (`float`, *optional*, defaults to 0.0):
            The share of examples whose condition is blanked out, so that guidance works later; 0.1 in the released
            training. Only for the tasks for which the release does it (`TaskFormat.condition_dropout`).
        random_prompts (`bool`, *optional*, defaults to `True`):
            Whether to choose among the prompts of a task at random. Otherwise it is the first.
        seed (`int`, *optional*, defaults to 0):
            Seed of the collator's own generator, from which all its choices come. Workers of a data loader each add
            their own seed.

    Returns:
        `dict[str, torch.Tensor]`: **input_ids** and **labels** (-100 where there is no loss, not shifted) of shape
        `(batch_size, sequence_length, num_codebooks + 1)`, **attention_mask** and **mm_token_type_ids** of shape
        `(batch_size, sequence_length)`.

    Example:

    ```python
    >>> collator = UniAudio2DataCollator(processor, condition_dropout=0.1)
    >>> batch = collator([{"task": "TTS", "text": "seven three nine", "audio": "739.flac"}])
    >>> model(**batch).loss
    ```
    """

    processor: UniAudio2Processor
    padding_side: str = "right"
    pad_to_multiple_of: int | None = None
    condition_dropout: float = 0.0
    random_prompts: bool = True
    seed: int = 0
    _generator: torch.Generator | None = field(default=None, init=False, repr=False)
    _worker_seed: int | None = field(default=None, init=False, repr=False)

    def __post_init__(self):
        if self.padding_side not in ("left", "right"):
            raise ValueError(f"`padding_side` is {self.padding_side!r}, but must be 'left' or 'right'.")
        if not 0.0 <= self.condition_dropout <= 1.0:
            raise ValueError(f"`condition_dropout` is {self.condition_dropout}, but must lie between 0 and 1.")

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        generator = self._own_generator()
        width = self.processor.num_codebooks + 1
        sequences: list[Rows | None] = [_ready_rows(feature, width) for feature in features]
        open_ = [index for index, rows in enumerate(sequences) if rows is None]
        if open_:
            turns = [self._turns(features[index], generator) for index in open_]
            for index, rows in zip(open_, self.processor.example_rows(turns, generator=generator), strict=True):
                sequences[index] = rows

        length = max(len(rows) for rows in sequences)
        if self.pad_to_multiple_of is not None:
            length += -length % self.pad_to_multiple_of
        return self.processor.row_format.batch(sequences, self.padding_side, length)

    def _turns(self, feature: Mapping[str, Any], generator: torch.Generator) -> list[Turn]:
        if feature.get("messages") is not None:
            turns = conversation_turns(feature["messages"], self.processor.default_task, feature.get("task"))
            if not any(turn.answered for turn in turns):
                raise ValueError("The conversation has no answer to learn: end it with an assistant message.")
            return turns
        if feature.get("task") is None:
            raise ValueError(
                f"An example needs 'task' and its values, or 'messages', or rows of ids, but has {sorted(feature)}. "
                "If `Trainer` took columns away, pass `remove_unused_columns=False` in its arguments."
            )
        task = get_task(feature["task"])
        prompt = feature.get("prompt")
        if prompt is None and self.random_prompts and task.prompts:
            prompt = task.prompts[int(torch.randint(len(task.prompts), (), generator=generator))]
        turn = example(task, _with_rate(task, feature), prompt)
        if task.condition_dropout:
            turn.drop_condition = bool(torch.rand((), generator=generator) < self.condition_dropout)
        return [turn]

    def _own_generator(self) -> torch.Generator:
        """The generator, made anew in each worker of a data loader, which otherwise would all choose alike."""
        worker = torch.utils.data.get_worker_info()
        worker_seed = 0 if worker is None else worker.seed
        if self._generator is None or self._worker_seed != worker_seed:
            self._generator = torch.Generator().manual_seed((self.seed + worker_seed) % 2**63)
            self._worker_seed = worker_seed
        return self._generator


def _ready_rows(feature: Mapping[str, Any], width: int) -> Rows | None:
    """The rows of an example that brings them."""
    names = ("input_ids", "mm_token_type_ids", "labels")
    if "input_ids" not in feature:
        return None
    missing = [name for name in names if feature.get(name) is None]
    if missing:
        raise ValueError(f"An example with 'input_ids' needs {', '.join(map(repr, missing))} too.")
    rows = Rows(*(torch.as_tensor(feature[name]) for name in names))
    shapes = [tuple(value.shape) for value in (rows.input_ids, rows.mm_token_type_ids, rows.labels)]
    length = shapes[0][0] if shapes[0] else 0
    if shapes != [(length, width), (length,), (length, width)]:
        raise ValueError(
            f"Rows have shapes (length, {width}), (length,) and (length, {width}) in {', '.join(map(repr, names))}, "
            f"but got {', '.join(map(str, shapes))}."
        )
    return rows


def _with_rate(task: TaskFormat, feature: Mapping[str, Any]) -> dict[str, Any]:
    """The values of an example, its waveforms with the rate that it declares."""
    values, sampling_rate = dict(feature), feature.get("sampling_rate")
    for name in task.fields:
        value = values.get(name)
        brings_rate = isinstance(value, (str, bytes, os.PathLike, Mapping, tuple, AudioCodes))
        if sampling_rate is not None and value is not None and not task.is_text(name) and not brings_rate:
            values[name] = {"array": value, "sampling_rate": sampling_rate}
    return values


__all__ = ["UniAudio2DataCollator"]
