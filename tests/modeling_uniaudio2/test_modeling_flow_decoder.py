import copy

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import FlowDecoderConfig
from uniaudio2.modeling_uniaudio2.modeling_flow_decoder import (
    FlowDecoder1D,
    build_flow_decoder,
    default_flow_scheduler,
    initialize_flow_decoder,
    sample_flow,
    sinusoidal_positions,
)

LATENT_DIM, CONDITION_DIM, NUM_FRAMES = 4, 8, 11
FLOW_PREDICTION = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}


@pytest.fixture
def flow() -> FlowDecoder1D:
    torch.manual_seed(0)
    config = FlowDecoderConfig(
        in_channels=2 * LATENT_DIM + CONDITION_DIM,
        out_channels=LATENT_DIM,
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        num_timestep_channels=32,
        max_positions=NUM_FRAMES,
    )
    return build_flow_decoder(config).eval()


@pytest.fixture
def sampling_inputs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        "noise": torch.randn(3, NUM_FRAMES, LATENT_DIM, generator=generator),
        "condition": torch.randn(3, NUM_FRAMES, CONDITION_DIM, generator=generator),
        "incontext_latents": torch.randn(3, NUM_FRAMES, LATENT_DIM, generator=generator),
    }


def item(inputs: dict[str, torch.Tensor], index: int) -> dict[str, torch.Tensor]:
    return {name: value[index : index + 1] for name, value in inputs.items()}


class Enclosing(PreTrainedModel):
    """Holds the flow decoder as the codec does."""

    config_class = PreTrainedConfig

    def __init__(self, config: PreTrainedConfig):
        super().__init__(config)
        self.flow = FlowDecoder1D(
            in_channels=16, out_channels=4, num_layers=1, num_attention_heads=2, attention_head_dim=8
        )
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FlowDecoder1D):
            initialize_flow_decoder(module)


class TestForward:
    def test_a_batch_gives_what_its_items_give_each_at_its_own_time(self, flow):
        hidden_states, times = torch.randn(3, NUM_FRAMES, 16), torch.tensor([0.0, 0.3, 1.0])
        with torch.no_grad():
            batch = flow(hidden_states, times)
            singles = [flow(hidden_states[i : i + 1], times[i]) for i in range(3)]
        assert batch.shape == (3, NUM_FRAMES, LATENT_DIM)
        torch.testing.assert_close(batch, torch.cat(singles))
        assert not torch.allclose(batch[1:2], flow(hidden_states[1:2], 0.4), atol=1e-4), "time must matter"

    def test_more_frames_than_positions_are_refused(self, flow):
        with pytest.raises(ValueError, match=r"got 12 frames but has 11 positions"):
            flow(torch.randn(1, NUM_FRAMES + 1, 16), 0.5)

    def test_the_positions_are_accurate_far_from_the_start(self):
        table = sinusoidal_positions(3000, 6)
        rates = 10000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
        angles = torch.arange(3000, dtype=torch.float64)[:, None] * rates
        torch.testing.assert_close(table[:, 0::2].double(), angles.sin(), atol=3e-4, rtol=0)
        torch.testing.assert_close(table[:, 1::2].double(), angles.cos(), atol=3e-4, rtol=0)

    def test_the_default_size_is_the_released_one(self):
        with torch.device("meta"):
            flow = build_flow_decoder(FlowDecoderConfig())
        # 936.4 million elements in the released checkpoint, 3000 x 1536 of them the position table.
        assert sum(parameter.numel() for parameter in flow.parameters()) == 936_431_952 - 3000 * 1536
        assert not list(flow.buffers())

    def test_activation_checkpointing_changes_nothing(self, flow):
        hidden_states = torch.randn(2, NUM_FRAMES, 16)
        gradients = []
        for enable in (flow.disable_gradient_checkpointing, flow.enable_gradient_checkpointing):
            enable()
            flow.zero_grad()
            flow(hidden_states, 0.5).square().sum().backward()
            gradients.append({name: parameter.grad.clone() for name, parameter in flow.named_parameters()})
        assert flow.is_gradient_checkpointing
        torch.testing.assert_close(gradients[0], gradients[1])

    def test_attention_processors_agree(self, flow):
        hidden_states = torch.randn(2, NUM_FRAMES, 16)
        with torch.no_grad():
            fused = flow(hidden_states, 0.5)
            flow.set_attn_processor(AttnProcessor())
            torch.testing.assert_close(flow(hidden_states, 0.5), fused)

    def test_it_saves_and_loads_as_a_diffusers_model(self, flow, tmp_path):
        flow.save_pretrained(tmp_path)
        loaded = FlowDecoder1D.from_pretrained(tmp_path)
        assert dict(loaded.config)["in_channels"] == 16
        torch.testing.assert_close(loaded.state_dict(), flow.state_dict(), rtol=0, atol=0)


