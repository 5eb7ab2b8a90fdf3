"""Speaks a sentence, listens to it and to a recording, reconstructs the recording, and draws what happened.

python examples/demo.py --output demo [--model PATH_OR_ID] [--text "seven three nine"]
"""

import argparse
import os
import time
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
from matplotlib import mlab
from matplotlib import pyplot as plt

from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor

# Somebody says "seven seven six three nine four"; the shipped checkpoint was not trained on it.
RECORDING = Path(__file__).parents[1] / "benchmarks" / "recordings" / "heldout-00007.flac"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the waveforms and pictures")
    parser.add_argument("--model", default=TINY, help="default: the shipped tiny checkpoint")
    parser.add_argument("--text", default="seven three nine")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)

    with step("load the model"):
        model = UniAudio2ForConditionalGeneration.from_pretrained(args.model).eval()
        processor = UniAudio2Processor.from_pretrained(args.model)
        processor.codec_device = model.device
        codec = processor.codec  # loaded on first use
    torch.manual_seed(0)

    with step(f'speak "{args.text}"'):
        inputs = processor(text=args.text, task="TTS")
        spoken = processor.decode(model.generate(**inputs)[0])
        processor.save_audio(spoken, args.output / "spoken.wav", task="TTS")

    with step("listen to it"):
        heard_spoken = listen(model, processor, args.output / "spoken.wav")

    with step("listen to a recording"):
        heard_recording = listen(model, processor, RECORDING)

    with step("reconstruct the recording"):
        features = processor.feature_extractor(str(RECORDING), return_tensors="pt")
        codes = codec.encode(**features)
        reconstruction = codec.decode(
            codes.reconstruction_codes, generator=torch.Generator().manual_seed(0)
        ).audio_values
        processor.save_audio(reconstruction[0], args.output / "reconstruction.wav", task="reconstruct")

    with step("draw the pictures"):
        rate = processor.feature_extractor.sampling_rate
        draw_spectrograms(
            {
                "recording": features["input_values"][0, 0],
                "reconstruction": reconstruction[0, 0],
                "spoken": spoken.squeeze(),
            },
            rate,
            args.output / "spectrogram.png",
        )
        draw_codes(codes, args.output / "codes.png")

    print(f'\nsaid              "{args.text}"')
    print(f'heard it as       "{heard_spoken}"')
    print(f'heard recording   "{heard_recording}"')
    print("written           " + ", ".join(sorted(str(path) for path in args.output.iterdir())))


def listen(model, processor, path):
    inputs = processor(audio=path, task="ASR")
    return processor.decode(model.generate(**inputs)[0])


class step:  # noqa: N801 - reads as a statement
    """`with step("..."):` prints what is being done and how long it took."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.start = time.perf_counter()

    def __exit__(self, *error):
        print(f"{time.perf_counter() - self.start:6.2f} s  {self.name}", flush=True)


def draw_spectrograms(waveforms, rate, path):
    figure, axes = plt.subplots(len(waveforms), 1, figsize=(9, 2.4 * len(waveforms)), constrained_layout=True)
    for axis, (name, waveform) in zip(axes, waveforms.items(), strict=True):
        power, frequencies, times = mlab.specgram(waveform.numpy(), NFFT=600, Fs=rate, noverlap=450)
        # Digital silence has no logarithm.
        decibels = 10 * np.log10(np.maximum(power, 1e-12))
        axis.pcolormesh(times, frequencies, decibels, cmap="magma", rasterized=True)
        axis.set(title=name, ylabel="frequency (Hz)")
    axes[-1].set_xlabel("time (s)")
    save(figure, path)


def draw_codes(codes, path):
    figure, axes = plt.subplots(2, 1, figsize=(9, 5), constrained_layout=True)
    streams = {"reasoning, 5 Hz": codes.reasoning_codes[0], "reconstruction, 12.5 Hz": codes.reconstruction_codes[0]}
    for axis, (name, stream) in zip(axes, streams.items(), strict=True):
        image = axis.imshow(stream.numpy(), aspect="auto", interpolation="nearest", cmap="viridis")
        axis.set(title=name, ylabel="codebook", xlabel="frame")
        figure.colorbar(image, ax=axis, label="code")
    save(figure, path)


def save(figure, path):
    aside = path.with_suffix(".part" + path.suffix)
    figure.savefig(aside, dpi=120)
    os.replace(aside, path)
    plt.close(figure)


if __name__ == "__main__":
    main()
