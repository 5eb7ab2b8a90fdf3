import pytest
import torch

from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.training.codec import (
    CodecTrainer,
    FeatureBatches,
    FlowForTraining,
    ReasoningBranchForTraining,
    code_usage,
    only_item,
)
from uniaudio2.training.front_ends import LetterLabels
from uniaudio2.training.tiny import TinyRecipe, train

ARGUMENTS = {"per_device_train_batch_size": 1, "learning_rate": 1e-3, "disable_tqdm": True}


@pytest.fixture
def codec(recipe, tmp_path):
    return ReasoningCodecModel(TinyRecipe(recipe, tmp_path, tmp_path).codec_config()).eval()


@pytest.fixture
def labels(dataset):
    return LetterLabels(row["text"] for row in dataset.rows)


@pytest.fixture
def batches(codec, dataset, labels):
    batches = FeatureBatches(codec, dataset, labels, batch_size=2)
    batches.add_targets(codec, dataset)
    return batches


def test_recordings_of_equal_length_meet_in_a_batch(batches, dataset):
    lengths = [[-(-dataset.rows[i]["num_samples"] // 9600) for i in group] for group in batches.groups]
    assert all(len(set(group)) == 1 and len(group) <= 2 for group in lengths)
    assert sorted(i for group in batches.groups for i in group) == list(range(len(dataset)))


def test_features_are_those_that_the_codec_extracts(batches, codec, dataset):
    group, stored = batches.groups[0], batches[0]["features"]
    waveform = torch.zeros(len(group), max(dataset.rows[i]["num_samples"] for i in group))
    mask = torch.zeros(waveform.shape, dtype=torch.bool)
    for row, i in enumerate(group):
        samples = torch.from_numpy(dataset[i]["waveform"])
        waveform[row, : len(samples)], mask[row, : len(samples)] = samples, True
    extracted = codec.extract_features(waveform, mask)
    assert stored.keys() == extracted.keys()
    for name, values in extracted.items():
        torch.testing.assert_close(stored[name], values, rtol=2e-3, atol=2e-3)


def test_reasoning_codes_learn_to_spell(batches, codec, labels, recipe, tmp_path):
    model = ReasoningBranchForTraining(
        codec.reasoning_branch, codec.config.hidden_size, labels.num_classes, **recipe["reasoning"]["loss"]
    ).eval()
    before = sum(model(**item)["loss"].item() for item in batches)
    codebooks = model.branch.quantizer.codebooks.clone()
    train(CodecTrainer, model, batches, only_item, tmp_path / "run", {**ARGUMENTS, "max_steps": 12})
    assert sum(model(**item)["loss"].item() for item in batches) < before
    assert not torch.equal(codebooks, model.branch.quantizer.codebooks)


def test_reconstruction_stage_leaves_the_frozen_parts_alone(batches, codec, tmp_path):
    codec.freeze_for_reconstruction_training()
    frozen = {
        name: value.clone()
        for name, value in codec.state_dict().items()
        if name.startswith(("front_ends", "scalar_codec", "reasoning_branch"))
    }
    codebooks = codec.reconstruction_branch.acoustic_quantizer.codebooks.clone()
    train(CodecTrainer, codec, batches, only_item, tmp_path / "run", {**ARGUMENTS, "max_steps": 3})
    after = codec.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in frozen.items())
    assert not torch.equal(codebooks, codec.reconstruction_branch.acoustic_quantizer.codebooks)


def test_flow_stage_does_not_change_a_code(batches, codec, dataset, tmp_path):
    waveform = torch.from_numpy(dataset[0]["waveform"])[None]
    before = codec.encode(waveform)
    flow = {name: value.clone() for name, value in codec.flow_decoder.state_dict().items()}
    model = FlowForTraining(codec)
    train(CodecTrainer, model, batches, only_item, tmp_path / "run", {**ARGUMENTS, "max_steps": 3})
    after = codec.encode(waveform)
    torch.testing.assert_close(before.reconstruction_codes, after.reconstruction_codes)
    torch.testing.assert_close(before.reasoning_codes, after.reasoning_codes)
    assert any(not torch.equal(value, codec.flow_decoder.state_dict()[name]) for name, value in flow.items())


def test_code_usage_is_one_when_all_codes_are_equally_frequent():
    evenly = torch.arange(8).repeat(4)
    codes = torch.stack([evenly, torch.zeros(32, dtype=torch.long), evenly % 4], dim=-1)
    assert code_usage(codes, 8) == pytest.approx([1.0, 1 / 8, 1 / 2])
