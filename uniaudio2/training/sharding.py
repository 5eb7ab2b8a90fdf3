"""Models that FSDP2 or ZeRO-3 spread over processes: how FSDP2 trains them, and how they are put together again."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import ClassVar

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, register_fsdp_forward_method
from transformers import Trainer


class FSDP2Precision:
    """
    Beside a [`~transformers.Trainer`] among the bases of a class, and before it: what is computed in which precision
    under FSDP2 is what it is on one device. By itself accelerate leaves autocast out there, and rounds losses and sums
    of gradients to bfloat16.
    """

    # In float32, weights also serve modules that hold buffers, such as batch norms; in the dtype of the computation
    # they are half as much to send and to hold.
    sends_float32: ClassVar[bool] = True

    def create_accelerator_and_postprocess(self) -> None:
        super().create_accelerator_and_postprocess()
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None and plugin.mixed_precision_policy is not None:
            plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=None if self.sends_float32 else plugin.mixed_precision_policy.param_dtype,
                reduce_dtype=torch.float32,
            )

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True) -> AbstractContextManager:
        return self.accelerator.autocast() if self.is_fsdp_enabled else nullcontext()

    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        with self.autocast_smart_context_manager():
            return super().evaluate(*args, **kwargs)


def refuse_fsdp_on_cpu() -> None:
    """
    Raises:
        ValueError: If `accelerate launch` was given a configuration with FSDP.
    """
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        raise ValueError(
            "accelerate has no FSDP on a CPU, and would copy the whole model to every process instead: take "
            "arguments.deepspeed=zero3, or launch without the FSDP configuration."
        )


def whole_parameters(trainer: Trainer) -> AbstractContextManager:
    """While it lasts, the process that saves has all parameters of the trained model whole. All take part."""
    model = trainer.model
    if isinstance(model, FSDPModule):
        return _whole_under_fsdp2(trainer)
    parameters = list(model.parameters())
    if not any(hasattr(parameter, "ds_id") for parameter in parameters):
        return nullcontext()
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters)


@contextmanager
def _whole_under_fsdp2(trainer: Trainer) -> Iterator[None]:
    """Puts whole parameters in the place of the shares, for good: the model has been trained to the end."""
    model, weights = trainer.model, trainer.accelerator.get_state_dict(trainer.model)
    if trainer.args.should_save:
        whole: dict[nn.Parameter, nn.Parameter] = {}  # tied ones stay one
        for name, share in list(model.named_parameters(remove_duplicate=False)):
            module, _, leaf = name.rpartition(".")
            # What is gathered may be the front of something longer, which safetensors refuses.
            whole.setdefault(share, nn.Parameter(weights.pop(name).clone(), share.requires_grad))
            setattr(model.get_submodule(module), leaf, whole[share])
    with own_class(model):
        yield


@contextmanager
def gathered_parameters(model: nn.Module, method: str) -> Iterator[None]:
    """
    While it lasts, every process has all parameters of a model that FSDP2 has spread, so that each can make as many
    forward passes as it likes; `method` is one of the model's that makes some, beside `forward` and `generate`.
    """
    if method not in vars(model):
        register_fsdp_forward_method(model, method)
    shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in shards:
        module.set_reshard_after_forward(False, recurse=False)
        module.unshard()
    try:
        yield
    finally:
        for module in shards:
            module.set_reshard_after_forward(True, recurse=False)  # as in `fsdp2.yaml`
            module.reshard()


@contextmanager
def own_class(model: nn.Module) -> Iterator[None]:
    """While it lasts, a model that FSDP2 has given a class of torch's has its own: `save_pretrained` writes the name
    and the code of the class beside the weights."""
    found = type(model)
    if isinstance(model, FSDPModule):
        model.__class__ = found.__bases__[-1]
    try:
        yield
    finally:
        model.__class__ = found
