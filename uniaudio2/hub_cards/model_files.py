"""The files of the two model repositories, as the classes write them that read them again."""

import functools
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME

from ..conversion.checkpoint_files import SafetensorsFile
from ..conversion.shard_writer import write_shards
from ..feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor
from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from ..modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from ..processing.processing_uniaudio2 import UniAudio2Processor

CODEC_FOLDER, SCHEDULER_FILE = "codec", Path("scheduler", "scheduler_config.json")
WEIGHTS_PATTERN = "model*.safetensors"
# Larger files are cut: a lost connection costs less, and several are fetched at once.
MAX_SHARD_BYTES = 5 * 10**9
# What transformers notes about the machine that a file was loaded on.
LOCAL_ENTRIES = ("_name_or_path", "name_or_path", "is_local", "local_files_only")
# Lists of tokens and of weights: large, and without such entries.
PLAIN_LISTS = ("tokenizer.json", SAFE_WEIGHTS_INDEX_NAME)
# The terms under which a model came, and what they ask to be handed on.
TERMS_PATTERNS = ("LICENSE*", "NOTICE*", "Notice*", "USE_POLICY*")


@dataclass(frozen=True)
class ModelFolder:
    """
    A model folder, opened without the values of its weights.

    Args:
        path (`Path`): The folder.
        codec_path (`Path`): The folder of the codec.
        model (`UniAudio2ForConditionalGeneration`): On the meta device.
        codec (`ReasoningCodecModel`): On the meta device.
        processor (`UniAudio2Processor`): With the tokenizer.
    """

    path: Path
    codec_path: Path
    model: UniAudio2ForConditionalGeneration
    codec: ReasoningCodecModel
    processor: UniAudio2Processor


