"""How fast the data of a stage is planned, which every process does for all of them before each step.

    python benchmarks/planning_speed.py [--records N] [--sequences N] [--output FILE]

One process, packed sequences of 2048 rows. The numbers are sequences and examples per second of the process's own
time, and ratios of these to the first source, which is recognition and synthesis.
"""

import argparse
import json
import platform
import time
from itertools import islice
from pathlib import Path

import datasets
from training_throughput import random_records

from uniaudio2 import TINY, UniAudio2Processor
from uniaudio2.training.mixture import Mixture, make_source

CONTEXT = 2048
SOURCES = {
    "tasks": [{"task": "ASR"}, {"task": "TTS"}],
    "interleaved speech and text": [{"sentences": "interleaved_speech_and_text"}],
    "consecutive segments": [{"sentences": "consecutive_segments"}],
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--sequences", type=int, default=2_000)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "planning_speed.json")
    args = parser.parse_args()
    processor = UniAudio2Processor.from_pretrained(TINY)
    records = random_records(processor)
    records = datasets.concatenate_datasets([records] * -(-args.records // len(records)))
    # Eight utterances of a recording each.
    records = records.add_column("recording", [index // 8 for index in range(len(records))])
    records = records.add_column("start", [index % 8 for index in range(len(records))])
    results = {}
    for name, entries in SOURCES.items():
        sources = [make_source(entry, records, processor, index, 0) for index, entry in enumerate(entries)]
        plan = Mixture(sources, processor, CONTEXT).sequences()
        start = time.process_time()
        planned = list(islice(plan, args.sequences))
        seconds = time.process_time() - start
        results[name] = {
            "sequences_per_cpu_second": round(len(planned) / seconds, 1),
            "examples_per_cpu_second": round(sum(map(len, planned)) / seconds, 1),
        }
        ratio = results[name]["sequences_per_cpu_second"] / results["tasks"]["sequences_per_cpu_second"]
        results[name]["ratio"] = round(ratio, 3)
        print(f"{name:28s} {results[name]}")
    report = {"context": CONTEXT, "records": len(records), "sequences": args.sequences, "machine": platform.machine()}
    args.output.write_text(json.dumps(report | {"sources": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
