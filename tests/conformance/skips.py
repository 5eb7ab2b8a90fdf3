"""The committed reasons for which common tests are not run."""

import unittest
from collections.abc import Callable
from functools import cache
from pathlib import Path

import yaml


@cache
def read_skips() -> dict[str, dict[str, str]]:
    """Model (`"language_model"` or `"codec"`) to test to reason."""
    return yaml.safe_load(Path(__file__).with_name("skips.yaml").read_text(encoding="utf-8"))


def skip_listed(model: str) -> Callable[[type], type]:
    """Class decorator: skips what `skips.yaml` lists under `model`, with the reason it gives."""

    def decorate(test_class: type) -> type:
        for name, reason in read_skips()[model].items():
            if not hasattr(test_class, name):
                raise AttributeError(f"skips.yaml lists {name} under {model}, but there is no such test.")
            setattr(test_class, name, unittest.skip(reason)(lambda self: None))
        return test_class

    return decorate
