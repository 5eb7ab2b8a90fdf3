"""The released language model (`Model_stage3`) -> [`UniAudio2ForConditionalGeneration`], and back."""

from collections.abc import Collection, Iterator, Mapping
from functools import partial

import torch

from ..modeling_uniaudio2.configuration_uniaudio2 import UniAudio2Config, UniAudio2DepthDecoderConfig
from .key_table import WeightOrigin, check_keys, rename_weights, without_wrapper

# Where the released stacks went: their layers follow each other in ours.
_TRUNK_STACKS = ("audio_understanding_expert", "backbone", "audio_generation_expert")

_LAYER_TABLE = {
    "norm_1.weight": "input_layernorm.weight",
    "attn.proj.weight": "self_attn.o_proj.weight",
    "norm_2.weight": "post_attention_layernorm.weight",
    "mlp.fc_1.weight": "mlp.gate_proj.weight",
    "mlp.fc_2.weight": "mlp.up_proj.weight",
    "mlp.proj.weight": "mlp.down_proj.weight",
}
_FUSED = "attn.qkv.weight"
_LEGACY_FUSED = "attn.attn.weight"
_SPLIT = ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight")


def language_model_key_table(config: UniAudio2Config) -> dict[str, str]:
    """Original key -> our key, for every tensor but the fused attention matrices (see `fused_attention_table`)."""
    table = {
        "backbone.transformer.wte.weight": "model.embed_tokens.weight",
        "backbone.lm_head.weight": "lm_head.weight",
        "backbone.transformer.ln_f.weight": "model.cross_modal_norm.weight",
        "audio_understanding_expert.transformer.ln_f.weight": "model.understanding_norm.weight",
        "audio_generation_expert.transformer.ln_f.weight": "model.generation_norm.weight",
        "decoder.transformer.ln_f.weight": "depth_decoder.norm.weight",
        "projection.weight": "depth_decoder.projection.weight",
        "audio_embeddings.weight": "model.audio_embeddings.weight",
        "audio_head": "audio_head.weight",
    }
    for original, ours, _ in _layers(config):
        table.update({f"{original}.{theirs}": f"{ours}.{mine}" for theirs, mine in _LAYER_TABLE.items()})
    return table


def fused_attention_table(
    config: UniAudio2Config,
) -> dict[str, tuple[tuple[str, str, str], UniAudio2Config | UniAudio2DepthDecoderConfig]]:
    """Original key of a fused attention matrix -> (our keys of queries, keys, values; configuration of its stack)."""
    return {
        f"{original}.{_FUSED}": (tuple(f"{ours}.{name}" for name in _SPLIT), stack_config)
        for original, ours, stack_config in _layers(config)
    }


def language_model_origins(keys: Collection[str], config: UniAudio2Config) -> dict[str, WeightOrigin]:
    """
    Where each of our weights comes from, in the order of the released names.

    Args:
        keys (`Collection[str]`): Names in the released checkpoint.
        config (`UniAudio2Config`): Sizes of the model.

    Raises:
        ValueError: If tensors are missing or unknown.
    """
    spellings = {without_wrapper(key): key for key in keys}
    fused = fused_attention_table(config)
    origins = {}
    for name, (ours, stack) in fused.items():
        legacy = name.removesuffix(_FUSED) + _LEGACY_FUSED
        is_legacy = name not in spellings and legacy in spellings
        if is_legacy:
            spellings[name] = spellings.pop(legacy)
        elif name not in spellings:
            raise ValueError(
                f"The weights do not fit the key table: {name} is missing. Check the sizes of the config."
            )
        counts = _row_counts(stack)
        for index, (our_name, part) in enumerate(zip(ours, ("queries", "keys", "values"), strict=True)):
            origins[our_name] = WeightOrigin(
                spellings[name],
                partial(_part_of_fused, index=index, config=stack, is_legacy=is_legacy),
                f"the {counts[index]} rows of the {part}{', collected from their groups' if is_legacy else ''}",
            )
    table = language_model_key_table(config)
    check_keys(spellings.keys(), table.keys(), fused.keys())
    return origins | {ours: WeightOrigin(spellings[name]) for name, ours in table.items()}


def language_model_state_dict(
    original: Mapping[str, torch.Tensor], config: UniAudio2Config
) -> dict[str, torch.Tensor]:
    """
    Weights of the released language model under our names.

    Args:
        original (`Mapping[str, torch.Tensor]`):
            State dict of `Model_stage3`, i.e. what the checkpoint file holds under `model`. Names may carry the
            leading `module.` of a parallel wrapper, and the older name and layout of the fused attention matrices.
        config (`UniAudio2Config`):
            Sizes of the model. The split of the codebooks into reasoning and reconstruction ids cannot be read from
            the weights.

    Raises:
        ValueError: If tensors are missing or unknown.
    """
    return {ours: origin.take(original) for ours, origin in language_model_origins(original.keys(), config).items()}


def original_language_model_state_dict(
    state_dict: Mapping[str, torch.Tensor], config: UniAudio2Config
) -> dict[str, torch.Tensor]:
    """The inverse of [`language_model_state_dict`]: our weights under the released names."""
    state_dict = dict(state_dict)
    fused = {
        key: torch.cat([state_dict.pop(name) for name in names])
        for key, (names, _) in fused_attention_table(config).items()
    }
    inverse = {ours: original for original, ours in language_model_key_table(config).items()}
    return {**rename_weights(state_dict, inverse), **fused}


def _layers(config: UniAudio2Config) -> Iterator[tuple[str, str, UniAudio2Config | UniAudio2DepthDecoderConfig]]:
    """(original prefix, our prefix, configuration) of every layer."""
    counts = (config.num_understanding_layers, config.num_cross_modal_layers, config.num_generation_layers)
    first = 0
    for stack, count in zip(_TRUNK_STACKS, counts, strict=True):
        for index in range(count):
            yield f"{stack}.transformer.h.{index}", f"model.layers.{first + index}", config
        first += count
    for index in range(config.depth_decoder_config.num_hidden_layers):
        yield f"decoder.transformer.h.{index}", f"depth_decoder.layers.{index}", config.depth_decoder_config


def _row_counts(config: UniAudio2Config | UniAudio2DepthDecoderConfig) -> list[int]:
    """Rows of queries, keys and values in a fused attention matrix."""
    return [
        heads * config.head_dim
        for heads in (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    ]


def _part_of_fused(
    weight: torch.Tensor, index: int, config: UniAudio2Config | UniAudio2DepthDecoderConfig, is_legacy: bool
) -> torch.Tensor:
    """The rows of queries (`index` 0), keys (1) or values (2) in a fused attention matrix."""
    if not is_legacy:
        return weight.split(_row_counts(config))[index]
    # The older layout: for each key-value group its query heads, its key, its value.
    queries_per_group = config.num_attention_heads // config.num_key_value_heads
    groups = weight.view(config.num_key_value_heads, queries_per_group + 2, config.head_dim, -1)
    return groups.split([queries_per_group, 1, 1], dim=1)[index].reshape(-1, weight.shape[1])
