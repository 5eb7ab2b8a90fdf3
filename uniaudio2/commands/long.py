"""`uniaudio2 run --long`: recordings and texts of any length, in pieces."""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import UniAudio2ForConditionalGeneration, UniAudio2Processor
from ..long_form import OVERLAP_SECONDS, PIECE_SECONDS, VOICE_TASK, speak_long, transcribe_long
from ..processing import TaskFormat
from ..processing.turns import question
from .codes_file import CODES_SUFFIX

SPEAKING_TASKS = ("TTS", "Yue_TTS", "InstructTTS", VOICE_TASK)


def check_options(args: argparse.Namespace) -> None:
    """A `ValueError` for options that pieces cannot have."""
    names = ("conversation", "prompt", "reasoning")
    foreign = [f"--{name}" for name in names if getattr(args, name) is not None]
    if foreign:
        raise ValueError(f"--long does not go with {' and '.join(foreign)}: leave one of them out")
    if args.piece_seconds is not None and not args.piece_seconds > 0:
        raise ValueError(f"--piece-seconds is {args.piece_seconds}, but must be more than 0")


def check_task(task: TaskFormat, given: Mapping[str, Any], output: Path | None) -> None:
    """A `ValueError` for what cannot be done in pieces, before anything is computed."""
    if task.name not in SPEAKING_TASKS and (task.output != "text" or task.condition_fields != ("audio",)):
        raise ValueError(
            f"--long is for tasks from a recording alone to text, and for {', '.join(SPEAKING_TASKS)}; {task.name} is "
            f"neither ({task.description})"
        )
    if task.output == "audio" and output.suffix.lower() == CODES_SUFFIX:
        raise ValueError("--long puts sounds together: end --output in .wav or .flac")
    question(task, given)


def answer(
    args: argparse.Namespace,
    task: TaskFormat,
    given: Mapping[str, Any],
    model: UniAudio2ForConditionalGeneration,
    processor: UniAudio2Processor,
    options: Mapping[str, Any],
) -> str | list[torch.Tensor]:
    """The text of a recording, or a waveform of shape `(samples,)` that says a text."""
    piece = args.piece_seconds
    if task.output == "text":
        overlap = OVERLAP_SECONDS if piece is None else min(OVERLAP_SECONDS, piece / 3)
        return transcribe_long(
            model, processor, given["audio"], task=task.name, chunk_seconds=piece, overlap_seconds=overlap, **options
        )
    waveform = speak_long(
        model,
        processor,
        given["text"],
        # A recorded voice makes it that task in any case.
        task="TTS" if task.name == VOICE_TASK else task.name,
        audio_prompt=given.get("audio_prompt"),
        caption=given.get("caption"),
        piece_seconds=PIECE_SECONDS if piece is None else piece,
        seed=args.seed,
        **options,
    )
    return [waveform]
