"""`uniaudio2 publish stage`: folders as they will be uploaded, always the same, with nothing of this machine."""

import json
import os
import re
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

import uniaudio2
from uniaudio2.cli import main
from uniaudio2.hub_cards import model_files
from uniaudio2.hub_cards.checks import check_contents, without_folders
from uniaudio2.hub_cards.facts import read_card
from uniaudio2.hub_cards.stage import stage

WEIGHTS = ("codec/model.safetensors", "language-model/codec/model.safetensors", "language-model/model.safetensors")


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(*arguments, capsys):
    assert main(["publish", "stage", *map(str, arguments)]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    return said


def test_three_repositories_and_a_record(folder, tmp_path, capsys):
    assert main(["publish", "stage", str(folder), str(tmp_path / "staged")]) == 0
    staged = contents(tmp_path / "staged")
    assert {path.partition("/")[0] for path in staged} == {"codec", "language-model", "space", "stage.json"}
    record = json.loads(staged.pop("stage.json"))
    named = {f"{repository}/{path}" for repository, files in record["repositories"].items() for path in files}
    assert named == staged.keys()
    # The summary has a line for every file, with its size and the beginning of its SHA-256.
    said = capsys.readouterr().out
    for repository, files in record["repositories"].items():
        for path, entry in files.items():
            assert re.search(
                rf" {entry['bytes']:,}  {entry['sha256'][:12]}  {re.escape(path)}(  linked)?\n", said + "\n"
            )
            assert entry["bytes"] == len(staged[f"{repository}/{path}"])
    assert "language-model/  model NAMESPACE/uniaudio2-random, " in said


def test_the_files_of_each_repository(session_staged):
    staged = contents(session_staged)
    for name in ("config.json", "model.safetensors", "README.md"):
        assert {f"codec/{name}", f"language-model/{name}"} <= staged.keys()
    for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"):
        assert f"language-model/{name}" in staged
    for place in ("codec", "language-model/codec"):
        assert f"{place}/scheduler/scheduler_config.json" in staged
    assert {"codec/preprocessor_config.json", "language-model/generation_config.json"} <= staged.keys()
    assert {
        "space/README.md",
        "space/app.py",
        "space/requirements.txt",
        "space/uniaudio2/__init__.py",
    } <= staged.keys()
    assert not any("__pycache__" in path or path.endswith((".pyi", ".bin", ".pt")) for path in staged)


def test_every_auto_class_is_served(session_staged):
    def auto_map(path):
        return json.loads((session_staged / path).read_text())["auto_map"]

    maps = {
        "language-model/config.json": {
            "AutoConfig",
            "AutoModel",
            "AutoModelForMultimodalLM",
            "AutoModelForTextToWaveform",
        },
        "language-model/processor_config.json": {"AutoProcessor"},
        "codec/config.json": {"AutoConfig", "AutoModel", "AutoModelForAudioTokenization"},
        "codec/preprocessor_config.json": {"AutoFeatureExtractor"},
    }
    for path, expected in maps.items():
        found = auto_map(path)
        assert found.keys() == expected
        for target in found.values():
            assert (session_staged / path).with_name(f"{target.partition('.')[0]}.py").is_file()
    nested = json.loads((session_staged / "language-model" / "processor_config.json").read_text())["feature_extractor"]
    assert "AutoFeatureExtractor" in nested["auto_map"]


def test_the_code_is_that_of_the_package_and_needs_no_package(session_staged):
    package = Path(uniaudio2.__file__).parent
    sources = {path.name: path for name in ("modeling_uniaudio2", "processing", "feature_extraction")
               for path in (package / name).glob("*.py")}  # fmt: skip
    code = [*(session_staged / "codec").rglob("*.py"), *(session_staged / "language-model").rglob("*.py")]
    assert code
    for path in code:
        assert path.read_text() == sources[path.name].read_text()
        assert not re.search(r"^\s*(from|import) (uniaudio2|\.\.)", path.read_text(), flags=re.MULTILINE), path


def test_the_same_twice_from_anywhere(folder, tmp_path):
    stage(folder, tmp_path / "first")
    elsewhere = tmp_path / "somewhere" / "else" / "random"
    shutil.copytree(folder, elsewhere)
    stage(elsewhere, tmp_path / "second")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    # An earlier staging is replaced, with what was added to it.
    (tmp_path / "first" / "codec" / "old.txt").write_text("old")
    stage(folder, tmp_path / "first")
    assert contents(tmp_path / "first") == contents(tmp_path / "second")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "random", "second", "somewhere"]


