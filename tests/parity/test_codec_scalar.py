"""The scalar autoencoder against recordings of the released code: every layer, latents, rounding, waveforms."""

from functools import cache

import torch
from numeric_fixtures import NumericFixture, assert_close, over_fixtures

from uniaudio2.conversion.scalar_codec import scalar_codec_state_dict
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from uniaudio2.modeling_uniaudio2.modeling_scalar_codec import ScalarCodec


@cache
def build_codec(fixture: NumericFixture, variant: str) -> ScalarCodec:
    sizes = dict(fixture.facts["variants"][variant]["config"])
    # One band is the only form that the code implements.
    assert sizes.pop("num_bands") == 1
    config = ScalarCodecConfig(sampling_rate=sizes.pop("sample_rate"), **sizes)
    codec = ScalarCodec(config)
    codec.load_state_dict(scalar_codec_state_dict(fixture.tensors(f"{variant}.w."), config))
    return codec.eval()


def numbered_layers(codec: ScalarCodec) -> dict[str, torch.nn.Module]:
    """Our modules under the numbers of the release, which counts the averaging layers only where they exist."""
    encoder, decoder = codec.encoder, codec.decoder
    averaging = codec.config.num_samples > 1
    before, after = ([encoder.pre_processor], [decoder.post_processor]) if averaging else ([], [])
    down = [encoder.input_conv, *before, *encoder.blocks]
    up = [decoder.input_conv, *decoder.blocks, *after, decoder.output_conv]
    return {
        **{f"enc.{i}": layer for i, layer in enumerate(down)},
        f"enc.{len(down)}.pre_tanh": encoder.output_conv,
        **{f"dec.{i}": layer for i, layer in enumerate(up)},
    }


@cache
@torch.no_grad()
def stages(fixture: NumericFixture, case: str) -> dict[str, torch.Tensor]:
    """All that the two inputs of a case (`<variant>.len<N>`) give, under the names it was recorded with."""
    codec = build_codec(fixture, case.split(".")[0])
    inputs = fixture.tensors(f"{case}.in.")
    found = {}
    if "free_latent" in inputs:
        found["out.free_wave"] = codec.decode(inputs["free_latent"])
    if "wave" in inputs:
        hooks = [
            layer.register_forward_hook(lambda _module, _inputs, output, name=name: found.update({name: output}))
            for name, layer in numbered_layers(codec).items()
        ]
        found["out.latent"] = codec.encode(inputs["wave"])
        found["out.latent_quantised"] = codec.quantize(found["out.latent"])
        found["out.wave"] = codec.decode(found["out.latent"])
        for hook in hooks:
            hook.remove()
    return found


def recorded_cases(fixture: NumericFixture) -> set[str]:
    return {".".join(key.split(".")[:2]) for key in fixture.keys if key.split(".")[1].startswith("len")}


@over_fixtures("codec_scalar")
def test_every_recorded_stage(fixture):
    compared = 0
    for case in sorted(recorded_cases(fixture)):
        computed = stages(fixture, case)
        for name, recorded in fixture.tensors(f"{case}.").items():
            if not name.startswith("in."):
                assert_close(computed[name], recorded)
                compared += 1
    assert compared
