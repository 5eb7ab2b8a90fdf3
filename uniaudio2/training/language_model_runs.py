"""One stage of the language model from a recipe: prepare it, say what it will do, train it, save what it made."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, set_seed
from transformers.integrations.deepspeed import unset_hf_deepspeed_config
from transformers.trainer_utils import get_last_checkpoint

from .. import TINY, UniAudio2Config, UniAudio2ForConditionalGeneration, UniAudio2Processor
from .adapters import add_adapters
from .estimates import memory_line, state_bytes, transformer_bytes
from .language_model_stages import (
    AudioTextPretrainingTrainer,
    GenerationWarmupTrainer,
    LanguageModelStageTrainer,
    MidTrainingTrainer,
    UnderstandingWarmupTrainer,
    add_semantic_decoder,
    model_parts,
    remove_semantic_decoder,
)
from .manifest import load_manifest
from .mixture import EveryExample, Mixture, Source, make_source
from .recipe import RECIPES, checked_section, evaluated
from .stage_trainer import StageTrainingArguments, freeze_all_but

STAGES: dict[str, type[LanguageModelStageTrainer]] = {
    "understanding-warmup": UnderstandingWarmupTrainer,
    "generation-warmup": GenerationWarmupTrainer,
    "pretraining": AudioTextPretrainingTrainer,
    "mid-training": MidTrainingTrainer,
}

SECTIONS = {
    "model": ("path", "semantic_feature_size"),
    "lora": ("rank", "alpha", "dropout"),
    "loss": ("weights", "codebook_weights"),
    "data": ("context", "packed", "sources", "validation"),
    "hardware": ("num_devices",),
    "arguments": None,
    "output": None,
}
REQUIRED = ("model.path", "data.context", "data.sources", "arguments.max_steps", "output")


@dataclass
class LanguageModelRun:
    """
    A stage as its recipe asks for it.

    Args:
        stage (`str`): One of `STAGES`.
        recipe (`Mapping[str, Any]`): Its sections are `SECTIONS`.

    Raises:
        ValueError: If the stage is unknown, or the recipe has keys that nothing reads or lacks one.
    """

    stage: str
    recipe: Mapping[str, Any]

    def __post_init__(self):
        if self.stage not in STAGES:
            raise ValueError(f"Unknown stage {self.stage!r}: choose one of {', '.join(STAGES)}.")
        checked_section(self.recipe, SECTIONS, REQUIRED)
        self.trainer_class = STAGES[self.stage]
        self.model_path = TINY if self.recipe["model"]["path"] == "tiny" else self.recipe["model"]["path"]
        self.distils = self.trainer_class is UnderstandingWarmupTrainer
        if self.distils and self.recipe["model"].get("semantic_feature_size") is None:
            raise ValueError(
                "The understanding warm-up needs model.semantic_feature_size, the width of the features that "
                "`uniaudio2 train tokenize --semantic-features` wrote."
            )

    # Parts

    def mixture(self, processor: UniAudio2Processor, seed: int) -> Mixture:
        data = self.recipe["data"]
        sources = self._sources(data["sources"], processor, seed)
        return Mixture(sources, processor, data["context"], data.get("packed", True), self.distils)

    def validation(self, processor: UniAudio2Processor, seed: int) -> EveryExample | None:
        """The held-out examples, if the recipe names any."""
        data = self.recipe["data"]
        if not data.get("validation"):
            return None
        if any(entry.get("streaming") for entry in data["validation"]):
            raise ValueError("Sources of data.validation are read whole: leave out 'streaming' there.")
        sources = self._sources(data["validation"], processor, seed)
        return EveryExample(Mixture(sources, processor, data["context"], False, self.distils))

    @staticmethod
    def _sources(entries: Sequence[Mapping[str, Any]], processor: UniAudio2Processor, seed: int) -> list[Source]:
        return [
            make_source(
                entry,
                load_manifest(entry["path"], entry.get("split", "train"), entry.get("streaming", False)),
                processor,
                index,
                seed,
            )
            for index, entry in enumerate(entries)
        ]

    def prepared(self, model: UniAudio2ForConditionalGeneration) -> nn.Module:
        """The model with what the stage adds to it: the semantic decoder, adapters."""
        if self.distils:
            add_semantic_decoder(model, self.recipe["model"]["semantic_feature_size"])
        if self.recipe.get("lora") is not None:
            model = add_adapters(model, self.trainer_class, **self.recipe["lora"])
        return model

    def arguments(self) -> StageTrainingArguments:
        arguments = evaluated(self.recipe)
        deepspeed = arguments.get("deepspeed")
        if deepspeed is not None and not Path(deepspeed).suffix:
            arguments["deepspeed"] = str(RECIPES.parent / "deepspeed" / f"{deepspeed}.json")
        return StageTrainingArguments(output_dir=self.recipe["output"], **arguments)

    # Doing

    def train(self) -> Path:
        """
        Train to the end, from the last complete checkpoint if there is one.

        Returns:
            `Path`: The model folder that the stage made, from which the next one starts. Where adapters were trained
            they are merged into it, and lie by themselves in `adapters/` beside it.
        """
        arguments = self.arguments()  # first: under ZeRO-3 it decides how models are loaded
        set_seed(arguments.seed)  # adapters and new parts start alike in every process and every run
        processor = UniAudio2Processor.from_pretrained(self.model_path)
        with arguments.main_process_first(desc="lengths of texts"):
            mixture = self.mixture(processor, arguments.seed)
            validation = self.validation(processor, arguments.seed)
        model = UniAudio2ForConditionalGeneration.from_pretrained(self.model_path)
        loss = self.recipe.get("loss") or {}
        trainer = self.trainer_class(
            self.prepared(model),
            arguments,
            loss_weights=loss.get("weights"),
            codebook_weights=loss.get("codebook_weights"),
            train_dataset=mixture,
            eval_dataset=validation,
            data_collator=None if validation is None else validation.mixture.collate,
        )
        folder = Path(arguments.output_dir)
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        return self.save(trainer, processor)

    def save(self, trainer: LanguageModelStageTrainer, processor: UniAudio2Processor) -> Path:
        folder = Path(trainer.args.output_dir)
        # Gathers what is spread over processes; with adapters, these and the new parts alone.
        trainer.save_model(str(folder / "adapters" if self.recipe.get("lora") else folder / "trained"))
        if not trainer.args.should_save:
            return folder / "model"
        unset_hf_deepspeed_config()  # from here on one process works alone
        model = UniAudio2ForConditionalGeneration.from_pretrained(self.model_path)
        if self.recipe.get("lora"):
            from peft import PeftModel

            if self.distils:
                add_semantic_decoder(model, self.recipe["model"]["semantic_feature_size"])
            model = PeftModel.from_pretrained(model, folder / "adapters").merge_and_unload()
            if self.distils:
                remove_semantic_decoder(model)
        else:
            model = UniAudio2ForConditionalGeneration.from_pretrained(folder / "trained")
        sources = self.recipe["data"]["sources"]
        model.config.tasks = tuple(
            dict.fromkeys((*(model.config.tasks or ()), *(entry["task"] for entry in sources if "task" in entry)))
        )
        model.config.trained_context_length = self.recipe["data"]["context"]
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")
        provenance = {"made_by": f"uniaudio2 train {self.stage}", "recipe": self.recipe}
        (folder / "model" / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        return folder / "model"

    # Saying

    def describe(self) -> str:
        """What `train` would do, on one screen, without weights: data mix, parameters, memory, tokens per step."""
        config = AutoConfig.from_pretrained(self.model_path)
        with torch.device("meta"):
            model = self.prepared(UniAudio2ForConditionalGeneration(config))
        if self.recipe.get("lora") is None:
            freeze_all_but(model, self.trainer_class.trained_modules(model))
        lines = [f"stage        {self.stage} ({self.trainer_class.__name__}), {_loss_line(self)}", "", "data"]
        sources = self.recipe["data"]["sources"]
        whole = sum(float(entry.get("weight", 1.0)) for entry in sources)
        for entry in sources:
            what = entry.get("task") or f"sentences: {entry['sentences']}"
            lines.append(f"  {float(entry.get('weight', 1.0)) / whole:6.1%} of the rows  {what:44s} {entry['path']}")
        if data := self.recipe["data"].get("validation"):
            names = ", ".join(f"{entry.get('task') or entry['sentences']} {entry['path']}" for entry in data)
            lines.append(f"  held out: {names}")
        lines += ["", "parameters", *_parameter_lines(model, config), ""]
        lines += [_memory_line(model, config, self.recipe), *_step_lines(self.recipe)]
        return "\n".join(lines)


def _loss_line(run: LanguageModelRun) -> str:
    loss = run.recipe.get("loss") or {}
    weights = run.trainer_class.loss_weights | (loss.get("weights") or {})
    codebooks = loss.get("codebook_weights") or run.trainer_class.codebook_weights
    return " + ".join(f"{weight:g} {name}" for name, weight in weights.items()) + f", codebooks {list(codebooks)} / 8"


def _parameter_lines(model: nn.Module, config: UniAudio2Config) -> list[str]:
    parts = {part: [0, 0] for part in (*model_parts(config), "new for this stage")}
    modules = [(f"{name}.", part) for part, names in model_parts(config).items() for name in names]
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.")
        is_new = "lora_" in name or "modules_to_save" in name
        part = next((part for prefix, part in modules if name.startswith(prefix) and not is_new), "new for this stage")
        parts[part][0] += parameter.numel()
        parts[part][1] += parameter.numel() * parameter.requires_grad
    total = [sum(column) for column in zip(*parts.values(), strict=True)]
    table = {**parts, "total": total}
    return [f"  {part:20s} {count:>15,}   trainable {learns:>15,}" for part, (count, learns) in table.items() if count]


def _memory_line(model: nn.Module, config: UniAudio2Config, recipe: Mapping[str, Any]) -> str:
    """With the text scores, twice in 4 bytes."""
    arguments = recipe["arguments"]
    rows = recipe["data"]["context"] * arguments.get("per_device_train_batch_size", 8)
    checkpointing = arguments.get("activation_checkpointing", False)
    activations = transformer_bytes(rows, config.hidden_size, config.num_hidden_layers, checkpointing)
    devices = recipe.get("hardware", {}).get("num_devices", 1)
    note = ", with checkpointing" if checkpointing else ""
    return memory_line(state_bytes(model), activations + 8 * rows * config.vocab_size, devices, note)


def _step_lines(recipe: Mapping[str, Any]) -> list[str]:
    arguments = recipe["arguments"]
    devices = recipe.get("hardware", {}).get("num_devices", 1)
    rows = recipe["data"]["context"] * arguments.get("per_device_train_batch_size", 8)
    rows *= arguments.get("gradient_accumulation_steps", 1) * devices
    return [
        f"step         {rows:,} rows ({devices} devices), {arguments['max_steps']:,} steps, "
        f"{rows * arguments['max_steps'] / 1e9:.2f} billion rows in all"
    ]
