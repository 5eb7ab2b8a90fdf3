"""The model folder that ships with the package."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig

import uniaudio2
from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.training.tiny import CODE_FOLDERS

RECORDINGS = Path(__file__).parents[1] / "benchmarks" / "recordings"


def test_it_is_small_and_complete():
    weights = list(Path(TINY).rglob("*.safetensors"))
    assert sum(path.stat().st_size for path in weights) <= 25e6
    assert {path.parent.name for path in weights} == {"tiny", "codec"}
    for name in ("generation_config.json", "tokenizer.json", "processor_config.json", "chat_template.jinja"):
        assert (Path(TINY) / name).is_file()
    assert (Path(TINY) / "codec" / "scheduler" / "scheduler_config.json").is_file()


def test_its_code_is_that_of_the_package():
    package = Path(uniaudio2.__file__).parent
    sources = {path.name: path for folder in CODE_FOLDERS for path in (package / folder).glob("*.py")}
    code = list(Path(TINY).rglob("*.py"))
    names = {path.name for path in code}
    assert names >= {"modeling_uniaudio2.py", "modeling_reasoning_codec.py", "processing_uniaudio2.py"}
    for path in code:
        assert path.read_text() == sources[path.name].read_text(), f"{path} differs from the package's own file"


def test_it_names_its_tasks():
    assert set(AutoConfig.from_pretrained(TINY).tasks) >= {"TTS", "ASR"}


@pytest.mark.checkpoint
def test_it_understands_recordings_it_was_not_trained_on():
    model = UniAudio2ForConditionalGeneration.from_pretrained(TINY)
    processor = UniAudio2Processor.from_pretrained(TINY, codec_device="cpu")
    assert model.dtype is processor.codec.dtype is torch.float32
    rows = [json.loads(line) for line in (RECORDINGS / "manifest.jsonl").read_text().splitlines()[:12]]
    inputs = processor(audio=[RECORDINGS / row["file"] for row in rows], task="ASR")
    heard = processor.decode(model.generate(**inputs, do_sample=False))
    right = sum(row["text"] == text for row, text in zip(rows, heard, strict=True))
    assert right >= 9, list(zip([row["text"] for row in rows], heard, strict=True))
