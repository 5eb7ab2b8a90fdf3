"""One stage of the codec from a recipe: prepare it, say what it will do, train it, save what it made."""

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import soundfile
import torch
from accelerate.utils import disable_fsdp_ram_efficient_loading
from safetensors.torch import load_model, save_model
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint

from .. import (
    TINY,
    ReasoningCodecConfig,
    ReasoningCodecForConditionalGeneration,
    ReasoningCodecModel,
    ReasoningCodecTextConfig,
    ReasoningCodecTextProcessor,
    UniAudio2Config,
    UniAudio2FeatureExtractor,
    UniAudio2ForConditionalGeneration,
)
from ..processing.understanding import INSTRUCTIONS, instruction
from .codec_stages import (
    ReasoningSFTTrainer,
    ReconstructionTrainer,
    freeze_unused_decoders,
    text_head_adapters,
)
from .estimates import memory_line, parameter_counts, state_bytes, transformer_bytes
from .faults import complete_folder
from .manifest import checked_rows, import_datasets, load_manifest
from .recipe import (
    BUFFERS_ARE_FOR_STREAMS,
    argument_names,
    check_positive_integers,
    checked_section,
    refuse_held_out_streams,
    refuse_unknown,
    trainer_arguments,
)
from .rewards import REWARDS, JudgeReward
from .row_mixture import RowMixture
from .scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from .sharding import whole_parameters
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

