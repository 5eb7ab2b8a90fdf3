"""What every stage inherits, on a toy with two losses of different normalisers."""

import errno
import os
import shutil
import subprocess
import sys
from itertools import product
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.state import GradientState
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

import uniaudio2
from uniaudio2.training import stage_trainer
from uniaudio2.training.faults import UNFINISHED, FaultTolerance, complete_folder
from uniaudio2.training.stage_trainer import StageTrainer, StageTrainingArguments, own_rows


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Linear(4, 4)
        self.dropout = nn.Dropout(0.3)
        self.left, self.right = nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, inputs):
        hidden = self.dropout(self.trunk(inputs).tanh())
        return self.left(hidden)[..., 0], self.right(hidden)[..., 0]


class ToyTrainer(StageTrainer):
    loss_weights: ClassVar = {"left_loss": 1.0, "right_loss": 0.5}

    @classmethod
    def trained_modules(cls, model):
        return ["trunk", "left"]

    def step_losses(self, model, inputs):
        left, right = model(inputs["inputs"])
        values = {
            "left_loss": (left**2 * inputs["is_left"]).sum() / inputs["is_left"].sum().clamp(min=1),
            "right_loss": ((right - 1) ** 2 * ~inputs["is_left"]).sum() / (~inputs["is_left"]).sum().clamp(min=1),
        }
        return values, {"loss": None}

    def count_items(self, inputs):
        return {"left_loss": inputs["is_left"].sum(), "right_loss": (~inputs["is_left"]).sum()}

    def count_tokens(self, inputs):
        return inputs["is_left"].numel()


@pytest.fixture
def examples():
    """Examples of seven positions; how many of them count for the left loss differs, and is zero for some."""
    generator = torch.Generator().manual_seed(1)
    lefts = torch.arange(32) % 8
    return [
        {"inputs": torch.randn(7, 4, generator=generator), "is_left": torch.arange(7) < lefts[index]}
        for index in range(32)
    ]


@pytest.fixture
def make_trainer(examples, tmp_path):
    def make(name="run", dropout=0.0, **arguments):
        torch.manual_seed(0)
        model = Toy()
        model.dropout.p = dropout
        arguments = {"max_steps": 4, "logging_steps": 1, "save_strategy": "no"} | arguments
        args = StageTrainingArguments(
            str(tmp_path / name), use_cpu=True, report_to=[], disable_tqdm=True, learning_rate=0.05, **arguments
        )
        return ToyTrainer(model, args, train_dataset=examples)

    return make


def losses(trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


def test_only_what_the_stage_trains_changes(make_trainer):
    trainer = make_trainer()
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"trunk.weight", "trunk.bias", "left.weight", "left.bias"}


def test_eight_batches_of_one_are_one_batch_of_eight(make_trainer):
    """Both losses are means over the whole step, also where a micro-batch has nothing of one of them."""
    runs = {}
    for name, sizes in {"at_once": (8, 1), "accumulated": (1, 8)}.items():
        size, steps = sizes
        trainer = make_trainer(name, per_device_train_batch_size=size, gradient_accumulation_steps=steps, optim="sgd")
        trainer.train()
        runs[name] = trainer
    for at_once, accumulated in zip(
        runs["at_once"].state.log_history, runs["accumulated"].state.log_history, strict=True
    ):
        for name in {"loss", "left_loss", "right_loss", "grad_norm"} & at_once.keys():
            assert accumulated[name] == pytest.approx(at_once[name], abs=1e-6)
    for at_once, accumulated in zip(*(runs[name].model.parameters() for name in runs), strict=True):
        torch.testing.assert_close(accumulated, at_once, atol=1e-6, rtol=0)


def test_the_logged_losses_are_those_of_the_step(make_trainer):
    trainer = make_trainer(per_device_train_batch_size=8, max_steps=1)
    batch = next(iter(trainer.get_train_dataloader()))
    trainer.model.eval()
    expected, _ = trainer.step_losses(trainer.model, batch)
    trainer.train()
    logs = trainer.state.log_history[0]
    assert logs["left_loss"] == pytest.approx(expected["left_loss"].item())
    assert logs["loss"] == pytest.approx(expected["left_loss"].item() + 0.5 * expected["right_loss"].item())
    assert logs["tokens_per_second"] > 0


