"""Files of codes: what goes in comes out, and nothing comes of nothing."""

import pytest
import torch
from safetensors.torch import save_file

from uniaudio2.commands.codes_file import load_codes, save_codes
from uniaudio2.processing import AudioCodes


def test_codes_survive_a_file(tmp_path, codes):
    reasoning, reconstruction = codes()
    save_codes(AudioCodes(reasoning, reconstruction), tmp_path / "both.safetensors")
    both = load_codes(tmp_path / "both.safetensors")
    assert torch.equal(both.reasoning_codes, reasoning) and torch.equal(both.reconstruction_codes, reconstruction)
    save_codes(AudioCodes(reasoning, reconstruction[:, :0]), tmp_path / "one.safetensors")
    assert load_codes(tmp_path / "one.safetensors").reconstruction_codes is None
    assert {path.name for path in tmp_path.iterdir()} == {"both.safetensors", "one.safetensors"}


def test_an_empty_answer_is_not_written(tmp_path, codes):
    reasoning, reconstruction = codes()
    with pytest.raises(ValueError, match="no codes to write"):
        save_codes(AudioCodes(reasoning[:, :0], reconstruction[:, :0]), tmp_path / "empty.safetensors")
    assert not list(tmp_path.iterdir())


def test_tensors_that_are_no_codes_are_named(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="neither reasoning_codes nor reconstruction_codes"):
        load_codes(tmp_path / "weights.safetensors")
