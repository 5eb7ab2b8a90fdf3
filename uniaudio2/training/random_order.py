"""Random orders that a resumed training finds again, whatever the versions of the libraries."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np


def permutation(length: int, seed: tuple[int, ...]) -> np.ndarray:
    """All numbers below `length`."""
    return np.random.default_rng([*seed, 1]).permutation(length)


def shuffled(records: Iterable[Any], buffer_size: int, rng: np.random.Generator) -> Iterator[Any]:
    """
    Each record as one of those that are held, at random. `datasets` can do this too, but takes turns between shards as
    well, and how has changed between its versions.
    """
    held = []
    for record in records:
        held.append(record)
        if len(held) > buffer_size:
            yield held.pop(int(rng.integers(len(held))))
    yield from (held[place] for place in rng.permutation(len(held)))
