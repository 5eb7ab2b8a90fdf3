"""GRPO for the codec's text head: audio in, text out, group-relative advantages by trl.

trl's trainer knows images and texts. Audio takes the same way as its images: what the front ends make of the
recordings is computed once per batch of generations, goes to `generate`, and travels with the completions through
shuffling and splitting to every pass that computes log-probabilities. Five of the trainer's own methods are extended
for that, so trl is pinned to the versions they were read in.
"""

from dataclasses import dataclass
from typing import Any

import torch
from datasets import Dataset, IterableDataset
from torch import nn

from ..modeling_uniaudio2.modeling_codec_front_ends import ReasoningFrontEnds
from ..modeling_uniaudio2.modeling_reasoning_codec_text import ReasoningCodecForConditionalGeneration
from ..processing.processing_reasoning_codec_text import ReasoningCodecTextProcessor
from .codec_stages import padded_samples, recording_operations, text_parts
from .faults import FaultTolerance
from .sharding import FSDP2Precision, gathered_parameters
from .speed import SpeedLog, operations
from .stage_trainer import StageArguments

try:
    from trl import GRPOConfig, GRPOTrainer
except ImportError as error:
    raise ImportError("The GRPO stage needs trl 1.16: pip install 'uniaudio2[train]'.") from error

# As `extract_audio_features` calls them.
AUDIO_FEATURES = ("whisper_features", "music_features", "reasoning_mask")


@dataclass
class ReasoningGRPOArguments(StageArguments, GRPOConfig):
    """`trl.GRPOConfig` with what [`~uniaudio2.training.stage_trainer.StageArguments`] adds."""


