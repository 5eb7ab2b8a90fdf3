"""The recipe of the shipped checkpoint: ordered steps, each resumable, from synthesised speech to a model folder.

    python -m uniaudio2.training.tiny [--work-dir build/tiny] [--recipe FILE] [--step NAME] [--output FOLDER]

A step that has finished is not run again; one that was interrupted goes on from its last checkpoint. To run a step
anew, remove its folder in the working directory.
"""

import argparse
import datetime
import importlib.metadata
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from safetensors.torch import load_file, load_model, save_model
from torch import nn
from torch.utils.data import Dataset
from transformers import GenerationConfig, PreTrainedTokenizerFast, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor
from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from ..modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from ..processing.data_collator import UniAudio2DataCollator
from ..processing.processing_uniaudio2 import UniAudio2Processor
from ..processing.tasks import TASKS
from .audio_ids import audio_ids
from .codec import CodecTrainer, FeatureBatches, FlowForTraining, ReasoningBranchForTraining, only_item
from .front_ends import FrontEndsForTraining, FrontEndTrainer, LabelledWaveforms, LetterLabels
from .language_model import LanguageModelTrainer, TaskExamples, encode_corpus
from .painted_latents import PaintedCrops, PaintedRecordings, ScalarDecoderForTraining, paint_corpus
from .scalar_codec import ScalarCodecForTraining, ScalarCodecTrainer, scale_to_data
from .spoken_digits import build_corpus, write_recordings
from .tokenizer import train_tokenizer
from .waveforms import RandomCrops, WaveformDataset

RECIPE = Path(__file__).parent / "recipes" / "tiny.yaml"
PACKAGE = Path(__file__).parents[1]
CHECKPOINT = PACKAGE / "checkpoints" / "tiny"
# What a model folder names as the tools it was made with.
PACKAGES = ("uniaudio2", "torch", "transformers", "diffusers")
# Where the code comes from that a model folder carries.
CODE_FOLDERS = ("modeling_uniaudio2", "feature_extraction", "processing")


def train(
    trainer_class: type[Trainer], model: nn.Module, dataset: Dataset, collator: Callable, folder: Path, arguments: dict
) -> None:
    """Train to `max_steps`, from the last checkpoint in `folder` if there is one."""
    training_arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=not torch.cuda.is_available(),
        report_to=[],
        save_total_limit=1,
        remove_unused_columns=False,
        seed=0,
        **arguments,
    )
    trainer = trainer_class(model, args=training_arguments, train_dataset=dataset, data_collator=collator)
    trainer.train(resume_from_checkpoint=get_last_checkpoint(folder) if folder.is_dir() else None)
    model.to("cpu").eval()


def average_weights(model: nn.Module, shares: dict[Path, float]) -> None:
    """Load the weighted mean of the weights that stages have left in their folders."""
    mean: dict[str, torch.Tensor] = {}
    for folder, share in shares.items():
        for name, weight in load_file(folder / "model.safetensors").items():
            mean[name] = mean.get(name, 0) + share * weight
    model.load_state_dict(mean)


def unlink_code(folder: Path) -> None:
    """Remove the code of a model folder, so that saving does not write through links."""
    for path in folder.rglob("*.py"):
        path.unlink()


def link_code(folder: Path) -> None:
    """Replace the code in the shipped model folder by links to the package's own files, of which it is a copy."""
    sources = {path.name: path for part in CODE_FOLDERS for path in (PACKAGE / part).glob("*.py")}
    for path in folder.rglob("*.py"):
        source = os.path.relpath(sources[path.name], path.parent)
        path.unlink()
        path.symlink_to(source)


