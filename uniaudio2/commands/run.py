"""`uniaudio2 run`: do one task."""

import argparse
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import BatchFeature, StoppingCriteria, StoppingCriteriaList, set_seed

from .. import TASKS, UniAudio2ForConditionalGeneration, UniAudio2Processor
from ..processing import AudioCodes, TaskFormat
from ..processing.tasks import get_task
from ..processing.turns import conversation_turns, default_task_of
from . import analysis, long
from .codes_file import CODES_SUFFIX, load_codes, recording, save_codes
from .conversation_file import read_conversation
from .options import add_model_arguments, check_audio_output, choose_device, generation_knobs, report_audio
from .tasks import given_fields, option

# Per value that some task takes, the tasks that take it.
FIELDS = {
    name: [task.name for task in TASKS.values() if name in given_fields(task)]
    for name in dict.fromkeys(name for task in TASKS.values() for name in given_fields(task))
}
# These two may also stand for the only text and the only recording of a task.
MAIN_FIELDS = {
    "text": "the text of the task: words to speak, a description, a question, lyrics, ...",
    "audio": "the recording of the task: a file (wav, flac, ogg, opus, mp3), an address, or codes (.safetensors)",
}


def add_parser(commands) -> None:
    run = commands.add_parser(
        "run", help="do one task: speak, transcribe, describe, ...", epilog="`uniaudio2 tasks` lists the tasks."
    )
    run.add_argument(
        "--task",
        help="by default TTS for a text, ASR for a recording, audio_understanding for both; "
        f"{analysis.TASK} is what a codec's text head says of a recording",
    )
    for name in (*MAIN_FIELDS, *(name for name in FIELDS if name not in MAIN_FIELDS)):
        run.add_argument(option(name), help=MAIN_FIELDS.get(name, f"for {', '.join(FIELDS[name])}"))
    run.add_argument("--prompt", help="an instruction in place of the task's own")
    run.add_argument(
        "--conversation",
        type=Path,
        metavar="JSON",
        help="in place of a task and its values: a list of messages, earlier ones being examples (docs/few-shot.md)",
    )
    run.add_argument(
        "--reasoning",
        metavar="AUDIO",
        help="a recording, or codes, whose reasoning the answer takes over: only the sound is generated",
    )
    run.add_argument(
        "--output",
        type=Path,
        help="where to write the audio that a task produces (wav, flac, ogg, mp3), or its codes (safetensors); "
        "of several recordings out.wav becomes out-1.wav, out-2.wav",
    )
    run.add_argument("--max-new-tokens", type=int, help="most text tokens, or audio frames (17.5 are a second)")
    run.add_argument("--min-duration", type=float, help="fewest seconds of an audio answer")
    run.add_argument("--max-duration", type=float, help="most seconds of an audio answer")
    run.add_argument("--temperature", type=float, help="0 takes the likeliest token; higher values vary more")
    run.add_argument("--top-k", type=int, help="sample among this many likeliest tokens")
    run.add_argument("--top-p", type=float, help="sample among the likeliest tokens that sum to this probability")
    run.add_argument("--guidance-scale", type=float, help="of audio tasks; above 1 follows the text more closely")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other option of `generate`, for instance num_beams=4 or reasoning_temperature=0.7; may be repeated",
    )
    run.add_argument(
        "--long",
        action="store_true",
        help="of a recording to transcribe or a text to speak: in pieces, put together again (any length)",
    )
    run.add_argument("--piece-seconds", type=float, help="with --long: the longest piece")
    add_model_arguments(run)
    run.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> None:
    if args.task == analysis.TASK:
        analysis.analyse(args)
        return
    if args.output is not None and args.output.suffix.lower() != CODES_SUFFIX:
        check_audio_output(args.output)

    knobs = generation_knobs(args, "max_new_tokens", "min_duration", "max_duration", "guidance_scale")
    device = choose_device(args.device)
    processor = UniAudio2Processor.from_pretrained(args.model)
    processor.codec_device = device
    if args.long:
        long.check_options(args)
        task, given = _asked(args, processor)
        long.check_task(task, given, args.output)
        answer = partial(long.answer, args, task, given)
    else:
        if args.piece_seconds is not None:
            raise ValueError("--piece-seconds is for --long: pass that too")
        task, inputs = _inputs(args, processor)
        answer = partial(_answer, args, task, inputs)

    model = UniAudio2ForConditionalGeneration.from_pretrained(args.model).to(device).eval()
    set_seed(args.seed)
    start = time.perf_counter()
    limit = None if args.long else knobs.get("max_new_tokens", model.generation_config.max_new_tokens)
    with tqdm(desc="generating", total=limit, unit=" rows", file=sys.stderr, leave=False) as bar:
        answered = answer(model, processor, {**knobs, "stopping_criteria": StoppingCriteriaList([_Progress(bar)])})
    if isinstance(answered, str):
        print(answered)
    elif isinstance(answered, AudioCodes):
        save_codes(answered, args.output)
    else:
        for path, waveform in zip(_paths(args.output, task), answered, strict=True):
            processor.save_audio(waveform, path, task=task.name)
            report_audio(path, waveform.shape[-1] / processor.feature_extractor.sampling_rate, start)


