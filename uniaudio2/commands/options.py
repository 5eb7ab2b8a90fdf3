"""What several commands share: the model and its device, the audio file they write, their progress bars."""

import argparse
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from .. import TINY

# What `--output` can be; soundfile decides the format by the suffix.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=TINY, metavar="PATH_OR_ID", help="default: the shipped checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same result (default 0)")
    parser.add_argument("--device", default="auto", help="auto (an accelerator if there is one), cpu, cuda, mps, ...")


def generation_knobs(args: argparse.Namespace, *names: str) -> dict[str, Any]:
    """
    What the user set of these options of `generate`, and of those of sampling: a temperature of 0 means greedy, any
    other of them that ids are drawn.
    """
    knobs = {name: getattr(args, name) for name in names if getattr(args, name) is not None}
    temperature, top_k, top_p = args.temperature, args.top_k, args.top_p
    if temperature is not None and not 0 <= temperature < math.inf:
        raise ValueError(f"--temperature is {temperature}, but must be 0 (the likeliest token) or more")
    if top_k is not None and top_k < 1:
        raise ValueError(f"--top-k is {top_k}, but must be at least 1")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"--top-p is {top_p}, but must be above 0 and at most 1")
    if temperature == 0:
        knobs["do_sample"] = False
    else:
        drawn = {"temperature": temperature, "top_k": top_k, "top_p": top_p}
        drawn = {name: value for name, value in drawn.items() if value is not None}
        knobs |= {"do_sample": True, **drawn} if drawn else {}
    for setting in args.set:
        name, found, value = setting.partition("=")
        if not found or not name.isidentifier():
            raise ValueError(f"--set takes NAME=VALUE, as in --set num_beams=4, but got {setting!r}")
        try:
            knobs[name] = json.loads(value)
        except json.JSONDecodeError:  # a word
            knobs[name] = value
    return knobs


def choose_device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:
        raise ValueError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error


def check_audio_output(path: Path) -> None:
    """Refuses before the work what could not be written after it."""
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        raise ValueError(f"cannot write {path}: the name must end in one of {', '.join(AUDIO_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")


def report_audio(path: Path, seconds: float, start: float) -> None:
    print(f"{path}: {seconds:.2f} s of audio, made in {time.perf_counter() - start:.1f} s", file=sys.stderr)


@contextmanager
def counting_bar(description: str, unit: str, module: torch.nn.Module):
    """A progress bar that counts how often a module runs."""
    with tqdm(desc=description, unit=unit, file=sys.stderr, leave=False) as bar:

        def count(*_) -> None:  # what a hook returns would take the place of the module's output
            bar.update()

        hook = module.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()
