"""How soon a stream is heard: the first chunk, as a fraction of the work until the whole waveform is there.

    python benchmarks/streaming_latency.py [--model FOLDER] [--output FILE] [--repeats N]

Answers of given lengths, each as long as its reasoning says: five reasoning frames a second come before the first
frame that can be heard, in a stream as in one piece. The baseline is `generate` and `processor.decode` with the
codec's own windows, in the same process. Time is the processor's, on one thread, which other work on the machine does
not change much. Every fraction is the median of several runs with a seed each, the baseline having the same;
`first_chunk_range` is the smallest and the largest. The codes are likely ones but the answers mean nothing: time
depends on their number alone. What shorter windows cost in quality is measured on recordings that are encoded and
decoded again, as the distance of log-mel spectra.
"""

import argparse
import importlib.metadata
import json
import platform
import statistics
import time
from pathlib import Path

import soundfile as sf
import torch
from transformers import LogitsProcessor, LogitsProcessorList
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor, __version__, stream

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "diffusers")
SECONDS = (2.0, 6.0)
WINDOWS = (1.28, 2.0, 4.0)


class FullReasoning(LogitsProcessor):
    """Keeps a model from ending its reasoning before it has said as much as the answer is long."""

    def __init__(self, config, seconds: float):
        self.eos, self.num_frames = config.reasoning_eos_token_id, int(5 * seconds)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if input_ids.shape[1] <= self.num_frames:
            scores = scores.index_fill(1, torch.tensor([self.eos], device=scores.device), -torch.inf)
        return scores


def measure(model, processor, seconds: float, window_seconds: float | None, seed: int) -> dict[str, float]:
    """Times in seconds of one answer; without a window in one piece, otherwise streamed."""
    inputs = processor("seven three nine", task="TTS")
    options = {
        "min_duration": seconds,
        "max_duration": seconds,
        "do_sample": True,
        "generator": torch.Generator().manual_seed(seed),
        "logits_processor": LogitsProcessorList([FullReasoning(model.config, seconds)]),
    }
    generator = torch.Generator().manual_seed(seed)
    start = time.process_time()
    if window_seconds is None:
        output = model.generate(**inputs, **options, return_dict_in_generate=True)
        generated = time.process_time() - start
        processor.decode(output, generator=generator)
        return {"generated": generated, "whole": time.process_time() - start}

    heard = []
    handle = model.depth_decoder.register_forward_hook(lambda *_: heard.append(time.process_time() - start))
    chunks = stream(
        model, processor, inputs, window_seconds=window_seconds, decode_options={"generator": generator}, **options
    )
    next(chunks)
    first_chunk = time.process_time() - start
    reasoning_rows = int(5 * seconds) + 2
    for _ in chunks:
        pass
    handle.remove()
    # The depth decoder runs once per codebook.
    reasoning = heard[model.config.num_codebooks * reasoning_rows - 1]
    return {"reasoning": reasoning, "first_chunk": first_chunk, "whole": time.process_time() - start}


def median(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def latencies(model, processor, repeats: int) -> list[dict]:
    """
    Per length of the answer and window the times as fractions of the baseline: the end of the reasoning, which is not
    heard, the first chunk, and the last.
    """
    rows = []
    for window in (None, WINDOWS[0]):
        measure(model, processor, 0.4, window, seed=0)  # what runs for the first time is slower
    for seconds in SECONDS:
        runs = {window: [] for window in (None, *WINDOWS)}
        for seed in range(repeats):
            for window, results in runs.items():
                results.append(measure(model, processor, seconds, window, seed))
        for window in WINDOWS:
            # Of the baseline with the same seed, which ran in the same minute.
            fractions = [
                {name: value / baseline["whole"] for name, value in run.items()}
                for run, baseline in zip(runs[window], runs[None], strict=True)
            ]
            first_chunks = [run["first_chunk"] for run in fractions]
            rows.append(
                {
                    "answer_seconds": seconds,
                    "window_seconds": window,
                    "in_one_piece_seconds": round(median(runs[None])["whole"], 3),
                    **{f"{name}_over_one_piece": round(value, 3) for name, value in median(fractions).items()},
                    "first_chunk_range": [round(min(first_chunks), 3), round(max(first_chunks), 3)],
                }
            )
            print(rows[-1], flush=True)
    return rows


def log_mel(waveform: torch.Tensor) -> torch.Tensor:
    filters = mel_filter_bank(513, 80, 0.0, 12_000.0, 24_000, norm="slaney", mel_scale="slaney")
    spectrum = spectrogram(
        waveform.double().numpy(), window_function(1024, "hann"), 1024, 256, power=1.0, mel_filters=filters
    )
    return torch.from_numpy(spectrum).clamp(min=1e-4).log()


def distances(processor, count: int) -> dict[str, float]:
    """Mean absolute difference of log-mel spectra after encoding and decoding, per window of decoding."""
    rows = [json.loads(line) for line in (HERE / "recordings" / "manifest.jsonl").read_text().splitlines()[:count]]
    waveforms = [torch.from_numpy(sf.read(HERE / "recordings" / row["file"], dtype="float32")[0]) for row in rows]
    codes = [processor.encode_audio([waveform.numpy()], 24_000)[0] for waveform in waveforms]
    results = {}
    for window in (*WINDOWS, processor.codec.config.decode_window_seconds):
        values = []
        for waveform, own_codes in zip(waveforms, codes, strict=True):
            generator = torch.Generator().manual_seed(0)
            decoded = processor.decode(own_codes, window_seconds=window, generator=generator)[: len(waveform)]
            values.append(float((log_mel(decoded) - log_mel(waveform[: len(decoded)])).abs().mean()))
        results[str(window)] = round(statistics.mean(values), 4)
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "streaming_latency.json")
    parser.add_argument("--repeats", type=int, default=9)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model = UniAudio2ForConditionalGeneration.from_pretrained(args.model).eval()
    processor = UniAudio2Processor.from_pretrained(args.model, codec_device="cpu")
    results = {
        "latency": latencies(model, processor, args.repeats),
        "log_mel_distance_by_window": distances(processor, 6),
        "versions": {"uniaudio2": __version__, **{name: importlib.metadata.version(name) for name in PACKAGES}},
        "machine": platform.machine(),
        "repeats": args.repeats,
    }
    args.output.write_text(json.dumps(results, indent=2) + "\n")
    print(f"written to {args.output}")


if __name__ == "__main__":
    main()
