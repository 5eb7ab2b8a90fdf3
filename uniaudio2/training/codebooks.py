"""Codebooks that follow the batches of all processes.

vector-quantize-pytorch decides whether to exchange statistics when a quantizer is built, and remembers the answer. A
codec that is built or loaded before the processes know of each other would never exchange any, and its codebooks would
drift apart. Neither DDP nor DeepSpeed helps: codebooks are buffers. Replacing dead codes, the library broadcasts
without waiting for the result; here every process draws the same vectors from what all of them hold.
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback


def synchronize_codebooks(model: nn.Module) -> int:
    """
    Let the moving averages of all codebooks in a model follow the batches of all processes, from equal codebooks.

    Codes and counts are then what one process would compute from all batches together. Does nothing in a process that
    is alone.

    Returns:
        `int`: The number of codebooks.
    """
    codebooks = [module for module in model.modules() if hasattr(module, "embed_avg")]
    if dist.is_initialized() and dist.get_world_size() > 1:
        for codebook in codebooks:
            for buffer in codebook.buffers():
                dist.broadcast(buffer, src=0)
            codebook.use_ddp = True
            codebook.all_reduce_fn = dist.all_reduce
            codebook.replace_sample_fn = sample_from_all
    return len(codebooks)


def sample_from_all(samples: torch.Tensor, num: int) -> torch.Tensor:
    """
    The same random vectors in every process, drawn from the vectors of all of them.

    Args:
        samples (`torch.FloatTensor` of shape `(1, num_samples, dim)`): Of this process; the number may differ.
        num (`int`): How many to draw; with replacement where there are fewer.

    Returns:
        `torch.FloatTensor` of shape `(1, num, dim)`.
    """
    counts = [torch.zeros((), dtype=torch.long, device=samples.device) for _ in range(dist.get_world_size())]
    dist.all_gather(counts, torch.tensor(samples.shape[1], device=samples.device))
    longest = max(int(count) for count in counts)
    padded = F.pad(samples[0], (0, 0, 0, longest - samples.shape[1])).contiguous()
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded)
    everything = torch.cat([part[: int(count)] for part, count in zip(gathered, counts, strict=True)])
    if len(everything) >= num:
        chosen = torch.randperm(len(everything), device=samples.device)[:num]
    else:
        chosen = torch.randint(len(everything), (num,), device=samples.device)
    dist.broadcast(chosen, src=0)
    return everything[chosen][None]


class StatisticsOfWeightsDtype(TrainerCallback):
    """DeepSpeed casts parameters and no buffers, but batch norms want both alike. Codebooks stay as they are."""

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        for module in model.modules():
            if isinstance(module, _BatchNorm) and module.running_mean is not None:
                module.running_mean = module.running_mean.to(module.weight.dtype)
                module.running_var = module.running_var.to(module.weight.dtype)
