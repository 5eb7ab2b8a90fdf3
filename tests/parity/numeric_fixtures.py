"""Numeric fixtures: what the released code computes on tiny models, recorded as `.safetensors` with facts in `.json`.

The folder is `$UNIAUDIO2_FIXTURES`, by default `shared/reference` next to the checkout. Any number of files of a kind
may lie there, with other sizes, seeds and lengths, and each may hold only a part of the recorded keys: a test names
those it compares (`@over_fixtures("codec_scalar", "out.latents")`) and runs on the fixtures that hold them all.
"""

import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

DEFAULT_FOLDER = Path(__file__).resolve().parents[3] / "shared" / "reference"
NOTHING_RECORDED = "nothing recorded"


def fixtures_folder() -> Path:
    return Path(os.environ.get("UNIAUDIO2_FIXTURES") or DEFAULT_FOLDER)


@dataclass(frozen=True)
class NumericFixture:
    """One recorded file: `facts` is the `.json` beside the tensors."""

    path: Path

    @property
    def name(self) -> str:
        return self.path.stem

    @cached_property
    def keys(self) -> frozenset[str]:
        with safe_open(self.path, "pt") as file:
            return frozenset(file.keys())

    @cached_property
    def facts(self) -> dict:
        return json.loads(self.path.with_suffix(".json").read_text(encoding="utf-8"))

    def tensors(self, prefix: str = "") -> dict[str, torch.Tensor]:
        """The tensors whose key starts with `prefix`, under their names without it."""
        return {
            key.removeprefix(prefix): value for key, value in load_file(self.path).items() if key.startswith(prefix)
        }


def find_fixtures(kind: str) -> list[NumericFixture]:
    """All fixtures of a kind (the beginning of the file name): `"llm_fixture"`, `"codec_scalar"`, `"codec_flow"`."""
    return [NumericFixture(path) for path in sorted(fixtures_folder().glob(f"{kind}_*.safetensors"))]


def over_fixtures(kind: str, *holding: str) -> pytest.MarkDecorator:
    """Decorator: run the test, whose argument `fixture` is a `NumericFixture`, on each one that holds all keys named.

    A key that ends in `"."` asks for any key with that beginning. If no file holds them there is no test
    (`conftest.py` drops `NOTHING_RECORDED`); the test is skipped only if the folder is absent.
    """
    if not fixtures_folder().is_dir():
        reason = f"no fixtures in {fixtures_folder()}: set UNIAUDIO2_FIXTURES to their folder"
        return pytest.mark.parametrize("fixture", [pytest.param(None, id="none", marks=pytest.mark.skip(reason))])
    chosen = [fixture for fixture in find_fixtures(kind) if all(_holds(fixture.keys, wanted) for wanted in holding)]
    params = [pytest.param(fixture, id=fixture.name) for fixture in chosen]
    return pytest.mark.parametrize("fixture", params or [NOTHING_RECORDED])


def over_recorded(
    kind: str, *beginnings: str, without: tuple[str, ...] = (), holding: tuple[str, ...] = ()
) -> pytest.MarkDecorator:
    """Decorator: run the test, whose arguments are `fixture` and `key`, on each recorded key with such a beginning.

    Keys that begin with one of `without` are left out (the inputs). Of the fixtures, only those that hold all keys of
    `holding` take part, as in `over_fixtures`.
    """
    if not fixtures_folder().is_dir():
        reason = f"no fixtures in {fixtures_folder()}: set UNIAUDIO2_FIXTURES to their folder"
        return pytest.mark.parametrize(
            "fixture, key", [pytest.param(None, "", id="none", marks=pytest.mark.skip(reason))]
        )
    chosen = [
        pytest.param(fixture, key, id=f"{fixture.name}-{key}")
        for fixture in find_fixtures(kind)
        if all(_holds(fixture.keys, wanted) for wanted in holding)
        for key in sorted(fixture.keys)
        if key.startswith(beginnings) and not key.startswith(without)
    ]
    return pytest.mark.parametrize("fixture, key", chosen or [(NOTHING_RECORDED, "")])


def _holds(keys: frozenset[str], wanted: str) -> bool:
    if wanted.endswith("."):
        return any(key.startswith(wanted) for key in keys)
    return wanted in keys


def assert_close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 2e-5) -> None:
    """`max|a - b| <= tolerance * max(1, max|b|)` in float32."""
    assert actual.shape == expected.shape, f"shape {tuple(actual.shape)}, recorded {tuple(expected.shape)}"
    actual, expected = actual.detach().float(), expected.float()
    difference = (actual - expected).abs().max().item() if expected.numel() else 0.0
    allowed = tolerance * max(1.0, expected.abs().max().item() if expected.numel() else 0.0)
    assert difference <= allowed, f"max difference {difference:.3g} exceeds {allowed:.3g}"