def test_nothing_of_this_machine(session_staged, session_folder):
    traces = ("is_local", "local_files_only", "_name_or_path")
    for path, content in contents(session_staged).items():
        if path.endswith(".json"):
            for trace in traces:
                assert f'"{trace}"'.encode() not in content, (path, trace)
        if not path.endswith(".safetensors"):
            for trace in (str(session_folder), str(session_folder.parent), os.getcwd()):
                assert trace.encode() not in content, (path, trace)


@pytest.mark.slow
def test_weights_are_links_and_are_copied_where_links_cannot_be(folder, tmp_path, monkeypatch):
    record = stage(folder, tmp_path / "linked")
    assert record["linked"] == sorted(WEIGHTS)
    assert os.path.samefile(
        tmp_path / "linked" / "codec" / "model.safetensors", folder / "codec" / "model.safetensors"
    )

    def link(*_):
        raise OSError("another disk")

    monkeypatch.setattr(os, "link", link)
    record = stage(folder, tmp_path / "copied")
    assert record["linked"] == []
    for name in WEIGHTS:
        assert (tmp_path / "copied" / name).read_bytes() == (tmp_path / "linked" / name).read_bytes()


def test_large_weights_are_cut_into_shards(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(model_files, "MAX_SHARD_BYTES", 100_000)
    stage(folder, tmp_path / "staged")
    shards = sorted((tmp_path / "staged" / "codec").glob("*.safetensors"))
    assert len(shards) > 1
    index = json.loads((tmp_path / "staged" / "codec" / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == {shard.name for shard in shards}
    found = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
    expected = load_file(folder / "codec" / "model.safetensors")
    assert found.keys() == expected.keys() and all(found[name].equal(expected[name]) for name in expected)


def test_names(folder, tmp_path):
    record = stage(folder, tmp_path / "staged", name="digits", namespace="lab")
    assert (record["name"], record["namespace"]) == ("digits", "lab")
    card = (tmp_path / "staged" / "language-model" / "README.md").read_text()
    assert 'model="lab/digits"' in card and "NAMESPACE" not in card
    # A name that already says what it is stays as it is.
    renamed = folder.rename(folder.with_name("uniaudio2_3B"))
    assert stage(renamed, tmp_path / "staged")["name"] == "uniaudio2-3b"


@pytest.mark.parametrize("option", ["--name", "--namespace"])
def test_names_that_the_hub_does_not_have(folder, tmp_path, capsys, option):
    said = refused(folder, tmp_path / "staged", option, "my/model", capsys=capsys)
    assert f"{option} 'my/model' cannot be a name on the Hub" in said


def convert(folder, **changes):
    """Makes the folder look like a conversion of the release."""
    (folder / "card.yaml").unlink()
    record = {
        "source": "UniAudio2_ckpt",
        "revision": None,
        "files": {"llm_ep3.checkpoint": {"bytes": 12, "sha256": "0" * 64}},
        "versions": {"uniaudio2": "0.1.0", "torch": "2.13.0"},
        "warnings": [],
        "language_model": {"tokenizer": {"source": "/data/alice/Llama-3.2-3B"}},
        "codec": {},
    }
    (folder / "conversion.json").write_text(json.dumps({**record, **changes}))


def test_a_conversion_is_under_the_licence_of_llama(folder, tmp_path, capsys):
    convert(folder)
    record = stage(folder, tmp_path / "staged")
    assert record["name"] == "Llama-uniaudio2-random"
    repository = tmp_path / "staged" / "language-model"
    assert "**Built with Llama.**" in (repository / "README.md").read_text()
    assert (
        (repository / "NOTICE").read_text().startswith("Llama 3.2 is licensed under the Llama 3.2 Community License")
    )
    assert "put LICENSE.txt of meta-llama/Llama-3.2-3B" in capsys.readouterr().err
    # Where the tokenizer lay is nobody's business, what it was is.
    assert "alice" not in (repository / "conversion.json").read_text()
    assert json.loads((repository / "conversion.json").read_text())["language_model"]["tokenizer"] == {
        "source": "Llama-3.2-3B"
    }
    codec = json.loads((tmp_path / "staged" / "codec" / "conversion.json").read_text())
    assert "language_model" not in codec and codec["source"] == "UniAudio2_ckpt"

    (folder / "LICENSE.txt").write_text("The licence.")
    stage(folder, tmp_path / "staged", name="mine")
    assert (repository / "LICENSE.txt").read_text() == "The licence."
    said = capsys.readouterr().err
    assert "names that begin with 'Llama'; mine does not" in said and "put LICENSE.txt" not in said


def test_a_codec_that_lies_elsewhere_is_taken_along(folder, tmp_path):
    moved = (folder / "codec").rename(tmp_path / "codec-elsewhere")
    config = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps({**config, "codec_name_or_path": str(moved)}))
    stage(folder, tmp_path / "staged")
    staged = tmp_path / "staged" / "language-model"
    assert json.loads((staged / "processor_config.json").read_text())["codec_name_or_path"] == "codec"
    assert (staged / "codec" / "model.safetensors").is_file()


# What goes wrong


def spoil(name, old, new):
    def change(folder):
        path = folder / name
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def add_to_json(name, **entries):
    def change(folder):
        path = folder / name
        content = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**content, **entries}))

    return change


