"""The command line: what goes to stdout, what goes to files, and how mistakes end."""

import base64
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

from uniaudio2 import TASKS, TINY, UniAudio2Processor, speak_long, transcribe_long
from uniaudio2.cli import main
from uniaudio2.commands.codes_file import load_codes, save_codes
from uniaudio2.processing import AudioCodes, read_provenance

RATE = 24_000


@pytest.fixture(scope="module")
def recording(tmp_path_factory):
    path = tmp_path_factory.mktemp("recordings") / "tone.wav"
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE), RATE)
    return path


@pytest.fixture(scope="module")
def short_model_folder(model_folder, tmp_path_factory):
    """The model with positions for 512 rows and no more."""
    folder = tmp_path_factory.mktemp("short") / "model"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 512}))
    return folder


def run(capsys, *arguments):
    """Exit status, stdout and stderr of `uniaudio2 ...`."""
    status = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_speaking_writes_a_waveform_and_nothing_to_stdout(capsys, model_folder, tmp_path):
    output = tmp_path / "out.wav"
    # At the maximum the answer ends, however little the model is inclined to.
    status, out, err = run(
        capsys, "run", "--task", "TTS", "--text", "seven", "--output", output, "--model", model_folder,
        "--max-duration", 3, "--temperature", 1.0, "--device", "cpu",
    )  # fmt: skip
    assert (status, out) == (0, ""), err
    waveform, rate = soundfile.read(output)
    assert rate == RATE and 0 < len(waveform) <= 3 * RATE and len(waveform) % (RATE // 12.5) == 0
    assert np.abs(waveform).max() > 0
    facts = read_provenance(output)
    assert facts["model"] == model_folder.name and facts["task"] == "TTS"
    status, out, _ = run(capsys, "info", output)
    assert status == 0 and f"{len(waveform) / rate:.2f} s, 24000 Hz" in out and "trainedAlgorithmicMedia" in out


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


def test_codes_go_in_and_come_out(capsys, model_folder, recording, codes, tmp_path):
    given, answer = tmp_path / "given.safetensors", tmp_path / "answer.safetensors"
    save_codes(AudioCodes(*codes()), given)
    spoken = ["run", "--text", "seven", "--output", answer, "--max-duration", 3, "--temperature", 1]
    model = ["--model", model_folder, "--device", "cpu"]
    # The reasoning is taken over, from codes or from a recording, and the sound is new.
    status, out, err = run(capsys, *spoken, "--reasoning", given, *model)
    assert (status, out) == (0, ""), err
    assert torch.equal(load_codes(answer).reasoning_codes, codes()[0])
    assert 0 < load_codes(answer).reconstruction_codes.shape[1] <= 37
    status, _, err = run(capsys, *spoken, "--reasoning", recording, *model)
    assert status == 0 and load_codes(answer).reasoning_codes.shape == (8, 5), err
    # Codes are listened to like the recording they are of.
    save_codes(UniAudio2Processor.from_pretrained(model_folder).encode_audio(recording)[0], given)
    heard = [run(capsys, "run", "--audio", name, "--max-new-tokens", 3, *model) for name in (given, recording)]
    assert [status for status, *_ in heard] == [0, 0] and heard[0][1] == heard[1][1]


def test_options_of_generate_by_their_names(capsys, model, model_folder, recording, tmp_path, monkeypatch):
    """Those of sampling mean that ids are drawn; a temperature of 0 that they are not, whatever else is set."""
    asked, generate = [], type(model).generate
    monkeypatch.setattr(
        type(model), "generate", lambda self, **options: asked.append(options) or generate(self, **options)
    )
    common = ("run", "--audio", recording, "--model", model_folder, "--max-new-tokens", 2, "--device", "cpu")
    for options, expected in (
        ([], {}),
        (["--top-k", 3], {"do_sample": True, "top_k": 3}),
        (["--top-p", 0.5], {"do_sample": True, "top_p": 0.5}),
        (["--temperature", 0, "--top-k", 3], {"do_sample": False}),
        (
            ["--set", "num_beams=2", "--set", "early_stopping=true", "--set", "cache_implementation=static"],
            {"num_beams": 2, "early_stopping": True, "cache_implementation": "static"},
        ),
    ):
        assert run(capsys, *common, *options)[0] == 0
        names = {"do_sample", "temperature", "top_k", "top_p", *expected}
        assert {name: value for name, value in asked.pop().items() if name in names} == expected


def test_long_recordings_and_texts_are_done_in_pieces(capsys, model, model_folder, processor, tone, tmp_path):
    common = ("--model", model_folder, "--device", "cpu", "--long")
    processor.save_audio(tone(5.0), tmp_path / "long.wav")
    options = {"chunk_seconds": 2.4, "overlap_seconds": 0.8, "max_new_tokens": 3}
    expected = transcribe_long(model, processor, str(tmp_path / "long.wav"), **options)
    _, out, _ = run(
        capsys, "run", "--audio", tmp_path / "long.wav", "--piece-seconds", 2.4, "--max-new-tokens", 3, *common
    )
    assert out == f"{expected}\n"

    output, text = tmp_path / "out.flac", "one. two. three."
    durations = ("--min-duration", 0.4, "--max-duration", 0.4, "--temperature", 1, "--seed", 3)
    status, _, err = run(
        capsys, "run", "--text", text, "--output", output, "--piece-seconds", 0.45, *durations, *common
    )
    assert status == 0, err
    expected = speak_long(
        model, processor, text, piece_seconds=0.45, seed=3, min_duration=0.4, max_duration=0.4, do_sample=True
    )
    np.testing.assert_allclose(soundfile.read(output)[0], expected.numpy(), atol=1e-4)
    assert read_provenance(output)["task"] == "TTS"


def test_a_conversation_comes_from_a_file_and_its_recordings_lie_beside_it(capsys, model_folder, recording, tmp_path):
    shutil.copy(recording, tmp_path / "first.wav")
    shutil.copy(recording, tmp_path / "second.wav")
    question = {"type": "text", "text": "Which emotion?"}
    asked = {"role": "user", "content": [question, {"type": "audio", "path": "second.wav"}]}
    shown = {"role": "user", "content": [question, {"type": "audio", "audio": "first.wav"}]}
    short = ["--model", model_folder, "--device", "cpu", "--max-new-tokens", 3]

    def answer(messages):
        (tmp_path / "chat.json").write_text(json.dumps(messages))
        status, out, err = run(capsys, "run", "--conversation", tmp_path / "chat.json", *short)
        assert status == 0, err
        return out

    alone = answer([asked])
    status, out, _ = run(capsys, "run", "--question", "Which emotion?", "--audio", recording, *short)
    assert (status, out) == (0, alone)
    answer([shown, {"role": "assistant", "content": "calm"}, asked])
    answer([asked, {"role": "assistant", "content": "it sounds"}])  # is continued
    codes = UniAudio2Processor.from_pretrained(model_folder).encode_audio(recording)[0]
    save_codes(codes, tmp_path / "second.safetensors")
    asked["content"][1]["path"] = "second.safetensors"
    assert answer([asked]) == alone
    # Without any file: the bytes of one, its samples, its codes.
    samples = soundfile.read(recording)[0].tolist()
    for part in (
        {"bytes": base64.b64encode(recording.read_bytes()).decode()},
        {"audio": samples, "sampling_rate": RATE},
        {name: getattr(codes, name).tolist() for name in ("reasoning_codes", "reconstruction_codes")},
    ):
        asked["content"][1] = {"type": "audio", **part}
        assert answer([asked]) == alone


def test_the_tasks_are_listed_with_what_they_need(capsys):
    status, out, _ = run(capsys, "tasks")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert status == 0 and list(lines) == list(TASKS)
    assert "--audio-prompt --caption --text" in lines["prompt_instruct_tts"]
    assert "2 recordings" in lines["speech_ss"] and "--" not in lines["audio_only"]


def test_asking_for_what_the_checkpoint_does_not_know_warns(capsys, model_folder, tmp_path, caplog):
    knowing = tmp_path / "model"
    shutil.copytree(model_folder, knowing)
    config = json.loads((knowing / "config.json").read_text())
    (knowing / "config.json").write_text(json.dumps({**config, "tasks": ["TTS"]}))
    status, _, _ = run(
        capsys, "run", "--task", "text_only", "--text", "one", "--model", knowing, "--max-new-tokens", 1
    )
    assert status == 0 and caplog.text.count("not trained on text_only") == 1


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
        (["run", "--task", "InstructTTS", "--text", "seven", "--output", "out.wav"], "'caption' is missing"),
        (["run", "--task", "audio_understanding", "--audio", "tone.wav"], "'question' is missing"),
        (["run", "--task", "TTS", "--audio", "tone.wav", "--output", "out.wav"], "is what TTS answers"),
        (["run", "--task", "ASR", "--text", "seven"], "is what ASR answers"),
        (["run", "--task", "ASR", "--audio", "seven three nine"], "Texts go in `text`"),
        (["run", "--task", "audio_only", "--audio", "tone.wav", "--output", "out.wav"], "takes nothing"),
        (["run", "--task", "TTS", "--output", "out.wav"], "'text' is missing"),
        (["run", "--task", "TTS", "--text", "long", "--output", "out.wav"], "leaves no room"),
        (["run", "--audio", "http://127.0.0.1:9/in.wav"], "cannot be downloaded"),
        (["run", "--audio", "text.safetensors"], "cannot be read as codes"),
        (["run", "--audio", "missing.safetensors"], "missing.safetensors"),
        (
            ["run", "--text", "one", "--output", "out.wav", "--temperature", "-1"],
            "--temperature is -1.0, but must be 0",
        ),
        (["run", "--text", "one", "--output", "out.wav", "--temperature", "nan"], "--temperature is nan"),
        (["run", "--text", "one", "--output", "out.wav", "--top-k", "0"], "--top-k is 0"),
        (["run", "--text", "one", "--output", "out.wav", "--top-p", "1.5"], "--top-p is 1.5"),
        (["run", "--text", "one", "--output", "out.wav", "--set", "num_beams"], "NAME=VALUE"),
        (["run", "--text", "one", "--output", "out.wav", "--set", "num_beams=2"], "needs a text answer"),
        (["run", "--text", "one", "--output", "out.wav", "--set", "temprature=2"], "temprature"),
        (["run", "--audio", "tone.wav", "--piece-seconds", "2"], "is for --long"),
        (["run", "--long", "--conversation", "chat.json"], "does not go with --conversation"),
        (["run", "--long", "--audio", "tone.wav", "--piece-seconds", "0"], "must be more than 0"),
        (["run", "--long", "--task", "TTA", "--text", "rain", "--output", "out.wav"], "TTA is neither"),
        (["run", "--long", "--task", "TTS", "--output", "out.wav"], "'text' is missing"),
        (["run", "--long", "--text", "one", "--output", "out.safetensors"], "end --output in .wav"),
        (["run", "--task", "reason_copy", "--audio", "tone.wav", "--output", "out.wav"], ".safetensors"),
        (["run", "--task", "speech_ss", "--audio", "tone.wav", "--output", "out.safetensors"], "2 recordings"),
        (["run", "--audio", "tone.wav", "--reasoning", "tone.wav"], "answers with text"),
        (["run", "--text", "one", "--output", "out.wav", "--reasoning", "missing.wav"], "missing.wav"),
        (["run", "--conversation", "chat.json", "--text", "seven"], "leave the other inputs out"),
        (["run", "--conversation", "missing.json"], "missing.json"),
        (["run", "--conversation", "text.wav"], "cannot be read as JSON"),
        (["run", "--conversation", "object.json"], "must hold a list of messages"),
        (["run", "--conversation", "empty.json"], "no user message"),
        (["run", "--conversation", "chat.json"], "missing.wav"),
        (["run", "--conversation", "bytes.json"], "those of a file in base64"),
        (["info", "text.wav"], "cannot be read as audio"),
        (["run", "--task", "TTS", "--text", "seven", "--output", "out.mp4"], ".wav"),
        (["run", "--task", "TTS", "--text", "seven", "--output", "no/such/folder/out.wav"], "does not exist"),
        (["run", "--task", "ASR", "--audio", "missing.wav"], "missing.wav"),
        (["run", "--task", "ASR", "--audio", "text.wav"], "text.wav"),
        (["run"], "nothing to process"),
        (["run", "--text", "seven", "--output", "out.wav", "--device", "abacus"], "--device"),
        (["reconstruct", "missing.wav", "out.wav"], "missing.wav"),
        (["info", "no/such/model"], "no/such/model"),
        (["info", "missing.wav"], "no audio file 'missing.wav'"),
    ],
)
def test_a_mistake_is_one_line_and_status_two(
    capsys, model_folder, short_model_folder, recording, tmp_path, monkeypatch, arguments, message
):
    monkeypatch.chdir(tmp_path)
    shutil.copy(recording, "tone.wav")
    asked = [{"role": "user", "content": [{"type": "audio", "path": "missing.wav"}]}]
    for name, content in {
        "text.wav": "this is not audio",
        "text.safetensors": "these are not codes",
        "chat.json": json.dumps(asked),
        "object.json": "{}",
        "empty.json": "[]",
        "bytes.json": json.dumps([{"role": "user", "content": [{"type": "audio", "bytes": "in.wav"}]}]),
    }.items():
        Path(name).write_text(content)
    files = set(tmp_path.iterdir())
    if "long" in arguments:
        arguments = ["seven " * 1_000 if argument == "long" else argument for argument in arguments]
        model_folder = short_model_folder
    model = [] if arguments[0] == "info" else ["--model", model_folder]
    status, out, err = run(capsys, *arguments, *model)
    assert (status, out) == (2, "")
    lines = [line for line in err.splitlines() if line.startswith("uniaudio2: error: ")]
    assert len(lines) == 1 and message in lines[0]
    assert set(tmp_path.iterdir()) == files


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
