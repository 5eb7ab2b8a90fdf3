"""The flow transformer and its Euler solver against recordings of the released code."""

from functools import cache

import torch
from numeric_fixtures import NumericFixture, assert_close, over_fixtures, over_recorded

from uniaudio2.conversion.flow_decoder import flow_decoder_state_dict
from uniaudio2.modeling_uniaudio2.modeling_flow_decoder import (
    FlowDecoder1D,
    default_flow_scheduler,
    sample_flow,
    sinusoidal_positions,
)


def build_flow(fixture: NumericFixture) -> FlowDecoder1D:
    config = fixture.facts["config"]
    weights = fixture.tensors("w.")
    flow = FlowDecoder1D(
        in_channels=config["in_channels"],
        out_channels=config["out_channels"],
        num_layers=config["num_layers"],
        num_attention_heads=config["num_attention_heads"],
        attention_head_dim=config["attention_head_dim"],
        num_timestep_channels=weights["adaln_single.emb.timestep_embedder.linear_1.weight"].shape[1],
        norm_eps=config["norm_eps"],
    )
    flow.load_state_dict(flow_decoder_state_dict(weights, config["num_layers"]))
    return flow.eval()


@cache
def forward_stages(fixture: NumericFixture) -> dict[str, torch.Tensor]:
    """One forward pass; what goes in and out of the modules, under the names it was recorded with."""
    flow = build_flow(fixture)
    stages = {}

    def keep(name: str):
        return lambda _module, _inputs, output: stages.update({name: output})

    def keep_input(name: str):
        return lambda _module, inputs: stages.update({name: inputs[0]})

    def keep_time(_module, _inputs, output):
        stages["call.embedded_timestep"], stages["call.adaln"] = output

    flow.time_embedding.sinusoids.register_forward_hook(keep("call.timestep_sinusoid"))
    flow.time_embedding.register_forward_hook(keep_time)
    flow.proj_in.register_forward_hook(keep("call.proj_in"))
    flow.transformer_blocks[0].register_forward_pre_hook(keep_input("call.with_pos"))
    for index, block in enumerate(flow.transformer_blocks):
        block.attn1.register_forward_hook(keep(f"call.block{index}.attn"))
        block.ff.register_forward_hook(keep(f"call.block{index}.ff"))
        block.register_forward_hook(keep(f"call.block{index}.out"))
    flow.norm_out.register_forward_hook(keep("call.norm_out"))
    flow.proj_out.register_forward_pre_hook(keep_input("call.proj_out_in"))
    inputs = fixture.tensors("call.in.")
    with torch.no_grad():
        stages["call.out"] = flow(inputs["hidden"], inputs["timestep"])
    return stages


@over_recorded("codec_flow", "call.", without=("call.in.",), holding=("call.in.hidden", "call.in.timestep", "w."))
def test_each_stage_of_a_forward_pass(fixture: NumericFixture, key: str):
    # Processors differ in the last bit of `exp`, here of a frequency up to 1, which is multiplied by 1000 t < 1024.
    tolerance = 2**-14 if key == "call.timestep_sinusoid" else 2e-5
    assert_close(forward_stages(fixture)[key], fixture.tensors()[key], tolerance)


@over_fixtures("codec_flow", "pos_embed.pe[:, :40]")
def test_position_table(fixture: NumericFixture):
    recorded = fixture.tensors()["pos_embed.pe[:, :40]"]
    assert_close(sinusoidal_positions(*recorded.shape[1:])[None], recorded)


@cache
def euler_stages(fixture: NumericFixture, case: str) -> dict[str, torch.Tensor]:
    """A whole sampling run; what the network saw and answered at each step."""
    flow = build_flow(fixture)
    shared = fixture.tensors("euler.in.")
    settings = fixture.facts["euler_cases"][case]
    calls = []
    flow.register_forward_hook(lambda _module, inputs, output: calls.append((*inputs, output)))
    out = sample_flow(
        flow,
        default_flow_scheduler(),
        noise=shared["noise"],
        condition=shared["mu"],
        incontext_latents=shared["incontext_full"],
        incontext_length=settings["incontext_length"],
        num_inference_steps=settings["steps"],
        guidance_scale=settings["guidance_scale"],
    )
    latent_dim = shared["noise"].shape[-1]
    return {
        "out": out,
        "t_per_step": torch.tensor([time for _, time, _ in calls]),
        "x_per_step": torch.cat([hidden_states[-1:, :, :latent_dim] for hidden_states, _, _ in calls]),
        "v_uncond": torch.cat([velocity[:1] for _, _, velocity in calls]),
        "v_cond": torch.cat([velocity[-1:] for _, _, velocity in calls]),
    }


@over_recorded(
    "codec_flow",
    "euler.",
    without=("euler.in.",),
    holding=("euler.in.noise", "euler.in.mu", "euler.in.incontext_full", "w."),
)
def test_each_step_of_the_euler_solver(fixture: NumericFixture, key: str):
    _, case, stage = key.split(".")
    assert_close(euler_stages(fixture, case)[stage], fixture.tensors()[key])
