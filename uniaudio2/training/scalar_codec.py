"""Training the scalar autoencoder: first both halves, then the decoder alone over a frozen encoder."""

import copy
from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized
from transformers import TrainingArguments

from ..modeling_uniaudio2.configuration_reasoning_codec import ScalarCodecConfig
from ..modeling_uniaudio2.modeling_scalar_codec import (
    ScalarCodec,
    ScalarCodecConv1d,
    ScalarCodecConvTranspose1d,
)
from .discriminators import WaveformDiscriminators
from .spectral_loss import MultiScaleSpectralLoss
from .speed import counted_operations
from .stage_trainer import StageTrainer


class ScalarCodecForTraining(nn.Module):
    """The autoencoder with its loss.

    Rounding has no gradient: it passes straight through, and in training only half of the items are rounded, because
    young latents are so small that all of them would round to zero.

    Args:
        config ([`ScalarCodecConfig`]): Of the autoencoder.
        spectral (`dict`): Arguments of [`MultiScaleSpectralLoss`] without the sampling rate.
        latent_noise (`float`): Standard deviation of the noise added to latents in training, so that the decoder
            forgives the small errors of a flow model.
        train_encoder (`bool`): Whether the encoder learns too.
        discriminators (`dict`, *optional*): Arguments of
            [`~uniaudio2.training.discriminators.WaveformDiscriminators`]. Without, the loss is the spectral one alone.
        adversarial_weight, feature_weight (`float`): Of the discriminators' losses beside the spectral one.
    """

    def __init__(
        self,
        config: ScalarCodecConfig,
        spectral: dict,
        latent_noise: float,
        train_encoder: bool = True,
        discriminators: dict | None = None,
        adversarial_weight: float = 1.0,
        feature_weight: float = 2.0,
    ):
        super().__init__()
        self.codec = ScalarCodec(config)
        self.spectral_loss = MultiScaleSpectralLoss(config.sampling_rate, **spectral)
        self.latent_noise = latent_noise
        self.train_encoder = train_encoder
        self.codec.encoder.requires_grad_(train_encoder)
        self.discriminators = None if discriminators is None else WaveformDiscriminators(**discriminators)
        self.adversarial_weight = adversarial_weight
        self.feature_weight = feature_weight

    def forward(self, waveform: torch.Tensor) -> dict[str, torch.Tensor]:
        """`waveform` (`torch.FloatTensor` of shape `(batch_size, num_samples)`) -> `loss`, in training with
        discriminators its parts, and `audio_values`."""
        latents = self.codec.encode(waveform[:, None])
        rounding_error = (self.codec.quantize(latents) - latents).detach()
        if self.training:
            rounded = torch.rand(len(latents), 1, 1, device=latents.device) < 0.5
            latents = latents + rounded * rounding_error + self.latent_noise * torch.randn_like(latents)
        else:
            latents = latents + rounding_error
        generated = self.codec.decoder(latents)[:, 0, : waveform.shape[-1]]
        loss = self.spectral_loss(generated, waveform)
        if self.discriminators is None or not self.training:
            return {"loss": loss, "audio_values": generated}
        parts = {"spectral_loss": loss, **self._adversarial_losses(waveform, generated)}
        loss = (
            parts["spectral_loss"]
            + self.adversarial_weight * parts["adversarial_loss"]
            + self.feature_weight * parts["feature_loss"]
            + parts["discriminator_loss"]
        )
        return {"loss": loss, **parts, "audio_values": generated}

    def _adversarial_losses(self, real: torch.Tensor, generated: torch.Tensor) -> dict[str, torch.Tensor]:
        """
        Both players in one backward pass: each loss has gradients for its own player alone.

        An optimiser like Adam then moves each as an optimiser of its own would, and one step, one schedule and one
        checkpoint do for both.
        """
        self.discriminators.requires_grad_(False)
        adversarial, feature = self.discriminators.generator_losses(real, generated)
        self.discriminators.requires_grad_(True)
        return {
            "adversarial_loss": adversarial,
            "feature_loss": feature,
            "discriminator_loss": self.discriminators.discriminator_loss(real, generated),
        }


