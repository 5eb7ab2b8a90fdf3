"""`uniaudio2 publish push` to a Hub on this machine: one commit per repository, and none where nothing has changed."""

import hashlib
import re

import pytest
from fake_hub import ORGANISATION, TOKEN, USER

from uniaudio2.cli import main
from uniaudio2.hub_cards.push import push
from uniaudio2.hub_cards.stage import stage

NAMES = {"codec": "uniaudio2-random-codec", "language-model": "uniaudio2-random", "space": "uniaudio2-random-demo"}
KINDS = {"codec": "model", "language-model": "model", "space": "space"}
TITLE = re.compile(r"Published with uniaudio2 [0-9.]+")


def addresses(namespace=USER):
    return {folder: (KINDS[folder], f"{namespace}/{name}") for folder, name in NAMES.items()}


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def writes(hub):
    """What of the requests changes anything."""
    return [line for line in hub.log if re.match(r"(PUT|POST .*(create|/commit/|objects/batch))", line)]


def test_every_repository_gets_everything_in_one_commit(hub, staged):
    before = contents(staged)
    urls = push(staged, USER)
    assert len(urls) == 3 and all(url.startswith(hub.url) for url in urls)
    for folder, (kind, address) in addresses().items():
        (commit,) = hub.commits(kind, address)
        assert TITLE.fullmatch(commit.title)
        expected = contents(staged / folder)
        assert commit.files.keys() == expected.keys() | {".gitattributes"}
        for path, content in expected.items():
            # The namespace is filled in; everything else is what was staged.
            assert commit.files[path] == content.replace(b"NAMESPACE/uniaudio2", b"me/uniaudio2"), path
            assert path.endswith(".safetensors") == (path in commit.lfs)
    assert hub.repos["space", "me/uniaudio2-random-demo"].sdk == "gradio"
    assert not any(repo.private for repo in hub.repos.values())
    assert contents(staged) == before


def test_no_namespace_is_left_open(hub, staged):
    push(staged, ORGANISATION)
    for kind, address in addresses(ORGANISATION).values():
        for path, content in hub.commits(kind, address)[-1].files.items():
            if not path.startswith("uniaudio2/"):
                assert b"NAMESPACE" not in content, path
    card = hub.commits("model", "lab/uniaudio2-random")[-1].files["README.md"].decode()
    assert 'model="lab/uniaudio2-random"' in card


def test_a_second_push_changes_nothing(hub, staged):
    push(staged, USER)
    hub.log.clear()
    assert push(staged, USER) == []
    assert writes(hub) == []


@pytest.mark.slow
def test_the_same_folder_staged_again_changes_nothing(hub, session_folder, tmp_path):
    stage(session_folder, tmp_path / "staged")
    push(tmp_path / "staged", USER)
    stage(session_folder, tmp_path / "staged")
    hub.log.clear()
    assert push(tmp_path / "staged", USER) == []
    assert writes(hub) == []


def test_what_changed_is_committed_and_nothing_else(hub, staged):
    push(staged, USER)
    card = staged / "language-model" / "README.md"
    card.write_text(card.read_text() + "\nOne more remark.\n")
    assert len(push(staged, USER)) == 1
    assert [commit.changed for commit in hub.commits("model", "me/uniaudio2-random")][1:] == [["README.md"]]
    assert len(hub.commits("model", "me/uniaudio2-random-codec")) == 1


def test_weights_that_would_be_loaded_in_the_place_of_the_staged_ones_go(hub, staged):
    push(staged, USER)
    commit = hub.commits("model", "me/uniaudio2-random")[-1]
    theirs = {"picture.png": b"P", "notes/codec.safetensors": b"N", "LICENSE.txt": b"L"}
    stale = {"model-00001-of-00002.safetensors": b"1", "codec/model-00001-of-00001.safetensors": b"2"}
    commit.files.update(theirs | stale | {"model.safetensors.index.json": b"{}"})
    hub.commits("space", "me/uniaudio2-random-demo")[-1].files["uniaudio2/gone.py"] = b""
    assert len(push(staged, USER)) == 2
    commit = hub.commits("model", "me/uniaudio2-random")[-1]
    assert sorted(commit.changed) == sorted([*stale, "model.safetensors.index.json"])
    assert theirs.items() <= commit.files.items()
    assert hub.commits("space", "me/uniaudio2-random-demo")[-1].changed == ["uniaudio2/gone.py"]


def test_a_dry_run_says_what_would_change_and_changes_nothing(hub, staged, capsys):
    push(staged, USER, dry_run=True)
    assert "me/uniaudio2-random: would be created" in capsys.readouterr().err
    assert writes(hub) == []
    push(staged, USER)
    (staged / "codec" / "README.md").unlink()
    (staged / "language-model" / "README.md").write_text("---\nlicense: mit\n---\n")
    capsys.readouterr()
    hub.log.clear()
    push(staged, USER, dry_run=True)
    said = capsys.readouterr().err
    assert "me/uniaudio2-random: 1 files to upload" in said and "  + README.md" in said
    assert "me/uniaudio2-random-codec: nothing has changed" in said
    assert writes(hub) == []


def test_private_repositories(hub, staged):
    push(staged, USER, private=True)
    assert all(repo.private for repo in hub.repos.values())
    assert push(staged, USER, private=True) == []


