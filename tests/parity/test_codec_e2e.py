"""The whole codec against recordings of the released code: both tokenisation paths, and every way of decoding."""

import re
from collections.abc import Callable
from functools import cache

import pytest
import torch
from codec_fixtures import build_codec
from numeric_fixtures import (
    NOTHING_RECORDED,
    NumericFixture,
    assert_close,
    find_fixtures,
    fixtures_folder,
    over_recorded,
)

from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel

# Features as the released code names them: attribute of `ReasoningCodecFeatures`.
FEATURES = {
    "whisper_embeds": "whisper",
    "wavlm_embeds": "wavlm",
    "bestrq_acoustic": "music_acoustic",
    "bestrq_semantic": "music_semantic",
}


@cache
def codec_of(fixture: NumericFixture) -> ReasoningCodecModel:
    return build_codec(fixture)


def over_cases(*beginnings: str, where: Callable[[NumericFixture, str], bool] = lambda fixture, case: True):
    """Decorator: run the test on the beginnings `enc0.segment`, `dec_segment`, ... of what the fixtures recorded."""
    if not fixtures_folder().is_dir():
        reason = f"no fixtures in {fixtures_folder()}: set UNIAUDIO2_FIXTURES to their folder"
        return pytest.mark.parametrize(
            "fixture, case", [pytest.param(None, "", id="none", marks=pytest.mark.skip(reason))]
        )
    pattern = re.compile(rf"((?:{'|'.join(beginnings)})[^.]*)\.(codes_rec|wave)$")
    cases = [
        pytest.param(fixture, match[1], id=f"{fixture.name}-{match[1]}")
        for fixture in find_fixtures("codec_e2e")
        for key in sorted(fixture.keys)
        if (match := pattern.match(key)) and where(fixture, match[1])
    ]
    return pytest.mark.parametrize("fixture, case", cases or [(NOTHING_RECORDED, "")])


def holds(name: str) -> Callable[[NumericFixture, str], bool]:
    return lambda fixture, case: f"{case}.{name}" in fixture.keys


@cache
def segment_features(fixture: NumericFixture, clip: str) -> dict[str, torch.Tensor]:
    codec = codec_of(fixture)
    with torch.no_grad():
        features = codec.extract_features(fixture.tensors(f"{clip}.in.wave")[""])
    return {name: features[attribute] for name, attribute in FEATURES.items()}


@over_recorded("codec_e2e", *(f"enc{clip}.segment.{kind}" for clip in range(10) for kind in ("w", "b")))
def test_front_end_features_of_a_segment(fixture: NumericFixture, key: str):
    clip, _, name = key.split(".")
    assert_close(segment_features(fixture, clip)[name], fixture.tensors(key)[""])


@over_cases(r"enc\d+\.segment", r"enc\d+\.audio2token")
def test_codes_of_both_tokenisation_paths(fixture: NumericFixture, case: str):
    """`segment` is the mode `exact`; `audio2token<seconds>` the mode `release` with windows of so many seconds."""
    clip, path = case.split(".")
    mode, seconds = ("exact", None) if path == "segment" else ("release", float(path.removeprefix("audio2token")))
    wave = fixture.tensors(f"{clip}.in.wave")[""]
    encoded = codec_of(fixture).encode(wave, encode_mode=mode, window_seconds=seconds, reference=True)
    assert torch.equal(encoded.reconstruction_codes, fixture.tensors(f"{case}.codes_rec")[""])
    if f"{case}.codes_reasoning" in fixture.keys:
        assert torch.equal(encoded.reasoning_codes, fixture.tensors(f"{case}.codes_reasoning")[""])


