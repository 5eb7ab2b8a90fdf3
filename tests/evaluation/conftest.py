"""A small data folder and a suite that asks about it; the model is the random one of `tests/conftest.py`."""

import json

import numpy as np
import pytest
import soundfile
import yaml

TEXTS = ("seven three nine", "one two three", "zero eight", "six five")
EMOTIONS = ("happy", "sad", "happy", "sad")


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    lines = []
    for index, (text, emotion) in enumerate(zip(TEXTS, EMOTIONS, strict=True)):
        name = f"{index}.wav"
        soundfile.write(folder / name, 0.1 * generator.standard_normal(9600), 24000)
        lines.append({"file": name, "text": text, "emotion": emotion, "speaker": "a", "split": "test"})
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.fixture(scope="session")
def definition():
    """Makes a suite as plain data, for tests to change."""
    return lambda: {
        "tests": {
            "listening": {
                "task": "ASR",
                "data": {"folder": "elsewhere", "split": "test"},
                "columns": {"audio": "file", "text": "text"},
                "generation": {"do_sample": True, "max_new_tokens": 5},
                "metrics": [
                    {"metric": "word_error_rate", "reference": "text", "options": {"normalizer": "none"}},
                    {"metric": "speed", "prediction": "seconds", "reference": "audio_seconds"},
                ],
                "published": [
                    {"score": "wer", "value": 2.71, "system": "UniAudio 2.0", "source": "as reported"},
                    {
                        "score": "mushra",
                        "value": 90.5,
                        "system": "UniAudio 2.0",
                        "source": "as reported",
                        "human": True,
                    },
                ],
            },
            "round-trip": {
                "task": "reconstruction",
                "data": {"folder": "elsewhere", "split": "test"},
                "columns": {"audio": "file"},
                "metrics": [{"metric": "mel_distance", "reference": "audio"}],
            },
        }
    }


@pytest.fixture
def write_suite(tmp_path, definition):
    """Writes a definition, changed by a function if one is given, and gives the path of the YAML file."""

    def write(change=None, name="small"):
        content = definition()
        if change is not None:
            change(content["tests"])
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write
