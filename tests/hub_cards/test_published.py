"""The shipped checkpoint, published, and used without this package: as the cards say, and then offline."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fake_hub import TOKEN, FakeHub

import uniaudio2
from uniaudio2 import TINY

pytestmark = [pytest.mark.slow, pytest.mark.checkpoint]

RECORDING = next((Path(__file__).parents[2] / "benchmarks" / "recordings").glob("heldout-*.flac"))

# Isolated (-I): neither the working directory nor the user's packages. Should an installed package be found all the
# same, the import fails.
PREFIX = """
import sys
sys.modules["uniaudio2"] = None
"""
AUTO_CLASSES = """
from transformers import (
    AutoConfig, AutoFeatureExtractor, AutoModel, AutoModelForAudioTokenization, AutoModelForMultimodalLM,
    AutoModelForTextToWaveform, AutoProcessor, AutoTokenizer, pipeline,
)

name, codec = "me/uniaudio2-tiny", "me/uniaudio2-tiny-codec"
expected = {
    (AutoConfig, name): "UniAudio2Config",
    (AutoModel, name): "UniAudio2Model",
    (AutoModelForMultimodalLM, name): "UniAudio2ForConditionalGeneration",
    (AutoModelForTextToWaveform, name): "UniAudio2ForConditionalGeneration",
    (AutoProcessor, name): "UniAudio2Processor",
    (AutoFeatureExtractor, name): "UniAudio2FeatureExtractor",
    (AutoConfig, codec): "ReasoningCodecConfig",
    (AutoModel, codec): "ReasoningCodecModel",
    (AutoModelForAudioTokenization, codec): "ReasoningCodecModel",
    (AutoFeatureExtractor, codec): "UniAudio2FeatureExtractor",
}
for (kind, repository), found in expected.items():
    loaded = kind.from_pretrained(repository, trust_remote_code=True)
    assert type(loaded).__name__ == found, (kind, repository, type(loaded))
    assert type(loaded).__module__.startswith("transformers_modules"), (kind, repository)
assert AutoTokenizer.from_pretrained(name, trust_remote_code=True)("seven")["input_ids"]
"""
# The task is inferred from the card, which only the Hub can do.
INFERRED = """
from transformers import pipeline

speak = pipeline(model="me/uniaudio2-tiny", trust_remote_code=True)
assert speak.task == "text-to-audio", speak.task
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A Hub on this machine to which the shipped checkpoint was published from the command line."""
    server = FakeHub()
    staged = tmp_path_factory.mktemp("publish") / "staged"
    environment = {**os.environ, **on_hub(server.url, staged.parent), "HF_TOKEN": TOKEN}
    for arguments in (["stage", TINY, str(staged)], ["push", str(staged), "--namespace", "me"]):
        run([sys.executable, "-m", "uniaudio2.cli", "publish", *arguments], environment, Path(TINY).parents[2])
    yield server
    server.stop()


def on_hub(url, home):
    """The environment of a process that knows this Hub, and keeps what it loads in a place of its own."""
    return {
        "HF_ENDPOINT": url,
        "HF_HOME": str(home / "huggingface"),
        "HF_MODULES_CACHE": str(home / "modules"),
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }


def run(command, environment, folder):
    done = subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert TOKEN not in done.stdout + done.stderr
    return done


def snippets(card):
    """The examples of a card, in their order, as one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", card, flags=re.DOTALL | re.MULTILINE))


def test_a_stranger_uses_what_was_published_and_again_without_a_network(published, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "PYTHONPATH")}
    environment |= on_hub(published.url, tmp_path)
    shutil.copyfile(RECORDING, tmp_path / "recording.wav")  # what it is called says nothing of what it is
    language_model, codec = (
        published.commits("model", f"me/uniaudio2-tiny{suffix}")[-1].files["README.md"].decode()
        for suffix in ("", "-codec")
    )
    said = run([sys.executable, "-I", "-c", PREFIX + snippets(language_model)], environment, tmp_path)
    shape, rate, heard = re.fullmatch(r"\((\d+),\) (\d+)\n([a-z ]*)\n", said.stdout).groups()
    assert int(rate) == 24_000 and int(shape) > 12_000 and heard
    assert (tmp_path / "speech.wav").stat().st_size > 24_000
    run([sys.executable, "-I", "-c", PREFIX + snippets(codec)], environment, tmp_path)
    run([sys.executable, "-I", "-c", PREFIX + INFERRED + AUTO_CLASSES], environment, tmp_path)

    # The same Hub is gone; what was loaded once is loaded again.
    requests = len(published.log)
    offline = {**environment, "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
    run([sys.executable, "-I", "-c", PREFIX + AUTO_CLASSES + snippets(language_model)], offline, tmp_path)
    assert len(published.log) == requests


def test_the_space_runs_from_its_own_files(published, tmp_path):
    for path, content in published.commits("space", "me/uniaudio2-tiny-demo")[-1].files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(content)
    environment = {**os.environ, **on_hub(published.url, tmp_path)}
    # What starts it is left out: a Space runs the file, a test imports it.
    program = (
        "import sys; sys.path.insert(0, '.'); import app, uniaudio2; "
        "assert app.demo.engine.checkpoint.model_id == 'me/uniaudio2-tiny'; app.demo.engine.load(); "
        "print(uniaudio2.__file__)"
    )
    done = run([sys.executable, "-I", "-c", program], environment, tmp_path)
    used = Path(done.stdout.strip().splitlines()[-1])
    assert used.resolve().is_relative_to(tmp_path.resolve())
    assert used.read_text() == Path(uniaudio2.__file__).read_text()
