"""The config of the released codec: from its tensors, its small configuration files, and constants of its code."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig, WavLMConfig, WhisperConfig

from ..modeling_uniaudio2.configuration_reasoning_codec import (
    FlowDecoderConfig,
    MusicEncoderConfig,
    ReasoningCodecConfig,
    ScalarCodecConfig,
)
from .codec import FLOW_PREFIX, MUSIC_PREFIX, REASONING_PREFIX
from .config_values import ConfigValues

SCALAR_YAML, FLOW_JSON = "sqcodec_config.yaml", "model_config.json"
WHISPER_JSON, WAVLM_JSON = "whisper-medium/config.json", "wavlm/config.json"
# Where the sizes stand inside `sqcodec_config.yaml`.
SCALAR_YAML_SECTION = ("generator", "config")

SCALAR_FIELDS = {
    "sampling_rate": "sample_rate",
    **{
        name: name
        for name in (
            "num_samples",
            "downsample_factors",
            "downsample_kernel_sizes",
            "upsample_factors",
            "upsample_kernel_sizes",
            "latent_hidden_dim",
            "default_kernel_size",
            "delay_kernel_size",
            "init_channel",
            "res_kernel_size",
            "causal",
        )
    },
}
FLOW_FIELDS = ("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels", "norm_eps")

# Attention heads of the music encoder by its width: the released code's `w2v2_config.json`.
MUSIC_ENCODER_HEADS = {1024: 16}


def codec_config(
    shapes: Mapping[str, torch.Size],
    scalar_settings: Mapping[str, Any],
    flow_settings: Mapping[str, Any],
    whisper_settings: Mapping[str, Any],
    wavlm_settings: Mapping[str, Any],
    overrides: Mapping[str, Mapping[str, Any]],
) -> tuple[ReasoningCodecConfig, dict[str, Any]]:
    """
    The config, and where each of its values came from.

    Args:
        shapes (`Mapping[str, torch.Size]`): Shapes of the released tensors under the names of the key table.
        scalar_settings (`Mapping[str, Any]`): `generator.config` of `sqcodec_config.yaml`.
        flow_settings (`Mapping[str, Any]`): `model_config.json`.
        whisper_settings, wavlm_settings (`Mapping[str, Any]`): `config.json` of the two encoders.
        overrides (`Mapping[str, Mapping[str, Any]]`): What the user sets, by config.

    Raises:
        ValueError: If a value is missing, or two contradict each other.
    """
    whisper = _encoder_config(WhisperConfig, whisper_settings, overrides.get("codec.whisper_config", {}))
    wavlm = _encoder_config(WavLMConfig, wavlm_settings, overrides.get("codec.wavlm_config", {}))
    music, music_record = _music_encoder_config(shapes, overrides.get("codec.music_encoder_config", {}))
    flow, flow_record = _flow_config(shapes, flow_settings, overrides.get("codec.flow_config", {}))
    scalar, scalar_record = _scalar_config(scalar_settings, overrides.get("codec.scalar_config", {}))

    values = ConfigValues(ReasoningCodecConfig, overrides.get("codec", {}), "codec.")
    for name, key, axis in (
        ("hidden_size", "cond_feature_emb.weight", 0),
        ("reasoning_head_dim", f"{REASONING_PREFIX}encoder_transformers.0.self_attn.q_norm.weight", 0),
        (
            "reasoning_intermediate_size",
            f"{REASONING_PREFIX}encoder_transformers.0.ff.ff.2.parametrizations.weight.original1",
            1,
        ),
        ("reasoning_codebook_size", f"{REASONING_PREFIX}reasoning_vq.layers.0._codebook.embed", 1),
        ("reasoning_codebook_dim", f"{REASONING_PREFIX}reasoning_vq.layers.0._codebook.embed", 2),
        ("reconstruction_codebook_size", "vq_acoustic.layers.0._codebook.embed", 1),
        ("reconstruction_codebook_dim", "vq_acoustic.layers.0._codebook.embed", 2),
    ):
        values.add(name, _shape(shapes, key)[axis], f"tensors: {key}")
    for name, start in (
        ("reasoning_num_layers", f"{REASONING_PREFIX}encoder_transformers."),
        ("num_codebooks", f"{REASONING_PREFIX}reasoning_vq.layers."),
        ("phone_num_quantizers", "vq_pronunciation_semantic.layers."),
        ("structure_num_quantizers", "vq_structure_semantic.layers."),
        ("acoustic_num_quantizers", "vq_acoustic.layers."),
    ):
        values.add(name, _count(shapes, start), f"tensors: number of {start}*")
    values.add("window_seconds", min(30.0, whisper.max_source_positions / 50), "released code: what Whisper covers")

    config = values.build(
        whisper_config=whisper, wavlm_config=wavlm, music_encoder_config=music, flow_config=flow, scalar_config=scalar
    )
    record = values.record(config) | {
        "whisper_config": {"from": WHISPER_JSON},
        "wavlm_config": {"from": WAVLM_JSON},
        "music_encoder_config": music_record,
        "flow_config": flow_record,
        "scalar_config": scalar_record,
    }
    for name in ("whisper_config", "wavlm_config"):
        for field, value in overrides.get(f"codec.{name}", {}).items():
            record[name][field] = {"value": value, "from": "--set"}
    return config, record


def _encoder_config(
    config_class: type[PreTrainedConfig], settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> PreTrainedConfig:
    ConfigValues(config_class, overrides, f"codec.{config_class.model_type}_config.")
    try:
        return config_class.from_dict({**settings, **overrides})
    except Exception as error:  # the validation of strict dataclasses has exceptions of its own
        reason = str(error.__cause__ or error)
        raise ValueError(f"{config_class.model_type}'s config.json is not valid: {reason}") from error


def _music_encoder_config(
    shapes: Mapping[str, torch.Size], overrides: Mapping[str, Any]
) -> tuple[MusicEncoderConfig, dict]:
    values = ConfigValues(MusicEncoderConfig, overrides, "codec.music_encoder_config.")
    layers = f"{MUSIC_PREFIX}conformer.layers."
    channels = _shape(shapes, f"{MUSIC_PREFIX}conv.conv.0.conv1.weight")[0]
    width, flattened = _shape(shapes, f"{MUSIC_PREFIX}conv.linear.weight")
    values.add("conv_dim", channels, f"tensors: {MUSIC_PREFIX}conv.conv.0")
    values.add("num_mel_bins", 4 * flattened // channels, f"tensors: {MUSIC_PREFIX}conv.linear")
    values.add("hidden_size", width, f"tensors: {MUSIC_PREFIX}conv.linear")
    values.add("num_hidden_layers", _count(shapes, layers), f"tensors: number of {layers}*")
    for name, key, axis in (
        ("intermediate_size", f"{layers}0.ffn1.intermediate_dense.weight", 0),
        ("conv_depthwise_kernel_size", f"{layers}0.conv_module.depthwise_conv.weight", 2),
    ):
        values.add(name, _shape(shapes, key)[axis], f"tensors: {key}")
    if "num_attention_heads" not in values:
        if width not in MUSIC_ENCODER_HEADS:
            raise ValueError(
                f"The music encoder is {width} wide, and the number of its attention heads is known for a width of "
                f"{', '.join(map(str, MUSIC_ENCODER_HEADS))} alone. Pass "
                "--set codec.music_encoder_config.num_attention_heads=VALUE."
            )
        values.add("num_attention_heads", MUSIC_ENCODER_HEADS[width], "released code: w2v2_config.json")
    config = values.build()
    return config, values.record(config)


def _flow_config(
    shapes: Mapping[str, torch.Size], settings: Mapping[str, Any], overrides: Mapping[str, Any]
) -> tuple[FlowDecoderConfig, dict]:
    values = ConfigValues(FlowDecoderConfig, overrides, "codec.flow_config.")
    values.add_from_file({name: name for name in FLOW_FIELDS}, settings, FLOW_JSON)
    found = _count(shapes, f"{FLOW_PREFIX}transformer_blocks.")
    if values["num_layers"] != found:
        raise ValueError(f"{FLOW_JSON} says num_layers={values['num_layers']}, but the codec's tensors have {found}.")
    key = f"{FLOW_PREFIX}adaln_single.emb.timestep_embedder.linear_1.weight"
    values.add("num_timestep_channels", _shape(shapes, key)[1], f"tensors: {key}")
    table = f"{FLOW_PREFIX}pos_embed.pe"
    if table in shapes:
        values.add("max_positions", shapes[table][1], f"tensors: {table}")
    config = values.build()
    return config, values.record(config)


def _scalar_config(settings: Mapping[str, Any], overrides: Mapping[str, Any]) -> tuple[ScalarCodecConfig, dict]:
    values = ConfigValues(ScalarCodecConfig, overrides, "codec.scalar_config.")
    place = f"{SCALAR_YAML}: {'.'.join(SCALAR_YAML_SECTION)}"
    values.add_from_file(SCALAR_FIELDS, settings, place)
    if settings.get("num_bands", 1) != 1:
        raise ValueError(f"{place} says num_bands={settings['num_bands']}, but only one band is supported.")
    config = values.build()
    return config, values.record(config)


def _count(shapes: Mapping[str, torch.Size], start: str) -> int:
    numbers = {key.removeprefix(start).split(".")[0] for key in shapes if key.startswith(start)}
    if not numbers:
        raise ValueError(f"The codec's file has no tensors {start}*: it is not the one of UniAudio 2.0.")
    return len(numbers)


def _shape(shapes: Mapping[str, torch.Size], key: str) -> torch.Size:
    if key not in shapes:
        raise ValueError(f"The codec's file has no tensor {key!r}: it is not the one of UniAudio 2.0.")
    return shapes[key]
