"""What all training stages share: a `Trainer` that knows its losses by name, and never leaves half a checkpoint."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments
from transformers.integrations import is_tensorboard_available, is_wandb_available
from transformers.utils import ModelOutput

from .faults import FaultTolerance
from .row_mixture import RowMixture
from .sharding import FSDP2Precision, refuse_fsdp_on_cpu
from .speed import SpeedLog


@dataclass
class StageArguments:
    """
    Beside [`~transformers.TrainingArguments`] among the bases of a stage's arguments, and before them. TensorBoard is
    on by default, and Weights & Biases if installed.

    Args:
        device_tflops (`float`, *optional*):
            What one device can do at best, in TFLOP/s, for the utilisation in the logs. Known for common accelerators;
            where it is not, the utilisation is left out.
    """

    remove_unused_columns: bool = False
    report_to: str | list[str] | None = None
    device_tflops: float | None = field(default=None, metadata={"help": "Peak of one device in TFLOP/s."})

    def __post_init__(self):
        if self.report_to is None:
            self.report_to = installed_trackers()
        # A stage stops at the first loss that is not a number, see `StageTrainer`.
        self.logging_nan_inf_filter = False
        if self.use_cpu:
            refuse_fsdp_on_cpu()
            if self.deepspeed is not None:
                start_deepspeed_on_cpu()
        super().__post_init__()
        if self.metric_for_best_model is not None or self.load_best_model_at_end:
            raise ValueError(
                "A stage keeps its last checkpoints, not the best one: leave out `metric_for_best_model` and "
                "`load_best_model_at_end`, and compare checkpoints afterwards."
            )


@dataclass
class StageTrainingArguments(StageArguments, TrainingArguments):
    """[`~transformers.TrainingArguments`] of a stage, with what [`StageArguments`] adds."""


class StageTrainer(FSDP2Precision, FaultTolerance, SpeedLog, Trainer):
    """
    A [`~transformers.Trainer`] for one stage of training. A stage says which modules learn (`trained_modules`), what
    its losses are (`step_losses`, of how many things each is the mean: `count_items`) and what they weigh
    (`loss_weights`). Shared by all stages:

    - *Exact accumulation.* A loss is the mean over all things it counts in one optimiser step, however they are spread
      over micro-batches and processes: one batch of 8 and 8 batches of one have the same gradient.
    - *Logs.* Every value of `step_losses` by its name, tokens per second, and the share of the device's peak that the
      model's own operations make up (`model_flops_utilization`).
    - *Faults.* As [`~uniaudio2.training.faults.FaultTolerance`] says; a loss that is not finite stops it too.

    Args:
        model (`nn.Module`):
            The model; a `PeftModel` keeps the choice of parameters that its adapters made, in every other model all
            parameters outside of `trained_modules` are frozen.
        args (`StageTrainingArguments`): The arguments.
        loss_weights (`dict[str, float]`, *optional*): In place of weights of the class.
        kwargs: As of [`~transformers.Trainer`].

    Raises:
        ValueError: If nothing is left to train, or `loss_weights` names a loss that the stage does not have.
        FloatingPointError: While training, if a loss or a gradient is not finite.
    """

    # Losses that are minimised, by the names in `step_losses`.
    loss_weights: ClassVar[dict[str, float]] = {}

    def __init__(
        self,
        model: nn.Module,
        args: StageTrainingArguments,
        *,
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        unknown = set(loss_weights or ()) - set(self.loss_weights)
        if unknown:
            raise ValueError(f"Unknown losses {sorted(unknown)}: {type(self).__name__} has {[*self.loss_weights]}.")
        self.weights = self.loss_weights | (loss_weights or {})
        if not hasattr(model, "peft_config"):
            freeze_all_but(model, self.trained_modules(model))
        super().__init__(model, args, **kwargs)
        # Of the accumulated batch, in `compute_loss`: nothing is left for `Trainer` to divide by.
        self.loss_is_scaled_for_ga = True
        self._step_items: dict[str, torch.Tensor] | None = None
        self._train_sums, self._eval_sums = _WeightedSums(), _WeightedSums()
        self._num_tokens = 0

    # What a stage says

    @classmethod
    def trained_modules(cls, model: nn.Module) -> list[str]:
        """Names of the modules that learn, with all they contain; `""` is the whole model."""
        return [""]

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ModelOutput]:
        """
        Run the model on one micro-batch.

        Returns:
            `dict[str, torch.Tensor]`: Means over the micro-batch, scalars. Those in `loss_weights` are minimised, the
            others (accuracies, parts of parts) are only logged. In evaluation losses may be left out.
            `ModelOutput`: What the model returned.
        """
        raise NotImplementedError

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Of how many things each value of `step_losses` is the mean, in one micro-batch."""
        raise NotImplementedError

    def count_tokens(self, inputs: dict[str, Any]) -> torch.Tensor:
        """Positions of a micro-batch that are not padding, for the speed in the logs."""
        raise NotImplementedError

    # The loop

    def get_train_dataloader(self) -> DataLoader:
        """Of a [`~uniaudio2.training.row_mixture.RowMixture`] its draws, of which resuming loads none."""
        if not isinstance(self.train_dataset, RowMixture):
            return super().get_train_dataloader()
        return self._get_dataloader(
            self.train_dataset, "Training", self._train_batch_size, RowMixture.draws, is_training=True
        )

    def _run_epoch(self, *args, **kwargs) -> None:
        # Resumed at its very end, `Trainer` would take one step more from data without a length.
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], None]:
        batches, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = [self.count_items(batch) for batch in batches]
        if counts:
            totals = torch.stack([sum(count[name] for count in counts) for name in counts[0]])
            totals = self.accelerator.reduce(totals.to(device), "sum")
            self._step_items = dict(zip(counts[0], totals, strict=True))
            self._num_tokens += sum(int(self.count_tokens(batch)) for batch in batches)
        return batches, None

    def tokens_seen(self) -> int:
        tokens = torch.tensor(self._num_tokens, device=self.args.device)
        return int(self.accelerator.reduce(tokens, "sum"))

    def compute_loss(self, model, inputs, return_outputs: bool = False, num_items_in_batch=None):
        values, outputs = self.step_losses(model, inputs)
        counts = self.count_items(inputs)
        self._train_sums.add(values, counts)
        loss = torch.zeros((), device=self.args.device)
        for name, weight in self.weights.items():
            # Processes average their gradients, hence times their number.
            share = counts[name] * self.accelerator.num_processes / self._step_items[name].clamp(min=1)
            loss = loss + weight * share * values[name]
        if not torch.isfinite(loss):
            self._stop("loss", loss.item())
        return (loss, outputs) if return_outputs else loss

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """
        Losses alone, which go into the logs: logits of all streams and frames would fill the memory, and differ in
        shape. A process that has only examples a second time takes one, so that all make as many forward passes.
        """
        inputs = self._prepare_inputs(inputs)
        size = len(next(iter(inputs.values())))
        own = own_rows(size, self.accelerator)
        if own < size:
            inputs = {name: value[: max(own, 1)] for name, value in inputs.items()}
        with torch.no_grad():
            values, _ = self.step_losses(model, inputs)
        counts = self.count_items(inputs)
        self._eval_sums.add(values, counts if own else {name: 0 * count for name, count in counts.items()})
        return self._weighted(values), None, None

    def _weighted(self, values: dict[str, Any]) -> Any:
        """The sum that is minimised, of those of its parts that are there."""
        return sum(weight * values[name] for name, weight in self.weights.items() if name in values)

    # Logs

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._train_sums.pop_means(self.accelerator)
        elif "eval_loss" in logs:
            means = self._eval_sums.pop_means(self.accelerator)
            logs |= {f"eval_{name}": value for name, value in means.items()}
            # `Trainer` averages batches, whatever is in them.
            logs["eval_loss"] = self._weighted(means)
        super().log(logs, *args, **kwargs)