def test_a_known_peak_gives_the_utilization(make_trainer):
    trainer = make_trainer(device_tflops=1e-6)
    trainer.floating_point_ops = lambda inputs: 1e6
    trainer.train()
    assert all(row["model_flops_utilization"] > 0 for row in trainer.state.log_history if "loss" in row)
    assert trainer.state.total_flos == 4e6


def test_evaluation_logs_the_parts(make_trainer, examples):
    metrics_of = make_trainer(per_device_eval_batch_size=16)
    metrics_of.evaluate(examples[:16])
    logs = metrics_of.state.log_history[-1]
    assert logs["eval_loss"] == pytest.approx(logs["eval_left_loss"] + 0.5 * logs["eval_right_loss"])


def test_every_held_out_example_has_one_process():
    """As accelerate fills up the last batches, also where whole batches are repeats, or nearly all of them."""
    for length, size, processes in product(range(1, 20), range(1, 5), range(1, 5)):
        seen, batches = [], set()
        for index in range(processes):
            loader = prepare_data_loader(
                DataLoader(range(length), batch_size=size), num_processes=processes, process_index=index
            )
            accelerator = SimpleNamespace(gradient_state=GradientState(), process_index=index)
            own = [batch[: own_rows(len(batch), accelerator)] for batch in loader]
            seen += torch.cat(own).tolist()
            batches.add(len(own))
        assert sorted(seen) == list(range(length)) and len(batches) == 1


def test_examples_that_another_process_has_do_not_count(make_trainer, examples, monkeypatch):
    trainer = make_trainer(per_device_eval_batch_size=4)
    expected = trainer.evaluate(examples[:7])
    passes = []
    trainer.model.trunk.register_forward_hook(lambda module, inputs, output: passes.append(len(output)))
    own = iter([4, 3, 0])
    monkeypatch.setattr(stage_trainer, "own_rows", lambda size, accelerator: next(own))
    found = trainer.evaluate([*examples[:7], *examples[20:25]])
    assert passes == [4, 3, 1]
    for name in ("eval_loss", "eval_left_loss", "eval_right_loss"):
        assert found[name] == pytest.approx(expected[name])


def test_a_loss_that_is_no_number_stops_before_the_weights_change(make_trainer, examples, tmp_path):
    examples[5]["inputs"][0, 0] = float("nan")
    trainer = make_trainer(per_device_train_batch_size=32)
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match="loss of step 1 is nan"):
        trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), before))
    saved = torch.load(tmp_path / "run" / "not_finite_step-1_process-0.pt")
    assert saved["step"] == 1 and saved["batches"][0]["inputs"].isnan().any()


def test_a_gradient_that_is_no_number_stops_too(make_trainer):
    trainer = make_trainer()
    trainer.model.trunk.weight.register_hook(lambda gradient: gradient * float("inf"))
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    with pytest.raises(FloatingPointError, match="gradient norm of step 1"):
        trainer.train()
    assert all(map(torch.equal, trainer.model.parameters(), before))


