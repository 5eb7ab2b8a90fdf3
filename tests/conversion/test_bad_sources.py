"""Whatever is wrong with a source: exit status 2, one clear line, and nothing at the output."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from fake_release import write_tokenizer

from uniaudio2.cli import main
from uniaudio2.conversion import convert_release, shard_writer
from uniaudio2.training.tokenizer import train_tokenizer


@pytest.fixture
def fails(tmp_path, random_weights, tokenizer_folder, capsys):
    """Runs the command and gives back its one line."""

    def run(source, *arguments, options=random_weights.options, tokenizer=tokenizer_folder) -> str:
        output = tmp_path / "model"
        command = ["convert", str(source), str(output), "--max-shard-size", "100KB", *arguments]
        for option in options:
            command += ["--set", option]
        if tokenizer is not None:
            command += ["--tokenizer", str(tokenizer)]
        capsys.readouterr()
        assert main(command) == 2
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("uniaudio2: error: ")]
        assert len(lines) == 1
        left = {path.name for path in tmp_path.iterdir()} - {"release", "tokenizer"}
        assert not left, left
        return lines[0]

    return run


@pytest.fixture
def folder(source, tmp_path):
    """The release, to be spoiled."""
    return shutil.copytree(source, tmp_path / "release")


def truncate(path, kept=0.5):
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])


def change_yaml(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


# --- Files ---


@pytest.mark.parametrize("name", ["llm_ep3.checkpoint", "ReasoningCodec.checkpoint", "sqcodec.pth"])
def test_truncated_weights(name, folder, fails):
    truncate(folder / name)
    assert f"{name} is no checkpoint, or damaged or cut off" in fails(folder)


@pytest.mark.parametrize(
    "name",
    [
        "llm_config.yaml",
        "llm_ep3.checkpoint",
        "ReasoningCodec.checkpoint",
        "sqcodec_config.yaml",
        "sqcodec.pth",
        "model_config.json",
        "whisper-medium/config.json",
        "wavlm/config.json",
    ],
)
def test_missing_files(name, folder, fails):
    (folder / name).unlink()
    assert f"has no file {name}, which the conversion needs" in fails(folder)


def test_an_encoder_that_is_nowhere(release, tmp_path, fails):
    release.move_encoders_to_their_files(tmp_path / "release")
    release.write(tmp_path / "release")
    (tmp_path / "release" / "music_ssl.pt").unlink()
    line = fails(tmp_path / "release")
    assert "no file music_ssl.pt" in line and "does not contain the encoder pretrained_model" in line


@pytest.mark.parametrize("name", ["llm_config.yaml", "sqcodec_config.yaml", "model_config.json"])
@pytest.mark.parametrize("content", [b"a: [1, 2", b"\xff\xfe\x00", b"- 1\n- 2\n"], ids=["cut", "binary", "list"])
def test_corrupted_settings(name, content, folder, fails):
    (folder / name).write_bytes(content)
    assert name in fails(folder)


def test_a_file_with_code(folder, fails, tmp_path):
    class RunsOnLoad:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path}/it_ran",)

    torch.save({"model": {}, "x": RunsOnLoad()}, folder / "llm_ep3.checkpoint")
    assert "an object of posix.system. Nothing of it was run" in fails(folder)


def test_a_source_that_is_none(fails, tmp_path):
    assert "is neither a folder nor the id of a repository" in fails(tmp_path / "nowhere" / "at" / "all")


# --- Values ---


@pytest.mark.parametrize(
    "name",
    [
        "audio_reason_card",
        "audio_semantic_card",
        "parallel_number",
        "reason_bos",
        "reason_eos",
        "reason_pad_token",
        "semantic_bos",
        "semantic_eos",
        "semantic_pad_token",
        "audio_prompt_bos",
        "audio_prompt_eos",
        "text_pad_token",
    ],
)
def test_values_that_only_the_yaml_has(name, folder, fails):
    change_yaml(folder / "llm_config.yaml", lambda content: content.pop(name))
    line = fails(folder, "--only", "language-model")
    assert f"llm_config.yaml lacks '{name}'" in line


@pytest.mark.parametrize("name", ["causal", "num_samples", "init_channel", "upsample_factors", "sample_rate"])
def test_values_of_the_scalar_codec(name, folder, fails):
    change_yaml(folder / "sqcodec_config.yaml", lambda content: content["generator"]["config"].pop(name))
    line = fails(folder, "--only", "codec", tokenizer=None)
    assert "sqcodec_config.yaml" in line and f"lacks '{name}'" in line


@pytest.mark.parametrize(
    "values, message",
    [
        (
            {"audio_reason_card": 21},
            "audio_semantic_card=38, which must add up to the 58 ids",
        ),
        ({"parallel_number": 8}, "parallel_number=8, but the tensor audio_head has 8 codebooks"),
        ({"reason_eos": 20}, "reasoning_eos_token_id"),
        ({"reason_eos": 16}, "`reason_bos` and `reason_eos` are both 16"),
        ({"semantic_eos": "33"}, "semantic_eos (reconstruction_eos_token_id) must be a whole number, but is '33'"),
        ({"text_pad_token": 3}, "text_pad_token=3"),
    ],
)
def test_values_that_contradict(values, message, folder, fails):
    change_yaml(folder / "llm_config.yaml", lambda content: content.update(values))
    assert message in fails(folder, "--only", "language-model")


def test_heads_are_not_guessed(folder, fails):
    """The yaml names a model of another size; then one that no table has."""
    line = fails(folder, "--only", "language-model", options=["decoder.num_attention_heads=2"])
    assert "24 attention heads do not fit" in line and "--set backbone.num_attention_heads=VALUE" in line
    change_yaml(folder / "llm_config.yaml", lambda content: content.update(llm_name="meta/llama3.2-3B"))
    line = fails(folder, "--only", "language-model", options=["decoder.num_attention_heads=2"])
    assert "llm_name=meta/llama3.2-3B, which is none of Llama-3.2-1B" in line
    line = fails(folder, "--only", "language-model", options=["backbone.num_attention_heads=4"])
    assert "--set depth_decoder.num_attention_heads=VALUE" in line
    options = [f"codec.music_{name}" for name in ("acoustic_layer=0", "semantic_layer=1")]
    line = fails(folder, "--only", "codec", options=options, tokenizer=None)
    assert "--set codec.music_encoder_config.num_attention_heads=VALUE" in line


@pytest.mark.parametrize(
    "option, message",
    [
        ("num_heads=3", "UniAudio2Config has no such field"),
        ("codec.flow_config.heads=3", "codec.flow_config.heads: FlowDecoderConfig has no such field"),
        ("nothing.at.all=3", "is not understood"),
        ("hidden_size", "is not understood"),
        ("hidden_size=48", "(300, 48)"),
    ],
)
def test_settings_that_do_not_exist_or_fit(option, message, folder, fails, random_weights):
    assert message in fails(folder, options=[*random_weights.options, option])


def test_tensors_of_another_size(release, tmp_path, fails):
    name = "backbone.transformer.h.0.mlp.proj.weight"
    release.language_model[name] = torch.zeros(32, 31)
    line = fails(release.write(tmp_path / "release"), "--only", "language-model")
    assert name in line and "(32, 31)" in line and "do not belong together" in line


def test_tensors_that_are_missing_or_unknown(release, tmp_path, fails):
    del release.codec["reason_adaptor.bias"]
    release.codec["mystery"] = torch.zeros(1)
    line = fails(release.write(tmp_path / "release"), "--only", "codec", tokenizer=None)
    assert "1 missing ['reason_adaptor.bias'], 1 unexpected ['mystery']" in line


# --- The tokenizer ---


def test_no_tokenizer(folder, fails):
    assert "pass its folder or Hub id with --tokenizer" in fails(folder, tokenizer=None)


@pytest.mark.parametrize(
    "vocab_size, message", [(320, "it has ids up to"), (285, "text_pad_token="), (277, "text_pad_token=")]
)
def test_tokenizer_of_another_model(vocab_size, message, folder, fails, tmp_path):
    """Too large for the embedding, or with its slots elsewhere."""
    words = [f"{first}{second}{third}" for first in "abcdefg" for second in "hijklmn" for third in "opqrst"]
    other = write_tokenizer(train_tokenizer(words, vocab_size=vocab_size), tmp_path / "tokenizer")
    assert message in fails(folder, tokenizer=other)


def test_tokenizer_with_other_names_in_its_slots(folder, fails, tmp_path, tokenizer_folder):
    other = shutil.copytree(tokenizer_folder, tmp_path / "tokenizer")
    text = (other / "tokenizer.json").read_text()
    (other / "tokenizer.json").write_text(text.replace("<|reserved_special_token_5|>", "<|image|>"))
    line = fails(folder, tokenizer=other)
    assert "should be <|reserved_special_token_5|> or <lyric>, but is <|image|>" in line
    (other / "tokenizer.json").write_text("{}")
    assert "is no tokenizer.json" in fails(folder, tokenizer=other)


# --- The output ---


def test_an_output_that_exists_is_left_alone(source, tmp_path, tokenizer_folder, capsys):
    output = tmp_path / "model"
    output.mkdir()
    (output / "mine").write_text("precious")
    assert main(["convert", str(source), str(output), "--tokenizer", str(tokenizer_folder)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["model"] and (output / "mine").read_text() == "precious"


def test_a_disk_that_is_too_small(source, fails, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9 - 10**6, 10**6))
    assert "0.0 GB left" in fails(source)


def test_a_disk_that_fills_up(source, fails, monkeypatch):
    """In the middle of the second file of weights."""
    written, tensor_bytes = [], shard_writer.tensor_bytes

    def fill(tensor):
        written.append(tensor)
        if len(written) > 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return tensor_bytes(tensor)

    monkeypatch.setattr(shard_writer, "tensor_bytes", fill)
    assert "No space left on device" in fails(source)


SLOW_CONVERSION = """
import sys, time
from uniaudio2.conversion import convert_release, shard_writer
tensor_bytes = shard_writer.tensor_bytes
def slowly(tensor):
    print("writing", flush=True)
    time.sleep(0.5)
    return tensor_bytes(tensor)
