"""The one-dimensional flow transformer that turns codes into audio latents, and the loop that samples from it."""

import copy
import inspect
import math

import torch
from diffusers import ConfigMixin, FlowMatchEulerDiscreteScheduler, ModelMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention import AttentionMixin, BasicTransformerBlock
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from torch import nn
from transformers import initialization as init

from .configuration_reasoning_codec import FlowDecoderConfig


class FlowProjection(nn.Module):
    """A convolution over time, scaled by `kernel_size ** -0.5`, then a linear layer (released code: `ProjectLayer`).

    Args:
        in_channels (`int`): Channels of the input.
        out_channels (`int`): Channels of the output.
        kernel_size (`int`, *optional*, defaults to 3): Frames each output frame looks at, centred.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__()
        self.scale = kernel_size**-0.5
        self.conv = nn.Conv1d(in_channels, out_channels, kernel_size, padding=kernel_size // 2)
        self.linear = nn.Linear(out_channels, out_channels)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        hidden_states = self.conv(hidden_states.transpose(1, 2)).transpose(1, 2)  # [B, T, C]
        return self.linear(hidden_states * self.scale)


class FlowTimeEmbedding(nn.Module):
    """Time in [0, 1] to an embedding, and to the six modulations that all blocks share (adaLN-single of PixArt-alpha).

    diffusers' `AdaLayerNormSingle` fixes 256 sinusoids; the released model has 512.
    """

    def __init__(self, num_timestep_channels: int, hidden_size: int):
        super().__init__()
        # The sinusoids run over 1000 t. Scaling inside matters: 1000 t rounded to float32 first differs by 6e-5.
        self.sinusoids = Timesteps(num_timestep_channels, flip_sin_to_cos=True, downscale_freq_shift=0, scale=1000)
        self.timestep_embedder = TimestepEmbedding(num_timestep_channels, hidden_size)
        self.linear = nn.Linear(hidden_size, 6 * hidden_size)

    def forward(self, timestep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        embedding = self.timestep_embedder(self.sinusoids(timestep).to(self.linear.weight.dtype))
        return embedding, self.linear(nn.functional.silu(embedding))  # [B, C], [B, 6 C]


def sinusoidal_positions(num_positions: int, hidden_size: int, device: torch.device | None = None) -> torch.Tensor:
    """The position table of "Attention is all you need": sine at even channels, cosine at odd ones.

    It is computed where it is used rather than kept as a buffer: a buffer that is not saved comes back uninitialised
    from `from_pretrained`, and one in half precision would round the positions.

    Returns:
        `torch.Tensor` of shape `(num_positions, hidden_size)`, float32.
    """
    channels = torch.arange(0, hidden_size, 2, device=device)
    rates = torch.exp(channels * (-math.log(10000.0) / hidden_size))
    angles = torch.arange(num_positions, device=device)[:, None] * rates
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)[:, :hidden_size]


class FlowDecoder1D(ModelMixin, ConfigMixin, AttentionMixin):
    """A bidirectional transformer over time that predicts the velocity of a flow from noise to audio latents.

    It speaks the released model's convention: time 0 is noise, time 1 is data, the output is `d x / d t`.
    `sample_flow` translates to that of diffusers' schedulers.

    Args:
        in_channels (`int`, *optional*, defaults to 1040):
            Channels of the input: noisy latents, in-context latents and condition side by side.
        out_channels (`int`, *optional*, defaults to 136): Channels of the latents.
        num_layers (`int`, *optional*, defaults to 32): Number of transformer blocks.
        num_attention_heads (`int`, *optional*, defaults to 24): Attention heads in each block.
        attention_head_dim (`int`, *optional*, defaults to 64): Width of a head; heads times width is the hidden size.
        num_timestep_channels (`int`, *optional*, defaults to 512): Number of sinusoids that describe the time.
        max_positions (`int`, *optional*, defaults to 3000): Longest sequence in latent frames.
        norm_eps (`float`, *optional*, defaults to 1e-6): Epsilon of the layer norms.
    """

    _supports_gradient_checkpointing = True
    _no_split_modules = ("BasicTransformerBlock",)

    @register_to_config
    def __init__(
        self,
        in_channels: int = 1040,
        out_channels: int = 136,
        num_layers: int = 32,
        num_attention_heads: int = 24,
        attention_head_dim: int = 64,
        num_timestep_channels: int = 512,
        max_positions: int = 3000,
        norm_eps: float = 1e-6,
    ):
        super().__init__()
        hidden_size = num_attention_heads * attention_head_dim
        self.proj_in = FlowProjection(in_channels, hidden_size)
        self.time_embedding = FlowTimeEmbedding(num_timestep_channels, hidden_size)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(
                hidden_size,
                num_attention_heads,
                attention_head_dim,
                activation_fn="gelu-approximate",
                attention_bias=True,
                norm_type="ada_norm_single",
                norm_elementwise_affine=False,
                norm_eps=norm_eps,
            )
            for _ in range(num_layers)
        )
        self.norm_out = nn.LayerNorm(hidden_size, eps=norm_eps, elementwise_affine=False)
        self.scale_shift_table = nn.Parameter(torch.randn(2, hidden_size) / hidden_size**0.5)
        self.proj_out = FlowProjection(hidden_size, out_channels)
        self.gradient_checkpointing = False

    def forward(self, hidden_states: torch.Tensor, timestep: torch.Tensor | float) -> torch.Tensor:
        """
        Args:
            hidden_states (`torch.Tensor` of shape `(batch_size, num_frames, in_channels)`):
                Noisy latents, in-context latents and condition, concatenated over channels in this order.
            timestep (`torch.Tensor` of shape `(batch_size,)` or a scalar):
                Time in [0, 1]: 0 noise, 1 data.

        Returns:
            `torch.Tensor` of shape `(batch_size, num_frames, out_channels)`: the velocity.

        Raises:
            ValueError: If there are more frames than `max_positions`.
        """
        batch_size, num_frames, _ = hidden_states.shape
        if num_frames > self.config.max_positions:
            raise ValueError(
                f"The flow decoder got {num_frames} frames but has {self.config.max_positions} positions: decode in "
                "windows, or build it with a larger `max_positions`."
            )
        timestep = torch.as_tensor(timestep, dtype=torch.float32, device=hidden_states.device).expand(batch_size)
        time_embedding, modulation = self.time_embedding(timestep)

        hidden_states = self.proj_in(hidden_states)
        positions = sinusoidal_positions(num_frames, hidden_states.shape[-1], hidden_states.device)
        hidden_states = hidden_states + positions.to(hidden_states.dtype)
        for block in self.transformer_blocks:
            if self.gradient_checkpointing and torch.is_grad_enabled():
                # The four arguments skipped are the block's masks and cross-attention inputs.
                hidden_states = self._gradient_checkpointing_func(block, hidden_states, None, None, None, modulation)
            else:
                hidden_states = block(hidden_states, timestep=modulation)

        # The embedding enters here without the activation that the blocks' modulations have (released code).
        shift, scale = (self.scale_shift_table[None] + time_embedding[:, None]).chunk(2, dim=1)
        hidden_states = self.norm_out(hidden_states) * (1 + scale) + shift
        return self.proj_out(hidden_states)


def build_flow_decoder(config: FlowDecoderConfig) -> FlowDecoder1D:
    """The flow decoder of a codec's sub-config."""
    names = inspect.signature(FlowDecoder1D.__init__).parameters.keys() - {"self"}
    return FlowDecoder1D(**{name: getattr(config, name) for name in names})