def own_rows(size: int, accelerator: Accelerator) -> int:
    """
    How many of the `size` rows of a batch, the first ones, this process alone has. In the last batches accelerate
    fills all processes up to the same size with examples from the start, after the last example.
    """
    state = accelerator.gradient_state
    if not state.end_of_dataloader or state.remainder <= 0:
        return size
    return min(max(state.remainder - size * accelerator.process_index, 0), size)


class _WeightedSums:
    """Means over several batches and processes, each value weighted by what it is the mean of."""

    def __init__(self):
        self.sums: dict[str, torch.Tensor] = {}

    def add(self, values: dict[str, torch.Tensor], counts: dict[str, torch.Tensor]) -> None:
        for name, value in values.items():
            count = counts[name].to(value.device, torch.float32)
            pair = torch.stack([value.detach().float() * count, count])
            self.sums[name] = self.sums[name] + pair if name in self.sums else pair

    def pop_means(self, accelerator: Accelerator) -> dict[str, float]:
        if not self.sums:
            return {}
        totals = accelerator.reduce(torch.stack(list(self.sums.values())), "sum").tolist()
        means = {name: total / max(count, 1.0) for name, (total, count) in zip(self.sums, totals, strict=True)}
        self.sums = {}
        return means


def installed_trackers() -> list[str] | str:
    """Where a stage reports to unless it is told otherwise: TensorBoard, and Weights & Biases if it is installed."""
    available = {"tensorboard": is_tensorboard_available(), "wandb": is_wandb_available()}
    return [name for name, is_available in available.items() if is_available] or "none"


def start_deepspeed_on_cpu() -> None:
    """
    Where there is no GPU, transformers starts `torch.distributed` alone, and DeepSpeed then sees one process. Its
    shared-memory kernel is left out: it would be compiled, and gloo does the same.
    """
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo")


def freeze_all_but(model: nn.Module, modules: list[str]) -> None:
    """
    Let the named modules learn, with all they contain, and nothing else; `""` is the whole model.

    Parameters that get no gradient must be frozen and not just left out: weight decay would move them.
    """
    model.requires_grad_(False)
    for name in modules:
        model.get_submodule(name).requires_grad_(True)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"None of the modules {modules} has parameters: there is nothing to train.")
