"""A step of a stage under FSDP2, for several processes: `python -m torch.distributed.run ... fsdp2_step.py MODEL`.

Wraps what `accelerate/fsdp2.yaml` names. `accelerate` itself has no FSDP on a CPU, torch has.
"""

import sys

import torch
import torch.distributed as dist
import yaml
from torch.distributed.fsdp import fully_shard

from uniaudio2 import UniAudio2DataCollator, UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.training.recipe import RECIPES

dist.init_process_group("gloo")
processor = UniAudio2Processor.from_pretrained(sys.argv[1])
generator = torch.Generator().manual_seed(dist.get_rank())


def example(task: str) -> dict:
    sizes = {"reasoning_codes": (8, 5), "reconstruction_codes": (8, 12)}
    audio = {name: torch.randint(16, size, generator=generator) for name, size in sizes.items()}
    return {"task": task, "text": "seven three", "audio": audio}


# A process with audio to learn, and one with text alone.
batch = UniAudio2DataCollator(processor, random_prompts=False)([example(("TTS", "ASR")[dist.get_rank()])] * 2)
whole = UniAudio2ForConditionalGeneration.from_pretrained(sys.argv[1])
loss = whole(**batch, use_cache=False).loss
loss.backward()
for parameter in whole.parameters():
    dist.all_reduce(parameter.grad)
    parameter.grad /= dist.get_world_size()

sharded = UniAudio2ForConditionalGeneration.from_pretrained(sys.argv[1])
config = yaml.safe_load((RECIPES.parent / "accelerate" / "fsdp2.yaml").read_text())["fsdp_config"]
wrapped = [m for m in sharded.modules() if type(m).__name__ == config["fsdp_transformer_layer_cls_to_wrap"]]
assert len(wrapped) > sharded.config.num_hidden_layers  # those of the depth decoder too
mesh = dist.device_mesh.init_device_mesh("cpu", (dist.get_world_size(),))
for module in (*wrapped, sharded):
    fully_shard(module, mesh=mesh, reshard_after_forward=config["fsdp_reshard_after_forward"])
sharded_loss = sharded(**batch, use_cache=False).loss
sharded_loss.backward()
torch.testing.assert_close(sharded_loss, loss)
for (name, parameter), expected in zip(sharded.named_parameters(), whole.parameters(), strict=True):
    assert parameter.to_local().numel() < expected.numel() or expected.shape[0] == 1, name
    torch.testing.assert_close(parameter.grad.full_tensor(), expected.grad, rtol=1e-4, atol=1e-5, msg=name)
dist.destroy_process_group()
