"""Converting a release: from the authors' files to a model folder, and the language model back."""

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import huggingface_hub
import safetensors
import tokenizers
import torch
import transformers
from huggingface_hub import HfApi
from transformers import PreTrainedTokenizerFast

from .. import __version__
from ..feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor
from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config
from ..modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from ..processing.processing_uniaudio2 import AUDIO_ID_NAMES, UniAudio2Processor
from .checkpoint_files import SafetensorsFile
from .config_values import parse_overrides
from .language_model import fused_attention_table, language_model_key_table, original_language_model_state_dict
from .release_files import ReleaseFiles
from .release_parts import ReleasePart, plan_codec, plan_language_model
from .shard_writer import write_shards
from .staging import made_aside
from .torch_archive import write_archive
from .verify import verify_part

RECORD_FILE = "conversion.json"
CODEC_FOLDER = "codec"
PARTS = ("language-model", "codec")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
# What a folder holds beside weights: configs, tokenizer, code.
BYTES_BESIDE_WEIGHTS = 32 * 1024**2


def convert_release(
    source: str | Path,
    output: str | Path,
    *,
    tokenizer: str | Path | None = None,
    dtype: str | None = None,
    max_shard_size: int | str = "5GB",
    llm: str = "llm_ep3.checkpoint",
    codec: str | None = None,
    only: str | None = None,
    settings: Sequence[str] = (),
    verify: bool = False,
    push_to_hub: str | None = None,
) -> Path:
    """
    Make a model folder of the released files.

    The folder appears when it is complete. Weights pass through one by one, so memory stays small whatever the size
    of the model (with `verify=True` the models are loaded, one after the other).

    Args:
        source (`str` or `Path`):
            Folder in the layout of the release, or its Hub id (`"Dongchao/UniAudio2_ckpt"`).
        output (`str` or `Path`): The folder to make.
        tokenizer (`str` or `Path`, *optional*):
            Tokenizer of Llama 3.2: a folder, a `tokenizer.json` or a Hub id. Needed for the language model.
        dtype (`str`, *optional*):
            `"bfloat16"`, `"float16"` or `"float32"`: type of the language model's weights, by default that of the
            file. The codec keeps its own: its codes depend on it.
        max_shard_size (`int` or `str`, *optional*, defaults to `"5GB"`): Largest file of weights.
        llm (`str`, *optional*, defaults to `"llm_ep3.checkpoint"`): The language model's file.
        codec (`str`, *optional*):
            The codec's file; by default `ReasoningCodec.checkpoint`, or `ReasoningCodec_1024.checkpoint` if there is
            only that.
        only (`str`, *optional*):
            `"language-model"` or `"codec"`: convert one of the two, to the same place in the folder.
        settings (`Sequence[str]`, *optional*): `FIELD=VALUE` for fields of the configs.
        verify (`bool`, *optional*, defaults to `False`): Read everything back and compare with the release.
        push_to_hub (`str`, *optional*): Repository to upload the folder to, in one commit.

    Returns:
        `Path`: The folder.

    Raises:
        ValueError, OSError: If the release is incomplete, damaged or contradicts itself. Nothing is left at `output`.
    """
    source, output = str(source), Path(output)
    if only is not None and only not in PARTS:
        raise ValueError(f"--only {only} is not one of {', '.join(PARTS)}.")
    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"--dtype {dtype} is not one of {', '.join(DTYPES)}.")
    if dtype is not None and only == "codec":
        raise ValueError("--dtype is for the language model: the codec keeps the type it was released in.")
    if tokenizer is None and only != "codec":
        raise ValueError(
            "The tokenizer of Llama 3.2 is not part of the release: pass its folder or Hub id with --tokenizer, for "
            "instance --tokenizer meta-llama/Llama-3.2-3B."
        )
    if push_to_hub is not None:
        HfApi().whoami()  # before the work, not after it

    overrides = parse_overrides(settings)
    with made_aside(output) as folder:
        files = ReleaseFiles(source)
        parts: dict[str, ReleasePart] = {}
        text_tokenizer = None
        if only != "codec":
            part, text_tokenizer = plan_language_model(files, llm, str(tokenizer), overrides, DTYPES.get(dtype))
            parts["language_model"] = part
        if only != "language-model":
            parts["codec"] = plan_codec(files, codec, overrides)
        warnings = _warnings(parts)
        for warning in warnings:
            print(f"uniaudio2: note: {warning}", file=sys.stderr)
        _check_space(folder.parent, sum(part.num_bytes for part in parts.values()))

        folder.mkdir()
        record = {
            "source": files.source if files.revision else Path(source).resolve().name,
            "revision": files.revision,
            "files": None,
            "versions": _versions(),
            "warnings": warnings,
        }
        if "codec" in parts:
            # Before the processor, which refers to the codec it finds in the folder.
            record["codec"] = _write_model(parts["codec"], folder / CODEC_FOLDER, max_shard_size, "codec", verify)
        if "language_model" in parts:
            part = parts["language_model"]
            record["language_model"] = _write_model(part, folder, max_shard_size, "language model", verify)
            _write_processor(part.model.config, text_tokenizer, folder)
        record["files"] = files.record()
        (folder / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    if push_to_hub is not None:
        _upload(output, push_to_hub, source)
    return output


def restore_release(source: str | Path, output: str | Path) -> Path:
    """
    Write the language model of a model folder as the release does: one file, its names, fused attention matrices.

    Args:
        source (`str` or `Path`): A model folder.
        output (`str` or `Path`): The file to make, like `llm_ep3.checkpoint`.

    Raises:
        ValueError, OSError: If the folder is no model folder of ours, or damaged. Nothing is left at `output`.
    """
    source, output = Path(source), Path(output)
    shards = sorted(source.glob("model*.safetensors"))
    if not (source / "config.json").is_file() or not shards:
        raise FileNotFoundError(f"{source} is no model folder: it has no config.json or no model*.safetensors.")
    config = UniAudio2Config.from_pretrained(source)
    weights = SafetensorsFile(*shards)
    with torch.device("meta"):
        expected = UniAudio2ForConditionalGeneration(config).state_dict()
    if weights.keys() != expected.keys():
        raise ValueError(f"{source} holds other weights than its config asks for: fetch or convert it again.")
    layout = original_language_model_state_dict(
        {name: torch.empty(weights.shapes[name], dtype=weights.dtypes[name], device="meta") for name in weights},
        config,
    )
    names = language_model_key_table(config)
    fused = {key: ours for key, (ours, _) in fused_attention_table(config).items()}

    def produce(key: str) -> torch.Tensor:
        weights.give_back_pages()
        return torch.cat([weights[name] for name in fused[key]]) if key in fused else weights[names[key]]

    with made_aside(output) as file:
        _check_space(file.parent, sum(tensor.numel() * tensor.element_size() for tensor in layout.values()))
        write_archive(file, "model", layout, produce, "language model")
    return output


def _write_model(
    part: ReleasePart, folder: Path, max_shard_size: int | str, name: str, verify: bool
) -> dict[str, Any]:
    # Everything a saved model has but its weights: these are written one by one.
    part.model.save_pretrained(folder, state_dict={})
    write_shards(folder, part.layout, part.produce, max_shard_size, name)
    return part.record | ({"verified": verify_part(part, folder)} if verify else {})


def _write_processor(config: UniAudio2Config, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    ids = {name: getattr(config, name) for name in AUDIO_ID_NAMES}
    UniAudio2Processor(UniAudio2FeatureExtractor(), tokenizer, **ids).save_pretrained(folder)


def _warnings(parts: dict[str, ReleasePart]) -> list[str]:
    """What is odd, and not for a converter to decide."""
    found = []
    if len(parts) == 2:
        text, codec = parts["language_model"].model.config, parts["codec"].model.config
        for name in ("reasoning_codebook_size", "reconstruction_codebook_size"):
            if getattr(text, name) != getattr(codec, name):
                found.append(
                    f"the language model has {getattr(text, name)} codes in a codebook ({name}), the codec "
                    f"{getattr(codec, name)}: they were not trained for each other."
                )
    if "language_model" in parts:
        config = parts["language_model"].model.config
        if config.text_pad_token_id != config.pad_token_id:
            found.append(
                f"llm_config.yaml pads text with {config.text_pad_token_id}, the tokenizer's <text_pad_token> is "
                f"{config.pad_token_id}: generation uses the first, as the release does."
            )
    return found


def _check_space(folder: Path, weights: int) -> None:
    needed, free = weights + BYTES_BESIDE_WEIGHTS, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"The disk of {folder} has {free / 1e9:.1f} GB left, but {needed / 1e9:.1f} GB are needed.")


def _versions() -> dict[str, str]:
    modules = (huggingface_hub, safetensors, tokenizers, torch, transformers)
    versions = {module.__name__: str(module.__version__) for module in modules}
    return {"uniaudio2": __version__, "python": platform.python_version(), **versions}


def _upload(folder: Path, name: str, source: str) -> None:
    api = HfApi()
    try:
        repository = api.create_repo(name, exist_ok=True).repo_id
        api.upload_folder(folder_path=folder, repo_id=repository, commit_message=f"Converted from {Path(source).name}")
    except Exception as error:
        raise OSError(
            f"{folder} is complete, but was not uploaded: {error}. To try again: hf upload {name} {folder}"
        ) from error
