"""One stage of the language model from a recipe: prepare it, say what it will do, train it, save what it made."""

import json
import shutil
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
from ..modeling_uniaudio2.configuration_uniaudio2 import EXPERT_COUNTS
from ..processing.tasks import get_task
from .adapters import add_adapters, load_adapters
from .estimates import memory_line, state_bytes, transformer_bytes
from .faults import complete_folder
from .language_model_stages import (
    SEMANTIC_DECODER,
    AudioTextPretrainingTrainer,
    GenerationWarmupTrainer,
    LanguageModelStageTrainer,
    MidTrainingTrainer,
    UnderstandingWarmupTrainer,
    add_semantic_decoder,
    check_codebook_weights,
    model_parts,
    remove_semantic_decoder,
)
from .manifest import load_manifest
from .mixture import EveryExample, Mixture, Source, check_source, make_source
from .recipe import (
    argument_names,
    check_positive_integers,
    checked_section,
    refuse_held_out_streams,
    refuse_unknown,
    trainer_arguments,
)
from .stage_trainer import StageTrainingArguments, freeze_all_but

STAGES: dict[str, type[LanguageModelStageTrainer]] = {
    "understanding-warmup": UnderstandingWarmupTrainer,
    "generation-warmup": GenerationWarmupTrainer,
    "pretraining": AudioTextPretrainingTrainer,
    "mid-training": MidTrainingTrainer,
}

# What a stage writes into its output: the model, and of a stage with adapters also these and what they lie on.
MODEL, ADAPTERS, UNMERGED = "model", "adapters", "unmerged"

