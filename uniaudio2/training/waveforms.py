"""Recordings of a corpus as datasets of waveforms, and the two ways to make batches of them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset


class WaveformDataset(Dataset):
    """One split of a corpus written by [`~uniaudio2.training.spoken_digits.build_corpus`].

    Items are dicts: `waveform` (`numpy.ndarray` of shape `(samples,)`, float32 in [-1, 1]), `text`, `voice`, `id`.

    Args:
        corpus (`Path`): Folder of the corpus.
        split (`str`): `"train"`, `"validation"`, `"heldout"` or `"unseen"`.
        max_samples (`int`, *optional*): Longer recordings are left out.
    """

    def __init__(self, corpus: Path, split: str, max_samples: int | None = None):
        self.samples = np.load(corpus / f"{split}.npy", mmap_mode="r")
        rows = [json.loads(line) for line in (corpus / f"{split}.jsonl").read_text().splitlines()]
        self.rows = [row for row in rows if max_samples is None or row["num_samples"] <= max_samples]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict:
        row = self.rows[index]
        samples = self.samples[row["start"] : row["start"] + row["num_samples"]]
        return {
            "waveform": samples.astype(np.float32) / 32768,
            "text": row["text"],
            "voice": row["voice"],
            "id": row["id"],
        }


def random_start(item: Mapping[str, Any], length: int, num_samples: int) -> int:
    """
    Where a piece of at most `num_samples` begins in a recording of `length`: at random, or as the item says by
    `place`, from 0 to 1. What is drawn here depends on how many batches a data loader has made before, and is another
    one after a resumption; a `place` that comes with the data is not.
    """
    place = item["place"] if "place" in item else torch.rand(()).item()
    return min(int(place * (max(0, length - num_samples) + 1)), max(0, length - num_samples))


class RandomCrops:
    """
    Collator: one random crop of `num_samples` from each recording, `waveform` of an item; a shorter one is padded with
    silence. An item may say by `place` where it is cut, see [`random_start`].
    """

    def __init__(self, num_samples: int):
        self.num_samples = num_samples

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        crops = torch.zeros(len(items), self.num_samples)
        for crop, item in zip(crops, items, strict=True):
            waveform = torch.from_numpy(item["waveform"])
            start = random_start(item, len(waveform), self.num_samples)
            piece = waveform[start : start + self.num_samples]
            crop[: len(piece)] = piece
        return {"waveform": crops}


class PaddedWaveforms:
    """Collator: whole recordings, padded with silence to a multiple of `unit` samples.

    Returns `waveform (batch, samples)` and `num_samples (batch,)`, the lengths before padding.
    """

    def __init__(self, unit: int):
        self.unit = unit

    def __call__(self, items: Sequence[dict]) -> dict[str, torch.Tensor]:
        lengths = torch.tensor([len(item["waveform"]) for item in items])
        longest = -(-int(lengths.max()) // self.unit) * self.unit
        waveforms = torch.zeros(len(items), longest)
        for row, item in zip(waveforms, items, strict=True):
            row[: len(item["waveform"])] = torch.from_numpy(item["waveform"])
        return {"waveform": waveforms, "num_samples": lengths}