class TestInsideAnotherModel:
    def test_loading_restores_every_tensor(self, tmp_path):
        model = Enclosing(PreTrainedConfig())
        model.save_pretrained(tmp_path)
        loaded = Enclosing.from_pretrained(tmp_path)
        torch.testing.assert_close(loaded.state_dict(), model.state_dict(), rtol=0, atol=0)
        hidden_states = torch.randn(1, 5, 16)
        torch.testing.assert_close(loaded.flow(hidden_states, 0.5), model.flow(hidden_states, 0.5), rtol=0, atol=0)

    def test_missing_weights_are_initialised_and_loaded_ones_are_kept(self, tmp_path):
        model = Enclosing(PreTrainedConfig())
        weights = model.state_dict()
        kept = {"flow.proj_in.conv.weight": torch.full_like(weights["flow.proj_in.conv.weight"], 0.125)}
        loaded = Enclosing.from_pretrained(None, config=PreTrainedConfig(), state_dict=kept).flow
        assert torch.equal(loaded.proj_in.conv.weight, kept["flow.proj_in.conv.weight"])
        assert 0.5 < loaded.scale_shift_table.std() * 16**0.5 < 2
        bound = 16**-0.5  # one over the root of the fan-in
        assert 0.9 * bound < loaded.transformer_blocks[0].attn1.to_q.weight.abs().max() <= bound

    def test_activation_checkpointing_reaches_it(self):
        model = Enclosing(PreTrainedConfig())
        model.supports_gradient_checkpointing = True
        model.activation_checkpointing_enable()
        assert model.flow.gradient_checkpointing
        model.flow(torch.randn(1, 5, 16), 0.5).sum().backward()
        assert model.flow.proj_in.conv.weight.grad.abs().sum() > 0


