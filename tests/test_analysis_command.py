"""`uniaudio2 run --task analysis`: a codec's text head says what a recording means."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import LlamaConfig, LlamaForCausalLM, set_seed

from uniaudio2 import (
    TINY,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextProcessor,
    UniAudio2FeatureExtractor,
)
from uniaudio2.cli import main
from uniaudio2.commands.codes_file import save_codes
from uniaudio2.processing import AudioCodes
from uniaudio2.training.tokenizer import train_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The shipped codec with a fresh language model behind it."""
    set_seed(0)
    processor = ReasoningCodecTextProcessor(UniAudio2FeatureExtractor(), train_tokenizer(["one two three"], 300))
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(processor.tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            eos_token_id=processor.tokenizer.eos_token_id,
            pad_token_id=processor.tokenizer.pad_token_id,
        )
    )
    codec = ReasoningCodecModel.from_pretrained(f"{TINY}/codec")
    path = tmp_path_factory.mktemp("text_head")
    ReasoningCodecForConditionalGeneration.from_parts(codec, llama, processor.audio_token_id).save_pretrained(path)
    processor.save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * np.arange(24000) / 24000), 24000)
    return path


def test_it_prints_what_the_text_head_says(folder, recording, capsys):
    arguments = ["run", "--task", "analysis", "--audio", str(recording), "--model", str(folder), "--device", "cpu"]
    assert main([*arguments, "--max-new-tokens", "5"]) == 0
    processor = ReasoningCodecTextProcessor.from_pretrained(folder)
    model = ReasoningCodecForConditionalGeneration.from_pretrained(folder)
    inputs = processor(audio=str(recording), task="analysis")
    expected = processor.decode_answers(model.generate(**inputs, max_new_tokens=5), inputs)[0]
    assert capsys.readouterr().out == expected + "\n"


def test_a_checkpoint_without_a_text_head_is_refused(recording, capsys):
    assert main(["run", "--task", "analysis", "--audio", str(recording)]) == 2
    assert "train one with `uniaudio2 train reasoning-sft`" in capsys.readouterr().err


def test_without_a_recording_there_is_nothing_to_analyse(folder, capsys):
    assert main(["run", "--task", "analysis", "--text", "hello", "--model", str(folder)]) == 2
    assert "pass --audio" in capsys.readouterr().err


def test_codes_are_as_good_as_the_recording(folder, recording, tmp_path, capsys):
    """Of the codec that the text head was trained with; one second is five reasoning frames."""
    codec = ReasoningCodecModel.from_pretrained(f"{TINY}/codec")
    waveform = torch.from_numpy(soundfile.read(recording, dtype="float32")[0])[None]
    codes = codec.encode(waveform, encode_mode="exact").reasoning_codes[0]
    save_codes(AudioCodes(codes, None), tmp_path / "tone.safetensors")
    said = []
    for audio in (recording, tmp_path / "tone.safetensors"):
        words = ["run", "--task", "analysis", "--audio", str(audio), "--model", str(folder), "--device", "cpu"]
        assert main([*words, "--max-new-tokens", "8"]) == 0
        said.append(capsys.readouterr().out)
    assert said[0] == said[1] != ""


def test_a_recording_that_is_too_long_is_refused(folder, tmp_path, capsys):
    soundfile.write(tmp_path / "long.wav", np.zeros(24000 * 6), 24000)
    assert main(["run", "--task", "analysis", "--audio", str(tmp_path / "long.wav"), "--model", str(folder)]) == 2
    assert "hear at most 4.8 s at once, and a recording lasts 6 s" in capsys.readouterr().err
