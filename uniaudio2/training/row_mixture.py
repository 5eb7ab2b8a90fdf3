"""Rows of several manifests in one order without end: the data of the codec's stages."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from torch.utils.data import Dataset

from .manifest import import_datasets
from .random_order import permutation, shuffled

# Sources are drawn for so many rows at once.
CHOSEN_AT_ONCE = 1024


class RowMixture(Dataset):
    """
    Rows of several sources, without end. As a dataset it is indexed by what `draws` yields.

    Every row comes from a source that is drawn by the weights. Stored sources give all of their rows in random order,
    then again in another; streams give theirs as they come, over and over. All of it is a function of the seed, and
    every process draws for all: a resumed training draws again what it had seen, but loads none of it. Streams it
    reads again.

    Args:
        sources (`Sequence` of [`~datasets.Dataset`] and [`~datasets.IterableDataset`]): The sources.
        weights (`Sequence[float]`): How often a row comes from each, relative to the others.
        shuffle_buffers (`Sequence[int]`, *optional*):
            Of each source that is a stream, how many rows are held to draw the next one from. Without, they keep their
            order.
        seed (`int`, *optional*, defaults to 0): Of all choices.

    Raises:
        ValueError: If a weight is not positive.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        weights: Sequence[float],
        shuffle_buffers: Sequence[int] | None = None,
        seed: int = 0,
    ):
        if min(weights) <= 0:
            raise ValueError(f"The weight of a source must be positive, but the weights are {[*weights]}.")
        self.sources, self.shares, self.seed = [*sources], np.array(weights) / sum(weights), seed
        self.shuffle_buffers = shuffle_buffers or [0] * len(self.sources)

    def draws(self) -> Iterator[tuple[int, int, Any]]:
        """What comes next: its number, its source, and its index there; of a stream the row itself."""
        rng = np.random.default_rng([self.seed, 0])
        items = [self._items(place) for place in range(len(self.sources))]
        for first in count(step=CHOSEN_AT_ONCE):
            chosen = rng.choice(len(items), CHOSEN_AT_ONCE, p=self.shares)
            for number, place in enumerate(chosen.tolist(), first):
                yield number, place, next(items[place])

    def _items(self, place: int) -> Iterator[Any]:
        source = self.sources[place]
        for epoch in count():
            if isinstance(source, import_datasets().IterableDataset):
                rng = np.random.default_rng([self.seed, 2, place, epoch])
                yield from shuffled(source, self.shuffle_buffers[place], rng)
            else:
                yield from map(int, permutation(len(source), (self.seed, place, epoch)))

    def __getitem__(self, draw: tuple[int, int, Any]) -> dict[str, Any]:
        """The row, and where collators cut its recording if that is too long: `place`, from 0 to 1."""
        number, source, item = draw
        row = item if isinstance(item, Mapping) else self.sources[source][item]
        return {**row, "place": float(np.random.default_rng([self.seed, 3, number]).random())}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self[draw] for draw in self.draws())
