"""`uniaudio2 run`: do one task."""

import argparse
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import StoppingCriteria, StoppingCriteriaList, set_seed

from .. import UniAudio2ForConditionalGeneration, UniAudio2Processor
from .options import add_model_arguments, check_audio_output, choose_device, report_audio


def add_parser(commands) -> None:
    run = commands.add_parser("run", help="do one task: speak, transcribe, describe, ...")
    run.add_argument("--task", help="by default TTS for a text, ASR for a recording; see `uniaudio2 info`")
    run.add_argument("--text", help="the text of the task: words to speak, a caption, a question")
    run.add_argument("--audio", help="the recording of the task (wav, flac, ogg, opus, mp3)")
    run.add_argument("--output", type=Path, help="where to write the audio a task produces (wav, flac, ogg, mp3)")
    run.add_argument("--max-new-tokens", type=int, help="most text tokens, or audio frames (17.5 are a second)")
    run.add_argument("--temperature", type=float, help="0 takes the likeliest token; higher values vary more")
    run.add_argument("--top-k", type=int, help="sample among this many likeliest tokens")
    run.add_argument("--top-p", type=float, help="sample among the likeliest tokens that sum to this probability")
    run.add_argument("--guidance-scale", type=float, help="of audio tasks; above 1 follows the text more closely")
    add_model_arguments(run)
    run.set_defaults(command=_run)


def _run(args: argparse.Namespace) -> None:
    if args.output is not None:
        check_audio_output(args.output)

    device = choose_device(args.device)
    processor = UniAudio2Processor.from_pretrained(args.model)
    processor.codec_device = device
    inputs = processor(text=args.text, audio=args.audio, task=args.task)
    answers_with_audio = bool(inputs["output_modality"].item())
    if answers_with_audio and args.output is None:
        raise ValueError(
            "this task produces audio: name the file to write with --output, for instance --output out.wav"
        )

    model = UniAudio2ForConditionalGeneration.from_pretrained(args.model).to(device).eval()
    knobs = {
        "max_new_tokens": args.max_new_tokens,
        "top_k": args.top_k,
        "top_p": args.top_p,
        "guidance_scale": args.guidance_scale,
    }
    knobs = {name: value for name, value in knobs.items() if value is not None}
    if args.temperature is not None:
        knobs["do_sample"] = args.temperature > 0
    if args.temperature:
        knobs["temperature"] = args.temperature

    set_seed(args.seed)
    start = time.perf_counter()
    limit = knobs.get("max_new_tokens", model.generation_config.max_new_tokens)
    with tqdm(desc="generating", total=limit, unit=" rows", file=sys.stderr, leave=False) as bar:
        criteria = StoppingCriteriaList([_Progress(bar)])
        sequences = model.generate(**inputs.to(device), **knobs, stopping_criteria=criteria)
    answer = processor.decode(sequences[0])
    if not answers_with_audio:
        print(answer)
        return
    processor.save_audio(answer, args.output)
    report_audio(args.output, answer.shape[-1] / processor.feature_extractor.sampling_rate, start)


class _Progress(StoppingCriteria):
    """Moves a progress bar by one for every generated row, and stops nothing."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.bar.update()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)
