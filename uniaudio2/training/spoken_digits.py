"""Spoken digit strings with exact labels: a speech corpus that needs nothing but two synthesisers from Debian.

flite and festival read random digit strings aloud. What was said is known exactly, held-out sentences are disjoint
from the training sentences, one voice can be kept out of training altogether, and the same seed gives the same corpus.
"""

import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile as sf
import soxr
from tqdm import tqdm

DIGITS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

# Voice name -> the synthesiser and its own name for the voice.
VOICES = {
    "kal": ("flite", "kal"),
    "kal16": ("flite", "kal16"),
    "awb": ("flite", "awb"),
    "rms": ("flite", "rms"),
    "slt": ("flite", "slt"),
    "kal_diphone": ("festival", "voice_kal_diphone"),
    "slt_hts": ("festival", "voice_cmu_us_slt_arctic_hts"),
}

# Festival loads a voice in 0.3 s and speaks a string in 0.1 s: one process speaks this many.
_FESTIVAL_BATCH = 50


@dataclass(frozen=True)
class Utterance:
    """One recording to be made: where it goes, who speaks, what is said."""

    split: str
    voice: str
    text: str
    pauses: bool

    @property
    def spoken_text(self) -> str:
        """What the synthesiser is given: commas make it pause between digits; the label has none."""
        return self.text.replace(" ", ", ") if self.pauses else self.text


def plan_corpus(
    voices: list[str],
    unseen_voice: str,
    num_train: int,
    num_more: int,
    num_validation: int,
    num_heldout: int,
    num_unseen: int,
    length_weights: dict[int, float],
    heldout_lengths: list[int],
    pause_probability: float,
    seed: int,
) -> list[Utterance]:
    """Decide who says what.

    Args:
        voices: Voices heard in training; every split but `unseen` cycles through them.
        unseen_voice: The voice of the split `unseen`, absent everywhere else.
        num_train, num_more, num_validation, num_heldout, num_unseen: Recordings per split. `more` is like `train`, for
            the language model, which needs more recordings than the codec.
        length_weights: Digits per training string -> relative frequency.
        heldout_lengths: Digits per string in the other splits, all equally frequent.
        pause_probability: Share of the training strings spoken with a pause after each digit.
        seed: Of the random strings.

    Returns:
        The utterances of the splits `heldout`, `unseen`, `validation`, `train` and `more`. No string of the first
        three is said in the others, by any voice.
    """
    unknown = {*voices, unseen_voice} - VOICES.keys()
    if unknown or unseen_voice in voices:
        raise ValueError(
            f"voices={voices} with unseen_voice={unseen_voice!r} does not work: known voices are {sorted(VOICES)}, "
            "and the unseen one must not be among the others."
        )
    rng = np.random.default_rng(seed)

    def string(length: int) -> str:
        return " ".join(DIGITS[i] for i in rng.integers(10, size=length))

    plan, reserved = [], set()
    for split, count, speakers in (
        ("heldout", num_heldout, voices),
        ("unseen", num_unseen, [unseen_voice]),
        ("validation", num_validation, voices),
    ):
        for i in range(count):
            text = string(int(rng.choice(heldout_lengths)))
            while text in reserved:
                text = string(int(rng.choice(heldout_lengths)))
            reserved.add(text)
            plan.append(Utterance(split, speakers[i % len(speakers)], text, pauses=False))

    lengths = np.array(list(length_weights))
    weights = np.array(list(length_weights.values()), dtype=float)
    for split, count in (("train", num_train), ("more", num_more)):
        for i in range(count):
            text = string(int(rng.choice(lengths, p=weights / weights.sum())))
            while text in reserved:
                text = string(int(rng.choice(lengths, p=weights / weights.sum())))
            pauses = bool(rng.random() < pause_probability)
            plan.append(Utterance(split, voices[i % len(voices)], text, pauses))
    return plan