def _answer(
    args: argparse.Namespace,
    task: TaskFormat,
    inputs: dict[str, Any],
    model: UniAudio2ForConditionalGeneration,
    processor: UniAudio2Processor,
    options: dict[str, Any],
) -> str | AudioCodes | list[torch.Tensor]:
    """A text, codes, or one or more waveforms, as the task and the name of the output ask for."""
    output = model.generate(**BatchFeature(inputs).to(model.device), **options, return_dict_in_generate=True)
    if task.output == "text":
        return processor.decode(output.sequences[0])
    if args.output.suffix.lower() == CODES_SUFFIX:
        return AudioCodes(output.reasoning_codes[0], output.reconstruction_codes[0])
    (waveforms,) = processor.decode(output)
    return waveforms if isinstance(waveforms, list) else [waveforms]


def _inputs(args: argparse.Namespace, processor: UniAudio2Processor) -> tuple[TaskFormat, dict[str, Any]]:
    """The task that is asked for, and what `generate` is given; refused before the codec has to run."""
    task, inputs = _prompt(args, processor)
    if task.output == "audio":
        inputs |= _reasoning(args.reasoning, processor)
    elif args.reasoning is not None:
        raise ValueError(f"--reasoning is for tasks that answer with audio, and {task.name} answers with text")
    return task, inputs


def _prompt(args: argparse.Namespace, processor: UniAudio2Processor) -> tuple[TaskFormat, dict[str, Any]]:
    if args.conversation is not None:
        if _given(args) or args.prompt is not None:
            raise ValueError("--conversation holds all texts and recordings: leave the other inputs out")
        messages = read_conversation(args.conversation)
        continues = bool(messages) and messages[-1].get("role") == "assistant"
        task = conversation_turns(messages, processor.default_task, args.task, continues)[-1].task
        _check_output(args.output, task)
        inputs = processor.apply_chat_template(
            messages,
            tokenize=True,
            return_dict=True,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            task=args.task,
        )
        return task, dict(inputs)
    task, given = _asked(args, processor)
    return task, dict(processor(task=task.name, prompt=args.prompt, **given))


def _given(args: argparse.Namespace) -> dict[str, Any]:
    return {name: getattr(args, name) for name in FIELDS if getattr(args, name) is not None}


def _asked(args: argparse.Namespace, processor: UniAudio2Processor) -> tuple[TaskFormat, dict[str, Any]]:
    """The task that is asked for, and its values as the options give them."""
    given = _given(args)
    if not given and args.task is None:
        raise ValueError(
            "there is nothing to process: pass --text, --audio or --conversation; `uniaudio2 tasks` lists what each "
            "task needs"
        )
    is_text = {name: any(TASKS[task].is_text(name) for task in tasks) for name, tasks in FIELDS.items()}
    texts, recordings = [name for name in given if is_text[name]], [name for name in given if not is_text[name]]
    task = get_task(args.task or default_task_of(bool(texts), bool(recordings), processor.default_task))
    _check_output(args.output, task)
    return task, given | {name: recording(given[name]) for name in recordings}


def _check_output(path: Path | None, task: TaskFormat) -> None:
    if task.output == "text":
        return
    if path is None:
        raise ValueError(
            f"{task.name} produces audio: name the file to write with --output, for instance --output out.wav"
        )
    writes_codes = path.suffix.lower() == CODES_SUFFIX
    if task.num_recordings == 0 and not writes_codes:
        raise ValueError(f"{task.name} produces reasoning codes, not sound: end --output in {CODES_SUFFIX}")
    if task.num_recordings > 1 and writes_codes:
        raise ValueError(f"{task.name} produces {task.num_recordings} recordings: end --output in .wav or .flac")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")


def _reasoning(name: str | None, processor: UniAudio2Processor) -> dict[str, Any]:
    """Reasoning codes for `generate`, of a recording or from a file of codes."""
    if name is None:
        return {}
    codes = load_codes(Path(name)) if name.endswith(CODES_SUFFIX) else processor.encode_audio(name)[0]
    if codes.reasoning_codes is None:
        raise ValueError(f"{name!r} holds no reasoning codes")
    return {"reasoning_codes": codes.reasoning_codes[None]}


def _paths(path: Path, task: TaskFormat) -> list[Path]:
    """A path per recording."""
    if task.num_recordings == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number + 1}{path.suffix}") for number in range(task.num_recordings)]


class _Progress(StoppingCriteria):
    """Moves a progress bar by one for every generated row, and stops nothing."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.bar.update()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
