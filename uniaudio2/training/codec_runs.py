"""One stage of the codec from a recipe: prepare it, say what it will do, train it, save what it made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .. import (
    TINY,
    ReasoningCodecConfig,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextProcessor,
    UniAudio2FeatureExtractor,
)
from .codec_stages import ReasoningSFTTrainer, ReconstructionTrainer, text_head_adapters
from .manifest import checked_rows, import_datasets, load_manifest
from .recipe import checked_section
from .rewards import REWARDS, JudgeReward
from .scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from .stage_trainer import StageTrainingArguments
from .text_head_data import RecordingCollator, UnderstandingCollator
from .waveforms import RandomCrops

# What each stage trains, of a codec; the parts before it are kept as they come.
FRESH_PARTS = {
    "scalar-codec": ("scalar_codec",),
    "reasoning-sft": ("reasoning_branch",),
    "reasoning-grpo": (),
    "reconstruction": (
        "reconstruction_branch",
        "flow_conditioner",
        "flow_decoder",
        "phone_feature_decoder",
        "structure_feature_decoder",
    ),
}

SECTIONS = {
    "model": ("codec", "config", "fresh", "language_model", "audio_token", "text_head", "scalar_codec"),
    "lora": ("rank", "alpha", "dropout", "train_reasoning_branch"),
    "loss": None,
    "rewards": ("functions", "weights", "judge"),
    "data": ("sources", "max_seconds", "seed"),
    "arguments": None,
    "output": None,
}
REQUIRED = {
    "scalar-codec": ("model.codec", "loss"),
    "reasoning-sft": ("model.codec", "model.language_model", "model.audio_token"),
    "reasoning-grpo": ("model.text_head", "lora", "rewards.functions"),
    "reconstruction": ("model.codec",),
}
REQUIRED_OF_ALL = ("data.sources", "arguments.max_steps", "output")


@dataclass
class CodecRun:
    """
    A stage of the codec as its recipe asks for it.

    Args:
        stage (`str`): `"scalar-codec"`, `"reasoning-sft"`, `"reasoning-grpo"` or `"reconstruction"`.
        recipe (`Mapping[str, Any]`): Its sections are `SECTIONS`.

    Raises:
        ValueError: If the stage is unknown, or the recipe has keys that nothing reads or lacks one.
    """

    stage: str
    recipe: Mapping[str, Any]

    def __post_init__(self):
        if self.stage not in FRESH_PARTS:
            raise ValueError(f"Unknown stage {self.stage!r}: choose one of {', '.join(FRESH_PARTS)}.")
        checked_section(self.recipe, SECTIONS, (*REQUIRED_OF_ALL, *REQUIRED[self.stage]))
        unknown = set((self.recipe.get("rewards") or {}).get("functions", ())) - {*REWARDS, "judge"}
        if unknown:
            raise ValueError(f"Unknown rewards {sorted(unknown)}: choose from {', '.join((*REWARDS, 'judge'))}.")

    def train(self) -> Path:
        """
        Train to the end, from the last checkpoint if there is one.

        Returns:
            `Path`: The folder `model` of what the stage made; for the scalar codec its weights alone.
        """
        # Fresh parts start alike in every process and every run; the seed's default is that of `TrainingArguments`.
        set_seed(self.recipe["arguments"].get("seed", TrainingArguments.seed))
        trainer, save = getattr(self, f"_{self.stage.replace('-', '_')}")()
        folder = Path(self.recipe["output"])
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        made = folder / "model"
        if trainer.args.should_save:
            made.mkdir(parents=True, exist_ok=True)
            save(made)
            provenance = {"made_by": f"uniaudio2 train {self.stage}", "recipe": self.recipe}
            (made / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        return made

    def describe(self) -> str:
        """What `train` would do: the data mix, and what learns."""
        trainer, _ = getattr(self, f"_{self.stage.replace('-', '_')}")()
        parameters = list(trainer.model.parameters())
        trainable = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        sources = self.recipe["data"]["sources"]
        whole = sum(float(entry.get("weight", 1.0)) for entry in sources)
        shares = [float(entry.get("weight", 1.0)) / whole for entry in sources]
        args = trainer.args
        batch = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return "\n".join(
            [
                f"stage        {self.stage} ({type(trainer).__name__})",
                *(
                    f"data         {share:6.1%} {entry.get('task', '')} {entry['path']}"
                    for share, entry in zip(shares, sources, strict=True)
                ),
                f"parameters   {sum(parameter.numel() for parameter in parameters):,}, trainable {trainable:,}",
                f"step         {batch} recordings or completions, {args.max_steps:,} steps",
            ]
        )

    # Stages: each returns its trainer, and what saves the result into a folder.

    def _scalar_codec(self):
        codec = self.codec()
        model = ScalarCodecForTraining(codec.config.scalar_config, **self.recipe["loss"])
        model.codec.load_state_dict(codec.scalar_codec.state_dict())
        rows = self.rows()
        crop = _Crops(round(self.recipe["data"]["max_seconds"] * codec.config.sampling_rate))
        if self.recipe["model"].get("fresh", True):
            scale_to_data(model.codec, crop([rows[index] for index in range(min(16, len(rows)))])["waveform"][:, None])
        trainer = ScalarCodecTrainer(
            model,
            args=TrainingArguments(output_dir=self.recipe["output"], **self.recipe["arguments"]),
            train_dataset=rows,
            data_collator=crop,
        )
        return trainer, lambda folder: save_model(model.codec, str(folder / "model.safetensors"))

    def _reasoning_sft(self):
        names = self.recipe["model"]
        language_model = AutoModelForCausalLM.from_pretrained(names["language_model"])
        tokenizer = AutoTokenizer.from_pretrained(names["language_model"])
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        processor = ReasoningCodecTextProcessor(
            UniAudio2FeatureExtractor(), tokenizer, audio_token=names["audio_token"]
        )
        model = ReasoningCodecForConditionalGeneration.from_parts(
            self.codec(), language_model, processor.audio_token_id
        )
        trainer = ReasoningSFTTrainer(
            self.adapted(model),
            self.arguments(),
            loss_weights=self.recipe.get("loss"),
            train_dataset=self.rows(),
            data_collator=UnderstandingCollator(processor),
        )
        return trainer, lambda folder: _save_text_head(trainer, processor, folder)

    def _reasoning_grpo(self):
        from trl import GRPOConfig

        from .reasoning_grpo import ReasoningGRPOTrainer

        path, rewards = self.recipe["model"]["text_head"], self.recipe["rewards"]
        model = ReasoningCodecForConditionalGeneration.from_pretrained(path)
        processor = ReasoningCodecTextProcessor.from_pretrained(path)
        trainer = ReasoningGRPOTrainer(
            model,
            [self.reward(name) for name in rewards["functions"]],
            GRPOConfig(
                output_dir=self.recipe["output"], reward_weights=rewards.get("weights"), **self.recipe["arguments"]
            ),
            self.rows(),
            processor,
            peft_config=text_head_adapters(model, **self.recipe["lora"]),
        )
        return trainer, lambda folder: _save_text_head(trainer, processor, folder)

    def _reconstruction(self):
        codec, names = self.codec(), self.recipe["model"]
        if names.get("text_head"):
            text_head = ReasoningCodecForConditionalGeneration.from_pretrained(names["text_head"])
            text_head.copy_reasoning_branch_to(codec)
        if names.get("scalar_codec"):
            load_model(codec.scalar_codec, str(Path(names["scalar_codec"]) / "model.safetensors"))
        limit = codec.config.whisper_config.max_source_positions / 50
        seconds = min(self.recipe["data"].get("max_seconds", limit), limit)
        max_samples = round(seconds * codec.config.sampling_rate)
        trainer = ReconstructionTrainer(
            codec,
            self.arguments(),
            loss_weights=self.recipe.get("loss"),
            train_dataset=self.rows(),
            data_collator=RecordingCollator(
                UniAudio2FeatureExtractor(), max_samples // codec.config.frame_unit * codec.config.frame_unit
            ),
        )
        return trainer, codec.save_pretrained

    # Parts

    def codec(self) -> ReasoningCodecModel:
        """The codec of the recipe; with `fresh` what the stage trains begins anew, in the sizes of `config`."""
        names = self.recipe["model"]
        path = str(Path(TINY) / "codec") if names["codec"] == "tiny" else names["codec"]
        codec = ReasoningCodecModel.from_pretrained(path)
        if not names.get("fresh", True):
            return codec
        anew = ReasoningCodecModel(
            ReasoningCodecConfig.from_dict(codec.config.to_dict() | (names.get("config") or {}))
        )
        kept = {k: v for k, v in codec.state_dict().items() if not k.startswith(FRESH_PARTS[self.stage])}
        if self.stage != "reconstruction":  # which goes on from the codes of these parts
            kept = {k: v for k, v in kept.items() if k.startswith(("front_ends", "scalar_codec"))}
        anew.load_state_dict(kept, strict=False)
        anew.scheduler = codec.scheduler
        return anew

    def adapted(self, model: ReasoningCodecForConditionalGeneration) -> nn.Module:
        if self.recipe.get("lora") is None:
            return model
        from peft import get_peft_model

        # In the dtype of the model: mixed dtypes fail when ZeRO-3 lays parameters out side by side.
        adapters = text_head_adapters(model, **self.recipe["lora"])
        return get_peft_model(model, adapters, autocast_adapter_dtype=False)

    def reward(self, name: str):
        if name != "judge":
            return REWARDS[name]
        judge = self.recipe["rewards"].get("judge")
        if judge is None:
            raise ValueError("The reward 'judge' needs rewards.judge, a folder or the Hub id of its language model.")
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(judge, dtype="auto").to(device)
        return JudgeReward(model, AutoTokenizer.from_pretrained(judge))

    def arguments(self) -> StageTrainingArguments:
        return StageTrainingArguments(output_dir=self.recipe["output"], **self.recipe["arguments"])

    def rows(self):
        """The sources of the recipe, mixed by their weights: rows with `audio`, `task`, `text` and `question`."""
        datasets = import_datasets()
        parts, weights = [], []
        for entry in self.recipe["data"]["sources"]:
            rows = [
                {
                    "audio": row["audio"] if isinstance(row["audio"], Mapping) else {"path": row["audio"]},
                    "task": entry.get("task") or row.get("task") or "",
                    "text": row.get("text") or "",
                    "question": row.get("question"),
                }
                for row in checked_rows(load_manifest(entry["path"]), ["audio"], Path(entry["path"]).parent)
            ]
            features = datasets.Features(
                audio={"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
                task=datasets.Value("string"),
                text=datasets.Value("string"),
                question=datasets.Value("string"),
            )
            for row in rows:
                row["audio"] = {"path": row["audio"].get("path"), "bytes": row["audio"].get("bytes")}
            parts.append(datasets.Dataset.from_list(rows, features=features))
            weights.append(float(entry.get("weight", 1.0)))
        shares = [weight / sum(weights) for weight in weights]
        seed = self.recipe["data"].get("seed", 0)
        return datasets.interleave_datasets(parts, shares, seed=seed, stopping_strategy="all_exhausted")


class _Crops:
    """[`RandomCrops`] of recordings as manifests hold them."""

    def __init__(self, num_samples: int):
        self.crop = RandomCrops(num_samples)
        self.feature_extractor = UniAudio2FeatureExtractor()

    def __call__(self, rows) -> dict[str, torch.Tensor]:
        return self.crop([{"waveform": self.feature_extractor(row["audio"])["input_values"][0][0]} for row in rows])


def _save_text_head(trainer: Trainer, processor: ReasoningCodecTextProcessor, folder: Path) -> None:
    """The model with its adapters merged."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