def test_resuming_continues_bit_for_bit(make_trainer, tmp_path):
    """With drop-out, so the random state matters; the order of the data is that of one run."""
    whole = make_trainer("whole", dropout=0.3, max_steps=8)
    whole.train()
    make_trainer("parts", dropout=0.3, max_steps=8, save_strategy="steps", save_steps=3).train()
    resumed = make_trainer("parts", dropout=0.3, max_steps=8)
    resumed.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-3"))
    assert losses(resumed) == losses(whole)
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_only_the_last_checkpoints_stay(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=1, save_total_limit=2, max_steps=4).train()
    assert sorted(path.name for path in (tmp_path / "run").glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.parametrize("moment", ["model.safetensors", "optimizer.pt", "trainer_state.json"])
def test_a_full_disk_leaves_the_checkpoint_before(make_trainer, tmp_path, monkeypatch, moment):
    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=4)
    name = {
        "model.safetensors": "save_model",
        "optimizer.pt": "_save_optimizer_and_scheduler",
        "trainer_state.json": "_save_rng_state",
    }[moment]
    write = getattr(trainer, name)

    def full(*args, **kwargs):
        if trainer.state.global_step == 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(*args, **kwargs)

    monkeypatch.setattr(trainer, name, full)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    folder = tmp_path / "run"
    assert get_last_checkpoint(str(folder)) == str(folder / "checkpoint-2")
    assert not any((folder / UNFINISHED).glob("*"))
    resumed = make_trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 4


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB, as the folder of the run."""
    folder = tmp_path / "run"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount, "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("no file system can be mounted here: that takes Linux and root")
    yield folder
    # Lazily: the failure that a test has caught may still hold a file open.
    subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.mark.parametrize("room", [0, 4096, 12288])
def test_a_disk_that_is_really_full_leaves_the_checkpoint_before(make_trainer, small_disk, room):
    """Full before the first file of a checkpoint, and in the middle of it."""

    class Filler(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 3:
                free = os.statvfs(small_disk)
                (small_disk / "filler").write_bytes(bytes(free.f_bavail * free.f_bsize - room))

    trainer = make_trainer(save_strategy="steps", save_steps=1, save_total_limit=1, max_steps=4)
    trainer.add_callback(Filler())
    # As safetensors, json and torch call it.
    with pytest.raises((OSError, RuntimeError, SafetensorError), match=r"(?i)no space left|unexpected pos"):
        trainer.train()
    assert get_last_checkpoint(str(small_disk)) == str(small_disk / "checkpoint-2")
    assert not any((small_disk / UNFINISHED).glob("*"))
    (small_disk / "filler").unlink()
    resumed = make_trainer(max_steps=4)
    resumed.train(resume_from_checkpoint=True)
    whole = make_trainer("whole", max_steps=4)
    whole.train()
    assert all(map(torch.equal, resumed.model.parameters(), whole.model.parameters()))


def test_what_a_killed_process_left_is_ignored(make_trainer, tmp_path):
    make_trainer(save_strategy="steps", save_steps=2, max_steps=2).train()
    half = tmp_path / "run" / UNFINISHED / "checkpoint-3"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"half")
    assert get_last_checkpoint(str(tmp_path / "run")).endswith("checkpoint-2")
    make_trainer(save_strategy="steps", save_steps=1, max_steps=3).train(resume_from_checkpoint=True)
    assert (tmp_path / "run" / "checkpoint-3" / "trainer_state.json").exists() and not half.exists()


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "model"
    for text in ("first", "second"):
        with complete_folder(folder) as unfinished:
            (unfinished / "weights").write_text(text)
        assert (folder / "weights").read_text() == text and [*tmp_path.iterdir()] == [folder]
    with pytest.raises(OSError, match="No space left"), complete_folder(folder) as unfinished:
        (unfinished / "weights").write_text("third")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (folder / "weights").read_text() == "second" and [*tmp_path.iterdir()] == [folder]

    def killed(source, target):
        if target == folder:
            raise KeyboardInterrupt
        rename(source, target)

    rename = os.replace
    monkeypatch.setattr("os.replace", killed)
    with pytest.raises(KeyboardInterrupt), complete_folder(folder) as unfinished:
        (unfinished / "weights").write_text("third")
    assert sorted(path.read_text() for path in tmp_path.glob("model_*/weights")) == ["second", "third"]


def test_mistakes_are_named(make_trainer, examples, tmp_path, monkeypatch):
    args = StageTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])
    with pytest.raises(ValueError, match=r"Unknown losses \['middle_loss'\]"):
        ToyTrainer(Toy(), args, loss_weights={"middle_loss": 1.0})
    with pytest.raises(ValueError, match="not the best one"):
        StageTrainingArguments(str(tmp_path), load_best_model_at_end=True, eval_strategy="steps", report_to=[])
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(ValueError, match="no FSDP on a CPU"):
        StageTrainingArguments(str(tmp_path), use_cpu=True, report_to=[])


def test_the_trainers_of_all_stages_are_exported_and_loaded_when_asked_for():
    program = "import sys, uniaudio2; assert not any(m.startswith(('uniaudio2.training', 'trl')) for m in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    assert len(uniaudio2._TRAINERS) == 8
    for name in uniaudio2._TRAINERS:
        assert issubclass(getattr(uniaudio2, name), Trainer) and name in dir(uniaudio2)
        assert issubclass(getattr(uniaudio2, name), FaultTolerance)
    with pytest.raises(AttributeError, match="has no attribute 'NoTrainer'"):
        _ = uniaudio2.NoTrainer
