"""The four stages of the language model (paper, as reported: understanding warm-up, generation warm-up, audio-text
pre-training, mid-training): one small class each, which says what learns and what the losses weigh.

Where the paper gives no value, ours is marked as such.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers.trainer_utils import get_last_checkpoint
from transformers.utils import ModelOutput, logging

from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from ..modeling_uniaudio2.modeling_uniaudio2 import IGNORED_LABEL, UniAudio2ForConditionalGeneration, following_rows
from .mixture import Mixture, MixtureBatches
from .speed import operations
from .stage_trainer import StageTrainer, StageTrainingArguments

logger = logging.get_logger(__name__)

SEMANTIC_DECODER = "semantic_decoder"
# In a checkpoint: where the plan of the data stood.
PLAN_FILE = "plan.json"


def model_parts(config: UniAudio2Config) -> dict[str, list[str]]:
    """The parts of the language model by the paper's names, each as the modules it is made of."""
    first_cross_modal = config.num_understanding_layers
    first_generation = config.num_hidden_layers - config.num_generation_layers
    layers = [f"model.layers.{index}" for index in range(config.num_hidden_layers)]
    return {
        "audio_embeddings": ["model.audio_embeddings"],
        "understanding": [*layers[:first_cross_modal], "model.understanding_norm"],
        "text": ["model.embed_tokens", "lm_head"],
        "cross_modal": [*layers[first_cross_modal:first_generation], "model.cross_modal_norm"],
        "generation": [*layers[first_generation:], "model.generation_norm"],
        "depth_decoder": ["depth_decoder", "audio_head"],
    }


