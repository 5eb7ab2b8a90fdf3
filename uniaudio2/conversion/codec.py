"""Key table of the codec: names in the released `ReasoningCodec.checkpoint` to names in `ReasoningCodecModel`.

The scalar autoencoder comes in a file of its own (`sqcodec.pth`), see `scalar_codec.py`.
"""

import re
from collections.abc import Collection, Mapping

import torch
from transformers import PreTrainedConfig, PreTrainedModel, WavLMModel
from transformers.models.whisper.modeling_whisper import WhisperEncoder

from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from .flow_decoder import DROPPED as FLOW_DROPPED
from .flow_decoder import flow_decoder_key_table
from .key_table import WeightOrigin, check_keys, with_new_weight_norm, without_wrapper
from .music_encoder import DROPPED_BEGINNINGS as MUSIC_DROPPED_BEGINNINGS
from .music_encoder import music_encoder_key_table
from .scalar_codec import scalar_codec_state_dict

WHISPER_PREFIX = "whisper_encoder."
WAVLM_PREFIX = "wavlm_encoder."
MUSIC_PREFIX = "pretrained_model.model.model."
FLOW_PREFIX = "cfm_wrapper.estimator."
REASONING_PREFIX = "audio_thinking."
# Of the scalar autoencoder inside `ReasoningCodecModel`.
SCALAR_PREFIX = "scalar_codec."

# Modules of the reconstruction branch with a weight and a bias.
RECONSTRUCTION_MODULES = {
    "d_conv_whisper": "reconstruction_branch.whisper_downsample",
    "d_conv_wavlm": "reconstruction_branch.wavlm_downsample",
    "d_conv_embedding_semantic": "reconstruction_branch.semantic_downsample",
    "d_conv_embedding_acoustic": "reconstruction_branch.acoustic_downsample",
    "cond_fusion_layer_phone": "reconstruction_branch.phone_proj",
    "cond_fusion_layer_semantic": "reconstruction_branch.structure_proj",
    "cond_fusion_layer_acoustic": "reconstruction_branch.acoustic_proj",
    "time_film_phone": "reconstruction_branch.phone_film.proj",
    "time_film_semantic": "reconstruction_branch.structure_film.proj",
    "time_film_acoustic": "reconstruction_branch.acoustic_film.proj",
    "reason_adaptor": "reconstruction_branch.reasoning_adaptor",
    "cond_feature_emb": "flow_conditioner.proj",
}

# Weight-normalised matrices of a reasoning block; the second value says whether there is a bias.
REASONING_MATRICES = {
    "self_attn.to_qkv": ("self_attn.qkv_proj", False),
    "self_attn.to_out": ("self_attn.out_proj", False),
    "ff.ff.0.proj": ("feed_forward.gated_proj.proj", True),
    "ff.ff.2": ("feed_forward.down_proj", True),
}
REASONING_VECTORS = {
    "self_attn.q_norm.weight": "self_attn.q_norm.weight",
    "self_attn.q_norm.bias": "self_attn.q_norm.bias",
    "self_attn.k_norm.weight": "self_attn.k_norm.weight",
    "self_attn.k_norm.bias": "self_attn.k_norm.bias",
    "self_attn_scale.scale": "self_attn_scale",
    "ff_scale.scale": "feed_forward_scale",
}

# Codebooks are buffers with running statistics, which a later training continues.
CODEBOOK_KEYS = ("initted", "cluster_size", "embed_avg", "embed")

# What may be in the checkpoint and is not kept, as patterns of whole names, each with the reason.
DROPPED = {
    r"wavlm_transfer\..*": "the resampling kernel is a formula",
    **{
        re.escape(MUSIC_PREFIX + beginning) + ".*": "formula, or served only the music encoder's own pre-training"
        for beginning in MUSIC_DROPPED_BEGINNINGS
    },
    **{re.escape(FLOW_PREFIX + name): "the position table is a formula" for name in FLOW_DROPPED},
    r"audio_thinking\.encoder_transformers\.\d+\.rope\.inv_freq": "the rotary frequencies are a formula",
    r"audio_thinking\.(llama_model|llm_proj)\..*": "the text head of an older checkpoint, which is a model of its own",
}


def residual_quantizer_key_table(num_quantizers: int) -> dict[str, str]:
    """Keys of a `ResidualVQ`, the same on both sides."""
    keys = [f"{module}.{part}" for module in ("project_in", "project_out") for part in ("weight", "bias")]
    keys += [f"layers.{index}._codebook.{key}" for index in range(num_quantizers) for key in CODEBOOK_KEYS]
    return {key: key for key in keys}


def feature_decoder_key_table(strides: tuple[int, ...]) -> dict[str, str]:
    """Keys of an auxiliary feature decoder whose blocks upsample by `strides`."""
    table = {"conv1.conv.weight": "conv_in.weight", "conv2.conv.weight": "conv_out.weight"}
    for block, stride in enumerate(strides):
        conv = "conv" if stride == 1 else "deconv"
        for part in ("weight", "bias"):
            table[f"conv_blocks.{block}.conv.{conv}.{part}"] = f"blocks.{block}.conv.{part}"
        for unit in (0, 1):
            released, ours = f"conv_blocks.{block}.res_units.{unit}", f"blocks.{block}.residual_units.{unit}"
            table[f"{released}.conv1.conv.weight"] = f"{ours}.conv1.weight"
            table[f"{released}.conv2.weight"] = f"{ours}.conv2.weight"
    return table


