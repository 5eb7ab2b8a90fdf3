"""How fast the language model trains and how much memory it takes: packing, checkpointing and LoRA, in one run.

    python benchmarks/training_throughput.py [--model FOLDER] [--steps N] [--output FILE]

Every variant takes the same examples (ASR and TTS of random codes of 1 to 8 seconds), in a process of its own, so that
the peak of its memory is its own. Ratios are to the first variant: no packing, no checkpointing, all weights. On a CPU
that others use too, the rows per second of its own time are the ones to compare.
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from itertools import islice
from pathlib import Path

import datasets
import torch

from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.training.adapters import add_adapters
from uniaudio2.training.language_model_stages import AudioTextPretrainingTrainer
from uniaudio2.training.mixture import Mixture, MixtureBatches, make_source
from uniaudio2.training.stage_trainer import StageTrainingArguments

VARIANTS = {
    "padded": {},
    "packed": {"packed": True},
    "packed, checkpointing": {"packed": True, "checkpointing": True},
    "packed, LoRA": {"packed": True, "lora": True},
}
CONTEXT, BATCH_SIZE, WARM_UP = 512, 4, 2


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "training_throughput.json")
    args = parser.parse_args()
    # A fresh process per variant; forked ones would inherit the peak of this one.
    with multiprocessing.get_context("spawn").Pool(1, maxtasksperchild=1) as pool:
        results = {name: pool.apply(measure, (args.model, args.steps), variant) for name, variant in VARIANTS.items()}
    baseline = results["padded"]
    for name, result in results.items():
        result["ratios"] = {key: round(result[key] / baseline[key], 3) for key in baseline if key != "ratios"}
        print(f"{name:24s} {result}")
    report = {"context": CONTEXT, "batch_size": BATCH_SIZE, "steps": args.steps, "machine": platform.machine(),
              "torch": torch.__version__, "device": device_name(), "variants": results}  # fmt: skip
    args.output.write_text(json.dumps(report, indent=2) + "\n")


def measure(
    model: str, steps: int, packed: bool = False, checkpointing: bool = False, lora: bool = False
) -> dict[str, float]:
    """Examples and rows without padding per second, rows per second of CPU time, and the peak of the memory in MiB."""
    torch.manual_seed(0)
    processor = UniAudio2Processor.from_pretrained(model)
    language_model = UniAudio2ForConditionalGeneration.from_pretrained(model)
    records = random_records(processor)
    sources = [make_source({"task": task}, records, processor, i, 0) for i, task in enumerate(("ASR", "TTS"))]
    mixture = Mixture(sources, processor, CONTEXT, packed)
    if lora:
        language_model = add_adapters(language_model, AudioTextPretrainingTrainer, 8, 16, 0.0)
    with tempfile.TemporaryDirectory() as folder:
        arguments = StageTrainingArguments(
            folder, max_steps=steps + WARM_UP, per_device_train_batch_size=BATCH_SIZE, save_strategy="no",
            report_to="none", disable_tqdm=True, activation_checkpointing=checkpointing, logging_steps=WARM_UP,
        )  # fmt: skip
        trainer = AudioTextPretrainingTrainer(language_model, arguments, train_dataset=mixture)
        ends = []
        trainer.log = lambda logs, *rest: (
            ends.append((time.perf_counter(), time.process_time())) if "loss" in logs else None
        )
        trainer.train()
    batches = list(islice(MixtureBatches(mixture, BATCH_SIZE), WARM_UP, WARM_UP + steps))
    examples = sum(len(draws) for batch in batches for draws in batch)
    rows = sum(draw.length for batch in batches for draws in batch for draw in draws)
    seconds, cpu_seconds = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return {
        "examples_per_second": examples / seconds,
        "rows_per_second": rows / seconds,
        "rows_per_cpu_second": rows / cpu_seconds,
        "peak_mib": peak_mib(),
    }


def random_records(processor: UniAudio2Processor) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    sizes = {"reasoning_codes": (5, processor.reasoning_codebook_size),
             "reconstruction_codes": (12.5, processor.reconstruction_codebook_size)}  # fmt: skip
    rows = []
    for index in range(64):
        seconds = 1 + index % 8
        codes = {
            name: torch.randint(size, (processor.num_codebooks * int(rate * seconds),), generator=generator).tolist()
            for name, (rate, size) in sizes.items()
        }
        rows.append({"audio": codes, "text": " ".join(["seven"] * seconds)})
    return datasets.Dataset.from_list(rows)


def peak_mib() -> float:
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


if __name__ == "__main__":
    main()