class LanguageModelStageTrainer(StageTrainer):
    """
    A stage of the language model, on batches of [`~uniaudio2.UniAudio2DataCollator`] or packed ones.

    Logs `text_loss` and `audio_loss`, both accuracies (of the codes: over all codebooks), and `codebook_<k>_loss`;
    of a [`~uniaudio2.training.mixture.Mixture`] also `examples_left_out`, those so far that do not fit.

    Args:
        model ([`~uniaudio2.UniAudio2ForConditionalGeneration`] or `PeftModel`): The model.
        args (`StageTrainingArguments`): The arguments.
        codebook_weights (`Sequence[float]`, *optional*):
            Weights of the codebooks in place of those of the class. They are divided by their number.
        kwargs: As of [`StageTrainer`].
    """

    # Names of `model_parts` that learn.
    parts: ClassVar[tuple[str, ...]] = ()
    codebook_weights: ClassVar[tuple[float, ...]] = (1.0,) * 8
    sends_float32 = False

    def __init__(
        self,
        model: nn.Module,
        args: StageTrainingArguments,
        *,
        codebook_weights: Sequence[float] | None = None,
        **kwargs,
    ):
        super().__init__(model, args, **kwargs)
        self.codebook_weights = tuple(codebook_weights or self.codebook_weights)
        check_codebook_weights(self.codebook_weights, model.config)
        self._resumed_from: Path | None = None
        self._batches: MixtureBatches | None = None

    @classmethod
    def trained_modules(cls, model: nn.Module) -> list[str]:
        parts = model_parts(model.config)
        return [module for part in cls.parts for module in parts[part]]

    def get_train_dataloader(self) -> DataLoader:
        """Of a [`~uniaudio2.training.mixture.Mixture`], its own plan, which goes on where the checkpoint left it."""
        if not isinstance(self.train_dataset, Mixture):
            return super().get_train_dataloader()
        self._batches = MixtureBatches(self.train_dataset, self.args.train_batch_size, self.args.seed)
        if self._resumed_from is not None and (self._resumed_from / PLAN_FILE).is_file():
            self._load_plan(json.loads((self._resumed_from / PLAN_FILE).read_text()))
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self._batches,
            collate_fn=self.train_dataset.collate,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            prefetch_factor=self.args.dataloader_prefetch_factor,
        )
        # Without end and of no fixed size: there is no last batch to fill up for all processes, as in evaluation.
        in_evaluation, self.accelerator.even_batches = self.accelerator.even_batches, False
        try:
            return self.accelerator.prepare(loader)
        finally:
            self.accelerator.even_batches = in_evaluation

    # Where the plan stands

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs):
        folder = (
            get_last_checkpoint(self.args.output_dir) if resume_from_checkpoint is True else resume_from_checkpoint
        )
        self._resumed_from = Path(folder) if folder else None
        return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)

    def get_batch_samples(self, *args, **kwargs):
        self._plan_state()  # forgets what no checkpoint will need
        return super().get_batch_samples(*args, **kwargs)

    def _save_beside(self, folder: Path) -> None:
        super()._save_beside(folder)
        if state := self._plan_state():
            (folder / PLAN_FILE).write_text(json.dumps({"settings": self._plan_settings(), **state}) + "\n")

    def _plan_state(self) -> dict[str, Any] | None:
        if self._batches is not None:
            return self._batches.state_dict(self.state.global_step * self._batches_per_step)

    def _plan_settings(self) -> dict[str, Any]:
        return {"batches_per_step": self._batches_per_step, **self._batches.settings()}

    @property
    def _batches_per_step(self) -> int:
        return self.args.gradient_accumulation_steps * self.args.world_size

    def _load_plan(self, state: dict[str, Any]) -> None:
        if self.train_dataset.is_stored and state["settings"] == self._plan_settings():
            self._batches.load_state_dict(state)
        else:
            logger.warning(
                "The data of this run, its batches or the number of processes are not those of the checkpoint. The "
                "plan is made anew from its start, and as many batches of it are skipped as have been seen."
            )

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ModelOutput]:
        outputs = model(**inputs, use_cache=False)
        text, codes = targets_of(inputs)
        weights = outputs.codebook_losses.new_tensor(self.codebook_weights)
        with torch.no_grad():
            text_is_right = outputs.logits[:, :-1][text != IGNORED_LABEL].argmax(-1) == text[text != IGNORED_LABEL]
            code_is_right = outputs.audio_logits.argmax(-1) == codes
        values = {
            "text_loss": outputs.text_loss,
            "audio_loss": (weights * outputs.codebook_losses).mean(),
            "text_accuracy": text_is_right.sum() / text_is_right.numel()
            if text_is_right.numel()
            else text.new_zeros(()),
            "audio_accuracy": code_is_right.sum() / code_is_right.numel()
            if code_is_right.numel()
            else text.new_zeros(()),
        }
        values |= {f"codebook_{k + 1}_loss": loss for k, loss in enumerate(outputs.codebook_losses)}
        return values, outputs

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        refuse_what_joins_packed(inputs, self.model.config._attn_implementation)
        text, codes = targets_of(inputs)
        _, is_next_audio = following_rows(*row_arguments(inputs))
        num_text, num_frames = (text != IGNORED_LABEL).sum(), is_next_audio.sum()
        counts = {"text_loss": num_text, "audio_loss": num_frames, "text_accuracy": num_text}
        counts["audio_accuracy"] = torch.tensor(codes.numel(), device=num_text.device)
        return counts | {f"codebook_{k + 1}_loss": num_frames for k in range(inputs["labels"].shape[-1] - 1)}

    def count_tokens(self, inputs: dict[str, Any]) -> int:
        mask = inputs.get("attention_mask")
        return int(mask.sum()) if mask is not None else inputs["mm_token_type_ids"].numel()

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs and isinstance(self.train_dataset, Mixture):
            logs["examples_left_out"] = self._batches.plan.num_left_out
        super().log(logs, *args, **kwargs)

    def floating_point_ops(self, inputs: dict[str, Any]) -> float:
        _, codes = targets_of(inputs)
        rows, frames = self.count_tokens(inputs), codes.shape[0]
        num_codebooks = inputs["labels"].shape[-1] - 1
        parts = []
        for name, module in stack_bottom_up(self.accelerator.unwrap_model(self.model)):
            in_depth = name.startswith("depth_decoder")
            uses = frames * num_codebooks if in_depth else frames if name == "audio_head" else rows
            if name in ("model.audio_embeddings", "model.embed_tokens"):
                uses = 0  # looked up, not multiplied
            parts.append((module, uses))
        return operations(parts)


