"""How fast a stage trains: tokens per second, and the share of the device's peak that the model's operations are."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

# Dense bfloat16 peak of common accelerators in TFLOP/s (vendors' data sheets), by a part of the device's name.
DEVICE_TFLOPS = {"B200": 2250.0, "H200": 989.0, "H100": 989.0, "A100": 312.0, "L40S": 362.0, "4090": 165.0}


class SpeedLog:
    """
    Beside a [`~transformers.Trainer`] among the bases of a class, and before it. Logs `tokens_per_second` and, where
    the peak of the device is known or `args.device_tflops` says it, `model_flops_utilization`, of the operations that
    `floating_point_ops` counts. Saving and evaluation count as time.
    """

    _last_log: tuple[float, float, int] | None = None  # when, and the operations and tokens until then

    def tokens_seen(self) -> int:
        """Tokens of the training until now, of all processes."""
        raise NotImplementedError

    def train(self, *args, **kwargs):
        self._last_log = None
        return super().train(*args, **kwargs)

    def get_batch_samples(self, epoch_iterator: Iterator, num_batches: int, device: torch.device):
        if self._last_log is None:
            self._last_log = self._progress()
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def log(self, logs: dict[str, Any], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= self._pop_speed()
        super().log(logs, *args, **kwargs)

    def _progress(self) -> tuple[float, float, int]:
        return time.perf_counter(), self.state.total_flos, self.tokens_seen()

    def _pop_speed(self) -> dict[str, float]:
        """Since the last log."""
        now = self._progress()
        seconds, flos, tokens = (new - old for new, old in zip(now, self._last_log, strict=True))
        self._last_log = now
        speed = {"tokens_per_second": tokens / seconds}
        peak = getattr(self.args, "device_tflops", None) or known_tflops(self.args.device)
        if peak is not None:
            speed["model_flops_utilization"] = flos / seconds / (peak * 1e12 * self.args.world_size)
        return speed


def operations(parts: Sequence[tuple[nn.Module, int]], backward: bool = True) -> float:
    """
    Of one forward pass through modules in a row, each on so many rows, and of the backward pass if there is one: the
    products with the weights. Attention scores are left out.

    A weight costs two operations per row, two more where the gradient must pass it, and two more if it learns itself.
    Gradients go down to the first thing that learns.
    """
    total, reached = 0.0, False
    for module, rows in parts:
        if hasattr(module, "modules_to_save"):  # of an adapter: the copy that learns is the one that is used
            module = module.modules_to_save["default"]
        weights = list(module.parameters())
        reached = reached or (backward and any(weight.requires_grad for weight in weights))
        for weight in weights:
            size = getattr(weight, "ds_numel", weight.numel())  # under ZeRO-3 they lie in other processes
            total += rows * size * (2 + 2 * reached + 2 * (backward and weight.requires_grad))
    return total


def counted_operations(run: Callable[[], Any]) -> int:
    """Of a computation as torch counts them: products, convolutions and attention; on the meta device too."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def known_tflops(device: torch.device) -> float | None:
    """The peak of a device in TFLOP/s, if it is a common one."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    return next((tflops for part, tflops in DEVICE_TFLOPS.items() if part in name), None)
