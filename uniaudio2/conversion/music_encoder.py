"""Key table of the music front end: names in the released BEST-RQ / MusicFM checkpoint to names in `MusicEncoder`."""

import torch

from .key_table import rename_weights

BATCH_NORM_KEYS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")

# Inside a convolution block, and inside a conformer layer (transformers' in both): the names are the same.
CONV_BLOCK_KEYS = (
    *(f"conv{index}.{part}" for index in (1, 2, 3) for part in ("weight", "bias")),
    *(f"bn{index}.{part}" for index in (1, 2, 3) for part in BATCH_NORM_KEYS),
)
LAYER_KEYS = (
    *(f"{name}_layer_norm.{part}" for name in ("ffn1", "self_attn", "ffn2", "final") for part in ("weight", "bias")),
    *(
        f"{name}.{dense}.{part}"
        for name in ("ffn1", "ffn2")
        for dense in ("intermediate_dense", "output_dense")
        for part in ("weight", "bias")
    ),
    *(f"self_attn.linear_{name}.{part}" for name in ("q", "k", "v", "out") for part in ("weight", "bias")),
    *(f"conv_module.layer_norm.{part}" for part in ("weight", "bias")),
    *(f"conv_module.{name}.weight" for name in ("pointwise_conv1", "depthwise_conv", "pointwise_conv2")),
    *(f"conv_module.batch_norm.{part}" for part in BATCH_NORM_KEYS),
)

# Present in the release and not part of the encoder: formulas (window, filters, rotary rates), what pre-training
# needed (mask token, classifier, random-projection or residual quantiser), and a positional convolution that is never
# called.
DROPPED_BEGINNINGS = (
    "cls_token",
    "linear.",
    "preprocessor_melspec_2048.",
    "quantizer_melspec_2048.",
    "rvq.",
    "conformer.embed_positions.",
    "conformer.pos_conv_embed.",
)


def music_encoder_key_table(num_layers: int) -> dict[str, str]:
    """Every key of the released encoder with `num_layers` layers, to its name in `MusicEncoder`."""
    table = {
        f"conv.conv.{block}.{key}": f"subsampling.blocks.{block}.{key}" for block in (0, 1) for key in CONV_BLOCK_KEYS
    }
    table |= {
        f"conformer.layers.{layer}.{key}": f"layers.{layer}.{key}" for layer in range(num_layers) for key in LAYER_KEYS
    }
    for part in ("weight", "bias"):
        table[f"conv.linear.{part}"] = f"subsampling.linear.{part}"
        table[f"conformer.layer_norm.{part}"] = f"layer_norm.{part}"
    return table


def music_encoder_state_dict(original: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Weights of the released encoder under the names of `MusicEncoder`.

    Args:
        original (`dict[str, torch.Tensor]`):
            Weights under the released names, without a prefix: that is `model.` in `music_ssl.pt` and
            `pretrained_model.model.model.` in the full codec.
        num_layers (`int`): Number of conformer layers.

    Raises:
        ValueError: If weights are missing, or there are others than the encoder had.
    """
    dropped = [key for key in original if key.startswith(DROPPED_BEGINNINGS)]
    return rename_weights(original, music_encoder_key_table(num_layers), dropped)
