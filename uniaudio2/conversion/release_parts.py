"""The two models of a release, planned: the config, and for each of our weights where it comes from. No values yet."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from ..modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from ..processing.special_tokens import BOS_TOKEN, EOS_TOKEN, TEXT_PAD_TOKEN
from .checkpoint_files import TorchFile
from .codec import SCALAR_PREFIX, codec_origins, dropping_reason
from .codec_config import (
    FLOW_JSON,
    SCALAR_YAML,
    SCALAR_YAML_SECTION,
    WAVLM_JSON,
    WHISPER_JSON,
    codec_config,
)
from .codec_weights import fill_missing, open_codec_weights
from .config_values import read_mapping
from .key_table import WeightOrigin, without_wrapper
from .language_model import language_model_origins
from .language_model_config import YAML, YAML_FIELDS, language_model_config
from .release_files import ReleaseFiles
from .scalar_codec import scalar_codec_origins
from .text_tokenizer import load_text_tokenizer

CODEC_FILES = ("ReasoningCodec.checkpoint", "ReasoningCodec_1024.checkpoint")
SCALAR_FILE = "sqcodec.pth"


@dataclass
class ReleasePart:
    """
    One model of the release.

    Args:
        model (`PreTrainedModel`): On the meta device, in the type of its weights.
        layout (`dict[str, torch.Tensor]`): Names, shapes and types of the weights to write, on the meta device.
        origins (`dict[str, tuple[Mapping, WeightOrigin]]`): Of each weight: where to read it, and what to read.
        record (`dict[str, Any]`): What is to be remembered of the decisions taken.
    """

    model: PreTrainedModel
    layout: dict[str, torch.Tensor]
    origins: dict[str, tuple[Mapping[str, torch.Tensor], WeightOrigin]]
    record: dict[str, Any]

    def produce(self, name: str) -> torch.Tensor:
        """A weight with its values."""
        source, origin = self.origins[name]
        source.give_back_pages()
        return origin.take(source).to(self.layout[name].dtype)

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.layout.values())


def plan_language_model(
    files: ReleaseFiles,
    llm: str,
    tokenizer: str,
    overrides: Mapping[str, Mapping[str, Any]],
    dtype: torch.dtype | None = None,
) -> tuple[ReleasePart, PreTrainedTokenizerFast]:
    """
    Args:
        files (`ReleaseFiles`): The release.
        llm (`str`): Name of the language model's file.
        tokenizer (`str`): Folder, file or Hub id of the tokenizer of Llama 3.2.
        overrides (`Mapping`): What the user sets, by config.
        dtype (`torch.dtype`, *optional*): Type of the weights; that of the file if `None`.
    """
    settings = read_mapping(files.path(YAML))
    weights = TorchFile(files.path(llm, "Name another with --llm."), "model")
    shapes = {without_wrapper(key): shape for key, shape in weights.shapes.items()}
    embedding = shapes.get("backbone.transformer.wte.weight")
    if embedding is None:
        raise ValueError(f"{llm} has no text embedding: it is not the language model of UniAudio 2.0.")
    pad = overrides.get("language_model", {}).get("text_pad_token_id", settings.get(YAML_FIELDS["text_pad_token_id"]))
    if pad is None:
        raise ValueError(f"{YAML} lacks 'text_pad_token'. Add it there, or pass --set text_pad_token_id=VALUE.")
    text_tokenizer, renamed = load_text_tokenizer(tokenizer, embedding[0], pad, model_max_length=2048)
    text_ids = {
        "bos_token_id": (text_tokenizer.bos_token_id, f"tokenizer: {BOS_TOKEN}"),
        "eos_token_id": (text_tokenizer.eos_token_id, f"tokenizer: {EOS_TOKEN}"),
        "pad_token_id": (text_tokenizer.pad_token_id, f"tokenizer: {TEXT_PAD_TOKEN}"),
    }
    config, fields = language_model_config(settings, shapes, text_ids, overrides)

    with torch.device("meta"):
        model = UniAudio2ForConditionalGeneration(config)
    # Sampling of the released command line, and the number of frames its loops end at.
    model.generation_config.update(do_sample=True, temperature=0.9, top_k=50, max_new_tokens=500)
    origins = {name: (weights, origin) for name, origin in language_model_origins(weights.keys(), config).items()}
    record = {
        "fields": fields,
        "tokenizer": {"source": tokenizer, "renamed slots": renamed},
        "dropped": {},
        "yaml values that are not used": sorted(
            settings.keys() - set(YAML_FIELDS.values()) - {"llm_name", "local_model", "parallel_number"}
        ),
    }
    return _part(model, origins, record, dtype), text_tokenizer


def plan_codec(files: ReleaseFiles, codec_file: str | None, overrides: Mapping[str, Mapping[str, Any]]) -> ReleasePart:
    """
    Args:
        files (`ReleaseFiles`): The release.
        codec_file (`str`, *optional*): Name of the codec's file; the first of `CODEC_FILES` there is if `None`.
        overrides (`Mapping`): What the user sets, by config.
    """
    if codec_file is None:
        codec_file = next((name for name in CODEC_FILES if files.find(name)), CODEC_FILES[0])
    scalar_settings = read_mapping(files.path(SCALAR_YAML), *SCALAR_YAML_SECTION)
    other_settings = [read_mapping(files.path(name)) for name in (FLOW_JSON, WHISPER_JSON, WAVLM_JSON)]
    weights = open_codec_weights(files, codec_file)
    scalar_weights = TorchFile(files.path(SCALAR_FILE), "codec_model")
    config, fields = codec_config(weights.shapes, scalar_settings, *other_settings, overrides)
    filled = fill_missing(weights, config)

    with torch.device("meta"):
        model = ReasoningCodecModel(config)
    origins = {name: (weights, origin) for name, origin in codec_origins(weights.keys(), config).items()}
    for name, origin in scalar_codec_origins(scalar_weights.keys(), config.scalar_config).items():
        origins[f"{SCALAR_PREFIX}{name}"] = (scalar_weights, origin)
    kept = {origin.key for source, origin in origins.values() if source is weights}
    record = {
        "fields": fields,
        "encoders": weights.notes,
        "dropped": weights.dropped | {name: dropping_reason(name) for name in weights if name not in kept},
        "not in the release": dict(sorted(filled.items())),
    }
    return _part(model, origins, record)


def _part(
    model: PreTrainedModel,
    origins: dict[str, tuple[Mapping[str, torch.Tensor], WeightOrigin]],
    record: dict[str, Any],
    dtype: torch.dtype | None = None,
) -> ReleasePart:
    """Checks every shape against the model of the config, and describes where each weight comes from."""
    layout, described = {}, {}
    for name, expected in model.state_dict().items():
        source, origin = origins[name]
        shape, source_dtype = source.shapes[origin.key], source.dtypes[origin.key]
        found = origin.take({origin.key: torch.empty(shape, dtype=source_dtype, device="meta")})
        if found.shape != expected.shape:
            raise ValueError(
                f"{' in '.join(source.describe(origin.key).values())} has shape {tuple(shape)}, but the other tensors "
                f"and the configuration files ask for {tuple(expected.shape)} in {name}. They do not belong together."
            )
        target = dtype if dtype is not None and source_dtype.is_floating_point else source_dtype
        layout[name] = found.to(target)
        described[name] = source.describe(origin.key)
        if origin.description:
            described[name]["taken"] = origin.description
        if target != source_dtype:
            described[name]["cast"] = f"{source_dtype} to {target}".replace("torch.", "")
    floating = [tensor.dtype for tensor in layout.values() if tensor.dtype.is_floating_point]
    widest = floating[0]
    for other in floating:
        widest = torch.promote_types(widest, other)
    record = {**record, "dtype": str(widest).removeprefix("torch."), "weights": described}
    return ReleasePart(model.to(widest), layout, origins, record)