def truncate(name):
    def change(folder):
        path = folder / name
        path.write_bytes(path.read_bytes()[:-1000])

    return change


def swap_weights(folder):
    shutil.copyfile(folder / "model.safetensors", folder / "codec" / "model.safetensors")


TOKEN = "hf_" + "A1b2" * 9
FAULTS = {
    "no model folder": (lambda folder: (folder / "config.json").unlink(), "is no model folder: it has no config.json"),
    "another model": (add_to_json("config.json", model_type="llama"), "is of the model type 'llama'"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), r"it has no model\*.safetensors"),
    "torn weights": (truncate("model.safetensors"), "model.safetensors"),
    "other weights": (swap_weights, "are not those of its config: .* and [0-9]+ more"),
    "no codec": (lambda folder: shutil.rmtree(folder / "codec"), "there is no such folder.*save_codec=True"),
    "codec on the Hub": (add_to_json("processor_config.json", codec_name_or_path="lab/codec"), "save_codec=True"),
    "no scheduler": (lambda folder: shutil.rmtree(folder / "codec" / "scheduler"), "scheduler_config.json"),
    "broken config": (spoil("config.json", "{", "["), "config.json is not valid JSON"),
    "nobody says": (lambda folder: (folder / "card.yaml").unlink(), "has no card.yaml"),
    "broken record": (
        lambda folder: (folder / "conversion.json").write_text("{"),
        "conversion.json is not valid JSON",
    ),
    "empty record": (lambda folder: (folder / "conversion.json").write_text("{}"), "no valid entry 'source'"),
    "token in a record": (add_to_json("provenance.json", hub_token=TOKEN), "provenance.json holds a token"),
    "path": (
        add_to_json("generation_config.json", assistant="/home/alice/drafts/model"),
        "holds the path '/home/alice/drafts/model' in 'assistant'",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_are_named_and_leave_nothing_behind(folder, tmp_path, capsys, fault):
    change, message = FAULTS[fault]
    change(folder)
    said = refused(folder, tmp_path / "staged", capsys=capsys)
    assert re.search(message, said), said
    assert TOKEN not in said
    assert [path.name for path in tmp_path.iterdir()] == ["random"]


SECRETS = {
    "a token of Hugging Face": TOKEN,
    "a token of GitHub": "ghp_" + "a1B2" * 9,
    "a key of a language model's service": "sk-" + "a1B2" * 9,
    "a key of Amazon": "AKIA" + "A1B2" * 4,
    "a key of Google": "AIza" + "a1B2c" * 7,
    "a key of Weights & Biases": "WANDB_API_KEY=" + "0a1b" * 10,
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----",
    "a password in an address": "https://alice:secret@pypi.example.org/simple",
    "your own token": "my-token",
}


@pytest.mark.parametrize("kind", SECRETS)
@pytest.mark.parametrize("name", ["config.json", "chat_template.jinja", "code/modeling.py", "NOTICE"])
def test_secrets_are_found_in_every_file_and_not_repeated(tmp_path, monkeypatch, kind, name):
    monkeypatch.setenv("HF_TOKEN", "my-token")
    file = tmp_path / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"note": "nothing"}))
    check_contents(tmp_path)
    file.write_text(json.dumps({"note": f"see {SECRETS[kind]} there"}))
    with pytest.raises(ValueError) as caught:
        check_contents(tmp_path)
    assert f"{name} holds {kind}" in str(caught.value) and SECRETS[kind] not in str(caught.value)