SECTIONS = {
    "model": ("path", "shape", "semantic_feature_size"),
    "lora": ("rank", "alpha", "dropout"),
    "loss": ("weights", "codebook_weights"),
    "data": ("context", "packed", "sources", "validation"),
    "hardware": ("num_devices",),
    "arguments": argument_names(StageTrainingArguments),
    "output": None,
}
ADAPTER_VALUES = tuple(f"lora.{key}" for key in SECTIONS["lora"])
REQUIRED = ("model.path", "data.context", "data.sources", "arguments.max_steps", "output")
POSITIVE_INTEGERS = (
    "data.context", "hardware.num_devices", "arguments.max_steps", "arguments.per_device_train_batch_size",
    "arguments.gradient_accumulation_steps", "lora.rank", "lora.alpha",
)  # fmt: skip


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
        with_adapters = self.recipe.get("lora") is not None
        checked_section(self.recipe, SECTIONS, (*REQUIRED, *ADAPTER_VALUES * with_adapters))
        check_positive_integers(self.recipe, POSITIVE_INTEGERS)
        self.trainer_class = STAGES[self.stage]
        self.model_path = TINY if self.recipe["model"]["path"] == "tiny" else str(self.recipe["model"]["path"])
        self.distils = self.trainer_class is UnderstandingWarmupTrainer
        dropout = self.recipe["lora"]["dropout"] if with_adapters else 0.0
        if not isinstance(dropout, int | float) or not 0 <= dropout < 1:
            raise ValueError(f"lora.dropout must be a number from 0 to 1, but is {dropout!r}.")
        self._check_sources()
        loss = self.recipe.get("loss") or {}
        refuse_unknown(loss.get("weights") or {}, self.trainer_class.loss_weights, "loss", "loss.weights.")
        if self.distils and self.recipe["model"].get("semantic_feature_size") is None:
            raise ValueError(
                "The understanding warm-up needs model.semantic_feature_size, the width of the features that "
                "`uniaudio2 train tokenize --semantic-features` wrote."
            )

    def _check_sources(self) -> None:
        sources, held_out = self.recipe["data"]["sources"], self.recipe["data"].get("validation") or []
        for name, entries in {"sources": sources, "validation": held_out}.items():
            if not isinstance(entries, Sequence) or isinstance(entries, str):
                raise ValueError(f"data.{name} must be a list of sources, but is {entries!r}.")
            for entry in entries:
                check_source(entry)
                if entry.get("path") is None:
                    raise ValueError(f"A source of data.{name} lacks its 'path': {dict(entry)}.")
                if self.distils and "audio" not in (get_task(entry["task"]).fields if "task" in entry else ()):
                    raise ValueError(
                        "The understanding warm-up regresses features of 'audio', so its sources are tasks that read "
                        f"one, not {entry.get('task', 'auditory sentences')}."
                    )
        if not sources:
            raise ValueError("data.sources is empty: there is nothing to train on.")
        refuse_held_out_streams(self.recipe["data"])

    # Parts

    def config(self) -> UniAudio2Config:
        """Of the model folder or, where it is not there yet, of the shape that the recipe says it will have."""
        shape = dict(self.recipe["model"].get("shape") or {})
        if not shape or Path(self.model_path).exists():
            self._check_model_path()
            return AutoConfig.from_pretrained(self.model_path)
        refuse_unknown(shape, ("size", *UniAudio2Config.__dataclass_fields__), "key", "model.shape.")
        size = UniAudio2Config.from_size(shape.pop("size", "none"))
        experts = {name: shape.get(name, getattr(size, name)) for name in EXPERT_COUNTS}
        layers = {"num_hidden_layers": size.num_cross_modal_layers + sum(experts.values())}
        return UniAudio2Config(**(size.to_dict() | layers | shape))

    def _check_model_path(self) -> None:
        if not Path(self.model_path).exists() and self.model_path.count("/") != 1:
            raise ValueError(
                f"There is no model folder {self.model_path}. It is what `uniaudio2 train init` or the stage before "
                "writes: run that first, or pass model.path=FOLDER."
            )

    @property
    def before(self) -> Path | None:
        """The output of a stage with adapters, if this one goes on with these."""
        folder = Path(self.model_path).parent
        has_adapters = (folder / ADAPTERS).is_dir() and (folder / UNMERGED).is_dir()
        return folder if self.recipe.get("lora") and Path(self.model_path).name == MODEL and has_adapters else None

    def load(self) -> UniAudio2ForConditionalGeneration:
        """
        What the stage starts from, without what it adds: in float32, whatever the dtype of the files is, since small
        steps are lost in bfloat16. `arguments.bf16` says in what is computed.
        """
        self._check_model_path()
        path = self.before / UNMERGED if self.before else self.model_path
        return UniAudio2ForConditionalGeneration.from_pretrained(path, dtype=torch.float32)

    def mixture(self, processor: UniAudio2Processor, seed: int) -> Mixture:
        data = self.recipe["data"]
        sources = self._sources(data["sources"], processor, seed)
        return Mixture(sources, processor, data["context"], data.get("packed", True), self.distils)

    def validation(self, processor: UniAudio2Processor, seed: int) -> EveryExample | None:
        """The held-out examples, if the recipe names any."""
        data = self.recipe["data"]
        if not data.get("validation"):
            return None
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
        return StageTrainingArguments(**trainer_arguments(self.recipe))

    # Doing

    def train(self) -> Path:
        """
        Train to the end, from the last complete checkpoint if there is one.

        Returns:
            `Path`: The model folder that the stage made, from which the next one starts. Where adapters were trained
            they are merged into it; beside it `adapters/` holds them, and `unmerged/` the model without them, on which
            the next stage with adapters lays these again.
        """
        arguments = self.arguments()  # first: under ZeRO-3 it decides how models are loaded
        set_seed(arguments.seed)  # adapters and new parts start alike in every process and every run
        processor = UniAudio2Processor.from_pretrained(self.model_path)
        with arguments.main_process_first(desc="lengths of texts"):
            mixture = self.mixture(processor, arguments.seed)
            validation = self.validation(processor, arguments.seed)
        model = self.prepared(self.load())
        if self.before:
            load_adapters(model, self.before / ADAPTERS)
        loss = self.recipe.get("loss") or {}
        trainer = self.trainer_class(
            model,
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
        folder, with_adapters = Path(trainer.args.output_dir), self.recipe.get("lora") is not None
        gathered = folder / (ADAPTERS if with_adapters else "gathered")
        # Gathers what is spread over processes; with adapters, these and the new parts alone.
        trainer.save_model(str(gathered))
        if not trainer.args.should_save:
            return folder / MODEL
        unset_hf_deepspeed_config()  # from here on one process works alone
        if with_adapters:
            with complete_folder(folder / UNMERGED) as unfinished:
                self._adapted(gathered, merged=False).save_pretrained(unfinished)
            model = self._adapted(gathered, merged=True)
        else:
            model = UniAudio2ForConditionalGeneration.from_pretrained(gathered)
        sources = self.recipe["data"]["sources"]
        model.config.tasks = tuple(
            dict.fromkeys((*(model.config.tasks or ()), *(entry["task"] for entry in sources if "task" in entry)))
        )
        model.config.trained_context_length = self.recipe["data"]["context"]
        with complete_folder(folder / MODEL) as unfinished:
            model.save_pretrained(unfinished)
            processor.save_pretrained(unfinished)
            provenance = {"made_by": f"uniaudio2 train {self.stage}", "recipe": self.recipe}
            (unfinished / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        if not with_adapters:
            shutil.rmtree(gathered)
        return folder / MODEL

    def _adapted(self, adapters: Path, merged: bool) -> UniAudio2ForConditionalGeneration:
        """The start with the new parts that were trained, and the adapters merged into it or left out."""
        from peft import PeftModel

        model = self.load()
        if self.distils:
            add_semantic_decoder(model, self.recipe["model"]["semantic_feature_size"])
        adapted = PeftModel.from_pretrained(model, adapters)
        model = adapted.merge_and_unload() if merged else adapted.unload()
        if self.distils:
            remove_semantic_decoder(model)
        return model

    # Saying

    def describe(self) -> str:
        """What `train` would do, on one screen, without weights: data mix, parameters, memory, tokens per step."""
        config = self.config()
        check_codebook_weights((self.recipe.get("loss") or {}).get("codebook_weights"), config)
        with torch.device("meta"):
            model = self.prepared(UniAudio2ForConditionalGeneration(config))
        if self.recipe.get("lora") is None:
            freeze_all_but(model, self.trainer_class.trained_modules(model))
        is_there = "" if Path(self.model_path).exists() else " (not there yet: model.shape)"
        lines = [
            f"stage        {self.stage} ({self.trainer_class.__name__}), {_loss_line(self)}",
            f"model        {self.model_path}{is_there}",
            *([f"adapters     go on from {self.before / ADAPTERS}"] if self.before else []),
            "",
            "data",
        ]
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
    """By parts. What a stage adds comes last: with adapters, parts that learn are copied, and the copies trained."""
    added = {"lora_": "adapters", "modules_to_save": "trained copies", SEMANTIC_DECODER: SEMANTIC_DECODER}
    parts = {part: [0, 0] for part in (*model_parts(config), *added.values())}
    modules = {f"{name}.": part for part, names in model_parts(config).items() for name in names}
    for name, parameter in model.named_parameters():
        name = name.removeprefix("base_model.model.")
        part = next((part for mark, part in added.items() if mark in name), None)
        part = part or next(part for prefix, part in modules.items() if name.startswith(prefix))
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
