"""Losses of the codec's reconstruction stage."""

import torch
from torch import nn


def flow_matching_loss(
    flow: nn.Module,
    latents: torch.Tensor,
    noise: torch.Tensor,
    time: torch.Tensor,
    condition: torch.Tensor,
    incontext_latents: torch.Tensor,
    weight: torch.Tensor,
    sigma_min: float,
) -> torch.Tensor:
    """Squared error of the velocity along straight paths from noise to latents.

    Args:
        flow (`nn.Module`): Called as `flow(hidden_states, time)`.
        latents, noise (`torch.FloatTensor` of shape `(batch_size, frames, latent_dim)`): Both ends of the paths.
        time (`torch.FloatTensor` of shape `(batch_size,)`): Where on its path each sample is: 0 noise, 1 latents.
        condition (`torch.FloatTensor` of shape `(batch_size, frames, hidden_size)`): What to decode.
        incontext_latents (`torch.FloatTensor` of shape `(batch_size, frames, latent_dim)`):
            Known latents, zero where there are none.
        weight (`torch.FloatTensor` of shape `(batch_size, frames)`):
            How much a frame counts. As in the released code it is squared with the error but not where it normalises.
        sigma_min (`float`): Noise left at the data end of the path.
    """
    time = time[:, None, None]
    point = (1 - (1 - sigma_min) * time) * noise + time * latents
    target = latents - (1 - sigma_min) * noise
    velocity = flow(torch.cat((point, incontext_latents, condition), dim=-1), time[:, 0, 0])
    weight = weight[..., None].expand_as(target)
    return ((weight * (velocity - target)) ** 2).sum() / weight.sum()


def masked_mean_squared_error(
    prediction: torch.Tensor, target: torch.Tensor, mask: torch.BoolTensor | None = None
) -> torch.Tensor:
    """Mean squared error of `(batch_size, channels, frames)` features over the frames where `mask` is `True`."""
    frames = min(prediction.shape[-1], target.shape[-1])
    error = (prediction[..., :frames] - target[..., :frames]) ** 2
    if mask is None:
        return error.mean()
    mask = mask[:, None, :frames].to(error.dtype)
    return (error * mask).sum() / (mask.sum() * error.shape[1]).clamp(min=1)
