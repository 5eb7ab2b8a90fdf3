"""The codec of a processor is loaded when it is needed, from wherever the processor says, and saved or referred to."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoProcessor

from uniaudio2.processing import UniAudio2Processor, codec_reference
from uniaudio2.processing.codec_reference import Origin, load_codec, reference_from


@pytest.fixture(scope="module")
def codec_folder(codec, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved") / "codec"
    codec.save_pretrained(folder)
    return folder


@pytest.fixture
def folder(processor, codec_folder, tmp_path):
    """A model folder with a processor and its codec."""
    shutil.copytree(codec_folder, tmp_path / "model" / "codec")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def loads(monkeypatch, codec):
    """Records what would be loaded, and gives a codec at once (loading one for real takes seconds)."""

    class Recorder(list):
        def from_pretrained(self, name, **options):
            self.append((str(name), options))
            return codec

    recorder = Recorder()
    monkeypatch.setattr(codec_reference, "AutoModel", recorder)
    return recorder


def saved_reference(folder):
    return json.loads(Path(folder, "processor_config.json").read_text())["codec_name_or_path"]


def test_a_saved_processor_is_the_same_and_finds_its_codec(processor, codec, tmp_path):
    processor.save_pretrained(tmp_path / "model", save_codec=True)
    shutil.move(tmp_path / "model", tmp_path / "moved")
    loaded = AutoProcessor.from_pretrained(tmp_path / "moved")
    assert type(loaded) is UniAudio2Processor
    # Saving has told the processor where its code will be.
    assert loaded.to_dict() == {name: value for name, value in processor.to_dict().items() if name != "auto_map"}
    assert loaded._codec is None  # not before it is needed
    if not torch.accelerator.is_available():
        assert loaded.codec_device == torch.device("cpu")
    assert loaded.codec.device.type == loaded.codec_device.type
    assert all(
        torch.equal(one.cpu(), other) for one, other in zip(loaded.codec.parameters(), codec.parameters(), strict=True)
    )
    assert loaded.codec is loaded.codec and not loaded.codec.training
    loaded.codec_device = "meta"
    assert loaded.codec.device.type == loaded.codec_device.type == "meta"


def test_the_device_and_the_users_trust_reach_the_codec(folder, loads):
    processor = UniAudio2Processor.from_pretrained(folder, codec_device="cpu", trust_remote_code=True)
    assert processor.codec_device == processor.codec.device == torch.device("cpu")
    assert UniAudio2Processor.from_pretrained(folder, trust_remote_code=False).codec is processor.codec
    assert UniAudio2Processor.from_pretrained(folder).codec is processor.codec
    path, dtype = str(folder / "codec"), {"dtype": torch.float32}
    assert loads == [
        (path, {**dtype, "trust_remote_code": True}),
        (path, {**dtype, "trust_remote_code": False}),
        (path, dtype),
    ]


def test_the_codec_is_no_part_of_the_configuration(processor, tmp_path):
    codec = processor.codec
    assert set(processor.to_dict()) - {"feature_extractor", "processor_class"} <= set(
        UniAudio2Processor.__init__.__code__.co_varnames
    )
    repr(processor)
    assert processor.codec is codec
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "codec").exists()


def test_without_its_codec_a_processor_refers_to_where_it_is(folder, tmp_path, loads):
    processor = UniAudio2Processor.from_pretrained(folder)
    processor.save_pretrained(tmp_path / "checkpoint-10")
    assert saved_reference(tmp_path / "checkpoint-10") == str(folder / "codec")
    again = UniAudio2Processor.from_pretrained(tmp_path / "checkpoint-10")
    assert again.codec is not None and loads[-1][0] == str(folder / "codec")
    # A copy of the copy still knows, and saving did not change the first.
    again.save_pretrained(tmp_path / "checkpoint-20")
    assert saved_reference(tmp_path / "checkpoint-20") == str(folder / "codec")
    assert processor.codec_name_or_path == "codec"


def test_saving_into_its_own_folder_keeps_the_reference_relative(folder):
    UniAudio2Processor.from_pretrained(folder).save_pretrained(folder)
    assert saved_reference(folder) == "codec"


def test_a_codec_that_was_set_is_saved_or_referred_to(processor, codec, codec_folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(codec, "name_or_path", "")
    processor.save_pretrained(tmp_path / "alone")
    assert "set in memory" in caplog.text and saved_reference(tmp_path / "alone") == "codec"
    monkeypatch.setattr(codec, "name_or_path", str(codec_folder))
    processor.save_pretrained(tmp_path / "referring")
    assert saved_reference(tmp_path / "referring") == str(codec_folder)
    monkeypatch.setattr(codec, "name_or_path", "org/codec")
    processor.save_pretrained(tmp_path / "hub")
    assert saved_reference(tmp_path / "hub") == "org/codec"


def test_a_path_names_a_codec_elsewhere(folder, codec_folder, loads, monkeypatch):
    processor = UniAudio2Processor.from_pretrained(folder, codec_name_or_path=str(codec_folder))
    assert processor.codec is not None and loads[-1][0] == str(codec_folder)
    monkeypatch.chdir(codec_folder.parent.parent)
    relative = f"{codec_folder.parent.name}/codec"
    load_codec(relative, None, "cpu")
    assert loads[-1][0] == relative
    assert reference_from(relative, None, folder) == str(codec_folder)


def test_a_missing_codec_is_named_with_the_fix(folder, tokenizer, processor):
    shutil.rmtree(folder / "codec")
    with pytest.raises(FileNotFoundError, match="save_codec=True"):
        _ = UniAudio2Processor.from_pretrained(folder).codec
    in_memory = UniAudio2Processor(processor.feature_extractor, tokenizer)
    with pytest.raises(ValueError, match=r"Set `processor\.codec`"):
        _ = in_memory.codec


def test_saving_with_the_codec_and_pushing_is_refused(processor, tmp_path):
    with pytest.raises(ValueError, match="upload_folder"):
        processor.save_pretrained(tmp_path, save_codec=True, push_to_hub=True)


HUB = Origin("org/model", revision="v2", trust_remote_code=True, hub_options={"token": "hf_x", "cache_dir": "/cache"})


@pytest.mark.parametrize(
    "reference, origin, downloaded",
    [
        ("codec", HUB, ("org/model", "v2", "codec")),
        ("codec", Origin("org/model", subfolder="small"), ("org/model", None, "small/codec")),
        ("./parts/codec", HUB, ("org/model", "v2", "parts/codec")),
        ("other/model/codec", HUB, ("other/model", None, "codec")),
        ("other/model/a/b@v7", None, ("other/model", "v7", "a/b")),
    ],
)
def test_a_folder_on_the_hub_is_downloaded_and_loaded_from_there(
    monkeypatch, tmp_path, loads, reference, origin, downloaded
):
    downloads = []

    def snapshot_download(repository, revision, allow_patterns, **options):
        downloads.append((repository, revision, allow_patterns, options))
        Path(tmp_path, allow_patterns[0].removesuffix("/*")).mkdir(parents=True)
        return str(tmp_path)

    monkeypatch.setattr(codec_reference, "snapshot_download", snapshot_download)
    load_codec(reference, origin, "cpu")
    repository, revision, inside = downloaded
    assert downloads == [(repository, revision, [f"{inside}/*"], origin.hub_options if origin else {})]
    trust = {"trust_remote_code": True} if origin is HUB else {}
    assert loads == [(str(tmp_path / inside), {"dtype": torch.float32, **trust})]


def test_a_repository_of_its_own_is_loaded_with_the_users_options(loads):
    load_codec("other/codec@v3", HUB, "cpu")
    load_codec("other/codec", None, "cpu")
    options = {"dtype": torch.float32}
    assert loads == [
        ("other/codec", {"revision": "v3", "trust_remote_code": True, **HUB.hub_options, **options}),
        ("other/codec", {"revision": "main", **options}),
    ]


@pytest.mark.parametrize(
    "reference, origin, written",
    [
        ("codec", HUB, "org/model/codec@v2"),
        ("codec", Origin("org/model", revision="main"), "org/model/codec"),
        ("codec", Origin("org/model", subfolder="small"), "org/model/small/codec"),
        ("other/codec", HUB, "other/codec"),
        ("other/codec@v3", HUB, "other/codec@v3"),
        ("codec", None, "codec"),
    ],
)
def test_references_to_the_hub_survive_saving_elsewhere(tmp_path, reference, origin, written):
    assert reference_from(reference, origin, tmp_path) == written
