import pytest
import torch

from uniaudio2.training.front_ends import (
    FrontEndsForTraining,
    FrontEndTrainer,
    LabelledWaveforms,
    LetterLabels,
    RandomProjectionTargets,
)
from uniaudio2.training.tiny import TinyRecipe, train


@pytest.fixture
def config(recipe, tmp_path):
    return TinyRecipe(recipe, tmp_path, tmp_path).codec_config()


@pytest.fixture
def labels():
    return LetterLabels(["one two", "three nine four", "seven six", "zero five eight"])


def test_letters_survive_ctc_decoding(labels):
    letters = labels.encode("three nine").tolist()
    # One frame per letter with a blank between, each repeated.
    frames = [frame for letter in letters for frame in (letter, letter, 0)]
    assert labels.decode(frames) == "three nine"
    assert labels.decode([labels.encode("e")[0]] * 5) == "e"
    assert 0 not in letters and labels.num_classes == len(labels.letters) + 1


def test_batches_carry_their_letters(dataset, labels):
    batch = LabelledWaveforms(labels, 9600)([dataset[0], dataset[2]])
    assert batch["label_lengths"].tolist() == [len("one two"), len("nine four")]
    assert batch["labels"][0, 7:].tolist() == [0, 0]


def test_random_projection_codes_do_not_depend_on_loudness_or_training():
    targets = RandomProjectionTargets(16, num_codes=32, code_dim=4)
    frames = torch.randn(2, 10, 16)
    torch.testing.assert_close(targets(frames), targets(3 * frames + 2))
    assert len(targets(frames).unique()) > 5
    assert not list(targets.parameters())


def test_all_three_encoders_learn(config, dataset, labels, recipe, tmp_path):
    model = FrontEndsForTraining(config, labels.num_classes, **recipe["front_ends"]["loss"])
    collator = LabelledWaveforms(labels, config.frame_unit)
    batch = collator(list(dataset))
    model(**batch)["loss"].backward()
    for encoder in (model.front_ends.whisper, model.front_ends.wavlm, model.front_ends.music_encoder):
        assert any(p.grad is not None and p.grad.any() for p in encoder.parameters())

    before = model(**batch)
    arguments = {"max_steps": 12, "per_device_train_batch_size": 8, "learning_rate": 2e-3, "disable_tqdm": True}
    train(FrontEndTrainer, model, dataset, collator, tmp_path / "run", arguments)
    after = model(**batch)
    for name in ("whisper_loss", "wavlm_loss"):
        assert after[name] < before[name]