class TinyRecipe:
    """The steps, in order. Each reads what earlier ones left in the working directory and leaves its own folder.

    Args:
        recipe (`dict`): As `recipes/tiny.yaml`.
        work_dir (`Path`): Where corpus, weights and codes are kept between steps.
        output (`Path`): The finished model folder.
    """

    steps = (
        "corpus",
        "front_ends",
        "features",
        "reasoning",
        "scalar_codec",
        "latents",
        "scalar_decoder",
        "scalar_decoder_again",
        "reconstruction",
        "codes",
        "language_model",
        "language_model_again",
        "flow",
        "painted_latents",
        "scalar_decoder_painted",
        "export",
    )

    def __init__(self, recipe: dict, work_dir: Path, output: Path):
        self.recipe = recipe
        self.work_dir = work_dir
        self.output = output
        self.corpus_dir = work_dir / "corpus"

    def run(self, only: str | None = None) -> None:
        for name in self.steps:
            finished = self.work_dir / name / "finished"
            if only not in (None, name) or finished.exists():
                continue
            print(f"=== {name}", flush=True)
            torch.manual_seed(0)
            getattr(self, name)(self.work_dir / name)
            finished.touch()

    def codec_config(self) -> ReasoningCodecConfig:
        return ReasoningCodecConfig(**self.recipe["codec"])

    def train_split(self, max_samples: int | None = None) -> WaveformDataset:
        return WaveformDataset(self.corpus_dir, "train", max_samples)

    def window_samples(self) -> int:
        """Recordings longer than a window are left out where every letter of the text must be heard."""
        config = self.codec_config()
        return round(config.window_seconds * config.sampling_rate)

    def letter_labels(self) -> LetterLabels:
        return LetterLabels(row["text"] for row in self.train_split().rows)

    def corpus(self, folder: Path) -> None:
        build_corpus(folder, **self.recipe["corpus"])
        rate = self.recipe["corpus"]["sampling_rate"]
        write_recordings(folder, ["heldout", "unseen"], self.work_dir / "recordings", rate)

    def scalar_codec(self, folder: Path) -> None:
        section = self.recipe["scalar_codec"]
        model = ScalarCodecForTraining(self.codec_config().scalar_config, **section["loss"])
        dataset = self.train_split()
        collator = RandomCrops(section["crop_samples"])
        scale_to_data(model.codec, collator([dataset[i] for i in range(min(16, len(dataset)))])["waveform"][:, None])
        train(ScalarCodecTrainer, model, dataset, collator, folder, section["arguments"])
        save_model(model.codec, str(folder / "model.safetensors"))

    def scalar_decoder(self, folder: Path) -> None:
        self.train_scalar_decoder("scalar_codec", folder)

    def scalar_decoder_again(self, folder: Path) -> None:
        self.train_scalar_decoder("scalar_decoder", folder)

    def train_scalar_decoder(self, start: str, folder: Path) -> None:
        """The decoder over a frozen encoder, from the weights of an earlier step."""
        section = self.recipe["scalar_codec"]
        model = ScalarCodecForTraining(self.codec_config().scalar_config, **section["loss"], train_encoder=False)
        load_model(model.codec, str(self.work_dir / start / "model.safetensors"))
        collator = RandomCrops(section["crop_samples"])
        arguments = self.recipe[folder.name]["arguments"]
        train(ScalarCodecTrainer, model, self.train_split(), collator, folder, arguments)
        save_model(model.codec, str(folder / "model.safetensors"))

    def front_ends(self, folder: Path) -> None:
        section, config = self.recipe["front_ends"], self.codec_config()
        dataset = self.train_split(self.window_samples())
        labels = self.letter_labels()
        model = FrontEndsForTraining(config, labels.num_classes, **section["loss"])
        collator = LabelledWaveforms(labels, config.frame_unit)
        train(FrontEndTrainer, model, dataset, collator, folder, section["arguments"])
        save_model(model.front_ends, str(folder / "model.safetensors"))

    def features(self, folder: Path) -> None:
        codec = ReasoningCodecModel(self.codec_config()).eval()
        load_model(codec.front_ends, str(self.work_dir / "front_ends" / "model.safetensors"))
        dataset, labels = self.train_split(self.window_samples()), self.letter_labels()
        batches = FeatureBatches(codec, dataset, labels, self.recipe["features"]["batch_size"])
        folder.mkdir(parents=True, exist_ok=True)
        batches.save(folder / "features.pt")
        codec.save_pretrained(folder / "codec")

    def reasoning(self, folder: Path) -> None:
        section = self.recipe["reasoning"]
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "features" / "codec")
        model = ReasoningBranchForTraining(
            codec.reasoning_branch, codec.config.hidden_size, self.letter_labels().num_classes, **section["loss"]
        )
        batches = FeatureBatches.load(self.work_dir / "features" / "features.pt")
        train(CodecTrainer, model, batches, only_item, folder, section["arguments"])
        codec.save_pretrained(folder / "codec")

    def latents(self, folder: Path) -> None:
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "reasoning" / "codec")
        # The later training of the decoder leaves the encoder, and so the latents, as they are.
        load_model(codec.scalar_codec, str(self.work_dir / "scalar_codec" / "model.safetensors"))
        batches = FeatureBatches.load(self.work_dir / "features" / "features.pt")
        batches.add_targets(codec, self.train_split(self.window_samples()))
        folder.mkdir(parents=True, exist_ok=True)
        batches.save(folder / "features.pt")
        codec.save_pretrained(folder / "codec")

    def reconstruction(self, folder: Path) -> None:
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "latents" / "codec")
        codec.freeze_for_reconstruction_training()
        arguments = self.recipe["reconstruction"]["arguments"]
        train(CodecTrainer, codec, self.feature_batches(), only_item, folder, arguments)
        codec.save_pretrained(folder / "codec")

    def flow(self, folder: Path) -> None:
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "reconstruction" / "codec")
        model = FlowForTraining(codec)
        train(CodecTrainer, model, self.feature_batches(), only_item, folder, self.recipe["flow"]["arguments"])
        codec.save_pretrained(folder / "codec")

    def painted_latents(self, folder: Path) -> None:
        section = self.recipe["painted_latents"]
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "flow" / "codec")
        rows = torch.load(self.work_dir / "codes" / "train.pt")[: section["num_recordings"]]
        paint_corpus(codec, rows, section["batch_size"], folder / "train.pt")

    def scalar_decoder_painted(self, folder: Path) -> None:
        """The last touch of the scalar decoder: it hears nothing but painted latents afterwards."""
        section, config = self.recipe["scalar_decoder_painted"], self.codec_config()
        model = ScalarDecoderForTraining(config.scalar_config, **section["loss"])
        load_model(model.codec, str(self.work_dir / "scalar_decoder_again" / "model.safetensors"))
        latents = torch.load(self.work_dir / "painted_latents" / "train.pt")
        dataset = PaintedRecordings(latents, self.train_split())
        collator = PaintedCrops(section["crop_frames"], config.latent_hop_length)
        train(Trainer, model, dataset, collator, folder, section["arguments"])
        save_model(model.codec, str(folder / "model.safetensors"))

    def codes(self, folder: Path) -> None:
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "reconstruction" / "codec")
        folder.mkdir(parents=True, exist_ok=True)
        for split in ("train", "more"):
            dataset = WaveformDataset(self.corpus_dir, split)
            encode_corpus(codec, dataset, self.recipe["features"]["batch_size"], folder / f"{split}.pt")

    def language_model(self, folder: Path) -> None:
        section = self.recipe["language_model"]
        texts = [row["text"] for row in self.train_split().rows]
        prompts = [prompt for name in section["tasks"] for prompt in TASKS[name].prompts]
        tokenizer = train_tokenizer(texts + prompts, section["vocab_size"])
        ids = audio_ids(self.codec_config())
        processor = UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **ids, default_task="TTS")
        model = UniAudio2ForConditionalGeneration(self.language_model_config(tokenizer))
        self.train_language_model(model, processor, folder)

    def language_model_again(self, folder: Path) -> None:
        start = self.work_dir / "language_model" / "model"
        model = UniAudio2ForConditionalGeneration.from_pretrained(start)
        self.train_language_model(model, UniAudio2Processor.from_pretrained(start), folder)

    def train_language_model(
        self, model: UniAudio2ForConditionalGeneration, processor: UniAudio2Processor, folder: Path
    ) -> None:
        """Stage after stage, each from the weights of the one before: see the recipe."""
        codes = self.work_dir / "codes"
        recordings = [row for split in ("train", "more") for row in torch.load(codes / f"{split}.pt")]
        for name, stage in self.recipe[folder.name]["stages"].items():
            weights = folder / name / "model.safetensors"
            if weights.exists():
                load_model(model, str(weights))
                continue
            chosen = [row for row in recordings if len(row["text"].split()) <= stage["max_words"]]
            if stage["reasoning_only"]:
                # The formats want a reconstruction: one frame of it is left.
                chosen = [row | {"reconstruction_codes": row["reconstruction_codes"][:, :1]} for row in chosen]
            collator = UniAudio2DataCollator(
                processor, condition_dropout=stage["condition_dropout"], random_prompts=stage["random_prompts"]
            )
            arguments = {**self.recipe["language_model"]["arguments"], **stage["arguments"]}
            examples = TaskExamples(chosen, stage["tasks"])
            train(LanguageModelTrainer, model, examples, collator, folder / name, arguments)
            save_model(model, str(weights))
        if "average" in self.recipe[folder.name]:
            average_weights(
                model, {folder / name: share for name, share in self.recipe[folder.name]["average"].items()}
            )
        config = model.config
        model.generation_config = GenerationConfig(
            bos_token_id=config.bos_token_id,
            eos_token_id=config.eos_token_id,
            pad_token_id=config.pad_token_id,
            **self.recipe["language_model"]["generation"],
        )
        model.save_pretrained(folder / "model")
        processor.save_pretrained(folder / "model")

    def language_model_config(self, tokenizer: PreTrainedTokenizerFast) -> UniAudio2Config:
        section = self.recipe["language_model"]
        return UniAudio2Config(
            **section["config"],
            **audio_ids(self.codec_config()),
            vocab_size=len(tokenizer),
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            text_pad_token_id=tokenizer.pad_token_id,
            tasks=tuple(section["tasks"]),
        )

    def export(self, folder: Path) -> None:
        codec = ReasoningCodecModel.from_pretrained(self.work_dir / "flow" / "codec", config=self.codec_config())
        load_model(codec.scalar_codec, str(self.work_dir / "scalar_decoder_painted" / "model.safetensors"))
        model = UniAudio2ForConditionalGeneration.from_pretrained(self.work_dir / "language_model_again" / "model")
        processor = UniAudio2Processor.from_pretrained(self.work_dir / "language_model_again" / "model")
        processor.codec = codec
        unlink_code(self.output)
        model.save_pretrained(self.output)
        processor.save_pretrained(self.output, save_codec=True)
        # To keep the folder small, the generator and what only training needs are stored in half precision, and loaded
        # in single precision as all others. Encoders and codebooks stay exact, so that codes do.
        halved = ("flow_decoder", "phone_feature_decoder", "structure_feature_decoder")
        weights = {name: w.half() if name.startswith(halved) else w for name, w in codec.state_dict().items()}
        codec.save_pretrained(self.output / "codec", state_dict=weights)
        (self.output / "provenance.json").write_text(json.dumps(self.provenance(), indent=2) + "\n")
        if self.output == CHECKPOINT:
            link_code(self.output)
        folder.mkdir(parents=True, exist_ok=True)

    def provenance(self) -> dict[str, str | int]:
        """What the finished folder says about its making."""
        return {
            **self.recipe["provenance"],
            "made_on": datetime.date.today().isoformat(),
            "made_with": ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES),
            "num_recordings": self.recipe["corpus"]["num_train"] + self.recipe["corpus"]["num_more"],
        }

    def feature_batches(self) -> FeatureBatches:
        return FeatureBatches.load(self.work_dir / "latents" / "features.pt")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m uniaudio2.training.tiny", description=__doc__.split("\n")[0])
    parser.add_argument("--work-dir", type=Path, default=Path("build/tiny"))
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--output", type=Path, default=CHECKPOINT)
    parser.add_argument("--step", choices=TinyRecipe.steps, help="run this step alone")
    options = parser.parse_args(arguments)
    # Silence brings numbers too small for the fast paths of a CPU.
    torch.set_flush_denormal(True)
    recipe = yaml.safe_load(options.recipe.read_text(encoding="utf-8"))
    TinyRecipe(recipe, options.work_dir, options.output).run(options.step)


if __name__ == "__main__":
    main()
