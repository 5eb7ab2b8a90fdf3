"""`uniaudio2 run --task analysis`: what a recording means, in words, read from its reasoning codes."""

import argparse

from transformers import AutoConfig, set_seed

from .. import ReasoningCodecForConditionalGeneration, ReasoningCodecTextConfig, ReasoningCodecTextProcessor
from ..processing import AudioCodes
from .codes_file import recording
from .options import choose_device, generation_knobs

TASK = "analysis"
# As long as answers get in the recipe of GRPO; without a limit of its own, `generate` stops in the middle of a level.
MAX_NEW_TOKENS = 256


def analyse(args: argparse.Namespace) -> None:
    """Prints the analysis of `--audio`, a recording or its reasoning codes, by the text head in `--model`."""
    if args.audio is None or args.output is not None:
        raise ValueError("the analysis of a recording takes --audio and is printed: pass --audio, and no --output")
    model_type = AutoConfig.from_pretrained(args.model).model_type
    if model_type != ReasoningCodecTextConfig.model_type:
        raise ValueError(
            f"{args.model} holds a model of type {model_type!r}, and an analysis needs a codec's text head, which "
            "neither the released files nor the shipped checkpoint have: train one with `uniaudio2 train "
            "reasoning-sft` and then `reasoning-grpo`, and name its folder with --model"
        )
    audio = recording(args.audio)
    given = {"audio": audio}
    if isinstance(audio, AudioCodes):
        if audio.reasoning_codes is None:
            raise ValueError(f"{args.audio!r} holds no reasoning codes, which is what an analysis is read from")
        given = {"reasoning_codes": audio.reasoning_codes[None].long()}
    device = choose_device(args.device)
    processor = ReasoningCodecTextProcessor.from_pretrained(args.model)
    inputs = processor(**given, task=TASK).to(device)
    model = ReasoningCodecForConditionalGeneration.from_pretrained(args.model).to(device).eval()
    knobs = generation_knobs(args, "max_new_tokens")
    set_seed(args.seed)
    print(processor.decode_answers(model.generate(**inputs, **knobs), inputs)[0])