class TestSampling:
    def test_euler_equals_a_plain_loop_in_double_precision(self, flow, sampling_inputs):
        inputs = item(sampling_inputs, 0)
        sample = sample_flow(
            flow, default_flow_scheduler(), **inputs, incontext_length=3, num_inference_steps=7, guidance_scale=2.5
        )

        flow.double()
        noise, condition, latents = (inputs[name].double() for name in ("noise", "condition", "incontext_latents"))
        context = torch.cat((latents[:, :3], torch.zeros_like(latents[:, 3:])), dim=1)
        expected = noise.clone()
        with torch.no_grad():
            for step in range(7):
                time = step / 7
                expected[:, :3] = ((1 - (1 - 1e-4) * time) * noise + time * latents)[:, :3]
                conditional, unconditional = (
                    flow(torch.cat((expected, context, mu), dim=-1), time)
                    for mu in (condition, torch.zeros_like(condition))
                )
                expected = expected + (unconditional + 2.5 * (conditional - unconditional)) / 7
        torch.testing.assert_close(sample.double(), expected, atol=2e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        "scheduler_class, options",
        [
            (FlowMatchHeunDiscreteScheduler, {}),
            (DPMSolverMultistepScheduler, FLOW_PREDICTION),
            (UniPCMultistepScheduler, FLOW_PREDICTION),
        ],
        ids=["Heun", "DPM-Solver++", "UniPC"],
    )
    @pytest.mark.parametrize("incontext_length", [0, 4])
    def test_other_flow_schedulers_converge_to_the_same_latents(
        self, flow, sampling_inputs, scheduler_class, options, incontext_length
    ):
        euler = default_flow_scheduler()
        inputs = item(sampling_inputs, 0) | {"incontext_length": incontext_length}
        exact = sample_flow(flow, euler, **inputs, num_inference_steps=400)
        scheduler = scheduler_class.from_config(euler.config, **options)
        for num_inference_steps, tolerance in ((1, 0.1), (4, 0.05), (60, 0.005)):
            sample = sample_flow(flow, scheduler, **inputs, num_inference_steps=num_inference_steps)
            assert sample.isfinite().all()
            # In-context frames are set by hand at each step: the last estimate of them is a matter of taste.
            free = slice(incontext_length, None)
            torch.testing.assert_close(sample[:, free], exact[:, free], atol=tolerance, rtol=0)

    def test_a_batch_gives_what_its_items_give(self, flow, sampling_inputs):
        scheduler, lengths = default_flow_scheduler(), torch.tensor([0, 4, NUM_FRAMES])
        batch = sample_flow(flow, scheduler, **sampling_inputs, incontext_length=lengths)
        for index, length in enumerate(lengths):
            single = sample_flow(flow, scheduler, **item(sampling_inputs, index), incontext_length=int(length))
            torch.testing.assert_close(batch[index : index + 1], single, atol=1e-6, rtol=1e-5)

    def test_frames_after_the_known_ones_are_not_read(self, flow, sampling_inputs):
        changed = copy.deepcopy(sampling_inputs)
        changed["incontext_latents"][:, 4:] = float("nan")
        before, after = (
            sample_flow(flow, default_flow_scheduler(), **inputs, incontext_length=4)
            for inputs in (sampling_inputs, changed)
        )
        torch.testing.assert_close(after, before, rtol=0, atol=0)

    @pytest.mark.parametrize("guidance_scale, rows", [(0.0, 3), (1.0, 3), (1.5, 6)])
    def test_guidance_doubles_the_batch_only_where_it_acts(self, flow, sampling_inputs, guidance_scale, rows):
        seen = []
        flow.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
        sample_flow(
            flow, default_flow_scheduler(), **sampling_inputs, num_inference_steps=2, guidance_scale=guidance_scale
        )
        assert seen == [rows, rows]

    def test_the_scheduler_passed_in_is_left_as_it_was(self, flow, sampling_inputs):
        scheduler = default_flow_scheduler()
        before = copy.deepcopy(vars(scheduler))
        sample_flow(flow, scheduler, **sampling_inputs)
        after = vars(scheduler)
        assert torch.equal(after.pop("sigmas"), before.pop("sigmas"))
        assert torch.equal(after.pop("timesteps"), before.pop("timesteps"))
        assert after == before

    def test_a_scheduler_that_adds_noise_takes_the_generator(self, flow, sampling_inputs):
        scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)
        samples = [
            sample_flow(flow, scheduler, **sampling_inputs, generator=torch.Generator().manual_seed(seed))
            for seed in (3, 3, 4)
        ]
        assert torch.equal(samples[0], samples[1])
        assert not torch.equal(samples[0], samples[2])

    def test_a_half_precision_flow_is_solved_in_single_precision(self, flow, sampling_inputs):
        expected = sample_flow(flow, default_flow_scheduler(), **sampling_inputs)
        sample = sample_flow(flow.to(torch.bfloat16), default_flow_scheduler(), **sampling_inputs)
        assert sample.dtype == torch.float32
        torch.testing.assert_close(sample, expected, atol=0.05, rtol=0)


class TestSamplingErrors:
    @pytest.mark.parametrize(
        "scheduler",
        [DDIMScheduler(), UniPCMultistepScheduler(), DPMSolverMultistepScheduler(prediction_type="flow_prediction")],
        ids=lambda scheduler: type(scheduler).__name__,
    )
    def test_schedulers_for_other_predictions_are_refused(self, flow, sampling_inputs, scheduler):
        with pytest.raises(ValueError, match="use a flow-matching scheduler"):
            sample_flow(flow, scheduler, **sampling_inputs)

    def test_sigmas_that_rise_are_refused(self, flow, sampling_inputs):
        with pytest.raises(ValueError, match=r"run from 0 to 1 instead of from 1 to 0"):
            sample_flow(flow, FlowMatchEulerDiscreteScheduler(invert_sigmas=True), **sampling_inputs)

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"num_inference_steps": 0}, "`num_inference_steps` is 0"),
            ({"condition": torch.zeros(3, NUM_FRAMES - 1, CONDITION_DIM)}, r"\(3, 10, 8\)"),
            ({"incontext_latents": torch.zeros(3, 2, LATENT_DIM)}, r"shape of `noise`, \(3, 11, 4\)"),
            ({"incontext_latents": None, "incontext_length": 2}, "there are 0 frames of `incontext_latents`"),
            ({"incontext_length": NUM_FRAMES + 1}, "there are 11 frames of `incontext_latents`"),
        ],
    )
    def test_inputs_that_do_not_fit_are_refused(self, flow, sampling_inputs, changes, message):
        with pytest.raises(ValueError, match=message):
            sample_flow(flow, default_flow_scheduler(), **(sampling_inputs | changes))
