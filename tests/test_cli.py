"""The command line: what goes to stdout, what goes to files, and how mistakes end."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file, save_file

from uniaudio2 import TINY
from uniaudio2.cli import main

RATE = 24_000


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), RATE)
    return path


def run(capsys, *arguments):
    """Exit status, stdout and stderr of `uniaudio2 ...`."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_speaking_writes_a_waveform_and_nothing_to_stdout(capsys, model_folder, tmp_path):
    output = tmp_path / "out.wav"
    status, out, _ = run(
        capsys, "run", "--task", "TTS", "--text", "seven", "--output", output, "--model", model_folder,
        "--max-new-tokens", 40, "--temperature", 1.0, "--device", "cpu",
    )  # fmt: skip
    # A random model may end without a frame of sound, which is an error in one line.
    assert (status, out) == (0, "") or status == 2
    assert output.exists() == (status == 0)


def test_transcribing_prints_only_the_text(capsys, model_folder, recording):
    status, out, err = run(
        capsys, "run", "--task", "ASR", "--audio", recording, "--model", model_folder, "--max-new-tokens", 3
    )
    assert status == 0, err
    assert len(out.splitlines()) == 1


def test_reconstruction_is_as_long_as_the_recording_and_repeatable(capsys, model_folder, recording, tmp_path):
    waveforms = []
    for name in ("a.wav", "b.wav"):
        status, _, err = run(capsys, "reconstruct", recording, tmp_path / name, "--model", model_folder, "--seed", 3)
        assert status == 0, err
        waveform, rate = soundfile.read(tmp_path / name)
        assert (len(waveform), rate) == (RATE, RATE)
        waveforms.append(waveform)
    assert np.array_equal(*waveforms)


def test_info_fits_on_a_screen(capsys, model_folder):
    status, out, _ = run(capsys, "info", model_folder)
    assert status == 0
    assert "5 Hz x 8 codebooks" in out and "12.5 Hz x 8 codebooks" in out and "24000 Hz" in out
    assert len(out.splitlines()) <= 40


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--task", "Sing", "--text", "la"], "Unknown task 'Sing'"),
        (["run", "--task", "TTS", "--text", "  ", "--output", "out.wav"], "empty"),
        (["run", "--task", "TTS", "--text", "seven"], "--output"),
        (["run", "--task", "TTS", "--text", "seven", "--output", "out.mp4"], ".wav"),
        (["run", "--task", "TTS", "--text", "seven", "--output", "no/such/folder/out.wav"], "does not exist"),
        (["run", "--task", "ASR", "--audio", "missing.wav"], "missing.wav"),
        (["run", "--task", "ASR", "--audio", "text.wav"], "text.wav"),
        (["run"], "nothing to process"),
        (["run", "--text", "seven", "--output", "out.wav", "--device", "abacus"], "--device"),
        (["reconstruct", "missing.wav", "out.wav"], "missing.wav"),
        (["info", "no/such/model"], "no/such/model"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(capsys, model_folder, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.wav").write_text("this is not audio")
    model = [] if arguments[0] == "info" else ["--model", model_folder]
    status, out, err = run(capsys, *arguments, *model)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("uniaudio2: error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["text.wav"]


def test_a_model_folder_with_missing_tensors_is_refused(capsys, model_folder, tmp_path):
    broken = tmp_path / "broken"
    shutil.copytree(model_folder, broken)
    weights = load_file(broken / "model.safetensors")
    weights.pop("lm_head.weight")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    status, _, err = run(capsys, "run", "--text", "seven", "--output", tmp_path / "out.wav", "--model", broken)
    assert status == 2 and "lm_head.weight" in err


@pytest.mark.checkpoint
def test_the_shipped_checkpoint_speaks_and_listens_in_processes_of_its_own(tmp_path):
    def uniaudio2(*arguments):
        command = [sys.executable, "-m", "uniaudio2.cli", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)

    spoken = uniaudio2("run", "--task", "TTS", "--text", "seven three nine", "--output", "out.wav")
    assert spoken.stdout == ""
    waveform, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == RATE and len(waveform) > 0.5 * RATE and np.abs(waveform).max() > 0.05
    heard = uniaudio2("run", "--task", "ASR", "--audio", "out.wav").stdout
    assert heard == "seven three nine\n"
    assert TINY in uniaudio2("info").stdout
