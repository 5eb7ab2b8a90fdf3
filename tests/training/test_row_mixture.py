"""The order in which the codec's stages see rows."""

from itertools import islice

import datasets
import numpy as np
import pytest
from torch.utils.data import DataLoader

from uniaudio2.training.row_mixture import RowMixture


@pytest.fixture
def sources():
    """A stored one of 5 rows, and a stream of 7 rows in two shards."""
    stored = datasets.Dataset.from_dict({"name": [f"stored {index}" for index in range(5)]})
    stream = datasets.Dataset.from_dict({"name": [f"stream {index}" for index in range(7)]})
    return [stored, stream.to_iterable_dataset(num_shards=2)]


def names(rows, which: str, number: int) -> list[str]:
    return list(islice((row["name"] for row in rows if row["name"].startswith(which)), number))


@pytest.mark.parametrize("buffer", [0, 3])
def test_every_row_once_each_time_through(sources, buffer):
    rows = RowMixture(sources, [1.0, 1.0], [0, buffer])
    stored, streamed = names(rows, "stored", 15), names(rows, "stream", 21)
    for seen, size in ((stored, 5), (streamed, 7)):
        times = [seen[first : first + size] for first in range(0, len(seen), size)]
        assert all(len(set(time)) == size for time in times)
        assert times[0] != times[1] or (seen is streamed and not buffer)
    assert buffer or streamed[:7] == [f"stream {index}" for index in range(7)]


def test_weights_are_shares_of_the_rows(sources):
    rows = islice(RowMixture(sources, [3.0, 1.0]), 4000)
    assert np.mean([row["name"].startswith("stored") for row in rows]) == pytest.approx(0.75, abs=0.03)
    with pytest.raises(ValueError, match="weight of a source must be positive"):
        RowMixture(sources, [1.0, 0.0])


def test_the_order_is_a_function_of_the_seed(sources):
    """Whichever process loads the rows, and whatever was loaded before."""
    rows = [list(islice(RowMixture(sources, [2.0, 1.0], [0, 3], seed), 30)) for seed in (0, 0, 1)]
    assert rows[0] == rows[1] != rows[2]
    places = [row["place"] for row in rows[0]]
    assert len(set(places)) == 30 and 0 <= min(places) < 0.2 < 0.8 < max(places) < 1
    mixture = RowMixture(sources, [2.0, 1.0], [0, 3])
    loader = DataLoader(mixture, 5, sampler=mixture.draws(), num_workers=2, collate_fn=list)
    assert [row for batch in islice(loader, 6) for row in batch] == rows[0]
    late = list(islice(mixture.draws(), 20, 30))
    assert [mixture[draw] for draw in reversed(late)] == rows[0][:19:-1]
