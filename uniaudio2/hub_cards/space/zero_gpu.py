"""ZeroGPU: a GPU that a Space is lent for the duration of a call."""

import importlib.util
import os
from collections.abc import Callable

from .limits import MAX_WORK_SECONDS

IS_ZERO_GPU = os.environ.get("SPACES_ZERO_GPU") == "true"


def on_gpu(function: Callable) -> Callable:
    """The function, with a GPU while it runs where the Space has them to lend; elsewhere as it is."""
    if importlib.util.find_spec("spaces") is None:
        return function
    import spaces

    return spaces.GPU(duration=MAX_WORK_SECONDS)(function)