@torch.no_grad()
def initialize_flow_decoder(flow: FlowDecoder1D) -> None:
    """Initialises every parameter that was not loaded: the `_init_weights` of a model that is not a `PreTrainedModel`.

    The enclosing model's `_init_weights(module)` calls it when `module` is a `FlowDecoder1D`; transformers visits
    children first, so this has the last word over the enclosing model's own rules for linear layers.
    """
    for module in flow.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d)):
            # PyTorch's own initialisation of both.
            bound = module.weight[0].numel() ** -0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, (FlowDecoder1D, BasicTransformerBlock)):
            init.normal_(module.scale_shift_table, std=module.scale_shift_table.shape[-1] ** -0.5)


def default_flow_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The scheduler of the released model: Euler steps of equal length (`shift=1`)."""
    return FlowMatchEulerDiscreteScheduler(num_train_timesteps=1000, shift=1.0)


@torch.no_grad()
def sample_flow(
    flow: FlowDecoder1D,
    scheduler: SchedulerMixin,
    noise: torch.Tensor,
    condition: torch.Tensor,
    incontext_latents: torch.Tensor | None = None,
    incontext_length: int | torch.Tensor = 0,
    num_inference_steps: int = 10,
    guidance_scale: float = 1.5,
    sigma_min: float = 1e-4,
    generator: torch.Generator | list[torch.Generator] | None = None,
) -> torch.Tensor:
    """Solves the flow from noise to latents.

    The scheduler is any flow-matching one of diffusers. In its convention sigma falls from 1 (noise) to 0 (data) and
    the model predicts `d x / d sigma`: time is `1 - sigma`, and the velocity changes its sign. The scheduler passed in
    is not touched: it is stateful, so each call works on a copy.

    Args:
        flow (`FlowDecoder1D`): The model.
        scheduler (`SchedulerMixin`):
            `FlowMatchEulerDiscreteScheduler`, `FlowMatchHeunDiscreteScheduler`, or a DPM-Solver or UniPC scheduler
            with `use_flow_sigmas=True, prediction_type="flow_prediction"`.
        noise (`torch.Tensor` of shape `(batch_size, num_frames, latent_dim)`): Standard normal noise.
        condition (`torch.Tensor` of shape `(batch_size, num_frames, condition_dim)`): What to decode.
        incontext_latents (`torch.Tensor` of shape `(batch_size, num_frames, latent_dim)`, *optional*):
            Known latents; only the first `incontext_length` frames are read.
        incontext_length (`int` or `torch.Tensor` of shape `(batch_size,)`, *optional*, defaults to 0):
            Number of frames known at the start. They are held on their way from noise to `incontext_latents` before
            every evaluation of the model; what is returned for them is the solver's estimate.
        num_inference_steps (`int`, *optional*, defaults to 10): Steps of the solver.
        guidance_scale (`float`, *optional*, defaults to 1.5):
            Classifier-free guidance, `unconditional + guidance_scale * (conditional - unconditional)`, where
            unconditional means a condition of zeros. At 1 or less the model runs once per step, with the condition.
        sigma_min (`float`, *optional*, defaults to 1e-4):
            Noise left at the data end of the path on which in-context frames are held, `(1 - (1 - sigma_min) t) noise
            + t latents`, as in training. The solver does not know it (released code).
        generator (`torch.Generator` or list of them, *optional*):
            For schedulers that add noise on the way; the others ignore it.

    Returns:
        `torch.Tensor` of shape `(batch_size, num_frames, latent_dim)`, float32.

    Raises:
        ValueError: If shapes do not fit, there is no step, or the scheduler is not for flow matching.
    """
    _check_sampling_inputs(noise, condition, incontext_latents, incontext_length, num_inference_steps)
    scheduler, times = _prepare_scheduler(scheduler, num_inference_steps)
    accepts_generator = "generator" in inspect.signature(scheduler.step).parameters
    step_kwargs = {"generator": generator} if accepts_generator else {}
    guided = guidance_scale > 1

    noise = noise.float()
    frames = torch.arange(noise.shape[1], device=noise.device)
    lengths = torch.as_tensor(incontext_length, device=noise.device).expand(len(noise))
    known = (frames < lengths[:, None])[..., None]  # [B, T, 1]
    if incontext_latents is None:
        incontext_latents = torch.zeros_like(noise)
    context = torch.where(known, incontext_latents.to(noise), 0.0)

    # Unconditional half first, as in the released code; the in-context latents stay in both halves.
    conditions = torch.cat((torch.zeros_like(condition), condition)) if guided else condition
    contexts = torch.cat((context, context)) if guided else context

    sample = noise
    for time, scheduler_timestep in zip(times, scheduler.timesteps, strict=True):
        sample = torch.where(known, (1 - (1 - sigma_min) * time) * noise + time * context, sample)
        samples = torch.cat((sample, sample)) if guided else sample
        velocity = flow(torch.cat((samples, contexts, conditions), dim=-1).to(flow.dtype), time).float()
        if guided:
            unconditional, conditional = velocity.chunk(2)
            velocity = unconditional + guidance_scale * (conditional - unconditional)
        sample = scheduler.step(-velocity, scheduler_timestep, sample, return_dict=False, **step_kwargs)[0]
    return sample


def _prepare_scheduler(scheduler: SchedulerMixin, num_inference_steps: int) -> tuple[SchedulerMixin, list[float]]:
    """A copy of the scheduler, ready to step from pure noise, and the time at which each step evaluates the model.

    The steps have equal length if the scheduler lets one choose. The times are those of its sigmas, not of its
    timesteps: some schedulers round those to integers.
    """
    advice = (
        "use a flow-matching scheduler, e.g. `FlowMatchEulerDiscreteScheduler.from_config(scheduler.config)`, or "
        '`use_flow_sigmas=True, prediction_type="flow_prediction"` for DPM-Solver and UniPC schedulers'
    )
    name = type(scheduler).__name__
    prediction_type = scheduler.config.get("prediction_type", "flow_prediction")
    if prediction_type != "flow_prediction" or not scheduler.config.get("use_flow_sigmas", True):
        raise ValueError(
            f"The flow decoder predicts a flow, but {name} has prediction_type={prediction_type!r} and "
            f"use_flow_sigmas={scheduler.config.get('use_flow_sigmas')!r}: {advice}."
        )
    scheduler = copy.deepcopy(scheduler)
    accepts_sigmas = "sigmas" in inspect.signature(scheduler.set_timesteps).parameters
    uniform = torch.arange(num_inference_steps, dtype=torch.float64) / num_inference_steps
    if accepts_sigmas:
        # Its own grid would end at sigma = 1 / num_train_timesteps before the last step.
        scheduler.set_timesteps(sigmas=(1 - uniform).numpy())
    else:
        scheduler.set_timesteps(num_inference_steps)
    if not (scheduler.sigmas[0] > 0.9 and scheduler.sigmas.max() <= 1.0 and scheduler.sigmas[-1] == 0.0):
        raise ValueError(
            f"The sigmas of {name} run from {scheduler.sigmas[0]:g} to {scheduler.sigmas[-1]:g} instead of from 1 to "
            f"0: {advice}."
        )
    # Without it a scheduler looks its first step up by value, and finds the second where rounded timesteps repeat.
    scheduler.set_begin_index(0)

    times = 1 - scheduler.sigmas[: len(scheduler.timesteps)].double()
    if accepts_sigmas:
        # A sigma in single precision knows its time to 3e-8 only, and the sinusoids magnify that a thousandfold: where
        # the scheduler kept the sigmas as they were, take the times they were made from.
        kept = scheduler.sigmas[:-1] == (1 - uniform).float()
        times = torch.where(kept, uniform, times)
    return scheduler, times.tolist()


def _check_sampling_inputs(
    noise: torch.Tensor,
    condition: torch.Tensor,
    incontext_latents: torch.Tensor | None,
    incontext_length: int | torch.Tensor,
    num_inference_steps: int,
) -> None:
    if num_inference_steps < 1:
        raise ValueError(f"`num_inference_steps` is {num_inference_steps}; it must be at least 1.")
    if noise.ndim != 3 or condition.ndim != 3 or noise.shape[:2] != condition.shape[:2]:
        raise ValueError(
            "`noise` and `condition` must have the shapes (batch_size, num_frames, channels) with equal batch and "
            f"frames, but they are {tuple(noise.shape)} and {tuple(condition.shape)}."
        )
    if incontext_latents is not None and incontext_latents.shape != noise.shape:
        raise ValueError(
            f"`incontext_latents` must have the shape of `noise`, {tuple(noise.shape)} (pad it: frames from "
            f"`incontext_length` on are not read), but it is {tuple(incontext_latents.shape)}."
        )
    longest = int(torch.as_tensor(incontext_length).max())
    if longest > (0 if incontext_latents is None else noise.shape[1]):
        raise ValueError(
            f"`incontext_length` is {longest}, but there are "
            f"{0 if incontext_latents is None else noise.shape[1]} frames of `incontext_latents`."
        )


__all__ = [
    "FlowDecoder1D",
    "build_flow_decoder",
    "default_flow_scheduler",
    "initialize_flow_decoder",
    "sample_flow",
]
