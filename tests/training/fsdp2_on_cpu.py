"""`uniaudio2` under accelerate's own FSDP2 on CPUs, as a script for `accelerate launch`: `fsdp2_on_cpu.py train ...`.

`accelerate` starts FSDP only where it finds an accelerator. Here it is told that it found one, whose processes talk by
gloo and whose device is the CPU. What follows is its own code and that of `uniaudio2`, as on GPUs.
"""

import os
import sys
from unittest import mock

from accelerate import Accelerator, DistributedType, PartialState
from torch import nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from uniaudio2.cli import main
from uniaudio2.training.recipe import RECIPES


def fsdp2_launcher(port: int) -> list[str]:
    """What `python -m` starts two processes with; the words after `uniaudio2` follow, `arguments.use_cpu=false` among
    them."""
    config = str(RECIPES.parent / "accelerate" / "fsdp2.yaml")
    return ["accelerate.commands.launch", "--config_file", config, "--num_processes", "2", "--main_process_port",
            str(port), __file__]  # fmt: skip


class ShardingAccelerator(Accelerator):
    """Makes sure that a model that is trained has been spread out, by layers."""

    def prepare(self, *objects, **kwargs):
        prepared = super().prepare(*objects, **kwargs)
        for model in (found for found in objects if isinstance(found, nn.Module)):
            assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
            layers = [m for m in model.modules() if type(m).__name__ in getattr(model, "_no_split_modules", ())]
            assert not layers, f"{layers[0]} is in the same group as the model"
            assert isinstance(model, FSDPModule)
        return prepared


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    backend = mock.patch.object(PartialState, "_prepare_backend", return_value=("gloo", DistributedType.MULTI_GPU))
    sharding = mock.patch("transformers.trainer.Accelerator", ShardingAccelerator)
    bfloat16 = mock.patch("transformers.training_args.is_torch_bf16_gpu_available", return_value=True)
    with backend, sharding, bfloat16:
        sys.exit(main(sys.argv[1:]))
