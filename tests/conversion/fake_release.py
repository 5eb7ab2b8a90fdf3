"""Small releases in the layout of `Dongchao/UniAudio2_ckpt`: from recorded fixtures, or from random weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from uniaudio2.conversion.codec import (
    MUSIC_PREFIX,
    WAVLM_PREFIX,
    WHISPER_PREFIX,
    codec_key_table,
)
from uniaudio2.conversion.codec_config import FLOW_FIELDS, SCALAR_FIELDS
from uniaudio2.conversion.language_model import original_language_model_state_dict
from uniaudio2.conversion.language_model_config import YAML_FIELDS
from uniaudio2.conversion.scalar_codec import scalar_codec_key_table
from uniaudio2.conversion.text_tokenizer import LLAMA_NAMES
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from uniaudio2.modeling_uniaudio2.modeling_uniaudio2 import UniAudio2ForConditionalGeneration
from uniaudio2.processing.special_tokens import SPECIAL_TOKENS


@dataclass
class FakeRelease:
    """What a release consists of, to be changed before it is written."""

    language_model: dict[str, torch.Tensor]
    language_model_settings: dict[str, Any]
    codec: dict[str, torch.Tensor]
    scalar_codec: dict[str, torch.Tensor]
    scalar_settings: dict[str, Any]
    flow_settings: dict[str, Any]
    whisper_settings: dict[str, Any]
    wavlm_settings: dict[str, Any]
    # What the tables of the converter do not know of small models.
    options: list[str] = field(default_factory=list)
    # Beside the weights in the language model's file.
    rest: dict[str, Any] = field(default_factory=dict)

    def write(self, folder: Path) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        torch.save({"model": self.language_model, **self.rest}, folder / "llm_ep3.checkpoint")
        torch.save({"model": self.codec}, folder / "ReasoningCodec.checkpoint")
        torch.save({"codec_model": self.scalar_codec}, folder / "sqcodec.pth")
        (folder / "llm_config.yaml").write_text(yaml.safe_dump(self.language_model_settings))
        content = {"generator": {"name": "ScalarModel", "config": self.scalar_settings}}
        (folder / "sqcodec_config.yaml").write_text(yaml.safe_dump(content))
        (folder / "model_config.json").write_text(json.dumps(self.flow_settings))
        for name, settings in (("whisper-medium", self.whisper_settings), ("wavlm", self.wavlm_settings)):
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps(settings))
        return folder

    def move_encoders_to_their_files(self, folder: Path) -> None:
        """The frozen encoders in files of their own, as their authors publish them, and not in the codec's."""

        def taken(prefix: str) -> dict[str, torch.Tensor]:
            names = [name for name in self.codec if name.startswith(prefix)]
            return {name.removeprefix(prefix): self.codec.pop(name) for name in names}

        for name in ("whisper-medium", "wavlm"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        whisper = {f"model.encoder.{name}": value for name, value in taken(WHISPER_PREFIX).items()}
        whisper["model.decoder.layer_norm.weight"] = torch.ones(1)
        torch.save(whisper, folder / "whisper-medium" / "pytorch_model.bin")
        torch.save(taken(WAVLM_PREFIX), folder / "wavlm" / "pytorch_model.bin")
        music = {f"model.{name}": value for name, value in taken(MUSIC_PREFIX).items()}
        torch.save({"model": music, "cfg": {"model": {"conv_dim": 4}}}, folder / "music_ssl.pt")


def write_tokenizer(tokenizer, folder: Path, reserved: bool = True) -> Path:
    """A tokenizer whose slots have Llama's names, or (`reserved=False`) already those of UniAudio 2.0."""
    tokenizer.save_pretrained(folder)
    if reserved:
        path = folder / "tokenizer.json"
        text = path.read_text(encoding="utf-8")
        for old, new in zip(LLAMA_NAMES, SPECIAL_TOKENS, strict=True):
            text = text.replace(json.dumps(new, ensure_ascii=False), json.dumps(old))
        path.write_text(text, encoding="utf-8")
    return folder


def random_release(model: UniAudio2ForConditionalGeneration, codec: ReasoningCodecModel) -> FakeRelease:
    """The weights of small random models, under the released names."""
    config = model.config
    weights = codec.state_dict()
    released = {name: weights[ours].clone() for name, ours in codec_key_table(codec.config).items()}
    # Statistics of a training that has gone on for a while.
    for name in released:
        if name.endswith((".cluster_size", ".embed_avg")):
            released[name] = torch.rand_like(released[name])
    scalar = {
        name: weights[f"scalar_codec.{ours}"].clone()
        for name, ours in scalar_codec_key_table(codec.config.scalar_config).items()
    }
    flow = codec.config.flow_config
    released["cfm_wrapper.estimator.pos_embed.pe"] = torch.zeros(1, flow.max_positions, flow.hidden_size)
    released["wavlm_transfer.kernel"] = torch.zeros(2, 1, 23)
    settings = codec.config.scalar_config
    return FakeRelease(
        language_model=original_language_model_state_dict(model.state_dict(), config),
        language_model_settings={
            "llm_name": "meta-llama/Llama-3.2-3B",
            "local_model": "Llama-3.2-4Layer",
            "llm_pretrained_model": "unused",
            "parallel_number": 9,
            **{name: getattr(config, field) for field, name in YAML_FIELDS.items()},
        },
        codec=released,
        scalar_codec=scalar,
        scalar_settings={
            "num_bands": 1,
            "sample_rate": settings.sampling_rate,
            **{name: _plain(getattr(settings, name)) for name in SCALAR_FIELDS if name != "sampling_rate"},
        },
        flow_settings={name: getattr(flow, name) for name in FLOW_FIELDS},
        whisper_settings=codec.config.whisper_config.to_dict(),
        wavlm_settings=codec.config.wavlm_config.to_dict(),
        options=[
            f"backbone.num_attention_heads={config.num_attention_heads}",
            f"decoder.num_attention_heads={config.depth_decoder_config.num_attention_heads}",
            f"codec.music_encoder_config.num_attention_heads={codec.config.music_encoder_config.num_attention_heads}",
            f"codec.wavlm_layers={list(codec.config.wavlm_layers)}",
            f"codec.music_acoustic_layer={codec.config.music_acoustic_layer}",
            f"codec.music_semantic_layer={codec.config.music_semantic_layer}",
        ],
    )


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def recorded_release(language_model, codec) -> FakeRelease:
    """The weights of two recorded fixtures (`NumericFixture`); of the codec what encoding and decoding use."""
    sizes, ids = language_model.facts["config"], language_model.facts["config"]["ids"]
    parts = codec.facts["config"]
    return FakeRelease(
        language_model={f"module.{name}": value for name, value in language_model.tensors("model.").items()},
        language_model_settings={
            "llm_name": "tiny",
            "local_model": "tiny",
            "parallel_number": sizes["num_codebooks"] + 1,
            "audio_reason_card": sizes["reason_card"],
            "audio_semantic_card": sizes["semantic_card"],
            **ids,
            "text_pad_token": sizes["text_pad"],
        },
        codec={f"module.{name}": value for name, value in codec.tensors("w.").items()},
        scalar_codec=codec.tensors("sq."),
        scalar_settings=codec.facts["scalar_config"],
        flow_settings=parts["flow_config"],
        whisper_settings=parts["whisper_config"],
        wavlm_settings=parts["wavlm_config"],
        options=[
            f"backbone.num_attention_heads={sizes['backbone']['n_head']}",
            f"decoder.num_attention_heads={sizes['decoder']['n_head']}",
            f"codec.music_encoder_config.num_attention_heads={parts['w2v2_config']['num_attention_heads']}",
        ],
    )
