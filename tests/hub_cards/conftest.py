"""A model folder to publish, its staging, and a Hub on this machine."""

import shutil

import huggingface_hub
import pytest
import yaml
from fake_hub import TOKEN, FakeHub

from uniaudio2.hub_cards.stage import stage

PART = {
    "license": "apache-2.0",
    "summary": "Random weights.",
    "data": ["None."],
    "stages": [],
    "limits": ["It knows nothing."],
}
CARD = {"language": ["en"], "example": "seven three", "language_model": PART, "codec": {**PART}}


@pytest.fixture(scope="session")
def session_folder(model_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("to-publish") / "random"
    shutil.copytree(model_folder, folder)
    (folder / "card.yaml").write_text(yaml.safe_dump(CARD))
    return folder


@pytest.fixture
def folder(session_folder, tmp_path):
    """The random models as a folder that can be published, one's own to spoil."""
    return shutil.copytree(session_folder, tmp_path / "random")


@pytest.fixture(scope="session")
def session_staged(session_folder, tmp_path_factory):
    output = tmp_path_factory.mktemp("staged") / "staged"
    stage(session_folder, output)
    # The shipped checkpoint, 22 MB, would be copied, hashed and sent dozens of times.
    shutil.rmtree(output / "space" / "uniaudio2" / "checkpoints")
    return output


@pytest.fixture
def staged(session_staged, tmp_path):
    """The staged folder, one's own to change."""
    return shutil.copytree(session_staged, tmp_path / "staged")


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A Hub, to which this process is logged in."""
    server = FakeHub()
    for name, value in {
        "ENDPOINT": server.url,
        "HF_HUB_OFFLINE": False,
        # Its servers cannot be imitated; large files go through LFS instead, as from machines without it.
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": str(tmp_path / "no-token"),
    }.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    huggingface_hub.close_session()
    yield server
    server.stop()
    huggingface_hub.close_session()