def open_model_folder(path: Path) -> ModelFolder:
    """
    Raises:
        ValueError, OSError: If it is no model folder, if its codec is not there, or if weights are not those of their
            configs.
    """
    model = _without_values(path, UniAudio2Config, UniAudio2ForConditionalGeneration)
    if (path / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(path)
    processor = UniAudio2Processor.from_pretrained(path, codec_device="cpu")
    # A relative reference means a folder inside; an absolute one stays what it is.
    codec_path = path / processor.codec_name_or_path
    if not codec_path.is_dir():
        raise FileNotFoundError(
            f"The codec of {path} is {processor.codec_name_or_path!r}, but there is no such folder. What is published "
            "holds its codec: save it there with `processor.save_pretrained(MODEL_DIR, save_codec=True)`."
        )
    if not (codec_path / SCHEDULER_FILE).is_file():
        raise FileNotFoundError(f"{codec_path} is no codec: it has no {SCHEDULER_FILE.as_posix()}.")
    codec = _without_values(codec_path, ReasoningCodecConfig, ReasoningCodecModel)
    return ModelFolder(path, codec_path, model, codec, processor)


def write_language_model(source: ModelFolder, folder: Path) -> list[Path]:
    """
    Write the repository of the language model, with the codec inside: one name, one revision, nothing else to find.

    Returns:
        `list[Path]`: Files that share their content with the model folder (hard links).
    """
    linked = _write_model(source.model, source.path, folder)
    linked += _write_model(source.codec, source.codec_path, folder / CODEC_FOLDER)
    shutil.copyfile(source.codec_path / SCHEDULER_FILE, folder / CODEC_FOLDER / SCHEDULER_FILE)
    source.processor.codec_name_or_path = CODEC_FOLDER
    source.processor.save_pretrained(folder)
    for pattern in TERMS_PATTERNS:
        for file in source.path.glob(pattern):
            shutil.copyfile(file, folder / file.name)
    remove_local_entries(folder)
    return linked


def write_codec(source: ModelFolder, folder: Path) -> list[Path]:
    """Write the repository of the codec alone, with the feature extractor; returns as [`write_language_model`]."""
    linked = _write_model(source.codec, source.codec_path, folder)
    shutil.copyfile(source.codec_path / SCHEDULER_FILE, folder / SCHEDULER_FILE)
    # Made anew, because that of the processor names the processor's code, which is not here.
    UniAudio2FeatureExtractor(sampling_rate=source.codec.config.sampling_rate).save_pretrained(folder)
    remove_local_entries(folder)
    return linked


def _without_values(path: Path, config_class: type, model_class: type) -> PreTrainedModel:
    file = path / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{path} is no model folder: it has no config.json.")
    found = read_json(file).get("model_type")
    if found != config_class.model_type:
        raise ValueError(
            f"{file} is of the model type {found!r}, but {config_class.model_type!r} is needed here: pass the folder "
            "of a language model of UniAudio 2.0, with its codec."
        )
    config = config_class.from_pretrained(path)
    with torch.device("meta"):
        model = model_class(config)
    weights = SafetensorsFile(*weight_files(path))
    expected = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if weights.shapes != expected:
        wrong = sorted(
            name for name in weights.shapes.keys() | expected if weights.shapes.get(name) != expected.get(name)
        )
        raise ValueError(
            f"The weights in {path} are not those of its config: {', '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}. Save or convert the model again."
        )
    return model.to(config.dtype or _widest(weights))


def _widest(weights: SafetensorsFile) -> torch.dtype:
    """The type of weights whose config does not say one."""
    floating = [dtype for dtype in weights.dtypes.values() if dtype.is_floating_point]
    return functools.reduce(torch.promote_types, floating)


def weight_files(path: Path) -> list[Path]:
    """The files with a model's weights. Raises a `FileNotFoundError` if there are none."""
    files = sorted(path.glob(WEIGHTS_PATTERN))
    if not files:
        raise FileNotFoundError(f"{path} is no model folder: it has no {WEIGHTS_PATTERN}.")
    return files


def _write_model(model: PreTrainedModel, source: Path, folder: Path) -> list[Path]:
    # Everything a saved model has but its weights.
    model.save_pretrained(folder, state_dict={})
    for file in folder.glob(WEIGHTS_PATTERN):
        file.unlink()
    files = weight_files(source)
    if max(file.stat().st_size for file in files) > MAX_SHARD_BYTES:
        weights = SafetensorsFile(*files)
        layout = {
            name: torch.empty(weights.shapes[name], dtype=weights.dtypes[name], device="meta") for name in weights
        }

        def produce(name: str) -> torch.Tensor:
            weights.give_back_pages()
            return weights[name]

        write_shards(folder, layout, produce, MAX_SHARD_BYTES, f"shards of {folder.name}")
        return []
    index = source / SAFE_WEIGHTS_INDEX_NAME
    if index.is_file():
        shutil.copyfile(index, folder / index.name)
    return [folder / file.name for file in files if _link(file, folder / file.name)]


def _link(source: Path, target: Path) -> bool:
    """Gives a file a second name, or copies it where that is impossible; whether it is a link."""
    try:
        os.link(source.resolve(), target)
    except OSError:
        shutil.copyfile(source, target)
        return False
    return True


def remove_local_entries(folder: Path) -> None:
    """Takes what transformers notes about the machine out of the JSON files in a folder and below."""
    for file in folder.rglob("*.json"):
        if file.name not in PLAIN_LISTS:
            write_json(file, _without_local_entries(read_json(file)))


def _without_local_entries(content: Any) -> Any:
    if isinstance(content, dict):
        return {key: _without_local_entries(value) for key, value in content.items() if key not in LOCAL_ENTRIES}
    return [_without_local_entries(value) for value in content] if isinstance(content, list) else content


def read_json(file: Path) -> dict[str, Any]:
    """Raises a `ValueError` that names the file if it holds something else than a JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON ({error}): make the model folder again.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} must hold a JSON object, but holds {type(content).__name__}.")
    return content


def write_json(file: Path, content: Any) -> None:
    """Always the same bytes for the same content."""
    file.write_text(json.dumps(content, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
