"""Painted latents keep step with their recordings, and teach the scalar decoder alone."""

import pytest
import torch
from transformers import Trainer

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.training.painted_latents import (
    PaintedCrops,
    PaintedRecordings,
    ScalarDecoderForTraining,
    paint_corpus,
)
from uniaudio2.training.tiny import train

HOP = 960


@pytest.fixture
def codec(recipe) -> ReasoningCodecModel:
    return ReasoningCodecModel(ReasoningCodecConfig(**recipe["codec"])).eval()


@pytest.fixture
def rows(codec, dataset) -> list[dict]:
    size = codec.config.reconstruction_codebook_size
    frames = [-(-row["num_samples"] // (2 * HOP)) for row in dataset.rows]
    return [{"reconstruction_codes": torch.randint(size, (8, length)).short()} for length in frames]


def test_every_recording_gets_its_own_latents(codec, rows, tmp_path):
    paint_corpus(codec, rows, batch_size=2, path=tmp_path / "train.pt")
    latents = torch.load(tmp_path / "train.pt")
    for row, painted in zip(rows, latents, strict=True):
        assert painted.shape == (2 * row["reconstruction_codes"].shape[1], codec.config.latent_dim)
        assert painted.isfinite().all()
    # What is painted follows the codes: the same noise with other codes gives other latents.
    torch.manual_seed(0)
    paint_corpus(codec, rows[:1], batch_size=1, path=tmp_path / "a.pt")
    torch.manual_seed(0)
    other = [{"reconstruction_codes": (rows[0]["reconstruction_codes"] + 1) % 64}]
    paint_corpus(codec, other, batch_size=1, path=tmp_path / "b.pt")
    assert not torch.equal(torch.load(tmp_path / "a.pt")[0], torch.load(tmp_path / "b.pt")[0])


def test_crops_of_latents_and_waveform_are_of_the_same_time():
    frames = torch.arange(1, 31)
    item = {"latents": frames[:, None].float(), "waveform": frames.repeat_interleave(HOP)[: 29 * HOP + 17].float()}
    short = {"latents": item["latents"][:3], "waveform": item["waveform"][: 3 * HOP]}
    batch = PaintedCrops(8, HOP)([item, item, short])
    assert batch["latents"].shape == (3, 8, 1) and batch["waveform"].shape == (3, 8 * HOP)
    heard = batch["waveform"].unflatten(1, (8, HOP))[..., 0]
    torch.testing.assert_close(heard, batch["latents"][..., 0])
    assert batch["latents"][2, 3:].count_nonzero() == 0


def test_the_decoder_learns_and_the_encoder_stays(codec, recipe, rows, dataset, tmp_path):
    paint_corpus(codec, rows, batch_size=4, path=tmp_path / "train.pt")
    model = ScalarDecoderForTraining(codec.config.scalar_config, **recipe["scalar_decoder_painted"]["loss"])
    before = {name: weight.clone() for name, weight in model.codec.state_dict().items()}
    examples = PaintedRecordings(torch.load(tmp_path / "train.pt"), dataset)
    collator = PaintedCrops(8, HOP)
    fixed = collator([examples[index] for index in range(4)])
    with torch.no_grad():
        first = model(**fixed)["loss"]
    arguments = recipe["scalar_decoder_painted"]["arguments"] | {"max_steps": 6, "learning_rate": 2e-3}
    train(Trainer, model, examples, collator, tmp_path / "run", arguments)
    with torch.no_grad():
        assert model(**fixed)["loss"] < first
    for name, weight in model.codec.state_dict().items():
        assert torch.equal(weight, before[name]) == name.startswith("encoder."), name
