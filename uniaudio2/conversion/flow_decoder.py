"""Key table of the flow transformer: names in the released checkpoint to names in `FlowDecoder1D`."""

import torch

from .key_table import rename_weights

RENAMED = {
    "scale_shift_table": "scale_shift_table",
    "proj_in.ffn_1.weight": "proj_in.conv.weight",
    "proj_in.ffn_1.bias": "proj_in.conv.bias",
    "proj_in.ffn_2.weight": "proj_in.linear.weight",
    "proj_in.ffn_2.bias": "proj_in.linear.bias",
    "proj_out.ffn_1.weight": "proj_out.conv.weight",
    "proj_out.ffn_1.bias": "proj_out.conv.bias",
    "proj_out.ffn_2.weight": "proj_out.linear.weight",
    "proj_out.ffn_2.bias": "proj_out.linear.bias",
    "adaln_single.emb.timestep_embedder.linear_1.weight": "time_embedding.timestep_embedder.linear_1.weight",
    "adaln_single.emb.timestep_embedder.linear_1.bias": "time_embedding.timestep_embedder.linear_1.bias",
    "adaln_single.emb.timestep_embedder.linear_2.weight": "time_embedding.timestep_embedder.linear_2.weight",
    "adaln_single.emb.timestep_embedder.linear_2.bias": "time_embedding.timestep_embedder.linear_2.bias",
    "adaln_single.linear.weight": "time_embedding.linear.weight",
    "adaln_single.linear.bias": "time_embedding.linear.bias",
}

# Inside `transformer_blocks.<i>.`: the block is diffusers' in both, so the names are the same.
BLOCK_KEYS = (
    "scale_shift_table",
    *(f"attn1.{name}.{part}" for name in ("to_q", "to_k", "to_v", "to_out.0") for part in ("weight", "bias")),
    *(f"ff.net.{name}.{part}" for name in ("0.proj", "2") for part in ("weight", "bias")),
)

# The position table is a formula.
DROPPED = frozenset({"pos_embed.pe"})


def flow_decoder_key_table(num_layers: int) -> dict[str, str]:
    """Every key of the released flow transformer with `num_layers` blocks, to its name in `FlowDecoder1D`."""
    blocks = [f"transformer_blocks.{layer}.{key}" for layer in range(num_layers) for key in BLOCK_KEYS]
    return RENAMED | {key: key for key in blocks}


def flow_decoder_state_dict(original: dict[str, torch.Tensor], num_layers: int) -> dict[str, torch.Tensor]:
    """Weights of the released flow transformer under the names of `FlowDecoder1D`.

    Args:
        original (`dict[str, torch.Tensor]`):
            Weights under the released names, without the prefix `cfm_wrapper.estimator.` of the full codec.
        num_layers (`int`): Number of transformer blocks.

    Raises:
        ValueError: If weights are missing, or there are others than the model has.
    """
    return rename_weights(original, flow_decoder_key_table(num_layers), DROPPED)
