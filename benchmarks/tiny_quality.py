"""How well the shipped checkpoint speaks, listens and reconstructs, on recordings it has never heard.

    python benchmarks/tiny_quality.py [--model FOLDER] [--output FILE] [--limit N]

The recordings in `recordings/` are digit strings, none of which is in the training data: 100 by the voices of the
training data, 25 by a voice that is not in it. An independent recogniser (pocketsphinx with a loop over the digits as
its grammar) judges what is said: in the recordings, in their reconstruction by the codec, and in what the model says
for the same texts. The model's own transcriptions are judged too, and so is what it hears in its own speech.
"""

import argparse
import importlib.metadata
import json
import platform
import time
from pathlib import Path

import jiwer
import numpy as np
import soundfile as sf
import soxr
import torch
from pesq import pesq
from pystoi import stoi
from tqdm import tqdm

from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor, __version__
from uniaudio2.evaluation.recognisers import RECOGNISER_RATE, DigitRecogniser

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "diffusers", "pocketsphinx", "jiwer", "pesq", "pystoi")


def word_errors(references: list[str], hypotheses: list[str]) -> dict[str, float]:
    """Word error rate in percent, and how many strings are entirely right."""
    exact = sum(reference == hypothesis for reference, hypothesis in zip(references, hypotheses, strict=True))
    return {"wer_percent": round(100 * jiwer.wer(references, hypotheses), 2), "exact": exact, "of": len(references)}


def measure(
    rows: list[dict],
    recordings: list[np.ndarray],
    model: UniAudio2ForConditionalGeneration,
    processor: UniAudio2Processor,
    speak: bool,
) -> dict:
    """All numbers of one set of recordings.

    Args:
        rows: `text` and `voice` of each.
        recordings: Waveforms at the model's rate.
        model, processor: The checkpoint.
        speak: Whether the model says the texts too.
    """
    rate, recogniser = processor.feature_extractor.sampling_rate, DigitRecogniser()
    texts = [row["text"] for row in rows]
    results: dict = {"recordings": word_errors(texts, [recogniser(x, rate) for x in recordings])}

    reconstructions, generator = [], torch.Generator().manual_seed(0)
    for recording in tqdm(recordings, desc="round trip"):
        inputs = processor.feature_extractor(recording, sampling_rate=rate, return_tensors="pt")
        output = processor.codec(**inputs, generator=generator)
        reconstructions.append(output.audio_values[0, 0].numpy())
    heard = [recogniser(x, rate) for x in reconstructions]
    results["round_trip"] = {
        **word_errors(texts, heard),
        "stoi": _mean(stoi(x, y, rate) for x, y in zip(recordings, reconstructions, strict=True)),
        "pesq": _mean(_wideband_pesq(x, y, rate) for x, y in zip(recordings, reconstructions, strict=True)),
        "wer_percent_by_voice": _by_voice(rows, heard),
    }

    start = time.perf_counter()
    transcripts = [
        processor.decode(model.generate(**processor(audio=x, task="ASR", sampling_rate=rate), do_sample=False))[0]
        for x in tqdm(recordings, desc="listening")
    ]
    results["asr"] = {**word_errors(texts, transcripts), "seconds_each": _seconds_each(start, texts)}

    if speak:
        start, spoken = time.perf_counter(), []
        for index, text in enumerate(tqdm(texts, desc="speaking")):
            generator = torch.Generator().manual_seed(index)
            answer = model.generate(**processor(text, task="TTS"), generator=generator)
            spoken.append(processor.decode(answer, generator=generator)[0].numpy())
        results["tts"] = {
            "judged_by_recogniser": word_errors(texts, [recogniser(x, rate) for x in spoken]),
            "seconds_each": _seconds_each(start, texts),
            "judged_by_model": word_errors(
                texts,
                [
                    processor.decode(
                        model.generate(**processor(audio=x, task="ASR", sampling_rate=rate), do_sample=False)
                    )[0]
                    for x in tqdm(spoken, desc="listening to itself")
                ],
            ),
        }
    return results


def _by_voice(rows: list[dict], hypotheses: list[str]) -> dict[str, float]:
    rates = {}
    for voice in sorted({row["voice"] for row in rows}):
        pairs = [(row["text"], heard) for row, heard in zip(rows, hypotheses, strict=True) if row["voice"] == voice]
        rates[voice] = word_errors(*map(list, zip(*pairs, strict=True)))["wer_percent"]
    return rates


def _mean(values) -> float:
    return round(float(np.mean(list(values))), 3)


def _seconds_each(start: float, items: list) -> float:
    return round((time.perf_counter() - start) / len(items), 2)


def _wideband_pesq(reference: np.ndarray, degraded: np.ndarray, rate: int) -> float:
    reference, degraded = (soxr.resample(x, rate, RECOGNISER_RATE) for x in (reference, degraded))
    return pesq(RECOGNISER_RATE, reference, degraded, "wb")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", default=TINY)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "tiny_quality.json")
    parser.add_argument("--limit", type=int, help="take only the first recordings of each set")
    options = parser.parse_args()

    processor = UniAudio2Processor.from_pretrained(options.model, codec_device="cpu")
    model = UniAudio2ForConditionalGeneration.from_pretrained(options.model).eval()
    manifest = [json.loads(line) for line in (HERE / "recordings" / "manifest.jsonl").read_text().splitlines()]
    results: dict = {}
    with torch.no_grad():
        for split in ("heldout", "unseen"):
            rows = [row for row in manifest if row["split"] == split][: options.limit]
            recordings = [sf.read(HERE / "recordings" / row["file"], dtype="float32")[0] for row in rows]
            results[split] = measure(rows, recordings, model, processor, speak=split == "heldout")
    results["aims"] = {
        "asr_wer_percent": 5.0,
        "round_trip_and_tts_wer_percent": round(results["heldout"]["recordings"]["wer_percent"] + 10, 2),
    }
    results["versions"] = {
        "python": platform.python_version(),
        "uniaudio2": __version__,
        **{name: importlib.metadata.version(name) for name in PACKAGES},
    }
    results["recogniser"] = "pocketsphinx, digit-loop grammar, wip=1e-4, lw=6.5, 16 kHz, peak 0.7, 0.3 s padding"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(results, indent=2) + "\n")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