# Stages whose recordings come with a task and a text.
TEXT_STAGES = ("reasoning-sft", "reasoning-grpo")

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
# Of these `shuffle_buffer` is for sources with `streaming`.
SOURCE_KEYS = ("path", "split", "streaming", "shuffle_buffer", "task", "weight")
LOSSES = {
    "scalar-codec": ("spectral", "latent_noise", "train_encoder", "discriminators", "adversarial_weight",
                     "feature_weight"),
    "reasoning-sft": ReasoningSFTTrainer.loss_weights,
    "reconstruction": ReconstructionTrainer.loss_weights,
}  # fmt: skip
REQUIRED = {
    "scalar-codec": ("model.codec", "loss.spectral", "loss.latent_noise", "data.max_seconds"),
    "reasoning-sft": ("model.codec", "model.language_model", "model.audio_token"),
    "reasoning-grpo": ("model.text_head", "lora", "rewards.functions"),
    "reconstruction": ("model.codec",),
}
REQUIRED_OF_ALL = ("data.sources", "arguments.max_steps", "output")
POSITIVE_INTEGERS = (
    "hardware.num_devices", "arguments.max_steps", "arguments.per_device_train_batch_size",
    "arguments.gradient_accumulation_steps",
)  # fmt: skip


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
        check_positive_integers(self.recipe, POSITIVE_INTEGERS)
        refuse_unknown(self.recipe["arguments"], argument_names(self.arguments_class()), "key", "arguments.")
        if self.stage in LOSSES:
            refuse_unknown(self.recipe.get("loss") or {}, LOSSES[self.stage], "loss", "loss.")
        self._check_sources()
        self._check_rewards()

    def _check_sources(self) -> None:
        data = self.recipe["data"]
        for name in ("sources", "validation"):
            for entry in data.get(name) or ():
                refuse_unknown(entry, SOURCE_KEYS, "key", f"data.{name}.")
                if entry.get("path") is None:
                    raise ValueError(f"A source of data.{name} lacks its 'path': {dict(entry)}.")
                if entry.get("shuffle_buffer") and not entry.get("streaming"):
                    raise ValueError(BUFFERS_ARE_FOR_STREAMS)
                if self.stage in TEXT_STAGES and entry.get("task", "caption") not in INSTRUCTIONS:
                    raise ValueError(f"The task of data.{name} {dict(entry)} must be one of {[*INSTRUCTIONS]}.")
        refuse_held_out_streams(data)

    def _check_rewards(self) -> None:
        rewards = self.recipe.get("rewards") or {}
        functions, weights = rewards.get("functions", ()), rewards.get("weights")
        unknown = set(functions) - {*REWARDS, "judge"}
        if unknown:
            raise ValueError(f"Unknown rewards {sorted(unknown)}: choose from {', '.join((*REWARDS, 'judge'))}.")
        if weights is not None and len(weights) != len(functions):
            raise ValueError(f"rewards.weights must be as many as rewards.functions {functions}, got {weights}.")
        if "judge" in functions and rewards.get("judge") is None:
            raise ValueError("The reward 'judge' needs rewards.judge, a folder or the Hub id of its language model.")

    def train(self) -> Path:
        """
        Train to the end, from the last checkpoint if there is one.

        Returns:
            `Path`: The folder `model` of what the stage made; for the scalar codec its weights alone.

        Raises:
            ValueError: If `output` holds the result of another stage.
        """
        folder = Path(self.recipe["output"])
        made = folder / "model"
        self._check_output(made / "provenance.json")
        # Fresh parts start alike in every process and every run; the seed's default is that of `TrainingArguments`.
        set_seed(self.recipe["arguments"].get("seed", TrainingArguments.seed))
        # Else accelerate would load in one process, and send the others parameters alone: codecs have buffers too.
        disable_fsdp_ram_efficient_loading()
        trainer, save = getattr(self, f"_{self.stage.replace('-', '_')}")()
        trainer.train(resume_from_checkpoint=get_last_checkpoint(str(folder)) if folder.is_dir() else None)
        with whole_parameters(trainer):
            if trainer.args.should_save:
                with complete_folder(made) as unfinished:
                    save(unfinished)
                    provenance = {"made_by": f"uniaudio2 train {self.stage}", "recipe": self.recipe}
                    (unfinished / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
        trainer.accelerator.wait_for_everyone()
        return made

    def _check_output(self, provenance: Path) -> None:
        if provenance.is_file():
            made_by = json.loads(provenance.read_text()).get("made_by", "")
            if made_by != f"uniaudio2 train {self.stage}":
                raise ValueError(
                    f"{provenance.parents[1]} holds what `{made_by}` made, and its checkpoints: give {self.stage} "
                    "another folder with output=FOLDER."
                )

    # Saying

    def describe(self) -> str:
        """What `train` would do, without weights and data: data mix, what learns, memory, recordings per step."""
        model, activations, frozen_judge = self.outline()
        count, trainable = parameter_counts(model)
        data, arguments = self.recipe["data"], self.recipe["arguments"]
        whole = sum(float(entry.get("weight", 1.0)) for entry in data["sources"])
        devices = (self.recipe.get("hardware") or {}).get("num_devices", 1)
        batch = arguments.get("per_device_train_batch_size", 8) * arguments.get("gradient_accumulation_steps", 1)
        lines = [f"stage        {self.stage}, {self._objective()}"]
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

    def _objective(self) -> str:
        """The losses or rewards with their weights."""
        if self.stage == "scalar-codec":
            loss = self.recipe["loss"]
            weights = {"spectral": 1.0}
            if loss.get("discriminators"):
                weights |= {name: loss.get(f"{name}_weight", 1.0) for name in ("adversarial", "feature")}
        elif self.stage == "reasoning-grpo":
            rewards = self.recipe["rewards"]
            functions = rewards["functions"]
            weights = dict(zip(functions, rewards.get("weights") or [1.0] * len(functions), strict=True))
        else:
            weights = self.recipe.get("loss") or LOSSES[self.stage]
        return " + ".join(f"{weight:g} {name}" for name, weight in weights.items())

    def outline(self) -> tuple[nn.Module, int, int]:
        """The model of the stage without memory, the bytes of its activations on one device, and the parameters of a
        judge beside it."""
        arguments = self.recipe["arguments"]
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
        config, answer = self.text_head_config(), ANSWER_ROWS
        if self.stage == "reasoning-grpo":
            answer = arguments.get("max_completion_length", 256)
        with torch.device("meta"):
            model = ReasoningCodecForConditionalGeneration(config)
            if self.recipe.get("lora") is None:
                freeze_all_but(model, ReasoningSFTTrainer.trained_modules(model))
            model = self.adapted(model)
        codec, text = config.codec_config, config.text_config
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

    # Stages: each returns its trainer, and what saves the result into a folder. Everything is trained in float32,
    # whatever the dtype of the files is, since small steps are lost in bfloat16; `arguments.bf16` says in what is
    # computed. The arguments come after the models: under ZeRO-3 they would decide how these are loaded.

    def _scalar_codec(self):
        codec = self.codec()
        model = ScalarCodecForTraining(codec.config.scalar_config, **self.recipe["loss"])
        model.codec.load_state_dict(codec.scalar_codec.state_dict())
        arguments = self.arguments()
        rows, validation = self.data(arguments)
        crop = _Crops(round(self.recipe["data"]["max_seconds"] * codec.config.sampling_rate))
        if self.recipe["model"].get("fresh", True):
            scale_to_data(model.codec, crop([*islice(rows, 16)])["waveform"][:, None])
        trainer = ScalarCodecTrainer(
            model, args=arguments, train_dataset=rows, eval_dataset=validation, data_collator=crop
        )
        return trainer, lambda folder: save_model(model.codec, str(folder / "model.safetensors"))

    def _reasoning_sft(self):
        language_model, tokenizer = self.language_model()
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        processor = ReasoningCodecTextProcessor(
            UniAudio2FeatureExtractor(), tokenizer, audio_token=self.recipe["model"]["audio_token"]
        )
        model = ReasoningCodecForConditionalGeneration.from_parts(
            self.codec(), language_model, processor.audio_token_id
        )
        model = self.adapted(model)
        arguments = self.arguments()
        rows, validation = self.data(arguments)
        trainer = ReasoningSFTTrainer(
            model,
            arguments,
            loss_weights=self.recipe.get("loss"),
            train_dataset=rows,
            eval_dataset=validation,
            data_collator=UnderstandingCollator(processor),
        )
        return trainer, lambda folder: _save_text_head(trainer, processor, folder)

    def _reasoning_grpo(self):
        from .reasoning_grpo import ReasoningGRPOTrainer

        path = self.text_head_path()
        model = ReasoningCodecForConditionalGeneration.from_pretrained(path, dtype=torch.float32)
        processor = ReasoningCodecTextProcessor.from_pretrained(path)
        rewards = [self.reward(name) for name in self.recipe["rewards"]["functions"]]
        arguments = self.arguments(reward_weights=self.recipe["rewards"].get("weights"))
        rows, validation = self.data(arguments)
        # Which trl knows as a stream. It has shuffled itself.
        rows = import_datasets().IterableDataset.from_generator(lambda rows: iter(rows), gen_kwargs={"rows": rows})
        arguments.shuffle_dataset = False
        trainer = ReasoningGRPOTrainer(
            model,
            rewards,
            arguments,
            rows,
            processor,
            eval_dataset=validation,
            peft_config=text_head_adapters(model, **self.recipe["lora"]),
        )
        return trainer, lambda folder: _save_text_head(trainer, processor, folder)

    def _reconstruction(self):
        codec, names = self.codec(), self.recipe["model"]
        if names.get("text_head"):
            text_head = ReasoningCodecForConditionalGeneration.from_pretrained(
                self.text_head_path(), dtype=torch.float32
            )
            text_head.copy_reasoning_branch_to(codec)
        if names.get("scalar_codec"):
            load_model(codec.scalar_codec, str(Path(names["scalar_codec"]) / "model.safetensors"))
        max_samples = round(self.max_seconds(codec.config) * codec.config.sampling_rate)
        arguments = self.arguments()
        rows, validation = self.data(arguments)
        trainer = ReconstructionTrainer(
            codec,
            arguments,
            loss_weights=self.recipe.get("loss"),
            train_dataset=rows,
            eval_dataset=validation,
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
        return str(Path(TINY) / "codec") if path == "tiny" else _there("model.codec", path, "a codec's folder")

    def text_head_path(self) -> str:
        made = (
            "what `uniaudio2 train reasoning-sft` or `reasoning-grpo` writes: run that first (for --dry-run of "
            "reasoning-grpo the sizes of model.codec and model.language_model are enough)"
        )
        return _there("model.text_head", self.recipe["model"]["text_head"], made)

    def text_head_config(self) -> ReasoningCodecTextConfig:
        """Of the model that writes; as far as sizes go also where stage 1 has not made it yet."""
        names = self.recipe["model"]
        if self.stage == "reasoning-sft" or (
            names.get("codec") and names.get("language_model") and not Path(names["text_head"]).exists()
        ):
            return ReasoningCodecTextConfig(
                codec_config=self.codec_config(), text_config=self.text_config(), audio_token_id=0
            )
        return ReasoningCodecTextConfig.from_pretrained(self.text_head_path())

    def text_config(self) -> LlamaConfig:
        path = self.recipe["model"]["language_model"]
        return shipped_text_config() if path == "tiny" else AutoConfig.from_pretrained(path)

    def language_model(self):
        """The causal language model of the recipe, and its tokenizer."""
        path = self.recipe["model"]["language_model"]
        if path == "tiny":
            return shipped_text_model(), AutoTokenizer.from_pretrained(TINY)
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        return model, AutoTokenizer.from_pretrained(path)

    def codec(self) -> ReasoningCodecModel:
        """The codec of the recipe; with `fresh` what the stage trains begins anew, in the sizes of `config`."""
        names = self.recipe["model"]
        codec = ReasoningCodecModel.from_pretrained(self.codec_path(), dtype=torch.float32)
        if not names.get("fresh", True):
            return codec
        anew = ReasoningCodecModel(self.codec_config())
        kept = {k: v for k, v in codec.state_dict().items() if not k.startswith(FRESH_PARTS[self.stage])}
        if self.stage != "reconstruction":  # which goes on from the codes of these parts
            kept = {k: v for k, v in kept.items() if k.startswith(("front_ends", "scalar_codec"))}
        elif names.get("text_head"):  # brings the reasoning branch, maybe one of another shape
            kept = {k: v for k, v in kept.items() if not k.startswith("reasoning_branch")}
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
        judge = self.recipe["rewards"]["judge"]
        device = "cuda" if torch.cuda.is_available() else "cpu"
        model = AutoModelForCausalLM.from_pretrained(judge, dtype="auto").to(device)
        return JudgeReward(model, AutoTokenizer.from_pretrained(judge))

    def arguments_class(self) -> type[TrainingArguments]:
        if self.stage == "reasoning-grpo":
            from .reasoning_grpo import ReasoningGRPOArguments

            return ReasoningGRPOArguments
        return StageTrainingArguments

    def arguments(self, **more) -> TrainingArguments:
        return self.arguments_class()(**trainer_arguments(self.recipe), **more)

    def data(self, arguments: TrainingArguments):
        """
        The sources of the recipe, mixed by their weights, without end, and the held-out rows, all of them, if there
        are any: rows with `audio`, `task`, `text` and `question`.
        """
        data, datasets = self.recipe["data"], import_datasets()
        with_texts = self.stage in TEXT_STAGES
        longest = data.get("max_seconds") if with_texts else None  # the other stages cut pieces
        with arguments.main_process_first(desc="reading manifests"):
            parts = [read_rows(entry, with_texts, longest) for entry in data["sources"]]
            held_out = [read_rows(entry, with_texts, longest) for entry in data.get("validation") or ()]
        weights = [float(entry.get("weight", 1.0)) for entry in data["sources"]]
        buffers = [entry.get("shuffle_buffer", 0) for entry in data["sources"]]
        rows = RowMixture(parts, weights, buffers, data.get("seed", 0))
        return rows, datasets.concatenate_datasets(held_out) if held_out else None


def read_rows(entry: Mapping[str, Any], with_texts: bool, max_seconds: float | None = None):
    """
    The recordings of one source of a recipe, with `task`, `text` and `question` where there are any.

    Args:
        entry (`Mapping[str, Any]`):
            `path` of the manifest, `split` of one on the Hub, whether it is read as a stream (`streaming`), and the
            `task` of all rows.
        with_texts (`bool`): Whether every row needs a task and its text.
        max_seconds (`float`, *optional*): Longer recordings are left out.

    Raises:
        ValueError: Names the row and the field that is missing or wrong, of a stream when it gets there, or says that
            no row is left.
    """
    datasets = import_datasets()
    manifest = load_manifest(entry["path"], entry.get("split", "train"), entry.get("streaming", False))
    features = datasets.Features(
        audio={"path": datasets.Value("string"), "bytes": datasets.Value("binary")},
        task=datasets.Value("string"),
        text=datasets.Value("string"),
        question=datasets.Value("string"),
    )
    # Written to the cache as it is read (a stream is not), so that recordings in it need not fit the memory.
    rows = manifest.map(
        _row,
        with_indices=True,
        fn_kwargs={
            "task": entry.get("task"),
            "folder": str(Path(entry["path"]).parent) if Path(entry["path"]).exists() else "",
            "with_texts": with_texts,
        },
        features=features,
        remove_columns=manifest.column_names or [*next(iter(manifest), ())],
    )
    if max_seconds is not None:
        rows = rows.filter(_is_short, fn_kwargs={"max_seconds": max_seconds})
    if next(iter(rows), None) is None:
        raise ValueError(f"{entry['path']} has no row{f' of at most {max_seconds} s' if max_seconds else ''}.")
    return rows


def _row(values: Mapping[str, Any], number: int, task: str | None, folder: str, with_texts: bool) -> dict[str, Any]:
    (row,) = checked_rows([values], ["audio"], Path(folder), texts=["text"] if with_texts else [], first_number=number)
    task, question = task or row.get("task") or "", row.get("question")
    if with_texts:
        if question is not None and "{question}" not in INSTRUCTIONS.get(task, ""):
            question = None  # a manifest may serve several tasks
        try:
            instruction(task, question)
        except ValueError as error:
            raise ValueError(f"Row {number}: {error}") from error
    audio = row["audio"] if isinstance(row["audio"], Mapping) else {"path": row["audio"]}
    return {
        "audio": {"path": audio.get("path"), "bytes": audio.get("bytes")},
        "task": task,
        "text": row.get("text") or "",
        "question": question,
    }


def _is_short(row: Mapping[str, Any], max_seconds: float) -> bool:
    audio = row["audio"]
    return (
        soundfile.info(audio["path"] if audio["bytes"] is None else io.BytesIO(audio["bytes"])).duration <= max_seconds
    )


def shipped_text_config() -> LlamaConfig:
    """Of the text model inside the shipped checkpoint: its cross-modal layers."""
    config = UniAudio2Config.from_pretrained(TINY)
    shared = {name: getattr(config, name) for name in LlamaConfig().to_dict() if hasattr(config, name)}
    names = ("model_type", "architectures", "auto_map", "transformers_version", "dtype")
    return LlamaConfig(
        **{name: value for name, value in shared.items() if name not in names}
        | {"num_hidden_layers": config.num_cross_modal_layers, "pad_token_id": config.text_pad_token_id}
    )


def shipped_text_model() -> LlamaForCausalLM:
    """The text model inside the shipped checkpoint, for trying stages out; on text alone it is the same model."""
    whole = UniAudio2ForConditionalGeneration.from_pretrained(TINY, dtype=torch.float32)
    config = whole.config
    cross_modal = whole.model.layers[config.num_understanding_layers :][: config.num_cross_modal_layers]
    text_model = LlamaForCausalLM(shipped_text_config())
    text_model.model.embed_tokens, text_model.lm_head = whole.model.embed_tokens, whole.lm_head
    text_model.model.norm = whole.model.cross_modal_norm
    text_model.model.layers.load_state_dict(cross_modal.state_dict())
    return text_model


def _there(key: str, path: str | Path, what: str) -> str:
    """The path, if it is a folder or may be an id on the Hub; recipes write to `runs/`."""
    if not Path(path).exists() and (str(path).count("/") != 1 or str(path).startswith("runs/")):
        raise ValueError(f"There is no {path}, which {key} names. It is {what}, or pass {key}=FOLDER.")
    return str(path)


class _Crops:
    """[`RandomCrops`] of recordings as manifests hold them."""

    def __init__(self, num_samples: int):
        self.crop = RandomCrops(num_samples)
        self.feature_extractor = UniAudio2FeatureExtractor()

    def __call__(self, rows) -> dict[str, torch.Tensor]:
        return self.crop(
            [{**row, "waveform": self.feature_extractor(row["audio"])["input_values"][0][0]} for row in rows]
        )


def _save_text_head(trainer: Trainer, processor: ReasoningCodecTextProcessor, folder: Path) -> None:
    """The model with its adapters merged."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    if hasattr(model, "peft_config"):
        model = model.merge_and_unload()
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