class UnderstandingWarmupTrainer(LanguageModelStageTrainer):
    """
    Stage 1: the understanding experts and the embeddings of the codes learn to tell the text model what is heard.

    Beside the loss of the answers, a throw-away decoder on top of the understanding experts regresses the features of
    a frozen encoder (`semantic_features` in the batch), so that the experts keep what the codes mean. It lives in the
    model while it trains, see [`add_semantic_decoder`] and [`remove_semantic_decoder`].
    """

    parts = ("audio_embeddings", "understanding")
    # The weight of the distillation is ours.
    loss_weights: ClassVar[dict[str, float]] = {"text_loss": 1.0, "distillation_loss": 1.0}

    def __init__(self, model: nn.Module, args: StageTrainingArguments, **kwargs):
        names = dict(model.named_modules())
        decoder = next((module for name, module in names.items() if name.endswith(SEMANTIC_DECODER)), None)
        norm = next(module for name, module in names.items() if name.endswith("understanding_norm"))
        if decoder is None:
            raise ValueError("The model has no semantic decoder: call `add_semantic_decoder` on it first.")
        super().__init__(model, args, **kwargs)
        # Inside of the forward pass, where ZeRO-3 and FSDP hold the parameters together.
        norm.register_forward_hook(lambda module, inputs, output: setattr(self, "_decoded", decoder(output)))

    @classmethod
    def trained_modules(cls, model: nn.Module) -> list[str]:
        return [*super().trained_modules(model), SEMANTIC_DECODER]

    def step_losses(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[dict[str, torch.Tensor], ModelOutput]:
        inputs = dict(inputs)
        features, has_features = inputs.pop("semantic_features"), inputs.pop("semantic_mask")
        values, outputs = super().step_losses(model, inputs)
        values["distillation_loss"] = distillation_loss(self._decoded, features, has_features)
        return values, outputs

    def count_items(self, inputs: dict[str, Any]) -> dict[str, torch.Tensor]:
        return super().count_items(inputs) | {"distillation_loss": inputs["semantic_mask"].sum()}


class GenerationWarmupTrainer(LanguageModelStageTrainer):
    """Stage 2: the generation experts and the depth decoder learn to write codes, the first three weighted double."""

    parts = ("generation", "depth_decoder")
    loss_weights: ClassVar[dict[str, float]] = {"audio_loss": 1.0}
    codebook_weights = (2.0, 2.0, 2.0, 1.0, 1.0, 1.0, 1.0, 1.0)


class AudioTextPretrainingTrainer(LanguageModelStageTrainer):
    """Stage 3: everything learns, on all tasks and on text alone."""

    parts = ("audio_embeddings", "understanding", "text", "cross_modal", "generation", "depth_decoder")
    loss_weights: ClassVar[dict[str, float]] = {"text_loss": 1.6, "audio_loss": 1.0}


class MidTrainingTrainer(AudioTextPretrainingTrainer):
    """Stage 4: everything learns on, in a longer context, on auditory sentences. The weights of stage 3 are kept
    (ours)."""


class SemanticDecoder(nn.Module):
    """Two layers from the understanding experts to the features of a frozen encoder (the shape is ours)."""

    def __init__(self, hidden_size: int, feature_size: int):
        super().__init__()
        self.hidden = nn.Linear(hidden_size, hidden_size)
        self.out = nn.Linear(hidden_size, feature_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.out(F.silu(self.hidden(hidden_states)))


def add_semantic_decoder(
    model: UniAudio2ForConditionalGeneration, feature_size: int
) -> UniAudio2ForConditionalGeneration:
    """Give a model the throw-away decoder of stage 1. Checkpoints then hold its weights beside the model's."""
    decoder = SemanticDecoder(model.config.hidden_size, feature_size)
    setattr(model, SEMANTIC_DECODER, decoder.to(model.device, model.dtype))
    return model


def remove_semantic_decoder(model: UniAudio2ForConditionalGeneration) -> None:
    """Take it away again, before the model is saved for the next stage."""
    delattr(model, SEMANTIC_DECODER)


def distillation_loss(decoded: torch.Tensor, features: torch.Tensor, mask: torch.BoolTensor) -> torch.Tensor:
    """
    Mean squared error over the rows that have features; zero if none has.

    Args:
        decoded, features (`torch.FloatTensor` of shape `(batch_size, sequence_length, feature_size)`)
        mask (`torch.BoolTensor` of shape `(batch_size, sequence_length)`)
    """
    errors = ((decoded.float() - features.float()) ** 2).mean(dim=-1)
    return (errors * mask).sum() / mask.sum().clamp(min=1)


def row_arguments(inputs: dict[str, Any]) -> tuple:
    """A batch as `following_rows` takes it."""
    types = inputs["mm_token_type_ids"]
    return types.shape, types, inputs.get("attention_mask"), inputs.get("position_ids"), types.device


def targets_of(inputs: dict[str, Any]) -> tuple[torch.LongTensor, torch.LongTensor]:
    """
    What the losses of a batch ask for.

    Returns:
        `torch.LongTensor` of shape `(batch_size, sequence_length - 1)`: The next text id, -100 where there is none.
        `torch.LongTensor` of shape `(num_frames, num_codebooks)`: The frames, in the order of `audio_logits`.
    """
    follows, is_next_audio = following_rows(*row_arguments(inputs))
    labels = inputs["labels"][:, 1:]
    codes = labels[..., :-1]
    return labels[..., -1].masked_fill(~follows, IGNORED_LABEL), codes[
        is_next_audio & (codes != IGNORED_LABEL).any(-1)
    ]


def check_codebook_weights(weights: Sequence[float] | None, config: UniAudio2Config) -> None:
    """One for each codebook, if there are any; else a `ValueError`."""
    if weights is not None and len(weights) != config.num_codebooks:
        raise ValueError(f"`codebook_weights` has {len(weights)} values, the model {config.num_codebooks} codebooks.")


def refuse_what_joins_packed(inputs: dict[str, Any], attention: str | None = None) -> None:
    """
    Refuse a packed batch whose sequences would attend to each other: with a mask or a cache, and where transformers'
    flash attention gets several rows (it reads positions of a batch of one only).
    """
    if "position_ids" not in inputs:
        return
    if inputs.get("attention_mask") is not None or inputs.get("past_key_values"):
        raise ValueError(
            "A batch with `position_ids` is packed and must come without `attention_mask` and `past_key_values`: with "
            "them its sequences would attend to each other."
        )
    if "flash" in (attention or "") and len(inputs["position_ids"]) > 1:
        raise ValueError(
            f"With {attention}, transformers keeps packed sequences apart in a batch of one only: take "
            "per_device_train_batch_size=1 and a longer context, or load the model with "
            "attn_implementation='sdpa' or 'flex_attention'."
        )


def stack_bottom_up(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules of the language model in the order in which a row passes them, wrapped for adapters or not."""
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    parts = model_parts(model.config)
    names = [*parts["audio_embeddings"], *parts["understanding"], "model.embed_tokens", *parts["cross_modal"]]
    names += [*parts["generation"], "lm_head", *parts["depth_decoder"]]
    return [(name, model.get_submodule(name)) for name in names]
