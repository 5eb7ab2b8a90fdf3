"""Released files are pickles: nothing in them may run, and a damaged one is named."""

import argparse
import collections
import os
import pickle
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from uniaudio2.conversion.checkpoint_files import Inert, TorchFile, load_inert
from uniaudio2.conversion.torch_archive import write_archive

FORMATS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "legacy"])


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return {
        "a": torch.randn(3, 4),
        "b.c": torch.randn(5).bfloat16(),
        "flag": torch.tensor(True),
        "empty": torch.ones(0, 2),
    }


def save(content, path: Path, is_zip: bool = True) -> Path:
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    return path


class RunsOnLoad:
    """A pickle of this makes a file when it is loaded the plain way."""

    def __init__(self, proof: Path):
        self.proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self.proof}",)


@FORMATS
def test_tensors_come_back(weights, tmp_path, is_zip):
    file = TorchFile(save({"model": weights}, tmp_path / "file", is_zip), "model")
    assert file.keys() == weights.keys()
    for name, weight in weights.items():
        assert file.shapes[name] == weight.shape and file.dtypes[name] == weight.dtype
        assert torch.equal(file[name], weight)
    file.give_back_pages()
    assert torch.equal(file["a"], weights["a"])


@FORMATS
def test_code_in_a_file_does_not_run(weights, tmp_path, is_zip):
    proof = tmp_path / "it ran"
    path = save({"model": weights, "extra": RunsOnLoad(proof)}, tmp_path / "file", is_zip)
    with pytest.raises(ValueError, match=r"file is refused.*(posix|nt)\.system.*Nothing of it was run"):
        TorchFile(path, "model")
    assert not proof.exists()
    # The same file does run code where it is let: the test above could have failed.
    proof = tmp_path / "it_ran"
    torch.load(save({"extra": RunsOnLoad(proof)}, tmp_path / "file", is_zip), weights_only=False)
    assert proof.exists()


def test_a_bare_pickle_does_not_run_either(tmp_path):
    proof = tmp_path / "it_ran"
    (tmp_path / "file").write_bytes(pickle.dumps({"model": RunsOnLoad(proof)}))
    with pytest.raises(ValueError, match="file is"):
        TorchFile(tmp_path / "file", "model")
    assert not proof.exists()


@FORMATS
def test_objects_of_trainers_become_inert(weights, tmp_path, is_zip, monkeypatch):
    proof = tmp_path / "it_ran"
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        def __getstate__(self):
            return {"lr": 1}

        def __setstate__(self, state):
            proof.touch()

    DictConfig.__module__, DictConfig.__qualname__ = module.__name__, "DictConfig"
    module.DictConfig = DictConfig
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    content = {
        "model": weights,
        "cfg": DictConfig(),
        "args": argparse.Namespace(lr=1),
        "best": np.float64(3),
        "history": collections.defaultdict(list, {"loss": [1.0]}),
        "folder": Path("/data"),
    }
    path = save(content, tmp_path / "file", is_zip)
    assert TorchFile(path, "model").keys() == weights.keys()
    loaded = load_inert(path, can_map=False)
    assert type(loaded["cfg"]) is type(loaded["args"]) is type(loaded["best"]) is Inert
    assert not vars(loaded["args"]) and loaded["history"] == {"loss": [1.0]}
    assert not proof.exists()


@FORMATS
def test_other_classes_are_refused_by_name(weights, tmp_path, is_zip):
    path = save({"model": weights, "chain": collections.ChainMap({1: 2})}, tmp_path / "file", is_zip)
    with pytest.raises(ValueError, match=r"file is refused.*collections\.ChainMap"):
        TorchFile(path, "model")


@FORMATS
@pytest.mark.parametrize("kept", [0.0, 0.2, 0.6, 0.99])
def test_a_truncated_file_is_named(weights, tmp_path, is_zip, kept):
    path = save({"model": weights}, tmp_path / "file", is_zip)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    with pytest.raises(ValueError, match=r"file is no checkpoint, or damaged or cut off.*Fetch it again"):
        TorchFile(path, "model")


@pytest.mark.parametrize(
    "content, message",
    [
        ({"a": torch.ones(1)}, r"under 'model', but holds \['a'\]"),
        ([torch.ones(1)], "under 'model', but holds list"),
        ({"model": [1]}, "but holds a list"),
        ({"model": {"a": torch.ones(1), "b": 3}}, r"no tensors: \['b'\]"),
    ],
)
def test_other_contents_are_named(content, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        TorchFile(save(content, tmp_path / "file"), "model")


def test_our_own_writer_writes_what_torch_reads(weights, tmp_path):
    """One tensor at a time: the next is asked for when the last is written."""
    asked = []

    def produce(name: str) -> torch.Tensor:
        asked.append((name, (tmp_path / "file").stat().st_size))
        return weights[name]

    layout = {name: weight.to("meta") for name, weight in weights.items()}
    write_archive(tmp_path / "file", "model", layout, produce, "writing")
    for is_mapped in (True, False):
        loaded = torch.load(tmp_path / "file", weights_only=True, mmap=is_mapped)["model"]
        assert list(loaded) == list(weights)
        for name, weight in weights.items():
            assert loaded[name].dtype == weight.dtype and torch.equal(loaded[name], weight)
            assert loaded[name].data_ptr() % 64 == 0 or weight.numel() == 0
    assert [name for name, _ in asked] == list(weights)
    assert len({size for _, size in asked}) > 1
