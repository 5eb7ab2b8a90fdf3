"""ZeroGPU: a GPU that a Space is lent for the duration of a call."""

import contextlib
import functools
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

from .limits import MAX_WORK_SECONDS

IS_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU") == "true"


def on_gpu(function: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The generator function, with a GPU while it runs where the Space has them to lend; elsewhere as it is."""
    if importlib.util.find_spec("spaces") is None:
        return function
    import spaces

    # It runs in another process, from which errors come back as the names of their classes alone, without what they
    # say to people. As values they come back whole.
    @functools.wraps(function)
    def run(*args: Any) -> Iterator[Any]:
        try:
            yield from function(*args)
        except Exception as error:
            yield error

    lent = spaces.GPU(duration=MAX_WORK_SECONDS)(run)

    @functools.wraps(function)
    def on_lent_gpu(*args: Any) -> Iterator[Any]:
        with contextlib.closing(lent(*args)) as messages:
            for message in messages:
                if isinstance(message, Exception):
                    raise message
                yield message

    return on_lent_gpu
