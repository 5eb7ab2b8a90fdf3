"""What training does when something goes wrong, for every trainer of the package."""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate import DistributedType
from torch import nn
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, rotate_checkpoints

from .sharding import own_class

# Where a checkpoint is written before it gets its name. `get_last_checkpoint` does not see it, pushes leave it out.
UNFINISHED = "_unfinished"
# What a folder is called between its replacement and its end.
REPLACED = "_replaced"


@contextmanager
def complete_folder(folder: Path) -> Iterator[Path]:
    """
    A folder that has its name only when it is complete: written aside under the one that is given, then renamed. What
    had the name before is renamed too, and removed after that; what a killed process left aside is removed.
    """
    aside, before = (folder.with_name(f"{folder.name}{ending}") for ending in (UNFINISHED, REPLACED))
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
    except Exception:
        shutil.rmtree(aside, ignore_errors=True)  # a full disk has room again
        raise
    shutil.rmtree(before, ignore_errors=True)
    if folder.exists():
        os.replace(folder, before)
    os.replace(aside, folder)
    shutil.rmtree(before, ignore_errors=True)


class FaultTolerance:
    """
    Beside a [`~transformers.Trainer`] among the bases of a class, and before it.

    - A gradient that is not finite stops the training before the weights change (under DeepSpeed, which moves them in
      the backward pass, after); the batches of that step are saved beside the checkpoints.
    - A checkpoint is written in a folder of its own and renamed when it is complete, so that a crash, a kill or a full
      disk leaves the one before as it was.
    - Evaluation makes the same random choices every time, and leaves those of the training alone: a run with
      evaluation and one without have the same steps.
    """

    _step_batches: Sequence[dict[str, Any]] = ()
    _is_saving = False

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        self._step_batches, num_items = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self._step_batches, num_items

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        devices = [self.args.device] if self.args.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.args.seed)
            return super().evaluate(*args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | float | None = None):
        """The last place before the optimiser moves the weights."""
        grad_norm = super()._get_grad_norm(model, grad_norm)
        if grad_norm is not None and not torch.isfinite(torch.as_tensor(grad_norm)):
            have_moved = self.accelerator.distributed_type == DistributedType.DEEPSPEED
            self._stop("gradient norm", float(grad_norm), have_moved)
        return grad_norm

    def _stop(self, what: str, value: float, weights_have_moved: bool = False) -> None:
        step = self.state.global_step + 1
        path = Path(self.args.output_dir) / f"not_finite_step-{step}_process-{self.args.process_index}.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"step": step, what: value, "batches": self._step_batches}, path)
        raise FloatingPointError(
            f"The {what} of step {step} is {value}. The weights "
            f"{'have moved already' if weights_have_moved else 'are as before this step'}. Its batches are saved in "
            f"{path}; the last checkpoint in {path.parent} is good."
        )

    def _save_beside(self, folder: Path) -> None:
        """What a trainer keeps in a checkpoint beside what `Trainer` does; in the process that saves."""

    def _get_output_dir(self, trial=None) -> str:
        folder = super()._get_output_dir(trial)
        return os.path.join(folder, UNFINISHED) if self._is_saving else folder

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        with own_class(self.model):
            super()._save(output_dir, state_dict)

    def _save_checkpoint(self, model: nn.Module, trial=None) -> None:
        """Write aside, then rename; only then remove old checkpoints. All processes write, each its own files."""
        folder = Path(self._get_output_dir(trial))
        name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        if self.args.should_save:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # left by a process that was killed
        self.accelerator.wait_for_everyone()
        self._is_saving = True
        try:
            super()._save_checkpoint(model, trial)
            if self.args.should_save:
                self._save_beside(folder / UNFINISHED / name)
        except Exception:
            shutil.rmtree(folder / UNFINISHED, ignore_errors=True)  # a full disk has room again
            raise
        finally:
            self._is_saving = False
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            shutil.rmtree(folder / name, ignore_errors=True)  # of a run that is repeated from an earlier step
            os.replace(folder / UNFINISHED / name, folder / name)
            (folder / UNFINISHED).rmdir()
            rotate_checkpoints(str(folder), self.args.save_total_limit, use_mtime=True)
        self.accelerator.wait_for_everyone()
