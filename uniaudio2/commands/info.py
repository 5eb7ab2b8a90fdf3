"""`uniaudio2 info`: what a model folder holds, or what an audio file says of its making, on one screen."""

import argparse
import json
import math
from pathlib import Path

import soundfile
import torch
from transformers import AutoConfig, GenerationConfig
from transformers.utils import cached_file

from .. import TINY, ReasoningCodecModel, UniAudio2ForConditionalGeneration
from ..processing import read_provenance
from .options import AUDIO_SUFFIXES

# A checkpoint's facts about itself: how it was made, from what, when.
PROVENANCE_FILE = "provenance.json"


def add_parser(commands) -> None:
    info = commands.add_parser("info", help="what a model folder holds, or what made an audio file")
    info.add_argument(
        "model", nargs="?", default=TINY, metavar="PATH_OR_ID", help="a model (default: the shipped one) or audio file"
    )
    info.set_defaults(command=_info)


def _info(args: argparse.Namespace) -> None:
    # A file that is not there is no model on the Hub if its name ends as those of audio files do.
    if Path(args.model).is_file() or Path(args.model).suffix.lower() in AUDIO_SUFFIXES:
        _print(_file_facts(args.model))
    else:
        _print(_model_facts(args))


def _file_facts(path: str) -> dict[str, str]:
    provenance = read_provenance(path) or {"provenance": "not recorded"}
    audio = soundfile.info(path)
    return {
        "file": path,
        "audio": f"{audio.duration:.2f} s, {audio.samplerate} Hz, {audio.channels} channel(s), {audio.format}",
        **{name: str(value) for name, value in provenance.items()},
    }


def _model_facts(args: argparse.Namespace) -> dict[str, str]:
    config = AutoConfig.from_pretrained(args.model)
    codec_config = AutoConfig.from_pretrained(args.model, subfolder="codec")
    generation = GenerationConfig.from_pretrained(args.model)
    with torch.device("meta"):
        model, codec = UniAudio2ForConditionalGeneration(config), ReasoningCodecModel(codec_config)
    layers = (config.num_understanding_layers, config.num_cross_modal_layers, config.num_generation_layers)
    lines = {
        "model": args.model,
        "language model": f"{_count(model)} parameters, {sum(layers)} layers "
        f"({layers[0]} understanding, {layers[1]} cross-modal, {layers[2]} generation), width {config.hidden_size}",
        "depth decoder": f"{_count(model.depth_decoder)} parameters, "
        f"{config.depth_decoder_config.num_hidden_layers} layers",
        "text vocabulary": f"{config.vocab_size} ids",
        "context": f"trained on {config.trained_context_length} rows, at most {config.max_position_embeddings}",
        "codec": f"{_count(codec)} parameters, of which {_count(codec.front_ends)} in front ends and "
        f"{_count(codec.flow_decoder)} in the flow decoder",
        "audio": f"{codec_config.sampling_rate} Hz mono",
        "reasoning": _stream(codec_config, "reasoning"),
        "reconstruction": _stream(codec_config, "reconstruction"),
        "windows": f"{codec_config.window_seconds:g} s to encode ({codec_config.encode_mode}), "
        f"{codec_config.decode_window_seconds:g} s to decode ({codec_config.decode_mode})",
        "decoding": f"{codec_config.num_flow_steps} flow steps, guidance {codec_config.flow_guidance_scale:g}",
        "generation": ", ".join(f"{name} {value}" for name, value in generation.to_diff_dict().items()
                                if name in ("do_sample", "temperature", "top_k", "top_p", "max_new_tokens")),
        "tasks": ", ".join(config.tasks) if config.tasks else "not recorded",
    }  # fmt: skip
    provenance = cached_file(args.model, PROVENANCE_FILE, _raise_exceptions_for_missing_entries=False)
    facts = json.loads(Path(provenance).read_text()) if provenance else {"provenance": "not recorded"}
    lines.update({name: str(value) for name, value in facts.items()})
    return lines


def _print(lines: dict[str, str]) -> None:
    width = max(map(len, lines))
    for name, value in lines.items():
        print(f"{name:<{width}}  {value}")


def _stream(codec_config, name: str) -> str:
    rate = codec_config.sampling_rate / getattr(codec_config, f"{name}_hop_length")
    size = getattr(codec_config, f"{name}_codebook_size")
    bits = rate * codec_config.num_codebooks * math.log2(size)
    return f"{rate:g} Hz x {codec_config.num_codebooks} codebooks of {size} ({bits / 1000:.2f} kbit/s)"


def _count(module) -> str:
    return f"{sum(parameter.numel() for parameter in module.parameters()):,}"
