"""The reconstruction branch against recordings of the released code: features to codes, codes to the condition."""

from functools import cache

import torch
from codec_fixtures import Recorder, build_codec
from numeric_fixtures import NumericFixture, assert_close, over_fixtures, over_recorded

from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel

FEATURES = ("in.whisper_embeds", "in.wavlm_embeds", "in.bestrq_acoustic", "in.bestrq_semantic")

# Name of the module in the released code, name in ours.
MODULES = {
    "d_conv_whisper": "whisper_downsample",
    "d_conv_wavlm": "wavlm_downsample",
    "d_conv_embedding_acoustic": "acoustic_downsample",
    "d_conv_embedding_semantic": "semantic_downsample",
    "cond_fusion_layer_phone": "phone_proj",
    "cond_fusion_layer_semantic": "structure_proj",
    "cond_fusion_layer_acoustic": "acoustic_proj",
    "reason_adaptor": "reasoning_adaptor",
}
STREAMS = {"phone": "phone", "semantic": "structure", "acoustic": "acoustic"}
QUANTIZERS = {
    "vq_pronunciation_semantic": "phone_quantizer",
    "vq_structure_semantic": "structure_quantizer",
    "vq_acoustic": "acoustic_quantizer",
}


@cache
def codec_of(fixture: NumericFixture) -> ReasoningCodecModel:
    return build_codec(fixture)


@cache
@torch.no_grad()
def stages(fixture: NumericFixture, film_dropout: float = 0.0) -> dict[str, torch.Tensor]:
    codec = build_codec(fixture)
    branch = codec.reconstruction_branch
    recorder = Recorder()
    for released, ours in MODULES.items():
        recorder.output(f"stage.{released}", branch.get_submodule(ours))
    for released, ours in STREAMS.items():
        film = branch.get_submodule(f"{ours}_film")
        recorder.output(f"stage.time_film_{released}", film.proj)
        recorder.input(f"stage.film_in.{released}", film)
        recorder.output(f"stage.film_out.{released}", film)
    recorder.input("stage.film_condition", branch.phone_film, 1)
    for released, ours in QUANTIZERS.items():
        quantizer = branch.get_submodule(ours)
        recorder.output(f"stage.{released}.project_in", quantizer.project_in)
        recorder.output(f"stage.{released}.quantized", quantizer, 0)
    inputs = fixture.tensors("in.")
    reasoning = codec.reasoning_branch(inputs["whisper_embeds"], inputs["bestrq_semantic"])
    streams = branch(
        inputs["whisper_embeds"],
        inputs["wavlm_embeds"],
        inputs["bestrq_acoustic"],
        inputs["bestrq_semantic"],
        reasoning.quantized,
        film_dropout=film_dropout,
    )
    return recorder.stages | {
        "stage.quantized_sum": streams.quantized,
        "out.merge_features": codec.flow_conditioner.proj(streams.quantized),
        "out.codes_reasoning": reasoning.codes,
        "out.codes_rec": streams.codes,
    }


def compare(actual: torch.Tensor, expected: torch.Tensor) -> None:
    if expected.is_floating_point():
        assert_close(actual, expected)
    else:
        assert torch.equal(actual, expected)


@over_recorded("codec_reconstruction", "stage.", "out.", holding=FEATURES)
def test_stage_equals_the_recorded_one(fixture: NumericFixture, key: str):
    compare(stages(fixture)[key], fixture.tensors(key)[""])


@over_recorded("codec_reconstruction", "film_dropped.", holding=FEATURES)
def test_with_every_modulation_dropped_the_features_go_to_the_codebooks_as_they_are(fixture: NumericFixture, key: str):
    compare(stages(fixture, film_dropout=1.0)[key.removeprefix("film_dropped.")], fixture.tensors(key)[""])


@torch.no_grad()
def decoded(fixture: NumericFixture, case: str) -> dict[str, torch.Tensor]:
    """What leads from codes to the solver, with a flow decoder whose velocity is zero as in the recording."""
    codec = codec_of(fixture)
    facts = fixture.facts["decode_cases"][case]
    features = codec.reconstruction_branch.dequantize(fixture.tensors("out.codes_rec")[""])
    if facts["uses_reasoning_codes"]:
        reasoning = codec.reasoning_branch.dequantize(fixture.tensors("out.codes_reasoning")[""])
        features = features + codec.reconstruction_branch.reasoning_condition(reasoning, features.shape[1])
    frames = torch.arange(2 * features.shape[1])
    latent_mask = (frames < facts["latent_length"]).expand(len(features), -1)
    length = facts["incontext_length"] if facts["scenario"] == "other_seg" else 0

    captured = {}

    def stand_still(_module, inputs, output):
        captured["input"] = inputs[0]
        return torch.zeros_like(output)

    handle = codec.flow_decoder.register_forward_hook(stand_still)
    latents = codec._decode_latents(
        features,
        fixture.tensors("dec.in.noise")[""],
        fixture.tensors("dec.in.true_latents")[""][:, :length] if length else None,
        num_inference_steps=1,
        guidance_scale=1.0,
        generators=[torch.Generator()] * len(features),
    )
    handle.remove()
    dim = codec.config.latent_dim
    return {
        "mu": codec.flow_conditioner(features, latent_mask),
        "incontext_x": captured["input"][..., dim : 2 * dim],
        "returned": latents,
    }


@over_fixtures("codec_reconstruction", "dec.in.noise", "dec.in.true_latents", "out.codes_rec", "out.codes_reasoning")
def test_decoding_up_to_the_solver_equals_the_recorded_one(fixture: NumericFixture):
    for case in fixture.facts["decode_cases"]:
        for name, actual in decoded(fixture, case).items():
            if f"dec.{case}.{name}" in fixture.keys:
                assert_close(actual, fixture.tensors(f"dec.{case}.{name}")[""])


@over_fixtures("codec_reconstruction", "out.codes_rec", "out.codes_reasoning", "dec.no_reason.mu")
def test_the_condition_of_whole_windows_needs_no_mask(fixture: NumericFixture):
    codec = codec_of(fixture)
    with torch.no_grad():
        features = codec.reconstruction_branch.dequantize(fixture.tensors("out.codes_rec")[""])
        assert_close(codec.flow_conditioner(features), fixture.tensors("dec.no_reason.mu")[""])
