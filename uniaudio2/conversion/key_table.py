"""Applying an explicit key table to the weights of a released checkpoint."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch

# Spellings of weight norm: before torch 2.0, and since.
OLD_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
NEW_WEIGHT_NORM = {new: old for old, new in OLD_WEIGHT_NORM.items()}


@dataclass(frozen=True)
class WeightOrigin:
    """
    Where one of our weights comes from.

    Args:
        key (`str`): Name of the released tensor, as its file spells it.
        transform (`Callable`, *optional*): What is done to it; `None` if it is taken as it is.
        description (`str`, *optional*): The same in words.
    """

    key: str
    transform: Callable[[torch.Tensor], torch.Tensor] | None = None
    description: str | None = None

    def take(self, original: Mapping[str, torch.Tensor]) -> torch.Tensor:
        weight = original[self.key]
        return weight if self.transform is None else self.transform(weight)


def without_wrapper(key: str) -> str:
    """Name without the `module.` a parallel wrapper puts in front. Only there: `conv_module.` is part of names."""
    return key.removeprefix("module.")


def with_new_weight_norm(key: str) -> str:
    """Name with the factors of a weight-normalised matrix spelt as torch does today."""
    stem, _, last = key.rpartition(".")
    return f"{stem}.{OLD_WEIGHT_NORM[last]}" if last in OLD_WEIGHT_NORM else key


def with_old_weight_norm(key: str) -> str:
    """Name with the factors of a weight-normalised matrix spelt as torch did before 2.0."""
    for new, old in NEW_WEIGHT_NORM.items():
        if key.endswith(f".{new}"):
            return key.removesuffix(new) + old
    return key


def check_keys(keys: Collection[str], wanted: Collection[str], dropped: Collection[str] = ()) -> None:
    """
    Every weight must be accounted for.

    Raises:
        ValueError: If some of `wanted` are missing, or there are some that neither `wanted` nor `dropped` names.
    """
    missing = sorted(set(wanted) - set(keys))
    unexpected = sorted(set(keys) - set(wanted) - set(dropped))
    if missing or unexpected:
        raise ValueError(
            f"The weights do not fit the key table: {len(missing)} missing {missing[:5]}, {len(unexpected)} "
            f"unexpected {unexpected[:5]}. Check that the checkpoint and the sizes of the config belong together."
        )


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
    check_keys(original.keys(), table.keys(), dropped)
    return {name: original[key] for key, name in table.items()}