class ReasoningGRPOTrainer(FSDP2Precision, FaultTolerance, SpeedLog, GRPOTrainer):
    """
    Stage 2 of the codec: the text head is rewarded for what it says about a recording.

    The model is kept near the supervised one: with `beta` above 0 the divergence from it is punished. The supervised
    model is then the model without its adapter. If the reasoning branch learns too, the adapter holds the copy that
    learns, and the branch of the model stays frozen beside it: see
    [`~uniaudio2.training.codec_stages.text_head_adapters`]. Codebooks do not move in this stage, so that a recording
    has the same codes when it is answered and when the answer is scored (ours).

    Args:
        model ([`~uniaudio2.ReasoningCodecForConditionalGeneration`]): The supervised model, without adapters.
        reward_funcs (`list[Callable]`): Of `uniaudio2.training.rewards`, or any that trl takes.
        args ([`ReasoningGRPOArguments`] or `trl.GRPOConfig`): The arguments.
        train_dataset (`datasets.Dataset` or `datasets.IterableDataset`):
            Rows with `audio`, `task` and for questions `question`; rewards get all columns.
        processor ([`~uniaudio2.ReasoningCodecTextProcessor`]): Prompts, tokenizer and feature extractor.
        sampling_rate (`int`, *optional*): Of waveforms that do not bring their own.
        eval_dataset (`datasets.Dataset`, *optional*): Rows to evaluate on.
        kwargs: As of `trl.GRPOTrainer`, e.g. `peft_config`.

    Raises:
        ValueError: If `beta` is above 0 and there is no adapter without which the model is the supervised one.
    """

    def __init__(
        self,
        model: ReasoningCodecForConditionalGeneration,
        reward_funcs: list,
        args: GRPOConfig,
        train_dataset: Dataset | IterableDataset,
        processor: ReasoningCodecTextProcessor,
        sampling_rate: int | None = None,
        eval_dataset: Dataset | None = None,
        **kwargs,
    ):
        if args.beta != 0.0 and kwargs.get("peft_config") is None:
            raise ValueError(
                f"With `beta={args.beta}` the trainer compares with the supervised model, which is the model without "
                "its adapter: pass `peft_config=text_head_adapters(model)`, or set `beta=0`."
            )
        self.processor = processor
        self.sampling_rate = sampling_rate
        self._audio: dict[str, torch.Tensor] | None = None
        # A placeholder among the answers would ask for audio that is not there.
        suppressed = [*(args.generation_kwargs or {}).get("suppress_tokens", []), processor.audio_token_id]
        args.generation_kwargs = {**(args.generation_kwargs or {}), "suppress_tokens": suppressed}
        args.remove_unused_columns = False
        super().__init__(
            model,
            reward_funcs,
            args,
            with_prompts(train_dataset, processor),
            None if eval_dataset is None else with_prompts(eval_dataset, processor),
            processing_class=processor.tokenizer,
            **kwargs,
        )
        self._recording_operations = recording_operations(ReasoningFrontEnds, model.config.codec_config)
        self._operations = 0.0

    # Speed

    def tokens_seen(self) -> int:
        """Prompts and completions, of all processes, as trl counts them."""
        return self.state.num_input_tokens_seen

    def floating_point_ops(self, inputs: list[dict[str, Any]]) -> float:
        """Done since it was asked last: what the passes need is known when they are made."""
        done, self._operations = self._operations, 0.0
        return done

    def _count_pass(self, rows: int, answers: int, backward: bool = False) -> None:
        """One through the text head, with the audio that is there; evaluation does not count."""
        if self.model.training:
            model, frames = self.accelerator.unwrap_model(self.model), self._audio["reasoning_mask"].numel()
            self._operations += operations(text_parts(model, frames, rows, answers), backward)

    # Audio

    def _generate(self, prompts: list[str]) -> tuple:
        """Also counts the passes of generation: every token is read once, but the last one of a completion."""
        outputs = super()._generate(prompts)
        num_prompt, num_completion = (sum(map(len, ids)) for ids in outputs[:2])
        self._count_pass(num_prompt + num_completion - len(prompts), num_completion)
        return outputs

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        recordings = self.processor.feature_extractor(
            [row["audio"] for row in inputs], sampling_rate=self.sampling_rate, return_tensors="pt"
        )
        model = self.accelerator.unwrap_model(self.model)
        with gathered_parameters(model, "extract_audio_features"):
            self._audio = model.extract_audio_features(
                recordings["input_values"].to(self.accelerator.device),
                recordings["padding_mask"].to(self.accelerator.device),
            )
            if self.model.training:
                samples = padded_samples(recordings, model.config.codec_config)
                self._operations += len(inputs) * self._recording_operations(samples)
            try:
                outputs = super()._generate_and_score_completions(inputs)
                return outputs | self._audio
            finally:
                self._audio = None

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, torch.Tensor]]:
        """Prompts with a placeholder for every reasoning frame, and what is to be put there."""
        prompt_ids, images, fields = super()._tokenize_prompts(prompts)
        counts = self._audio["reasoning_mask"].sum(dim=1).tolist()
        expanded = [self.processor.expand(ids, count) for ids, count in zip(prompt_ids, counts, strict=True)]
        return expanded, images, fields | self._audio

    def _compute_loss(self, model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        self._audio = {name: inputs[name] for name in AUDIO_FEATURES}
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._audio = None

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        **not_audio: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, None]:
        """As trl's, with the audio of these rows; its other arguments (images, experts) do not apply."""
        own_rows, answers = int(attention_mask.sum()), int(attention_mask[:, -logits_to_keep:].sum())
        self._count_pass(own_rows, answers, backward=torch.is_grad_enabled())
        log_probs, entropies = [], []
        size = batch_size or len(input_ids)
        for start in range(0, len(input_ids), size):
            rows = slice(start, start + size)
            labels = input_ids[rows].masked_fill(attention_mask[rows] == 0, -100)
            labels[:, :-logits_to_keep] = -100
            with self.accelerator.autocast():
                outputs = model(
                    input_ids=input_ids[rows],
                    attention_mask=attention_mask[rows],
                    labels=labels,
                    fused_lm_head=True,
                    **{name: value[rows] for name, value in self._audio.items()},
                )
            log_probs.append(outputs.log_probs[:, -logits_to_keep:])
            if compute_entropy:
                entropies.append(outputs.entropy[:, -logits_to_keep:])
        return torch.cat(log_probs), torch.cat(entropies) if compute_entropy else None, None


def with_prompts(
    dataset: Dataset | IterableDataset, processor: ReasoningCodecTextProcessor
) -> Dataset | IterableDataset:
    """
    The data set with a column `prompt`.

    Raises:
        ValueError: If a column is missing, or a row has a task that is not one of these (of a stream when it comes).
    """
    columns = dataset.column_names or [*next(iter(dataset), ())]
    missing = [name for name in ("audio", "task") if name not in columns]
    if missing:
        raise ValueError(f"The data set lacks the columns {missing}; it has {columns}.")
    if isinstance(dataset, IterableDataset):
        return dataset.map(lambda row: {"prompt": processor.prompt(row["task"], row.get("question"))})
    questions = dataset["question"] if "question" in columns else [None] * len(dataset)
    prompts = [processor.prompt(task, question) for task, question in zip(dataset["task"], questions, strict=True)]
    return dataset.add_column("prompt", prompts)