def synthesise(utterances: list[Utterance], num_workers: int = 2) -> Iterator[tuple[np.ndarray, int]]:
    """Speak every utterance, in order, as `(waveform (samples,) float32, sampling_rate)`.

    Raises:
        FileNotFoundError: flite or festival is not installed.
    """
    for program in ("flite", "festival"):
        if shutil.which(program) is None:
            raise FileNotFoundError(
                f"The synthesiser {program!r} is missing. On Debian and Ubuntu: apt-get install flite festival "
                "festvox-kallpc16k festvox-us-slt-hts"
            )
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(num_workers) as pool:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(utterances))]
        jobs: list = [None] * len(utterances)
        by_festival_voice: dict[str, list[int]] = {}
        for i, utterance in enumerate(utterances):
            program, voice = VOICES[utterance.voice]
            if program == "flite":
                jobs[i] = pool.submit(_run_flite, voice, utterance.spoken_text, paths[i])
            else:
                by_festival_voice.setdefault(voice, []).append(i)
        for voice, indices in by_festival_voice.items():
            for start in range(0, len(indices), _FESTIVAL_BATCH):
                batch = indices[start : start + _FESTIVAL_BATCH]
                texts = [utterances[i].spoken_text for i in batch]
                job = pool.submit(_run_festival, voice, texts, [paths[i] for i in batch])
                for i in batch:
                    jobs[i] = job
        for path, job in zip(paths, jobs, strict=True):
            job.result()
            yield sf.read(path, dtype="float32")
            path.unlink()


def _run_flite(voice: str, text: str, path: Path) -> None:
    subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(path)], check=True, capture_output=True)


def _run_festival(voice: str, texts: list[str], paths: list[Path]) -> None:
    lines = [f"({voice})"]
    for text, path in zip(texts, paths, strict=True):
        lines.append(f'(utt.save.wave (utt.synth (Utterance Text "{text}")) "{path}" \'riff)')
    subprocess.run(["festival", "--pipe"], input="\n".join(lines).encode(), check=True, capture_output=True)


def normalise(
    waveform: np.ndarray, sampling_rate: int, target_rate: int, peak: float, margins: tuple[float, float]
) -> np.ndarray:
    """Resample, replace the silence at both ends by `margins` seconds of it, and scale to the given peak.

    Returns:
        `numpy.ndarray` of shape `(samples,)`, int16, at `target_rate`.
    """
    waveform = soxr.resample(waveform, sampling_rate, target_rate)
    loud = np.flatnonzero(np.abs(waveform) > 0.01 * np.abs(waveform).max())
    waveform = waveform[loud[0] : loud[-1] + 1]
    before, after = (round(margin * target_rate) for margin in margins)
    waveform = np.pad(waveform * (peak / np.abs(waveform).max()), (before, after))
    return np.round(waveform * 32767).astype(np.int16)


def build_corpus(
    folder: Path,
    sampling_rate: int,
    peak_range: tuple[float, float],
    margin_range: tuple[float, float],
    seed: int,
    **plan_arguments,
) -> None:
    """Write the corpus: `{split}.npy` (all samples one after another, int16) beside `{split}.jsonl` (what they say).

    Args:
        folder: Where to write.
        sampling_rate: Of the corpus, in Hz.
        peak_range: Lowest and highest peak of a training recording, so that loudness does not matter later.
        margin_range: Shortest and longest silence at either end, in seconds.
        seed: Of strings, peaks and margins.
        plan_arguments: See [`plan_corpus`].
    """
    plan = plan_corpus(seed=seed, **plan_arguments)
    rng = np.random.default_rng(seed + 1)
    folder.mkdir(parents=True, exist_ok=True)
    recordings: dict[str, list[np.ndarray]] = {}
    rows: dict[str, list[dict]] = {}
    for utterance, (waveform, rate) in tqdm(
        zip(plan, synthesise(plan), strict=True), total=len(plan), desc="speaking"
    ):
        samples = normalise(
            waveform, rate, sampling_rate, rng.uniform(*peak_range), rng.uniform(*margin_range, size=2)
        )
        pieces = recordings.setdefault(utterance.split, [])
        rows.setdefault(utterance.split, []).append(
            {
                "id": f"{utterance.split}-{len(pieces):05d}",
                "voice": utterance.voice,
                "text": utterance.text,
                "start": sum(map(len, pieces)),
                "num_samples": len(samples),
            }
        )
        pieces.append(samples)
    for split, pieces in recordings.items():
        np.save(folder / f"{split}.npy", np.concatenate(pieces))
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[split]))


def write_recordings(corpus: Path, splits: list[str], folder: Path, sampling_rate: int) -> None:
    """Write splits of a corpus as FLAC files with one `manifest.jsonl` (`file`, `voice`, `text`)."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for split in splits:
        samples = np.load(corpus / f"{split}.npy", mmap_mode="r")
        for line in (corpus / f"{split}.jsonl").read_text().splitlines():
            row = json.loads(line)
            name = f"{row['id']}.flac"
            sf.write(folder / name, samples[row["start"] : row["start"] + row["num_samples"]], sampling_rate)
            lines.append(json.dumps({"file": name, "split": split, "voice": row["voice"], "text": row["text"]}))
    (folder / "manifest.jsonl").write_text("\n".join(lines) + "\n")