@over_cases(
    r"enc\d+\.audio2token30",
    where=lambda fixture, case: fixture.tensors(f"{case}.codes_rec")[""].shape[-1] <= 375,
)
def test_within_one_window_the_corrected_arithmetic_gives_the_released_codes(fixture: NumericFixture, case: str):
    wave = fixture.tensors(f"{case.split('.')[0]}.in.wave")[""]
    codes = fixture.tensors(f"{case}.codes_rec")[""]
    encoded = codec_of(fixture).encode(wave, encode_mode="release", window_seconds=30.0)
    assert torch.equal(encoded.reconstruction_codes, codes)


def decode(fixture: NumericFixture, case: str, reference: bool = True) -> torch.Tensor:
    """Decodes the recorded codes with the recorded noise. The windows' length is read off the noise."""
    recorded = fixture.tensors(f"{case}.")
    codes = recorded["in.codes_rec"]
    whole = case == "dec_segment"  # one window of exactly these codes, whatever their number
    frames = codes.shape[-1] if whole else recorded["noise"].shape[1] // 2
    decoded = codec_of(fixture).decode(
        codes,
        recorded.get("in.codes_reasoning"),
        num_inference_steps=num_steps(fixture, case),
        guidance_scale=fixture.facts["guidance_scale"],
        noise=recorded["noise"][None],
        decode_mode="exact" if whole else "release",
        window_seconds=frames / 12.5 if whole else window_seconds(fixture, case),
        reference=reference and not whole,
    )
    return decoded.audio_values[:, 0]


def num_steps(fixture: NumericFixture, case: str) -> int:
    """The decoding with the release's own window was recorded with two steps; the facts name those of the others."""
    return 2 if "default" in case else fixture.facts["num_steps"]


def window_seconds(fixture: NumericFixture, case: str) -> float:
    """`dec_default<seconds>` was decoded with the release's own window, the others with that of the fixture."""
    default = re.search(r"default(\d+)$", case)
    return float(default[1] if default else fixture.facts["window_seconds"])


@over_cases("dec_", where=holds("latents"))
def test_latents_of_every_window(fixture: NumericFixture, case: str, monkeypatch: pytest.MonkeyPatch):
    codec = codec_of(fixture)
    windows = []
    solve = codec._decode_latents
    monkeypatch.setattr(
        codec, "_decode_latents", lambda *args, **kwargs: windows.append(solve(*args, **kwargs)) or windows[-1]
    )
    decode(fixture, case)
    assert_close(torch.cat(windows), fixture.tensors(f"{case}.latents")[""])


@over_cases("dec_", where=holds("latents"))
def test_recorded_latents_become_the_recorded_wave(
    fixture: NumericFixture, case: str, monkeypatch: pytest.MonkeyPatch
):
    """Latents are rounded before they become sound, which would enlarge the solver's error: here they are given."""
    latents = iter(fixture.tensors(f"{case}.latents")[""][:, None])
    monkeypatch.setattr(codec_of(fixture), "_decode_latents", lambda *args, **kwargs: next(latents))
    assert_close(decode(fixture, case), fixture.tensors(f"{case}.wave")[""])


def is_clear_of_rounding(fixture: NumericFixture, case: str) -> bool:
    """Whether no latent lies so close to a rounding boundary that another order of summation could tip it."""
    return fixture.facts["info"][f"{case}."]["round_half_distance_min"] > 1e-4


@over_cases("dec_", where=is_clear_of_rounding)
def test_codes_become_the_recorded_wave(fixture: NumericFixture, case: str):
    assert_close(decode(fixture, case), fixture.tensors(f"{case}.wave")[""])


def is_one_window_of_reconstruction_codes(fixture: NumericFixture, case: str) -> bool:
    one_window = fixture.tensors(f"{case}.noise")[""].shape[0] == 1
    return one_window and f"{case}.in.codes_reasoning" not in fixture.keys


@over_cases("dec_", where=is_one_window_of_reconstruction_codes)
def test_a_single_window_needs_no_correction(fixture: NumericFixture, case: str):
    assert_close(decode(fixture, case, reference=False), decode(fixture, case, reference=True))
