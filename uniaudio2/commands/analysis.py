"""`uniaudio2 run --task analysis`: what a recording means, in words, read from its reasoning codes."""

import argparse

from transformers import AutoConfig, set_seed

from .. import ReasoningCodecForConditionalGeneration, ReasoningCodecTextConfig, ReasoningCodecTextProcessor
from .options import choose_device, generation_knobs

TASK = "analysis"


def analyse(args: argparse.Namespace) -> None:
    """Prints the analysis of `--audio` by the text head in `--model`."""
    if args.audio is None or args.output is not None:
        raise ValueError("the analysis of a recording takes --audio and is printed: pass --audio, and no --output")
    model_type = AutoConfig.from_pretrained(args.model).model_type
    if model_type != ReasoningCodecTextConfig.model_type:
        raise ValueError(
            f"{args.model} holds a model of type {model_type!r}, and an analysis needs a codec's text head, which "
            "neither the released files nor the shipped checkpoint have: train one with `uniaudio2 train "
            "reasoning-sft` and then `reasoning-grpo`, and name its folder with --model"
        )
    device = choose_device(args.device)
    processor = ReasoningCodecTextProcessor.from_pretrained(args.model)
    inputs = processor(audio=args.audio, task=TASK).to(device)
    model = ReasoningCodecForConditionalGeneration.from_pretrained(args.model).to(device).eval()
    knobs = generation_knobs(args, "max_new_tokens", "top_k", "top_p")
    set_seed(args.seed)
    print(processor.decode_answers(model.generate(**inputs, **knobs), inputs)[0])
