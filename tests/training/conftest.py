"""A corpus of noise with labels, laid out as the real one, and the shipped recipe cut down to seconds."""

import copy
import itertools
import json

import numpy as np
import pytest
import torch
import yaml

from uniaudio2.training.recipe import RECIPES
from uniaudio2.training.tiny import RECIPE
from uniaudio2.training.waveforms import WaveformDataset


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture
def recipe() -> dict:
    """The shipped recipe with two steps wherever it trains."""
    recipe = copy.deepcopy(yaml.safe_load(RECIPE.read_text(encoding="utf-8")))
    stages = [recipe[name]["stages"].values() for name in ("language_model", "language_model_again")]
    for section in [*recipe.values(), *itertools.chain(*stages)]:
        if "per_device_train_batch_size" in section.get("arguments", {}):
            arguments = section["arguments"]
            arguments |= {"max_steps": 2, "save_steps": 1, "logging_steps": 1, "warmup_steps": 0, "disable_tqdm": True}
            # One stays one: where items are batches already.
            arguments["per_device_train_batch_size"] = min(2, arguments["per_device_train_batch_size"])
    recipe["corpus"] |= {"num_train": 24, "num_more": 6, "num_validation": 1, "num_heldout": 2, "num_unseen": 1}
    recipe["scalar_codec"]["crop_samples"] = 4800
    return recipe


@pytest.fixture
def corpus(tmp_path):
    """A folder with a split `train` of eight short recordings of noise."""
    rng = np.random.default_rng(0)
    texts = ["one two", "three", "nine four", "seven", "two six", "zero", "five", "eight one"]
    lengths = [12000, 9000, 15000, 9600, 19200, 7200, 9600, 14000]
    samples = [(3000 * rng.standard_normal(length)).astype(np.int16) for length in lengths]
    starts = np.cumsum([0, *lengths])
    folder = tmp_path / "corpus"
    folder.mkdir()
    np.save(folder / "train.npy", np.concatenate(samples))
    rows = [
        {"id": f"train-{i}", "voice": "noise", "text": text, "start": int(starts[i]), "num_samples": lengths[i]}
        for i, text in enumerate(texts)
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def dataset(corpus) -> WaveformDataset:
    return WaveformDataset(corpus, "train")


@pytest.fixture
def zero3(tmp_path):
    """A shipped file, but with every parameter spread out, however small: else these models would stay whole."""

    def make(name: str = "zero3") -> str:
        config = json.loads((RECIPES.parent / "deepspeed" / f"{name}.json").read_text())
        config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        config["zero_optimization"]["overlap_comm"] = False
        (tmp_path / f"{name}.json").write_text(json.dumps(config))
        return str(tmp_path / f"{name}.json")

    return make
