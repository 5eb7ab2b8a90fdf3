"""Applying an explicit key table to the weights of a released checkpoint."""

from collections.abc import Collection, Mapping

import torch


def rename_weights(
    original: Mapping[str, torch.Tensor], table: Mapping[str, str], dropped: Collection[str] = ()
) -> dict[str, torch.Tensor]:
    """Weights under new names. Every key must be accounted for: nothing is passed through or left out in silence.

    Args:
        original (`Mapping[str, torch.Tensor]`): Weights under the released names.
        table (`Mapping[str, str]`): Released name to new name, of every weight that is kept.
        dropped (`Collection[str]`, *optional*): Released names that may be present and are not needed.

    Raises:
        ValueError: If weights of the table are missing, or there are some that neither `table` nor `dropped` names.
    """
    missing = sorted(table.keys() - original.keys())
    unexpected = sorted(original.keys() - table.keys() - set(dropped))
    if missing or unexpected:
        raise ValueError(
            f"The weights do not fit the key table: {len(missing)} missing {missing[:5]}, {len(unexpected)} "
            f"unexpected {unexpected[:5]}. Check that the checkpoint and the sizes of the config belong together."
        )
    return {name: original[key] for key, name in table.items()}
