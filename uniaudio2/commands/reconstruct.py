"""`uniaudio2 reconstruct`: a recording to codes and back."""

import argparse
import time
from pathlib import Path

import torch

from .. import UniAudio2Processor
from .options import add_model_arguments, check_audio_output, choose_device, counting_bar, report_audio


def add_parser(commands) -> None:
    reconstruct = commands.add_parser("reconstruct", help="encode a recording to codes and decode it again")
    reconstruct.add_argument("input", help="the recording (wav, flac, ogg, opus, mp3)")
    reconstruct.add_argument("output", type=Path, help="where to write the reconstruction (wav, flac, ogg, mp3)")
    reconstruct.add_argument("--steps", type=int, help="steps of the flow decoder")
    reconstruct.add_argument("--guidance-scale", type=float, help="guidance of the flow decoder; 1 switches it off")
    add_model_arguments(reconstruct)
    reconstruct.set_defaults(command=_reconstruct)


def _reconstruct(args: argparse.Namespace) -> None:
    check_audio_output(args.output)

    device = choose_device(args.device)
    processor = UniAudio2Processor.from_pretrained(args.model)
    processor.codec_device = device
    inputs = processor.feature_extractor(args.input, return_tensors="pt")
    start = time.perf_counter()
    codec = processor.codec
    with counting_bar("encoding", " windows", codec.front_ends):
        codes = codec.encode(**inputs)
    with counting_bar("decoding", " solver steps", codec.flow_decoder):
        audio = codec.decode(
            codes.reconstruction_codes,
            num_inference_steps=args.steps,
            guidance_scale=args.guidance_scale,
            generator=torch.Generator().manual_seed(args.seed),
        ).audio_values[0]
    # The codes stand for whole frames; the recording ends inside the last one.
    audio = audio[..., : inputs["input_values"].shape[-1]]
    processor.save_audio(audio, args.output, task="reconstruct")
    report_audio(args.output, audio.shape[-1] / processor.feature_extractor.sampling_rate, start)
