"""A whole small release through the command line: the folder, loaded in a fresh process, computes what was recorded.

The release is made of the recorded fixtures where they are, and compared with what the released code computed;
otherwise of random weights, and compared with the models these weights were taken from.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fake_release import FakeRelease, recorded_release, write_tokenizer
from outputs import compute
from safetensors.torch import load_file, save_file

from uniaudio2.cli import main
from uniaudio2.training.tokenizer import train_tokenizer

sys.path.append(str(Path(__file__).parents[1] / "parity"))
from numeric_fixtures import NumericFixture, assert_close, find_fixtures
from test_llm import all_frames_labelled, rows

EXACT = ("tts", "asr", "reasoning_codes", "reconstruction_codes")


def run(*command: str | Path) -> None:
    done = subprocess.run([sys.executable, *map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def whole_fixtures() -> tuple[NumericFixture | None, NumericFixture | None]:
    """A recording of the language model and one of the codec that hold all that is compared here."""

    def first(kind: str, *keys: str) -> NumericFixture | None:
        return next((fixture for fixture in find_fixtures(kind) if fixture.keys >= set(keys)), None)

    text = first(
        "llm_fixture", "in.sequences", "fwd.text_logits", "fwd.ci_logits", "gen.tts.samples", "gen.asr.text_ids"
    )
    codec = first(
        "codec_e2e", "enc0.in.wave", "enc0.segment.codes_rec", "dec_no_reason_short.noise", "sq.encoder.0.bias"
    )
    return text, codec


def recorded_case(text: NumericFixture, codec: NumericFixture) -> tuple[dict, dict]:
    """Inputs, and what the released code made of them."""
    tensors, sound = text.tensors(), codec.tensors()
    inputs = {f"forward.{name}": value for name, value in all_frames_labelled(tensors).items()}
    for task, length in (("tts", len(tensors["gen.tts.samples"])), ("asr", len(tensors["gen.asr.text_ids"]))):
        prompt = rows(tensors[f"gen.{task}.prompt_tokens"], tensors[f"gen.{task}.prompt_mask"])
        inputs |= {f"{task}.prompt.{name}": value for name, value in prompt.items()}
        inputs[f"{task}.length"] = torch.tensor(length)
    inputs |= {
        "wave": sound["enc0.in.wave"],
        "codes": sound["dec_no_reason_short.in.codes_rec"],
        "noise": sound["dec_no_reason_short.noise"][None],
        "flow_steps": torch.tensor(codec.facts["num_steps"]),
    }
    expected = {
        "text_logits": tensors["fwd.text_logits"],
        "audio_logits": tensors["fwd.ci_logits"],
        "tts": tensors["gen.tts.samples"][:, 1:],
        "asr": tensors["gen.asr.text_ids"],
        "reasoning_codes": sound["enc0.segment.codes_reasoning"],
        "reconstruction_codes": sound["enc0.segment.codes_rec"],
        "audio": sound["dec_no_reason_short.wave"],
    }
    return inputs, expected


def random_case(model, codec) -> tuple[dict, dict]:
    """Inputs, and what the models in memory make of them."""
    generator = torch.Generator().manual_seed(0)
    config = model.config
    ids = torch.randint(config.reasoning_codebook_size, (1, 12, config.num_codebooks + 1), generator=generator)
    kinds = torch.tensor([[0] * 5 + [3] * 7])
    prompt = {"input_ids": ids, "mm_token_type_ids": kinds, "attention_mask": torch.ones_like(kinds)}
    frames = 15
    inputs = {
        **{f"forward.{name}": value for name, value in prompt.items()},
        "forward.labels": ids,
        **{f"{task}.prompt.{name}": value for task in ("tts", "asr") for name, value in prompt.items()},
        "tts.length": torch.tensor(6),
        "asr.length": torch.tensor(6),
        "wave": 0.1 * torch.randn(1, 1, 19200, generator=generator),
        "codes": torch.randint(codec.config.reconstruction_codebook_size, (1, 8, frames), generator=generator),
        "noise": torch.randn(1, 1, 2 * frames, codec.config.latent_dim, generator=generator),
        "flow_steps": torch.tensor(2),
    }
    return inputs, compute(model, codec, inputs)


@pytest.mark.checkpoint
def test_the_converted_release_computes_what_the_released_one_does(tmp_path, request):
    text, sound = whole_fixtures()
    if text is not None and sound is not None:
        release = recorded_release(text, sound)
        # The bytes and the special tokens: the fixtures' ids are those of this tokenizer.
        tokenizer = train_tokenizer(["a"], vocab_size=277)
        inputs, expected = recorded_case(text, sound)
    else:
        release: FakeRelease = request.getfixturevalue("random_weights")
        tokenizer = request.getfixturevalue("tokenizer")
        inputs, expected = random_case(request.getfixturevalue("language_model"), request.getfixturevalue("codec"))
    release.write(tmp_path / "release")
    write_tokenizer(tokenizer, tmp_path / "tokenizer")
    save_file({name: value.clone().contiguous() for name, value in inputs.items()}, tmp_path / "inputs")

    options = [part for option in release.options for part in ("--set", option)]
    folder = tmp_path / "model"
    command = ["-m", "uniaudio2.cli", "convert", tmp_path / "release", folder, "--tokenizer", tmp_path / "tokenizer"]
    run(*command, "--max-shard-size", "1MB", "--verify", *options)
    run(Path(__file__).with_name("outputs.py"), folder, tmp_path / "inputs", tmp_path / "results")

    results = load_file(tmp_path / "results")
    assert results.keys() == expected.keys()
    for name, value in expected.items():
        if name in EXACT:
            assert torch.equal(results[name].long(), value.long()), name
        else:
            assert_close(results[name], value)

    assert main(["convert", "--reverse", str(folder), str(tmp_path / "back.checkpoint")]) == 0
    restored = torch.load(tmp_path / "back.checkpoint", weights_only=True)["model"]
    released = {name.removeprefix("module."): value for name, value in release.language_model.items()}
    assert restored.keys() == released.keys()
    assert all(torch.equal(restored[name], value) for name, value in released.items())


def test_the_case_without_recordings_is_one_too(language_model, codec):
    """Its inputs are valid, and its results are not all the same."""
    _, expected = random_case(language_model, codec)
    assert expected["tts"].shape == (6, 8) and len(expected["asr"]) > 0
    assert len(expected["reconstruction_codes"].unique()) > 1 and expected["audio"].std() > 0