def test_names_that_only_look_like_secrets_may_stay(tmp_path):
    names = {"hf_hub": "hf_hub_download(repo_id)", "task": "sk-learn", "url": "https://huggingface.co/me/model@main"}
    (tmp_path / "config.json").write_text(json.dumps(names))
    check_contents(tmp_path)


@pytest.mark.parametrize(
    "path", ["/data/alice/model", r"C:\Users\alice", "~/model", "file:///data/x", r"\\host\share"]
)
def test_paths_are_found_in_settings_and_cut_in_records(tmp_path, path):
    (tmp_path / "config.json").write_text(json.dumps({"parts": [{"source": path}]}))
    with pytest.raises(ValueError, match=r"config.json holds the path .* in 'parts.source'"):
        check_contents(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(without_folders({"parts": [{"source": path}], "web": "a/b"})))
    check_contents(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["web"] == "a/b"


def test_the_home_folder_is_found_in_texts(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/alice")
    (tmp_path / "README.md").write_text("As in /home/alice/thesis.")
    with pytest.raises(ValueError, match=r"README.md names your home folder"):
        check_contents(tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("summary: Random weights.", "", "lacks codec.summary"),
        ("codec:", "codecs:", "unknown entry codecs"),
        ("example: seven three", "example: [seven]", r"example must be of the type str, but is \['seven'\]"),
        ("codec:", "codec: [", "card.yaml is not valid YAML"),
    ],
)
def test_a_card_with_a_slip(session_folder, tmp_path, old, new, message):
    text = (session_folder / "card.yaml").read_text()
    assert old in text
    (tmp_path / "card.yaml").write_text(text.replace(old, new, 1))
    with pytest.raises(ValueError, match=message):
        read_card(tmp_path / "card.yaml")


def test_a_folder_of_somebody_else_stays(folder, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("Chapter 1")
    assert "was not made by `uniaudio2 publish stage`" in refused(folder, theirs, capsys=capsys)
    assert contents(theirs) == {"thesis.txt": b"Chapter 1"}
    assert "is a file" in refused(folder, theirs / "thesis.txt", capsys=capsys)
    empty = tmp_path / "empty"
    empty.mkdir()
    stage(folder, empty)
    assert (empty / "stage.json").is_file()


def test_an_earlier_staging_survives_a_fault(folder, tmp_path, capsys):
    stage(folder, tmp_path / "staged")
    before = contents(tmp_path / "staged")
    (folder / "card.yaml").unlink()
    refused(folder, tmp_path / "staged", capsys=capsys)
    assert contents(tmp_path / "staged") == before


def test_a_config_without_a_type_gets_that_of_the_weights(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    del config["dtype"]
    (folder / "config.json").write_text(json.dumps(config))
    weights = {name: tensor.bfloat16() for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    stage(folder, tmp_path / "staged")
    assert json.loads((tmp_path / "staged" / "language-model" / "config.json").read_text())["dtype"] == "bfloat16"
