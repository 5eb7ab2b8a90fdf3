"""The released scalar autoencoder (`sqcodec.pth`, its `codec_model`) -> [`ScalarCodec`]."""

from collections.abc import Collection, Mapping

import torch

from ..modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from ..modeling_uniaudio2.modeling_scalar_codec import RESIDUAL_DILATIONS
from .key_table import WeightOrigin, check_keys, with_old_weight_norm, without_wrapper

# Old-style weight norm -> torch's parametrization, and the bias both have.
_NORMALISED = {
    "weight_g": "conv.parametrizations.weight.original0",
    "weight_v": "conv.parametrizations.weight.original1",
    "bias": "conv.bias",
}
_PLAIN = {"weight": "conv.weight", "bias": "conv.bias"}


def scalar_codec_key_table(config: ScalarCodecConfig) -> dict[str, str]:
    """Original key -> our key, for every tensor.

    The release numbers encoder and decoder layers one after another, with the averaging layers counted only where
    they exist (`num_samples > 1`). All its strided convolutions share one PReLU, saved once per block: ours keep a
    copy each.
    """
    table: dict[str, str] = {}

    def add(original: str, ours: str, suffixes: dict[str, str]) -> None:
        table.update({f"{original}.{theirs}": f"{ours}.{mine}" for theirs, mine in suffixes.items()})

    def add_residual_units(original: str, ours: str) -> None:
        for i in range(len(RESIDUAL_DILATIONS)):
            for part in ("conv1", "conv2"):
                add(f"{original}.convs.{i}.{part}", f"{ours}.residual_units.{i}.{part}", _NORMALISED)
            for part in ("activation1.weight", "activation2.weight"):
                table[f"{original}.convs.{i}.{part}"] = f"{ours}.residual_units.{i}.{part}"

    averaging = int(config.num_samples > 1)

    add("encoder.0", "encoder.input_conv", _NORMALISED)
    if averaging:
        add("encoder.1.conv", "encoder.pre_processor.conv", _PLAIN)
        table["encoder.1.activation.weight"] = "encoder.pre_processor.activation.weight"
    first = 1 + averaging
    for i in range(len(config.downsample_factors)):
        original, ours = f"encoder.{first + i}", f"encoder.blocks.{i}"
        add_residual_units(original, ours)
        add(f"{original}.down_conv.layer", f"{ours}.downsample", _NORMALISED)
        table[f"{original}.down_conv.activation.weight"] = f"{ours}.activation.weight"
    add(f"encoder.{first + len(config.downsample_factors)}", "encoder.output_conv", _NORMALISED)

    add("decoder.0", "decoder.input_conv", _NORMALISED)
    for i in range(len(config.upsample_factors)):
        original, ours = f"decoder.{1 + i}", f"decoder.blocks.{i}"
        add(f"{original}.up_conv.layer", f"{ours}.upsample", _NORMALISED)
        add_residual_units(original, ours)
    last = 1 + len(config.upsample_factors)
    if averaging:
        add(f"decoder.{last}.conv", "decoder.post_processor.conv", _PLAIN)
        table[f"decoder.{last}.activation.weight"] = "decoder.post_processor.activation.weight"
    add(f"decoder.{last + averaging}", "decoder.output_conv", _NORMALISED)
    return table


def scalar_codec_origins(keys: Collection[str], config: ScalarCodecConfig) -> dict[str, WeightOrigin]:
    """Where each weight of [`ScalarCodec`] comes from.

    Args:
        keys: Names in the released checkpoint, with either spelling of weight norm.
        config: Sizes; the table of names follows from them.

    Raises:
        ValueError: `keys` are others than the configuration asks for.
    """
    spellings = {with_old_weight_norm(without_wrapper(key)): key for key in keys}
    table = scalar_codec_key_table(config)
    check_keys(spellings.keys(), table.keys())
    return {ours: WeightOrigin(spellings[name]) for name, ours in table.items()}


def scalar_codec_state_dict(
    original: Mapping[str, torch.Tensor], config: ScalarCodecConfig
) -> dict[str, torch.Tensor]:
    """Rename the tensors of the release's state dict.

    Args:
        original: State dict under the release's names, with either spelling of weight norm.
        config: Sizes; the table of names follows from them.

    Returns:
        State dict for [`ScalarCodec`].

    Raises:
        ValueError: `original` holds other tensors than the configuration asks for.
    """
    return {ours: origin.take(original) for ours, origin in scalar_codec_origins(original.keys(), config).items()}
