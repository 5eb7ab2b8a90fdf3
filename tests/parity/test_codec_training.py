"""Training-time parts of the codec against recordings of the release: feature decoders, flow loss, codebooks."""

import torch
from codec_fixtures import flow_config
from numeric_fixtures import NumericFixture, assert_close, over_fixtures
from vector_quantize_pytorch import ResidualVQ

from uniaudio2.conversion.codec import feature_decoder_key_table
from uniaudio2.conversion.flow_decoder import flow_decoder_state_dict
from uniaudio2.conversion.key_table import rename_weights
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.losses_reasoning_codec import flow_matching_loss
from uniaudio2.modeling_uniaudio2.modeling_flow_decoder import build_flow_decoder
from uniaudio2.modeling_uniaudio2.modeling_reconstruction_branch import FeatureDecoder


def check_feature_decoder(fixture: NumericFixture, name: str) -> None:
    part = fixture.facts["parts"][name]
    strides = tuple(part["strides"])
    decoder = FeatureDecoder(part["code_dim"], part["channels"], strides)
    weights = fixture.tensors(f"{name}.w.")
    decoder.load_state_dict(rename_weights(weights, feature_decoder_key_table(strides)))
    assert_close(decoder(fixture.tensors(f"{name}.in")[""]), fixture.tensors(f"{name}.out")[""])


@over_fixtures("codec_training", "pronunciation_decoder.w.", "pronunciation_decoder.in", "pronunciation_decoder.out")
def test_phone_feature_decoder(fixture: NumericFixture):
    check_feature_decoder(fixture, "pronunciation_decoder")


@over_fixtures(
    "codec_training",
    "structure_semantic_decoder.w.",
    "structure_semantic_decoder.in",
    "structure_semantic_decoder.out",
)
def test_structure_feature_decoder(fixture: NumericFixture):
    check_feature_decoder(fixture, "structure_semantic_decoder")


@over_fixtures("codec_training", "flow.w.", "flow_loss.loss", "flow_loss.x1", "flow_loss.z", "flow_loss.t")
def test_flow_loss(fixture: NumericFixture):
    config = flow_config(fixture.facts["parts"]["flow"])
    flow = build_flow_decoder(config)
    flow.load_state_dict(flow_decoder_state_dict(fixture.tensors("flow.w."), config.num_layers))
    recorded = fixture.tensors("flow_loss.")
    # 2 is to be learned, 1 is given, 0 is padding.
    weight = torch.tensor([ReasoningCodecConfig.padding_loss_weight, 0.0, 1.0])[recorded["mask"]]
    loss = flow_matching_loss(
        flow,
        latents=recorded["x1"],
        noise=recorded["z"],
        time=recorded["t"][:, 0, 0],
        condition=recorded["mu"],
        incontext_latents=recorded["incontext"],
        weight=weight,
        sigma_min=ReasoningCodecConfig.sigma_min,
    )
    assert_close(loss, recorded["loss"])


def trained_quantizer(fixture: NumericFixture) -> tuple[ResidualVQ, dict[str, torch.Tensor]]:
    """One training step as recorded: the loss is a fixed projection of the output, and the commitment."""
    before = fixture.tensors("vq.w_before.")
    codebooks = [key for key in before if key.endswith("_codebook.embed")]
    _, size, codebook_dim = before[codebooks[0]].shape
    quantizer = ResidualVQ(
        dim=before["project_in.weight"].shape[1],
        codebook_dim=codebook_dim,
        codebook_size=size,
        num_quantizers=len(codebooks),
        decay=ReasoningCodecConfig.codebook_ema_decay,
        threshold_ema_dead_code=0,
    )
    quantizer.load_state_dict(before)
    inputs = fixture.tensors("vq.in")[""].requires_grad_()
    quantized, codes, commitment = quantizer.train()(inputs)
    ((quantized * fixture.tensors("vq.upstream")[""]).sum() + commitment.sum()).backward()
    return quantizer, {
        "codes": codes,
        "quantized": quantized,
        "commit_losses": commitment,
        "grad_in": inputs.grad,
        "grad_project_in": quantizer.project_in.weight.grad,
    }


@over_fixtures("codec_training", "vq.w_before.", "vq.in", "vq.upstream", "vq.codes")
def test_a_training_step_of_the_quantizer(fixture: NumericFixture):
    quantizer, results = trained_quantizer(fixture)
    assert torch.equal(results.pop("codes"), fixture.tensors("vq.codes")[""])
    for name, actual in results.items():
        if f"vq.{name}" in fixture.keys:
            assert_close(actual, fixture.tensors(f"vq.{name}")[""])
    for name, expected in fixture.tensors("vq.w_after.").items():
        assert_close(quantizer.state_dict()[name], expected)
