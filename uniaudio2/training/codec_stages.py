"""Two of the codec's stages: the reasoning branch by supervision, and the reconstruction branch behind it.

GRPO, which lies between them, is in `reasoning_grpo.py`; the scalar codec, which all of them need, in
`scalar_codec.py`. Codebooks are moving averages and not weights: they follow every micro-batch, of all processes.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, ClassVar

import torch
from torch import nn
from transformers.utils import ModelOutput

from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from ..modeling_uniaudio2.modeling_codec_front_ends import CodecFrontEnds, ReasoningFrontEnds
from ..modeling_uniaudio2.modeling_reasoning_codec_text import ReasoningCodecForConditionalGeneration
from ..modeling_uniaudio2.modeling_scalar_codec import ScalarCodec
from ..modeling_uniaudio2.modeling_uniaudio2 import IGNORED_LABEL
from .codebooks import StatisticsOfWeightsDtype, synchronize_codebooks
from .speed import counted_operations, operations
from .stage_trainer import StageTrainer, StageTrainingArguments

# What the codec's first two stages train whole, beside the adapters of the language model.
TEXT_HEAD_MODULES = ("model.reasoning_branch", "model.text_projection")


class ReasoningSFTTrainer(StageTrainer):
    """
    Stage 1 of the codec: from the reasoning tokens alone a language model must write transcripts, captions, analyses
    and answers, so that the tokens come to hold what these say. Front ends are frozen.

    On batches of [`~uniaudio2.training.text_head_data.UnderstandingCollator`]. Logs `text_loss`, `text_accuracy` and
    `commitment_loss`.

    Args:
        model ([`~uniaudio2.ReasoningCodecForConditionalGeneration`] or `PeftModel`):
            The model; as in the paper with adapters on the language model, see [`text_head_adapters`].
        args (`StageTrainingArguments`): The arguments.
        loss_weights (`dict[str, float]`, *optional*): The weight of the commitment is that of the config otherwise.
        kwargs: As of [`StageTrainer`].
    """

    loss_weights: ClassVar[dict[str, float]] = {"text_loss": 1.0, "commitment_loss": 0.25}

    def __init__(
        self,
        model: nn.Module,
        args: StageTrainingArguments,
        *,
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        own_weights = {"commitment_loss": model.config.commitment_loss_weight}
        super().__init__(model, args, loss_weights=own_weights | (loss_weights or {}), **kwargs)
        self._recording_operations = recording_operations(ReasoningFrontEnds, model.config.codec_config)
        synchronize_codebooks(model)
        self.add_callback(StatisticsOfWeightsDtype())

    @classmethod
    def trained_modules(cls, model: nn.Module) -> list[str]:
        return [*TEXT_HEAD_MODULES, "model.language_model", "lm_head"]

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ModelOutput]:
        outputs = model(**inputs, update_codebooks=model.training, use_cache=False)
        targets = inputs["labels"][:, 1:]
        counted = targets != IGNORED_LABEL
        right = outputs.logits[:, :-1][counted].argmax(dim=-1) == targets[counted]
        return {
            "text_loss": outputs.text_loss,
            "commitment_loss": outputs.commitment_loss,
            "text_accuracy": right.float().mean(),
        }, outputs

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        num_tokens = (inputs["labels"][:, 1:] != IGNORED_LABEL).sum()
        num_frames = (inputs["input_ids"] == self.model.config.audio_token_id).sum()
        return {"text_loss": num_tokens, "commitment_loss": num_frames, "text_accuracy": num_tokens}

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        return int(inputs["attention_mask"].sum())

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        model, config = self.accelerator.unwrap_model(self.model), self.model.config.codec_config
        recordings, samples = len(inputs["input_ids"]), padded_samples(inputs, config)
        frames, rows = recordings * samples // config.reasoning_hop_length, self.count_tokens(inputs)
        return recordings * self._recording_operations(samples) + operations(text_parts(model, frames, rows, rows))


class ReconstructionTrainer(StageTrainer):
    """
    Stage 3 of the codec: with the reasoning branch frozen, the reconstruction branch learns what is missing to paint
    the latents of the scalar codec, together with the flow decoder that paints them.

    Losses of `ReasoningCodecModel.forward` in training mode: flow, WavLM features from the phone stream, commitment;
    with random in-context prefixes, conditions and modulations as the model's config says. On batches of
    [`~uniaudio2.training.text_head_data.RecordingCollator`]. A batch counts by its recordings' latent frames.

    Args:
        model ([`~uniaudio2.ReasoningCodecModel`]): The codec; its scalar codec is trained before, by itself.
        args (`StageTrainingArguments`): The arguments.
        loss_weights (`dict[str, float]`, *optional*): In place of those in the model's config.
        kwargs: As of [`StageTrainer`].
    """

    # Paper: 1, 0.1, 0.5; the release has the decoder of structure features and leaves it out of the loss.
    loss_weights: ClassVar[dict[str, float]] = {
        "flow_loss": 1.0,
        "phone_feature_loss": 0.1,
        "structure_feature_loss": 0.0,
        "commitment_loss": 0.5,
    }

    def __init__(
        self,
        model: nn.Module,
        args: StageTrainingArguments,
        *,
        loss_weights: dict[str, float] | None = None,
        **kwargs,
    ):
        config = model.config
        own_weights = {name: getattr(config, f"{name}_weight") for name in self.loss_weights if name != "flow_loss"}
        super().__init__(model, args, loss_weights=own_weights | (loss_weights or {}), **kwargs)
        freeze_unused_decoders(model, self.weights)
        self._recording_operations = recording_operations(CodecFrontEnds, config)
        synchronize_codebooks(model)
        self.add_callback(StatisticsOfWeightsDtype())

    @classmethod
    def trained_modules(cls, model: nn.Module) -> list[str]:
        parts = [name for name, _ in model.reconstruction_branch.named_children()]
        if not model.config.film:
            parts.remove("reasoning_adaptor")
        return [
            *(f"reconstruction_branch.{name}" for name in parts),
            "flow_conditioner",
            "flow_decoder",
            "phone_feature_decoder",
            "structure_feature_decoder",
        ]

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ModelOutput]:
        outputs = model(**inputs, return_loss=True, return_dict=True)
        return {name: outputs[name] for name in self.loss_weights}, outputs

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return dict.fromkeys(self.loss_weights, self._count_latents(inputs))

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        return int(self._count_latents(inputs))

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        model = self.accelerator.unwrap_model(self.model)
        recordings, samples = len(inputs["input_values"]), padded_samples(inputs, model.config)
        latents = recordings * samples // model.config.latent_hop_length
        return recordings * self._recording_operations(samples) + operations(
            [
                (model.reasoning_branch, latents + latents // model.config.reasoning_interval),
                (model.reconstruction_branch, latents // 2),
                (model.phone_feature_decoder, latents),
                (model.structure_feature_decoder, latents),
                (model.flow_conditioner, latents // 2),
                (model.flow_decoder, latents),
            ]
        )

    def _count_latents(self, inputs: dict[str, Any]) -> torch.Tensor:
        config: ReasoningCodecConfig = self.model.config
        return torch.ceil(inputs["padding_mask"].sum(dim=1) / config.latent_hop_length).sum().long()


def padded_samples(inputs: Mapping[str, Any], config: ReasoningCodecConfig) -> int:
    """Samples of each recording of a batch, with its padding: the encoders hear that too."""
    return -(-inputs["input_values"].shape[-1] // config.frame_unit) * config.frame_unit


def recording_operations(front_ends: type[nn.Module], config: ReasoningCodecConfig) -> Callable[[int], int]:
    """
    Operations of the frozen encoders on one recording, by its padded samples: of the front ends and, if WavLM is among
    them, of the scalar codec's encoder, which then gives the targets. Torch counts them, once for each length, on
    copies without memory: convolutions at many rates are no products of weights and rows.
    """
    with torch.device("meta"):
        encoders = front_ends(config).eval()
        scalar_codec = ScalarCodec(config.scalar_config) if front_ends is CodecFrontEnds else None

    @cache
    @torch.no_grad()
    def count(samples: int) -> int:
        waveform = torch.empty(1, samples, device="meta")
        total = counted_operations(lambda: encoders(waveform))
        if scalar_codec is not None:
            total += counted_operations(lambda: scalar_codec.encode(waveform[:, None]))
        return total

    return count


def text_parts(model: nn.Module, frames: int, rows: int, answers: int) -> list[tuple[nn.Module, int]]:
    """
    The parts of a text head behind its front ends, for [`~uniaudio2.training.speed.operations`].

    Args:
        model ([`~uniaudio2.ReasoningCodecForConditionalGeneration`] or `PeftModel`): The text head.
        frames (`int`): Reasoning frames of all recordings, with their padding.
        rows (`int`): Tokens that the language model reads, those of the audio among them.
        answers (`int`): Of these, the ones that get logits.
    """
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    parts, embedding = model.model, model.get_input_embeddings()  # which is looked up, not multiplied
    return [
        (parts.reasoning_branch, frames * (model.config.codec_config.reasoning_interval + 1)),
        (parts.text_projection, frames),
        *((module, rows) for module in parts.language_model.children() if module is not embedding),
        (model.lm_head, answers),
    ]


def freeze_unused_decoders(model: nn.Module, weights: Mapping[str, float]) -> None:
    """Those of features whose loss weighs nothing: without a gradient, weight decay would move them."""
    for feature in ("phone", "structure"):
        decoder = model.get_submodule(f"{feature}_feature_decoder")
        decoder.requires_grad_(weights[f"{feature}_feature_loss"] > 0)


def text_head_adapters(
    model: ReasoningCodecForConditionalGeneration,
    rank: int = 32,
    alpha: int = 32,
    dropout: float = 0.1,
    train_reasoning_branch: bool = True,
):
    """
    Adapters for every matrix of the language model (paper: rank 32, alpha 32, drop-out 0.1), as a configuration for
    `peft.get_peft_model` and for [`~uniaudio2.training.reasoning_grpo.ReasoningGRPOTrainer`].

    Args:
        model ([`~uniaudio2.ReasoningCodecForConditionalGeneration`]): Says what its matrices are called.
        rank, alpha (`int`), dropout (`float`): Of [`~peft.LoraConfig`].
        train_reasoning_branch (`bool`, *optional*, defaults to `True`):
            Whether the reasoning branch and its projection learn too. Then the adapter holds a copy of them that does,
            and without the adapter the model is what it was: an explicit frozen copy.

    Returns:
        `peft.LoraConfig`: `get_peft_model(model, ...).merge_and_unload()` gives a model without adapters.

    Raises:
        ImportError: If peft is not installed.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise ImportError("Adapters need peft: pip install 'uniaudio2[train]'.") from error
    matrices = {
        name.rpartition(".")[2]
        for name, module in model.model.language_model.named_modules()
        if isinstance(module, nn.Linear)
    }
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,
        lora_dropout=dropout,
        target_modules=rf"model\.language_model\..*\.({'|'.join(sorted(matrices))})",
        modules_to_save=list(TEXT_HEAD_MODULES) if train_reasoning_branch else None,
    )
