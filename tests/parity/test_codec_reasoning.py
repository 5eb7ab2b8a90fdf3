"""The reasoning branch against recordings of the released code, from front-end features to quantised queries."""

from functools import cache

import torch
from codec_fixtures import Recorder, codec_config, load_recorded
from numeric_fixtures import NumericFixture, assert_close, over_fixtures, over_recorded

from uniaudio2.conversion.codec import reasoning_branch_key_table
from uniaudio2.modeling_uniaudio2.modeling_reasoning_branch import ReasoningBranch

INPUTS = ("in.whisper_embeds", "in.bestrq_semantic")


@cache
def build_branch(fixture: NumericFixture, attn_implementation: str = "eager") -> ReasoningBranch:
    config = codec_config(fixture.facts)
    config._attn_implementation = attn_implementation
    branch = ReasoningBranch(config).eval()
    table = reasoning_branch_key_table(config)
    # The rotary frequencies are recorded although they are a formula.
    weights = {key: value for key, value in fixture.tensors("w.").items() if not key.endswith("rope.inv_freq")}
    load_recorded(branch, table, weights)
    return branch


@cache
def stages(fixture: NumericFixture) -> dict[str, torch.Tensor]:
    branch = build_branch(fixture)
    recorder = Recorder()
    recorder.output("stage.whisper_down", branch.whisper_downsample)
    recorder.output("stage.merged", branch.merge_proj)
    recorder.input("stage.with_queries", branch.layers[0])
    for index, layer in enumerate(branch.layers):
        recorder.output(f"stage.block{index}.qkv", layer.self_attn.qkv_proj)
        recorder.output(f"stage.block{index}.q_normed", layer.self_attn.q_norm)
        recorder.output(f"stage.block{index}.attn_out", layer.self_attn)
        recorder.output(f"stage.block{index}.glu", layer.feed_forward.gated_proj)
        recorder.output(f"stage.block{index}.ff_out", layer.feed_forward)
        recorder.output(f"stage.block{index}.out", layer)
    recorder.input("stage.query_tokens", branch.quantizer)
    recorder.output("stage.vq_in", branch.quantizer.project_in)
    for index, layer in enumerate(branch.quantizer.layers):
        recorder.input(f"stage.vq_residual_in.{index}", layer)
    recorder.input("stage.vq_sum", branch.quantizer.project_out)
    inputs = fixture.tensors("in.")
    with torch.no_grad():
        output = branch(inputs["whisper_embeds"], inputs["bestrq_semantic"])
        recorded = dict(recorder.stages)
        from_codes = branch.dequantize(output.codes)
    return recorded | {"out.codes": output.codes, "out.quantized": output.quantized, "out.from_codes": from_codes}


@over_recorded("codec_reasoning", "stage.", "out.", holding=INPUTS)
def test_stage_equals_the_recorded_one(fixture: NumericFixture, key: str):
    expected = fixture.tensors(key)[""]
    if expected.is_floating_point():
        assert_close(stages(fixture)[key], expected)
    else:
        assert torch.equal(stages(fixture)[key], expected)


@over_fixtures("codec_reasoning", *INPUTS, "out.codes")
def test_codes_do_not_depend_on_the_attention_kernel(fixture: NumericFixture):
    inputs = fixture.tensors("in.")
    with torch.no_grad():
        output = build_branch(fixture, "sdpa")(inputs["whisper_embeds"], inputs["bestrq_semantic"])
    assert torch.equal(output.codes, fixture.tensors("out.codes")[""])
    assert_close(output.quantized, fixture.tensors("out.quantized")[""])


@over_fixtures("codec_reasoning", *INPUTS, "out.codes")
def test_each_item_of_a_batch_is_as_it_is_alone(fixture: NumericFixture):
    inputs = fixture.tensors("in.")
    for item, expected in enumerate(fixture.tensors("out.codes")[""]):
        with torch.no_grad():
            alone = build_branch(fixture)(
                inputs["whisper_embeds"][item : item + 1], inputs["bestrq_semantic"][item : item + 1]
            )
        assert torch.equal(alone.codes[0], expected)