class ScalarCodecTrainer(StageTrainer):
    """
    The stage before the others of the codec, on batches of [`~uniaudio2.training.waveforms.RandomCrops`], whose tokens
    are latent frames. A batch counts by its recordings.

    Args:
        model ([`ScalarCodecForTraining`]): The autoencoder. Without discriminators it has a spectral loss alone.
        args ([`~transformers.TrainingArguments`]): The arguments.
        loss_weights (`dict[str, float]`, *optional*): In place of those of the model.
        kwargs: As of [`StageTrainer`].
    """

    loss_weights: ClassVar[dict[str, float]] = {
        "spectral_loss": 1.0,
        "adversarial_loss": 1.0,
        "feature_loss": 2.0,
        "discriminator_loss": 1.0,
    }

    def __init__(
        self,
        model: ScalarCodecForTraining,
        args: TrainingArguments,
        *,
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        own_weights = {"adversarial_loss": model.adversarial_weight, "feature_loss": model.feature_weight}
        # The columns of a corpus are not the arguments of forward: the collator chooses.
        args.remove_unused_columns = False
        super().__init__(model, args, loss_weights=own_weights | (loss_weights or {}), **kwargs)
        if model.discriminators is None:
            self.weights = {"spectral_loss": self.weights["spectral_loss"]}
        # A copy without memory, on which torch counts.
        self._outline = copy.deepcopy(model).to("meta").train()
        self._crop_operations: int | None = None

    @classmethod
    def trained_modules(cls, model: ScalarCodecForTraining) -> list[str]:
        return [
            "codec.decoder",
            *(["codec.encoder"] if model.train_encoder else []),
            *(["discriminators"] if model.discriminators is not None else []),
        ]

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], Mapping]:
        outputs = model(inputs["waveform"])
        if "spectral_loss" not in outputs:  # it is the whole: without discriminators, and in evaluation
            return {"spectral_loss": outputs["loss"]}, outputs
        return {name: outputs[name] for name in self.weights}, outputs

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        number = torch.tensor(len(inputs["waveform"]), device=inputs["waveform"].device)
        return dict.fromkeys(self.weights, number)

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        return inputs["waveform"].numel() // self._outline.codec.config.hop_length

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        """Convolutions at the rate of samples: torch counts those of one crop, which are all of one length."""
        if self._crop_operations is None:
            crop = inputs["waveform"][:1].to("meta")
            self._crop_operations = counted_operations(lambda: self._outline(crop)["loss"].backward())
        return float(len(inputs["waveform"]) * self._crop_operations)


@torch.no_grad()
def scale_to_data(codec: ScalarCodec, waveform: torch.Tensor) -> None:
    """Rescale fresh weights so that signals have unit size in every layer, and the output that of speech.

    With torch's default weights the latents of quiet speech come out near 0.02: all of them round to zero, and the
    decoder learns from noise for thousands of steps.

    Args:
        codec: Freshly initialised; changed in place.
        waveform (`torch.FloatTensor` of shape `(batch_size, 1, num_samples)`): Some recordings.
    """
    targets = {"encoder.output_conv": 1.0, "decoder.output_conv": waveform.std().item()}
    hooks = []
    for name, layer in codec.named_modules():
        if isinstance(layer, (ScalarCodecConv1d, ScalarCodecConvTranspose1d)):
            # Residual branches start small, as in any deep residual network.
            target = 0.3 if name.endswith("conv2") else targets.get(name, 1.0)
            hooks.append(layer.register_forward_hook(partial(_rescale, target)))
    codec(waveform)
    for hook in hooks:
        hook.remove()


def _rescale(target: float, layer: nn.Module, _inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """Forward hook: gives the layer a zero bias and an output whose standard deviation is `target`."""
    output = output - layer.conv.bias[None, :, None]
    layer.conv.bias.zero_()
    factor = target / output.std()
    normalised = is_parametrized(layer.conv, "weight")
    scale = layer.conv.parametrizations.weight.original0 if normalised else layer.conv.weight
    scale.mul_(factor)
    return output * factor
