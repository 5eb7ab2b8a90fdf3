"""The config of the released language model, from `llm_config.yaml`, the shapes of its tensors, and the tokenizer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config, UniAudio2DepthDecoderConfig
from .config_values import ConfigValues

YAML = "llm_config.yaml"

# What `llm_config.yaml` alone tells: our fields to its names.
YAML_FIELDS = {
    "reasoning_vocab_size": "audio_reason_card",
    "reconstruction_vocab_size": "audio_semantic_card",
    "reasoning_bos_token_id": "reason_bos",
    "reasoning_eos_token_id": "reason_eos",
    "reasoning_pad_token_id": "reason_pad_token",
    "reconstruction_bos_token_id": "semantic_bos",
    "reconstruction_eos_token_id": "semantic_eos",
    "reconstruction_pad_token_id": "semantic_pad_token",
    "audio_prompt_bos_token_id": "audio_prompt_bos",
    "audio_prompt_eos_token_id": "audio_prompt_eos",
    "text_pad_token_id": "text_pad_token",
}


class Heads(NamedTuple):
    """What the shapes of a stack do not tell, with what follows from it as a check."""

    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int


# By the names that `llm_name` and `local_model` take, without an organisation in front.
LLAMA_HEADS = {
    "Llama-3.2-1B": Heads(32, 8, 64),
    "Llama-3.2-1B-Instruct": Heads(32, 8, 64),
    "Llama-3.2-3B": Heads(24, 8, 128),
    "Llama-3.2-3B-Instruct": Heads(24, 8, 128),
    "Llama-3.2-300M": Heads(32, 8, 64),
    "Llama-3.2-4Layer": Heads(32, 8, 64),
}


def language_model_config(
    settings: Mapping[str, Any],
    shapes: Mapping[str, torch.Size],
    text_ids: Mapping[str, tuple[int, str]],
    overrides: Mapping[str, Mapping[str, Any]],
) -> tuple[UniAudio2Config, dict[str, Any]]:
    """
    The config, and where each of its values came from.

    Args:
        settings (`Mapping[str, Any]`): What `llm_config.yaml` holds.
        shapes (`Mapping[str, torch.Size]`): Shapes of the released tensors, without the wrapper's prefix.
        text_ids (`Mapping[str, tuple[int, str]]`):
            `bos_token_id` and `eos_token_id`, each with its origin.
        overrides (`Mapping[str, Mapping[str, Any]]`): What the user sets, by config.

    Raises:
        ValueError: If a value is missing, or two contradict each other.
    """
    trunk = ConfigValues(UniAudio2Config, overrides.get("language_model", {}), "")
    depth = ConfigValues(
        UniAudio2DepthDecoderConfig, overrides.get("language_model.depth_decoder_config", {}), "depth_decoder."
    )
    trunk.add_from_file(YAML_FIELDS, settings, YAML)
    for field, name in YAML_FIELDS.items():
        if type(trunk[field]) is not int:
            raise ValueError(f"{YAML}: {name} ({field}) must be a whole number, but is {trunk[field]!r}.")
    for name, (value, origin) in text_ids.items():
        trunk.add(name, value, origin)

    _add_stack(trunk, "backbone", "llm_name", settings, shapes)
    _add_stack(depth, "decoder", "local_model", settings, shapes)
    depth.add("num_hidden_layers", _num_layers(shapes, "decoder"), "tensors: number of decoder.transformer.h.*")
    understanding, backbone, generation = (
        _num_layers(shapes, stack) for stack in ("audio_understanding_expert", "backbone", "audio_generation_expert")
    )
    trunk.add("num_understanding_layers", understanding, "tensors: number of audio_understanding_expert layers")
    trunk.add("num_generation_layers", generation, "tensors: number of audio_generation_expert layers")
    trunk.add("num_hidden_layers", understanding + backbone + generation, "tensors: number of layers of the stacks")

    trunk.add("vocab_size", _shape(shapes, "backbone.transformer.wte.weight")[0], "tensors: backbone.transformer.wte")
    codebooks, _, ids = _shape(shapes, "audio_head")
    trunk.add("num_codebooks", codebooks, "tensors: audio_head")
    _check_streams(trunk, settings, ids)
    for stream, name in (("reasoning", "reason"), ("reconstruction", "semantic")):
        special = [trunk[f"{stream}_{kind}_token_id"] for kind in ("bos", "eos", "pad")]
        if special[0] == special[1]:
            raise ValueError(f"{YAML}: `{name}_bos` and `{name}_eos` are both {special[0]}, but must differ.")
        trunk.add(f"{stream}_codebook_size", min(special), f"{YAML}: the codes lie below the first special id")

    depth_config = depth.build(backbone_hidden_size=trunk["hidden_size"])
    config = trunk.build(depth_decoder_config=depth_config)
    return config, {**trunk.record(config), "depth_decoder_config": depth.record(depth_config)}


def _add_stack(
    values: ConfigValues, stack: str, name_in_yaml: str, settings: Mapping[str, Any], shapes: Mapping[str, torch.Size]
) -> None:
    """Widths and heads of one stack."""
    layer = f"{stack}.transformer.h.0"
    fused = f"{layer}.attn.qkv.weight"
    rows, width = _shape(shapes, fused if fused in shapes else f"{layer}.attn.attn.weight")
    attention_width = _shape(shapes, f"{layer}.attn.proj.weight")[1]
    values.add("hidden_size", width, f"tensors: {layer}.attn")
    values.add("intermediate_size", _shape(shapes, f"{layer}.mlp.fc_1.weight")[0], f"tensors: {layer}.mlp.fc_1")

    expected = None
    if "num_attention_heads" not in values:
        expected = _heads_by_name(values, name_in_yaml, settings)
        origin = f"{YAML}: {name_in_yaml}={settings[name_in_yaml]}, by the table of Llama 3.2 models"
        values.add("num_attention_heads", expected.num_attention_heads, origin)
    heads = values["num_attention_heads"]
    head_dim, rest = divmod(attention_width, heads)
    key_value_heads = (rows - attention_width) // (2 * head_dim) if head_dim else 0
    found = Heads(heads, key_value_heads, head_dim)
    if rest or rows != (heads + 2 * key_value_heads) * head_dim or key_value_heads < 1 or heads % key_value_heads:
        raise ValueError(
            f"{heads} attention heads do not fit the tensors of {layer}.attn, which have {rows} rows in all and "
            f"{attention_width} of queries. Pass --set {values.option or 'backbone.'}num_attention_heads=VALUE."
        )
    if expected is not None and found != expected:
        raise ValueError(
            f"{YAML} says {name_in_yaml}={settings[name_in_yaml]}, which has {expected.num_key_value_heads} key-value "
            f"heads of {expected.head_dim}, but the tensors of {layer}.attn have {key_value_heads} of {head_dim}. "
            f"Correct it, or pass --set {values.option or 'backbone.'}num_attention_heads=VALUE."
        )
    values.add("num_key_value_heads", key_value_heads, f"tensors: {layer}.attn and the number of heads")
    values.add("head_dim", head_dim, f"tensors: {layer}.attn and the number of heads")


def _heads_by_name(values: ConfigValues, name_in_yaml: str, settings: Mapping[str, Any]) -> Heads:
    fix = f"pass --set {values.option or 'backbone.'}num_attention_heads=VALUE"
    if settings.get(name_in_yaml) is None:
        raise ValueError(
            f"{YAML} lacks {name_in_yaml!r}, which tells the number of attention heads. Add it, or {fix}."
        )
    name = str(settings[name_in_yaml]).rpartition("/")[2]
    if name not in LLAMA_HEADS:
        raise ValueError(
            f"{YAML} says {name_in_yaml}={settings[name_in_yaml]}, which is none of {', '.join(LLAMA_HEADS)}: the "
            f"number of its attention heads is not known. To say it, {fix}."
        )
    return LLAMA_HEADS[name]


def _check_streams(trunk: ConfigValues, settings: Mapping[str, Any], ids: int) -> None:
    """The numbers of streams and ids in the yaml against those of the tensors."""
    streams = settings.get("parallel_number")
    if streams is None:
        raise ValueError(f"{YAML} lacks 'parallel_number', the number of streams (codebooks and text).")
    if streams != trunk["num_codebooks"] + 1:
        raise ValueError(
            f"{YAML} says parallel_number={streams}, but the tensor audio_head has "
            f"{trunk['num_codebooks']} codebooks: with text these are {trunk['num_codebooks'] + 1} streams."
        )
    reasoning, reconstruction = trunk["reasoning_vocab_size"], trunk["reconstruction_vocab_size"]
    if reasoning + reconstruction != ids:
        raise ValueError(
            f"{YAML} says audio_reason_card={reasoning} and audio_semantic_card={reconstruction}, which must add up "
            f"to the {ids} ids of a codebook in the tensor audio_head."
        )


def _num_layers(shapes: Mapping[str, torch.Size], stack: str) -> int:
    start = f"{stack}.transformer.h."
    layers = {key.removeprefix(start).split(".")[0] for key in shapes if key.startswith(start)}
    if not layers:
        raise ValueError(f"The language model's file has no tensors {start}*: it is not the one of UniAudio 2.0.")
    return len(layers)


def _shape(shapes: Mapping[str, torch.Size], key: str) -> torch.Size:
    if key not in shapes:
        raise ValueError(f"The language model's file has no tensor {key!r}: it is not the one of UniAudio 2.0.")
    return shapes[key]