shard_writer.tensor_bytes = slowly
source, output, tokenizer, *settings = sys.argv[1:]
convert_release(source, output, tokenizer=tokenizer, settings=settings, only="language-model")
"""


@pytest.mark.checkpoint
@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL on this system")
def test_a_killed_conversion_leaves_no_model_and_the_next_one_starts_clean(
    source, tmp_path, tokenizer_folder, random_weights
):
    output = tmp_path / "model"
    arguments = [str(source), str(output), str(tokenizer_folder), *random_weights.options]
    process = subprocess.Popen([sys.executable, "-c", SLOW_CONVERSION, *arguments], stdout=subprocess.PIPE, text=True)
    assert "writing\n" in process.stdout  # reads on until it comes
    with pytest.raises(ValueError, match="Another process is writing"):
        convert_release(source, output, tokenizer=tokenizer_folder, settings=random_weights.options)
    time.sleep(1)
    process.kill()
    process.wait()
    process.stdout.close()
    assert not output.exists() and {path.name for path in tmp_path.iterdir()} > {".model.converting"}
    convert_release(source, output, tokenizer=tokenizer_folder, settings=random_weights.options)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--only", "codec", "--dtype", "bfloat16"], "--dtype is for the language model"),
        (["--reverse", "--verify"], "leave out"),
        (["--reverse"], "is no model folder"),
        (["--llm", "llm_ep7.checkpoint"], "has no file llm_ep7.checkpoint"),
    ],
)
def test_requests_that_make_no_sense(arguments, message, source, fails):
    is_reverse = arguments == ["--reverse"]
    options = {"options": [], "tokenizer": None} if is_reverse else {}
    assert message in fails(source, *arguments, **options)
