"""Training in processes of its own: several at once, and killed in the middle."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from fsdp2_on_cpu import fsdp2_launcher

from uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.cli import main
from uniaudio2.training.faults import UNFINISHED
from uniaudio2.training.tokenization import SETTINGS_FILE

STEPS = 20


@pytest.fixture(scope="module")
def codes_file(tmp_path_factory):
    generator = torch.Generator().manual_seed(0)
    rows = []
    for index in range(24):
        seconds = 2 + index % 4
        frames = {"reasoning_codes": (5 * seconds, 16), "reconstruction_codes": (12 * seconds, 32)}
        codes = {
            name: torch.randint(size, (8 * n,), generator=generator).tolist() for name, (n, size) in frames.items()
        }
        rows.append({"audio": codes, "text": ["one two", "seven three nine", "zero"][index % 3]})
    path = tmp_path_factory.mktemp("codes") / "codes.parquet"
    datasets.Dataset.from_list(rows).to_parquet(str(path))
    return path


@pytest.fixture
def command(model_folder, codes_file, tmp_path):
    """The words after `uniaudio2` for a short pre-training into `tmp_path / output`."""

    def make(output: str, *names: str, batch_size: int = 1, **arguments) -> list[str]:
        sources = [{"path": str(codes_file), "task": task} for task in ("ASR", "TTS")]
        arguments = {
            "max_steps": STEPS, "save_steps": 10, "save_total_limit": 5, "logging_steps": 1, "report_to": "none",
            "disable_tqdm": True, "per_device_train_batch_size": batch_size, "learning_rate": 2e-3, "warmup_steps": 2,
        } | arguments  # fmt: skip
        values = [f"arguments.{key}={json.dumps(value)}" for key, value in arguments.items()]
        values += [f"model.path={model_folder}", f"output={tmp_path / output}", f"data.sources={json.dumps(sources)}"]
        values.append(f"data.validation={json.dumps(sources)}")
        return ["train", "pretraining", "--config", "pretraining", "size_tiny", *names, *values, "data.context=200"]

    return make


def launch(arguments: list[str]) -> subprocess.Popen:
    """`python -m` in a process group of its own, which can be killed with all it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    return subprocess.Popen(
        [sys.executable, "-m", *arguments], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip


def start(words: list[str], processes: int = 1) -> subprocess.Popen:
    launcher = [] if processes == 1 else ["torch.distributed.run", "--nproc_per_node", str(processes),
                                          "--master_port", str(29_600 + os.getpid() % 1000), "-m"]  # fmt: skip
    return launch([*launcher, "uniaudio2.cli", *words])


def run(words: list[str], processes: int = 1) -> None:
    finish(start(words, processes))


def finish(process: subprocess.Popen) -> None:
    output, _ = process.communicate(timeout=900)
    assert process.returncode == 0, output[-4000:]


def run_with_fsdp2(words: list[str]) -> None:
    """Two processes, launched with the shipped configuration."""
    finish(launch([*fsdp2_launcher(29_600 + os.getpid() % 1000), *words]))


def logged(folder: Path, step: int = STEPS) -> list[dict]:
    state = json.loads((folder / f"checkpoint-{step}" / "trainer_state.json").read_text())
    return [row for row in state["log_history"] if "loss" in row]


def evaluated(folder: Path) -> dict[str, float]:
    """Losses and accuracies of the held-out data at the last step."""
    state = json.loads((folder / f"checkpoint-{STEPS}" / "trainer_state.json").read_text())
    (row,) = (row for row in state["log_history"] if "eval_loss" in row)
    return {name: value for name, value in row.items() if name.endswith(("loss", "accuracy"))}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return UniAudio2ForConditionalGeneration.from_pretrained(folder / "model").state_dict()


def assert_near(folder: Path, reference: Path, names=("loss", "text_loss", "audio_loss")) -> None:
    for row, expected in zip(logged(folder), logged(reference), strict=True):
        assert all(row[name] == pytest.approx(expected[name], rel=1e-4) for name in names)
    for name, weight in weights(folder).items():
        torch.testing.assert_close(weight, weights(reference)[name], atol=2e-4, rtol=0, msg=name)


@pytest.mark.slow
def test_two_processes_that_share_the_model_are_one_process(command, zero3, tmp_path):
    """With ZeRO-3 and with FSDP2: losses of 20 steps and the weights after them; stopped after 10 it goes on alike."""
    evaluation = {"eval_steps": STEPS, "per_device_eval_batch_size": 7}
    run(command("one", batch_size=2, **evaluation))
    ways = {
        "zero3": lambda: run(command("zero3", deepspeed=zero3(), **evaluation), processes=2),
        "fsdp2": lambda: run_with_fsdp2(command("fsdp2", use_cpu=False, **evaluation)),
    }
    for name, train in ways.items():
        train()
        assert_near(tmp_path / name, tmp_path / "one")
        assert evaluated(tmp_path / name) == pytest.approx(evaluated(tmp_path / "one"), rel=1e-3)
        before = logged(tmp_path / name)
        shutil.rmtree(tmp_path / name / f"checkpoint-{STEPS}")
        shutil.rmtree(tmp_path / name / "model")
        train()
        assert [row["loss"] for row in logged(tmp_path / name)] == [row["loss"] for row in before]
        assert_near(tmp_path / name, tmp_path / "one")
    one, shared, spread = (tmp_path / name / "checkpoint-10" for name in ("one", "zero3", "fsdp2"))
    assert len(list((shared / "global_step10").glob("*optim_states.pt"))) == 2
    # A checkpoint of FSDP2 can be loaded as one of a single process can.
    assert (spread / "config.json").read_text() == (one / "config.json").read_text()
    assert {path.name for path in spread.glob("*.py")} == {path.name for path in one.glob("*.py")}


@pytest.mark.slow
def test_adapters_on_a_model_that_two_processes_share(command, zero3, tmp_path):
    """With ZeRO-3 weights and optimiser are offloaded. On a CPU they are there anyway: that it works, not that it
    saves anything."""
    lora = ("lora", "lora.rank=4", "lora.alpha=8", "lora.dropout=0.0")
    run(command("one", *lora, batch_size=2))
    run(command("zero3", *lora, deepspeed=zero3("zero3_offload")), processes=2)
    run_with_fsdp2(command("fsdp2", *lora, use_cpu=False))
    for name in ("zero3", "fsdp2"):
        assert_near(tmp_path / name, tmp_path / "one")


@pytest.mark.slow
def test_two_processes_are_one_process(command, tmp_path):
    """Data parallelism over gloo, with batches that are accumulated. Of the held-out data, 48 examples in batches of 7
    or 2 x 7, no example counts twice."""
    evaluation = {"eval_steps": STEPS, "per_device_eval_batch_size": 7}
    run(command("one", batch_size=4, **evaluation))
    run(command("two", gradient_accumulation_steps=2, **evaluation), processes=2)
    assert_near(tmp_path / "two", tmp_path / "one")
    assert evaluated(tmp_path / "two") == pytest.approx(evaluated(tmp_path / "one"), rel=1e-3)


@pytest.mark.slow
def test_killed_at_a_step_and_in_the_middle_of_a_save(command, tmp_path):
    """SIGKILL three times, once while a checkpoint is written; the end is that of a run that was never killed."""
    run(command("whole", save_steps=2))
    words, folder = command("killed", save_steps=2), tmp_path / "killed"
    for reached in ("checkpoint-4", f"{UNFINISHED}/checkpoint-8/model.safetensors", "checkpoint-12"):
        process = start(words)
        while not (folder / reached).exists():
            assert process.poll() is None, process.stdout.read()[-4000:]
            time.sleep(0.0005)
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert not (folder / "model").exists()
    run(words)
    assert [row["loss"] for row in logged(folder)] == [row["loss"] for row in logged(tmp_path / "whole")]
    killed, whole = weights(folder), weights(tmp_path / "whole")
    assert all(torch.equal(killed[name], whole[name]) for name in whole)


@pytest.mark.slow
def test_two_processes_share_the_recordings(model_folder, tmp_path):
    """`uniaudio2 train tokenize` under `accelerate launch`: killed after the first shard, and started again."""
    rng = np.random.default_rng(0)
    rows = []
    for index in range(24):
        soundfile.write(tmp_path / f"{index}.wav", 0.1 * rng.standard_normal(9600 + 480 * index), 24_000)
        rows.append({"audio": f"{index}.wav", "text": f"number {index}"})
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def words(output: str) -> list[str]:
        arguments = ["--model", str(model_folder), "--rows-per-shard", "3", "--batch-size", "1"]
        return ["train", "tokenize", str(tmp_path / "manifest.jsonl"), str(tmp_path / output), *arguments]

    assert main(words("one")) == 0
    launcher = ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1",
                "--mixed_precision", "no", "--dynamo_backend", "no",
                "--main_process_port", str(29_600 + os.getpid() % 1000), "-m", "uniaudio2.cli"]  # fmt: skip
    process = launch([*launcher, *words("two")])
    while not list((tmp_path / "two").glob("*.parquet")):
        assert process.poll() is None, process.stdout.read()[-4000:]
        time.sleep(0.0005)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    first = {path: path.stat().st_mtime_ns for path in (tmp_path / "two").glob("*.parquet")}
    assert 1 <= len(first) < 8

    process = launch([*launcher, *words("two")])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    names = sorted(path.name for path in (tmp_path / "one").glob("*.parquet"))
    assert names == sorted(path.name for path in (tmp_path / "two").iterdir() if path.name != SETTINGS_FILE)
    assert all(path.stat().st_mtime_ns == time for path, time in first.items())
    for name in names:
        one, two = (datasets.Dataset.from_parquet(str(tmp_path / folder / name)) for folder in ("one", "two"))
        assert one.features == two.features and one[:] == two[:]
