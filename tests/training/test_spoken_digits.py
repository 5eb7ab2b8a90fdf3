"""The corpus: who says what is decided exactly, and held-out strings are never trained on."""

import json
import shutil

import numpy as np
import pytest
import soundfile as sf

from uniaudio2.training.spoken_digits import DIGITS, build_corpus, normalise, plan_corpus, write_recordings
from uniaudio2.training.waveforms import WaveformDataset

PLAN = {
    "voices": ["kal16", "slt_hts"],
    "unseen_voice": "awb",
    "num_train": 300,
    "num_more": 60,
    "num_validation": 20,
    "num_heldout": 30,
    "num_unseen": 10,
    "length_weights": {1: 1, 2: 2, 3: 2},
    "heldout_lengths": [2, 3],
    "pause_probability": 0.1,
    "seed": 3,
}

needs_synthesisers = pytest.mark.skipif(
    not (shutil.which("flite") and shutil.which("festival")), reason="flite and festival are not installed"
)


def test_heldout_strings_are_disjoint_from_training_strings():
    texts = {}
    for utterance in plan_corpus(**PLAN):
        texts.setdefault(utterance.split, set()).add(utterance.text)
    for split in ("heldout", "unseen", "validation"):
        assert not texts[split] & (texts["train"] | texts["more"])
    assert all(set(text.split()) <= set(DIGITS) for text in texts["train"])


def test_the_unseen_voice_speaks_in_its_own_split_alone():
    plan = plan_corpus(**PLAN)
    assert {u.voice for u in plan if u.split == "unseen"} == {"awb"}
    assert {u.voice for u in plan if u.split != "unseen"} == {"kal16", "slt_hts"}


def test_the_same_seed_gives_the_same_plan():
    assert plan_corpus(**PLAN) == plan_corpus(**PLAN)
    assert plan_corpus(**PLAN) != plan_corpus(**{**PLAN, "seed": 4})


def test_pauses_are_spoken_but_not_labelled():
    paused = [u for u in plan_corpus(**PLAN) if u.pauses and " " in u.text]
    assert paused
    assert all("," in u.spoken_text and "," not in u.text for u in paused)


@pytest.mark.parametrize("changes", [{"unseen_voice": "kal16"}, {"voices": ["nobody"]}])
def test_voices_that_do_not_work_are_named(changes):
    with pytest.raises(ValueError, match="known voices"):
        plan_corpus(**{**PLAN, **changes})


def test_normalising_trims_resamples_and_scales():
    tone = np.sin(np.arange(8000) / 5).astype(np.float32)
    samples = normalise(np.pad(0.1 * tone, (3000, 500)), 16000, 24000, peak=0.5, margins=(0.1, 0.2))
    assert samples.dtype == np.int16
    assert abs(len(samples) - (12000 + 2400 + 4800)) < 30
    assert np.abs(samples).max() == pytest.approx(0.5 * 32767, abs=1)
    assert not samples[:2400].any() and not samples[-4800:].any()


@needs_synthesisers
def test_build_a_corpus_and_write_its_recordings(tmp_path):
    small = {**PLAN, "num_train": 3, "num_more": 2, "num_validation": 1, "num_heldout": 2, "num_unseen": 1}
    build_corpus(tmp_path, 24000, (0.4, 0.9), (0.05, 0.1), **small)
    plan = plan_corpus(**small)
    for split, count in (("train", 3), ("heldout", 2), ("unseen", 1)):
        dataset = WaveformDataset(tmp_path, split)
        assert len(dataset) == count
        assert [row["text"] for row in dataset.rows] == [u.text for u in plan if u.split == split]
        assert all(0.39 < np.abs(item["waveform"]).max() < 0.91 for item in dataset)

    write_recordings(tmp_path, ["heldout", "unseen"], tmp_path / "flac", 24000)
    manifest = [json.loads(line) for line in (tmp_path / "flac" / "manifest.jsonl").read_text().splitlines()]
    assert len(manifest) == 3
    waveform, rate = sf.read(tmp_path / "flac" / manifest[0]["file"], dtype="float32")
    assert rate == 24000
    np.testing.assert_array_equal(waveform, WaveformDataset(tmp_path, "heldout")[0]["waveform"])