def reasoning_branch_key_table(config: ReasoningCodecConfig) -> dict[str, str]:
    """Keys of the reasoning branch, `audio_thinking.` in the full model."""
    table = {"cls_token": "query_token"}
    for part in ("weight", "bias"):
        table[f"down_sampling_layer_whisper.{part}"] = f"whisper_downsample.{part}"
        table[f"semantic_merge_proj.{part}"] = f"merge_proj.{part}"
    for layer in range(config.reasoning_num_layers):
        released, ours = f"encoder_transformers.{layer}", f"layers.{layer}"
        for matrix, (name, has_bias) in REASONING_MATRICES.items():
            table[f"{released}.{matrix}.parametrizations.weight.original0"] = f"{ours}.{name}.weight_magnitude"
            table[f"{released}.{matrix}.parametrizations.weight.original1"] = f"{ours}.{name}.weight_direction"
            if has_bias:
                table[f"{released}.{matrix}.bias"] = f"{ours}.{name}.bias"
        for vector, name in REASONING_VECTORS.items():
            table[f"{released}.{vector}"] = f"{ours}.{name}"
    return table | _prefixed(residual_quantizer_key_table(config.num_codebooks), "reasoning_vq.", "quantizer.")


def codec_key_table(config: ReasoningCodecConfig) -> dict[str, str]:
    """Every key that is kept of the released codec with these sizes, to its name in `ReasoningCodecModel`.

    What is not kept is named, with the reason, in `DROPPED`.
    """
    table = {"zero_cond_embedding1": "flow_conditioner.padding_embedding"}
    for module, name in RECONSTRUCTION_MODULES.items():
        table |= {f"{module}.{part}": f"{name}.{part}" for part in ("weight", "bias")}
    for quantizer, name, count in (
        ("vq_pronunciation_semantic.", "phone", config.phone_num_quantizers),
        ("vq_structure_semantic.", "structure", config.structure_num_quantizers),
        ("vq_acoustic.", "acoustic", config.acoustic_num_quantizers),
    ):
        ours = f"reconstruction_branch.{name}_quantizer."
        table |= _prefixed(residual_quantizer_key_table(count), quantizer, ours)
    table |= _prefixed(feature_decoder_key_table((2, 2)), "pronunciation_decoder.", "phone_feature_decoder.")
    table |= _prefixed(feature_decoder_key_table((1, 2)), "structure_semantic_decoder.", "structure_feature_decoder.")
    table |= _prefixed(reasoning_branch_key_table(config), REASONING_PREFIX, "reasoning_branch.")
    table |= _prefixed(flow_decoder_key_table(config.flow_config.num_layers), FLOW_PREFIX, "flow_decoder.")
    music_layers = config.music_encoder_config.num_hidden_layers
    table |= _prefixed(music_encoder_key_table(music_layers), MUSIC_PREFIX, "front_ends.music_encoder.")
    # Whisper and WavLM are transformers' on both sides: their own names are the table.
    whisper_keys = _transformers_keys(WhisperEncoder, config.whisper_config)
    wavlm_keys = _transformers_keys(WavLMModel, config.wavlm_config)
    table |= {WHISPER_PREFIX + key: f"front_ends.whisper.{key}" for key in whisper_keys}
    table |= {WAVLM_PREFIX + key: f"front_ends.wavlm.{key}" for key in wavlm_keys}
    return table


def codec_origins(keys: Collection[str], config: ReasoningCodecConfig) -> dict[str, WeightOrigin]:
    """
    Where each weight of [`ReasoningCodecModel`] comes from, but for those of its scalar autoencoder.

    Args:
        keys (`Collection[str]`): Names in the released checkpoint, with either spelling of weight norm.
        config (`ReasoningCodecConfig`): Sizes.

    Raises:
        ValueError: If weights are missing, or there are others than the codec has.
    """
    spellings = {released_name(key): key for key in keys}
    table = codec_key_table(config)
    check_keys(spellings.keys(), table.keys(), [key for key in spellings if dropping_reason(key)])
    return {ours: WeightOrigin(spellings[name]) for name, ours in table.items()}


def codec_state_dict(
    original: Mapping[str, torch.Tensor],
    config: ReasoningCodecConfig,
    scalar_codec: Mapping[str, torch.Tensor] | None = None,
) -> dict[str, torch.Tensor]:
    """Weights of the released codec under the names of `ReasoningCodecModel`.

    Args:
        original (`Mapping[str, torch.Tensor]`):
            The `model` of `ReasoningCodec.checkpoint`, completed from the encoders' own files where it lacks them. A
            leading `module.` is taken off; only the leading one, for `conv_module.` is part of names.
        config (`ReasoningCodecConfig`): Sizes.
        scalar_codec (`Mapping[str, torch.Tensor]`, *optional*): The `codec_model` of `sqcodec.pth`.

    Raises:
        ValueError: If weights are missing, or there are others than the codec has.
    """
    weights = {ours: origin.take(original) for ours, origin in codec_origins(original.keys(), config).items()}
    if scalar_codec is not None:
        scalar = scalar_codec_state_dict(scalar_codec, config.scalar_config)
        weights |= {f"{SCALAR_PREFIX}{key}": value for key, value in scalar.items()}
    return weights


def released_name(key: str) -> str:
    """Name of a tensor in `ReasoningCodec.checkpoint` as the key table spells it."""
    return with_new_weight_norm(without_wrapper(key))


def dropping_reason(key: str) -> str | None:
    """Why a released weight is not kept, or `None` if it is none of those in `DROPPED`."""
    return next((reason for pattern, reason in DROPPED.items() if re.fullmatch(pattern, key)), None)


def _prefixed(table: Mapping[str, str], released: str, ours: str) -> dict[str, str]:
    return {released + key: ours + name for key, name in table.items()}


def _transformers_keys(model: type[PreTrainedModel], config: PreTrainedConfig) -> list[str]:
    with torch.device("meta"):
        return list(model(config).state_dict())