def test_nothing_private_is_put_where_everybody_sees_it(hub, staged):
    push(staged, USER)
    (staged / "codec" / "README.md").write_text("---\nlicense: mit\n---\nSecret plans.\n")
    with pytest.raises(ValueError, match="exists already and is public"):
        push(staged, USER, private=True)
    assert len(hub.commits("model", "me/uniaudio2-random-codec")) == 1


def test_pull_requests(hub, staged):
    urls = push(staged, USER, create_pr=True)
    assert [url.rpartition("/")[2] for url in urls] == ["1", "1", "1"]
    for kind, address in addresses().values():
        repo = hub.repos[kind, address]
        assert len(repo.branches["main"]) == 1 and TITLE.fullmatch(repo.branches["refs/pr/1"][-1].title)
    assert push(staged, USER, create_pr=True) == []
    # What changes before it is merged goes to the same pull request.
    card = staged / "codec" / "README.md"
    card.write_text(card.read_text() + "\nOne more remark.\n")
    assert len(push(staged, USER, create_pr=True)) == 1
    repo = hub.repos["model", "me/uniaudio2-random-codec"]
    assert repo.branches.keys() == {"main", "refs/pr/1"}
    assert repo.branches["refs/pr/1"][-1].changed == ["README.md"]


@pytest.mark.parametrize(
    "fault",
    [
        {"uniaudio2-random/commit": 500},  # the second of three repositories
        {"/lfs/": 400},
        pytest.param({"repos/create": 502}, marks=pytest.mark.slow),
        pytest.param({"uniaudio2-random-demo/preupload": 500}, marks=pytest.mark.slow),
    ],
)
def test_after_a_fault_the_same_command_completes(hub, staged, fault, monkeypatch, capsys):
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between attempts
    before = contents(staged)
    hub.failures = fault
    assert main(["publish", "push", str(staged), "--namespace", USER]) == 2
    said = capsys.readouterr().err
    assert "repeat the same command" in said and TOKEN not in said
    assert contents(staged) == before
    hub.failures = {}
    hub.log.clear()
    push(staged, USER)
    for folder, (kind, address) in addresses().items():
        assert len(hub.commits(kind, address)) == 1
        assert hub.commits(kind, address)[0].files.keys() >= contents(staged / folder).keys()


def test_weights_that_have_arrived_are_not_sent_again(hub, staged):
    hub.failures = {"uniaudio2-random/commit": 500}
    with pytest.raises(OSError):
        push(staged, USER)
    hub.failures = {}
    hub.log.clear()
    push(staged, USER)
    arrived = hashlib.sha256((staged / "language-model" / "model.safetensors").read_bytes()).hexdigest()
    assert f"PUT /lfs/{arrived}" not in hub.log


def refused(staged, capsys, *options, namespace=USER):
    assert main(["publish", "push", str(staged), "--namespace", namespace, *options]) == 2
    said = capsys.readouterr().err
    assert TOKEN not in said
    return said.splitlines()[-1]


def test_no_token(hub, staged, capsys, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    assert "hf auth login" in refused(staged, capsys)
    assert hub.log == []


def test_a_token_that_the_hub_does_not_know(hub, staged, capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert "does not know the token" in refused(staged, capsys)


def test_no_permission(hub, staged, capsys):
    hub.failures = {"/preupload/": 403}
    assert "may not write to me/uniaudio2-random-codec" in refused(staged, capsys)


def test_a_namespace_that_is_not_ones_own(hub, staged, capsys):
    said = refused(staged, capsys, namespace="nobody")
    assert "under me, lab" in said and "'nobody' spelled right" in said


def test_metadata_that_the_hub_refuses(hub, staged, capsys):
    (staged / "codec" / "README.md").write_text("---\nlicense: free-for-all\n---\n")
    assert '"license" must be one of' in refused(staged, capsys)
    assert not any("/commit/" in line for line in hub.log)


def test_no_network(hub, staged, capsys, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.stop()
    assert "could not be reached" in refused(staged, capsys)


def test_offline(hub, staged, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "offline mode is enabled" in refused(staged, capsys)


def test_a_folder_that_was_not_staged(hub, tmp_path, capsys):
    assert "holds no stage.json" in refused(tmp_path, capsys)


def test_weights_that_have_changed_since(hub, staged, capsys):
    weights = staged / "codec" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    assert "has changed since it was staged" in refused(staged, capsys)
    assert hub.log == []


def test_a_secret_that_was_written_in_after_staging(hub, staged, capsys):
    card = staged / "space" / "README.md"
    card.write_text(card.read_text() + f"\nexport HF_TOKEN={TOKEN}\n")
    assert "README.md holds a token of Hugging Face" in refused(staged, capsys)
    assert hub.log == []


@pytest.mark.slow
def test_a_staging_for_another_namespace(hub, session_folder, tmp_path, capsys):
    stage(session_folder, tmp_path / "staged", namespace=ORGANISATION)
    assert "was staged for lab, not for me" in refused(tmp_path / "staged", capsys)
    # For its own it is uploaded as it is, to the last byte.
    push(tmp_path / "staged", ORGANISATION)
    for folder, (kind, address) in addresses(ORGANISATION).items():
        assert contents(tmp_path / "staged" / folder).items() <= hub.commits(kind, address)[0].files.items()
