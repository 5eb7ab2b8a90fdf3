"""Several processes share the items; a killed run goes on: the manifest is that of one process in one go."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import soundfile
import yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def suite(tmp_path_factory, definition):
    path = tmp_path_factory.mktemp("suite") / "small.yaml"
    path.write_text(yaml.safe_dump(definition()))
    return path


def command(*launcher):
    return [*launcher, "-m", "uniaudio2.cli", "evaluate"]


LAUNCHERS = {
    "python": command(sys.executable),
    "accelerate": command(
        # With `--cpu` in its place it starts one process, whatever the number.
        sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu",
        "--num_processes", "2", "--num_machines", "1",
        "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
    ),
    "torchrun": command(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"),
}  # fmt: skip


def arguments(suite, model_folder, data_folder, output):
    paths = {"suite": suite, "model": model_folder, "data": data_folder, "output": output}
    return [
        "--batch-size",
        "1",
        "--device",
        "cpu",
        *(text for name, path in paths.items() for text in (f"--{name}", str(path))),
    ]


def run(launcher, *args):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*LAUNCHERS[launcher], *arguments(*args)], capture_output=True, text=True, timeout=500, env=environment
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done


def results(folder):
    """Everything that does not measure time: the answers, sample for sample, and the numbers."""
    found = {}
    for path in sorted(folder.rglob("predictions.jsonl")):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        answers = [{name: row[name] for name in ("id", "fields", "seed", "tokens", "answer")} for row in rows]
        audio = {file.name: soundfile.read(file)[0].tolist() for file in (path.parent / "audio").iterdir()}
        scores = json.loads((path.parent / "scores.json").read_text())["scores"]
        numbers = [entry for entry in scores if entry["metric"] != "speed"]
        found[path.parent.name] = (answers, audio, numbers)
    return found


@pytest.fixture(scope="module")
def one_process(suite, model_folder, data_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run("python", suite, model_folder, data_folder, folder)
    return results(folder)


@pytest.mark.parametrize("launcher", ["accelerate", "torchrun"])
def test_two_processes_make_the_manifest_of_one(launcher, one_process, suite, model_folder, data_folder, tmp_path):
    done = run(launcher, suite, model_folder, data_folder, tmp_path / "two")
    assert results(tmp_path / "two") == one_process
    assert json.loads((tmp_path / "two/small/listening/run.json").read_text())["processes"] == 2
    # One of them speaks.
    assert done.stdout.count("## small/listening") == 1


def test_a_killed_run_goes_on_to_the_same_numbers(one_process, suite, model_folder, data_folder, tmp_path):
    output = tmp_path / "killed"
    process = subprocess.Popen(
        [*LAUNCHERS["python"], *arguments(suite, model_folder, data_folder, output)],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )  # fmt: skip
    first = output / "small/listening/items/000000.json"
    deadline = time.monotonic() + 300
    while not first.exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL and first.exists()
    done = json.loads(first.read_text())
    assert not (output / "small/round-trip/predictions.jsonl").exists()
    run("python", suite, model_folder, data_folder, output)
    assert results(output) == one_process
    # What was done was not done again: its seconds are those of the first run.
    assert json.loads((output / "small/listening/predictions.jsonl").read_text().splitlines()[0]) == done
