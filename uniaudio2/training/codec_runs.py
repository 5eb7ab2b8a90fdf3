"""One stage of the codec from a recipe: prepare it, say what it will do, train it, save what it made."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from .. import (
    TINY,
    ReasoningCodecConfig,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextConfig,
    ReasoningCodecTextProcessor,
    UniAudio2FeatureExtractor,
)
from .codec_stages import (
    ReasoningSFTTrainer,
    ReconstructionTrainer,
    freeze_unused_decoders,
    text_head_adapters,
)
from .estimates import memory_line, parameter_counts, state_bytes, transformer_bytes
from .manifest import checked_rows, import_datasets, load_manifest
from .recipe import checked_section, evaluated
from .rewards import REWARDS, JudgeReward
from .scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from .stage_trainer import StageTrainingArguments, freeze_all_but
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
    "data": ("sources", "validation", "max_seconds", "seed"),
    "hardware": ("num_devices",),
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


# For the memory of a stage. Text of a prompt and an answer of the supervised one; what the scalar codec in its default
# size and its discriminators keep per sample and channel for the backward pass, measured.
ANSWER_ROWS, SCALAR_CODEC_BYTES = 256, 1000


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

    # Saying

    def describe(self) -> str:
        """What `train` would do, without weights and data: data mix, what learns, memory, recordings per step."""
        model, activations, frozen_judge = self.outline()
        count, trainable = parameter_counts(model)
        data, arguments = self.recipe["data"], self.recipe["arguments"]
        whole = sum(float(entry.get("weight", 1.0)) for entry in data["sources"])
        devices = (self.recipe.get("hardware") or {}).get("num_devices", 1)
        batch = arguments.get("per_device_train_batch_size", 8) * arguments.get("gradient_accumulation_steps", 1)
        lines = [f"stage        {self.stage}, losses {self.recipe.get('loss') or self.recipe.get('rewards') or {}}"]
        lines += [
            f"data         {float(entry.get('weight', 1.0)) / whole:6.1%} {entry.get('task', '')} {entry['path']}"
            for entry in data["sources"]
        ]
        lines += [f"held out     {entry.get('task', '')} {entry['path']}" for entry in data.get("validation") or ()]
        lines.append(f"parameters   {count:,}, trainable {trainable:,}")
        if frozen_judge:
            lines.append(f"judge        {frozen_judge:,}, frozen")
        lines.append(memory_line(state_bytes(model) + 2 * frozen_judge, activations, devices, ", roughly"))
        what = f"recordings in crops of {data['max_seconds']} s" if data.get("max_seconds") else "recordings"
        if self.stage == "reasoning-grpo":
            what = f"answers, {arguments.get('num_generations', 8)} to each recording"
        lines.append(f"step         {batch * devices:,} {what} ({devices} devices), {arguments['max_steps']:,} steps")
        return "\n".join(lines)

    def outline(self) -> tuple[nn.Module, int, int]:
        """The model of the stage without memory, the bytes of its activations on one device, and the parameters of a
        judge beside it."""
        arguments, names = self.recipe["arguments"], self.recipe["model"]
        batch = arguments.get("per_device_train_batch_size", 8)
        checkpointing = arguments.get("activation_checkpointing", False)
        if self.stage == "scalar-codec":
            config = self.codec_config()
            with torch.device("meta"):
                model = ScalarCodecForTraining(config.scalar_config, **self.recipe["loss"])
            samples = batch * self.recipe["data"]["max_seconds"] * config.sampling_rate
            return model, round(SCALAR_CODEC_BYTES * samples * config.scalar_config.init_channel), 0
        if self.stage == "reconstruction":
            config = self.codec_config()
            with torch.device("meta"):
                model = ReasoningCodecModel(config)
            freeze_all_but(model, ReconstructionTrainer.trained_modules(model))
            weights = {name: getattr(config, f"{name}_weight", 1.0) for name in ReconstructionTrainer.loss_weights}
            freeze_unused_decoders(model, weights | (self.recipe.get("loss") or {}))
            flow = config.flow_config
            rows = batch * round(self.max_seconds(config) * config.sampling_rate) // config.latent_hop_length
            width = flow.num_attention_heads * flow.attention_head_dim
            return model, transformer_bytes(rows, width, flow.num_layers, checkpointing), 0
        if self.stage == "reasoning-sft":
            text = AutoConfig.from_pretrained(names["language_model"])
            config = ReasoningCodecTextConfig(codec_config=self.codec_config(), text_config=text, audio_token_id=0)
            answer = ANSWER_ROWS
        else:
            config = ReasoningCodecTextConfig.from_pretrained(names["text_head"])
            text, answer = config.text_config, arguments.get("max_completion_length", 256)
        with torch.device("meta"):
            model = ReasoningCodecForConditionalGeneration(config)
            if self.recipe.get("lora") is None:
                freeze_all_but(model, ReasoningSFTTrainer.trained_modules(model))
            model = self.adapted(model)
        codec = config.codec_config
        rows = batch * (round(self.max_seconds(codec) * codec.sampling_rate) // codec.reasoning_hop_length + answer)
        activations = transformer_bytes(rows, text.hidden_size, text.num_hidden_layers, checkpointing)
        judge = 0
        if "judge" in (self.recipe.get("rewards") or {}).get("functions", ()):
            with torch.device("meta"):
                judge, _ = parameter_counts(
                    AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(self.recipe["rewards"]["judge"]))
                )
        return model, activations + 8 * rows * text.vocab_size, judge

    def max_seconds(self, config: ReasoningCodecConfig) -> float:
        """The longest recording of the stage: at most what Whisper hears."""
        limit = config.whisper_config.max_source_positions / 50
        return min(self.recipe["data"].get("max_seconds") or limit, limit)

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
            args=TrainingArguments(output_dir=self.recipe["output"], **evaluated(self.recipe)),
            train_dataset=rows,
            eval_dataset=self.validation(),
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
            eval_dataset=self.validation(),
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
                output_dir=self.recipe["output"], reward_weights=rewards.get("weights"), **evaluated(self.recipe)
            ),
            self.rows(),
            processor,
            eval_dataset=self.validation(),
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
        max_samples = round(self.max_seconds(codec.config) * codec.config.sampling_rate)
        trainer = ReconstructionTrainer(
            codec,
            self.arguments(),
            loss_weights=self.recipe.get("loss"),
            train_dataset=self.rows(),
            eval_dataset=self.validation(),
            data_collator=RecordingCollator(
                UniAudio2FeatureExtractor(), max_samples // codec.config.frame_unit * codec.config.frame_unit
            ),
        )
        return trainer, codec.save_pretrained

    # Parts

    def codec_config(self) -> ReasoningCodecConfig:
        """Of the codec of the recipe, with the sizes of `config`."""
        names = self.recipe["model"]
        found = ReasoningCodecConfig.from_pretrained(self.codec_path())
        if not names.get("fresh", True):
            return found
        return ReasoningCodecConfig.from_dict(found.to_dict() | (names.get("config") or {}))

    def codec_path(self) -> str:
        path = self.recipe["model"]["codec"]
        return str(Path(TINY) / "codec") if path == "tiny" else path

    def codec(self) -> ReasoningCodecModel:
        """The codec of the recipe; with `fresh` what the stage trains begins anew, in the sizes of `config`."""
        names = self.recipe["model"]
        codec = ReasoningCodecModel.from_pretrained(self.codec_path())
        if not names.get("fresh", True):
            return codec
        anew = ReasoningCodecModel(self.codec_config())
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
        return StageTrainingArguments(output_dir=self.recipe["output"], **evaluated(self.recipe))

    def rows(self):
        """The sources of the recipe, mixed by their weights: rows with `audio`, `task`, `text` and `question`."""
        data = self.recipe["data"]
        parts = [read_rows(entry) for entry in data["sources"]]
        weights = [float(entry.get("weight", 1.0)) for entry in data["sources"]]
        shares = [weight / sum(weights) for weight in weights]
        return import_datasets().interleave_datasets(
            parts, shares, seed=data.get("seed", 0), stopping_strategy="all_exhausted"
        )

    def validation(self):
        """All held-out rows, if the recipe names any."""
        entries = self.recipe["data"].get("validation")
        return import_datasets().concatenate_datasets([read_rows(entry) for entry in entries]) if entries else None


def read_rows(entry: Mapping[str, Any]):
    """The recordings of one source, with `task`, `text` and `question` where there are any."""
    datasets = import_datasets()
    folder = Path(entry["path"]).parent if Path(entry["path"]).exists() else Path()
    rows = []
    for row in checked_rows(load_manifest(entry["path"]), ["audio"], folder):
        audio = row["audio"] if isinstance(row["audio"], Mapping) else {"path": row["audio"]}
        rows.append(
            {
                "audio": {"path": audio.get("path"), "bytes": audio.get("bytes")},
                "task": entry.get("task") or row.get("task") or "",
                "text": row.get("text") or "",
                "question": row.get("question"),
            }
        )
    features = datasets.Features(
        audio={"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
        task=datasets.Value("string"),
        text=datasets.Value("string"),
        question=datasets.Value("string"),
    )
    return datasets.Dataset.from_list(rows, features=features)


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
