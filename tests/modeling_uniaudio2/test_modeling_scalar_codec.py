"""The scalar autoencoder by itself; `tests/parity/test_codec_scalar.py` compares it with the release."""

import math

import pytest
import torch

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_scalar_codec import ScalarCodec


def small_codec(**changes) -> ScalarCodec:
    sizes = {
        "init_channel": 4,
        "num_samples": 2,
        "downsample_factors": (2, 3),
        "downsample_kernel_sizes": (4, 6),
        "upsample_factors": (3, 2),
        "upsample_kernel_sizes": (6, 4),
        "latent_hidden_dim": 5,
    }
    torch.manual_seed(0)
    return ScalarCodec(ScalarCodecConfig(**{**sizes, **changes})).eval()


@pytest.fixture(scope="module")
def codec() -> ScalarCodec:
    return small_codec()


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [12, 24, 120, 252])
def test_a_frame_stands_for_hop_length_samples(codec, num_samples):
    latents = codec.encode(torch.randn(2, 1, num_samples))
    assert latents.shape == (2, 5, num_samples // codec.config.hop_length)
    assert codec.decode(latents).shape == (2, 1, num_samples)


@torch.no_grad()
@pytest.mark.parametrize("num_samples", [13, 25, 131, 250])
def test_other_lengths_are_averaged_down_and_then_rounded_up(codec, num_samples):
    frames = codec.encode(torch.randn(1, 1, num_samples)).shape[-1]
    assert frames == math.ceil(math.ceil((num_samples // 2) / 2) / 3)


@torch.no_grad()
def test_rounding_is_half_to_even_and_does_not_clamp(codec):
    latents = torch.tensor([0.5, 1.5, 2.5, -0.5, 12.2]) / codec.config.num_levels
    assert (codec.quantize(latents) * codec.config.num_levels).round().tolist() == [0, 2, 2, 0, 12]


@torch.no_grad()
def test_decoding_rounds_first(codec):
    latents = codec.encode(torch.randn(1, 1, 96))
    torch.testing.assert_close(codec.decode(latents), codec.decode(codec.quantize(latents)), rtol=0, atol=0)


@torch.no_grad()
def test_causal_encoder_does_not_hear_the_future(codec):
    wave = torch.randn(1, 1, 240)
    changed = wave.clone()
    changed[..., 120:] = torch.randn(120)
    before, after = codec.encode(wave), codec.encode(changed)
    torch.testing.assert_close(before[..., :10], after[..., :10])
    assert (before[..., 10:] != after[..., 10:]).any()


@torch.no_grad()
def test_causal_decoder_looks_two_latent_frames_ahead(codec):
    latents = torch.rand(1, 5, 20) * 2 - 1
    changed = latents.clone()
    changed[..., 12:] = -changed[..., 12:]
    hop = codec.config.hop_length
    before, after = codec.decode(latents), codec.decode(changed)
    torch.testing.assert_close(before[..., : 10 * hop], after[..., : 10 * hop])
    assert (before[..., 10 * hop : 12 * hop] != after[..., 10 * hop : 12 * hop]).any()


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"causal": False, "num_samples": 1}])
def test_single_precision_agrees_with_double(changes):
    codec = small_codec(**changes)
    wave = torch.randn(1, 1, 120)
    latents = codec.encode(wave)
    waveform = codec.decoder(latents)
    codec.double()
    torch.testing.assert_close(latents, codec.encode(wave.double()).float(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(waveform, codec.decoder(latents.double()).float(), rtol=1e-5, atol=1e-5)


def test_gradients_reach_every_weight():
    codec = small_codec()
    codec.decoder(codec.encode(torch.randn(2, 1, 240))).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in codec.parameters())
