"""The command line: `uniaudio2 run | reconstruct | info`.

What a command produces goes to stdout (a transcription) or to the file named by `--output`; progress and remarks go to
stderr. A mistake in the request ends with one line on stderr and exit status 2.
"""

import argparse
import json
import math
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import torch
from tqdm import tqdm
from transformers import AutoConfig, GenerationConfig, StoppingCriteria, StoppingCriteriaList, set_seed
from transformers.utils import cached_file

from . import TINY, ReasoningCodecModel, UniAudio2ForConditionalGeneration, UniAudio2Processor

# A checkpoint's facts about itself: how it was made, from what, when.
PROVENANCE_FILE = "provenance.json"
# What `--output` can be; soundfile decides the format by the suffix.
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 2 the request was wrong (one line on stderr says how)."""
    args = build_parser().parse_args(argv)
    try:
        args.command(args)
    except (ValueError, TypeError, OSError) as error:
        # Libraries wrap their messages over several lines; a shell user gets one.
        print(f"uniaudio2: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uniaudio2", description="UniAudio 2.0: text, speech, sound and music in one model."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

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
    _add_model_arguments(run)
    run.set_defaults(command=_run)

    reconstruct = commands.add_parser("reconstruct", help="encode a recording to codes and decode it again")
    reconstruct.add_argument("input", help="the recording (wav, flac, ogg, opus, mp3)")
    reconstruct.add_argument("output", type=Path, help="where to write the reconstruction (wav, flac, ogg, mp3)")
    reconstruct.add_argument("--steps", type=int, help="steps of the flow decoder")
    reconstruct.add_argument("--guidance-scale", type=float, help="guidance of the flow decoder; 1 switches it off")
    _add_model_arguments(reconstruct)
    reconstruct.set_defaults(command=_reconstruct)

    info = commands.add_parser("info", help="what a model folder holds: sizes, rates, tasks, provenance")
    info.add_argument("model", nargs="?", default=TINY, metavar="PATH_OR_ID", help="default: the shipped checkpoint")
    info.set_defaults(command=_info)
    return parser


def _add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default=TINY, metavar="PATH_OR_ID", help="default: the shipped checkpoint")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same result (default 0)")
    parser.add_argument("--device", default="auto", help="auto (an accelerator if there is one), cpu, cuda, mps, ...")


def _run(args: argparse.Namespace) -> None:
    if args.output is not None:
        _check_output(args.output)

    device = _device(args.device)
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
    _report(args.output, answer.shape[-1] / processor.feature_extractor.sampling_rate, start)


def _reconstruct(args: argparse.Namespace) -> None:
    _check_output(args.output)

    device = _device(args.device)
    processor = UniAudio2Processor.from_pretrained(args.model)
    processor.codec_device = device
    inputs = processor.feature_extractor(args.input, return_tensors="pt")
    start = time.perf_counter()
    codec = processor.codec
    with _bar("encoding", " windows", codec.front_ends):
        codes = codec.encode(**inputs)
    with _bar("decoding", " solver steps", codec.flow_decoder):
        audio = codec.decode(
            codes.reconstruction_codes,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed),
        ).audio_values[0]
    # The codes stand for whole frames; the recording ends inside the last one.
    audio = audio[..., : inputs["input_values"].shape[-1]]
    processor.save_audio(audio, args.output)
    _report(args.output, audio.shape[-1] / processor.feature_extractor.sampling_rate, start)


def _info(args: argparse.Namespace) -> None:
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


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except RuntimeError as error:
        raise ValueError(
            f"--device {name} cannot be used here ({str(error).splitlines()[0]}); try --device cpu"
        ) from error


def _check_output(path: Path) -> None:
    """Refuses before the work what could not be written after it."""
    if path.suffix.lower() not in AUDIO_SUFFIXES:
        raise ValueError(f"cannot write {path}: the name must end in one of {', '.join(AUDIO_SUFFIXES)}")
    if not path.parent.is_dir():
        raise ValueError(f"cannot write {path}: the folder {path.parent} does not exist")


def _report(path: Path, seconds: float, start: float) -> None:
    print(f"{path}: {seconds:.2f} s of audio, made in {time.perf_counter() - start:.1f} s", file=sys.stderr)


class _Progress(StoppingCriteria):
    """Moves a progress bar by one for every generated row, and stops nothing."""

    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs) -> torch.BoolTensor:
        self.bar.update()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@contextmanager
def _bar(description: str, unit: str, module: torch.nn.Module):
    """A progress bar that counts how often a module runs."""
    with tqdm(desc=description, unit=unit, file=sys.stderr, leave=False) as bar:

        def count(*_) -> None:  # what a hook returns would take the place of the module's output
            bar.update()

        hook = module.register_forward_hook(count)
        try:
            yield
        finally:
            hook.remove()


if __name__ == "__main__":
    sys.exit(main())
