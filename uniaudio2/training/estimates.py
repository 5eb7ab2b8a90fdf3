"""What a training will need, said before it starts: from shapes alone, without weights."""

from torch import nn

GIB = 2**30


def parameter_counts(model: nn.Module) -> tuple[int, int]:
    """All parameters, and those that learn."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def state_bytes(model: nn.Module) -> int:
    """
    Everything in 4 bytes: weights, and of those that learn the gradients and AdamW's two moments. DeepSpeed takes as
    much: it computes with weights and gradients in 2 bytes, and keeps the weights in 4 beside them.
    """
    count, trainable = parameter_counts(model)
    return 4 * count + 12 * trainable


def transformer_bytes(rows: int, width: int, num_layers: int, checkpointing: bool) -> int:
    """Activations of a transformer in 2 bytes: 17 widths per row and layer, or one with checkpointing."""
    return 2 * rows * width * num_layers * (1 if checkpointing else 17)


def memory_line(state: int, activations: int, num_devices: int, note: str = "") -> str:
    """Sizes for one device: without sharding, and under ZeRO-3 or FSDP2."""
    return (
        f"memory       about {(state + activations) / GIB:.1f} GiB per device without sharding, "
        f"{(state / num_devices + activations) / GIB:.1f} GiB sharded over {num_devices} "
        f"(of these {activations / GIB:.1f} GiB activations{note})"
    )
