"""Codecs of the sizes that a recorded fixture names, with its weights."""

from collections.abc import Mapping

import torch
from numeric_fixtures import NumericFixture
from torch import nn

from uniaudio2.conversion.codec import codec_key_table, dropping_reason
from uniaudio2.conversion.scalar_codec import scalar_codec_state_dict
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import (
    FlowDecoderConfig,
    MusicEncoderConfig,
    ReasoningCodecConfig,
    ScalarCodecConfig,
)
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel


def load_recorded(module: nn.Module, table: Mapping[str, str], weights: Mapping[str, torch.Tensor]) -> None:
    """Loads weights through a key table. A file may leave out what its recording did not use, but adds nothing."""
    unknown = [key for key in weights if key not in table and not dropping_reason(key)]
    assert not unknown, unknown
    renamed = {table[key]: value for key, value in weights.items() if key in table}
    assert renamed
    assert not module.load_state_dict(renamed, strict=False).unexpected_keys


def music_config(musicfm: dict, w2v2: dict) -> MusicEncoderConfig:
    names = (
        "num_attention_heads",
        "intermediate_size",
        "conv_depthwise_kernel_size",
        "hidden_act",
        "rotary_embedding_base",
        "layer_norm_eps",
    )
    return MusicEncoderConfig(
        conv_dim=musicfm["conv_dim"],
        hidden_size=musicfm["encoder_dim"],
        num_hidden_layers=musicfm["encoder_depth"],
        **{name: w2v2[name] for name in names if name in w2v2},
    )


def flow_config(recorded: dict) -> FlowDecoderConfig:
    names = ("num_attention_heads", "attention_head_dim", "num_layers", "in_channels", "out_channels", "norm_eps")
    return FlowDecoderConfig(**{name: recorded[name] for name in names})


def scalar_config(recorded: dict) -> ScalarCodecConfig:
    return ScalarCodecConfig(**{name: value for name, value in recorded.items() if hasattr(ScalarCodecConfig, name)})


def codec_config(facts: dict) -> ReasoningCodecConfig:
    """The configuration of a fixture that names the sizes of a whole codec."""
    sizes = facts["config"]
    recorded_scalar = facts.get("scalar_config", {"latent_hidden_dim": sizes["latent_dim"], "init_channel": 1})
    return ReasoningCodecConfig(
        whisper_config=sizes["whisper_config"],
        wavlm_config=sizes["wavlm_config"],
        music_encoder_config=music_config(sizes["musicfm_config"], sizes["w2v2_config"]),
        flow_config=flow_config(sizes["flow_config"]),
        scalar_config=scalar_config(recorded_scalar),
        hidden_size=sizes["codec_dim"],
        reasoning_num_layers=sizes["reason_encoder_depth"],
        reasoning_head_dim=sizes["reason_dim_heads"],
        reasoning_intermediate_size=4 * sizes["codec_dim"],
        reasoning_interval=sizes["reason_interval"],
        reasoning_codebook_size=sizes["reason_codebook_size"],
        reasoning_codebook_dim=sizes["reason_codebook_dim"],
        num_codebooks=sizes["reason_num_quantizers"],
        reconstruction_codebook_size=sizes["rec_codebook_size"],
        reconstruction_codebook_dim=sizes["rec_codebook_dim"],
        phone_num_quantizers=sizes["rec_num_quantizers"]["phone"],
        structure_num_quantizers=sizes["rec_num_quantizers"]["semantic"],
        acoustic_num_quantizers=sizes["rec_num_quantizers"]["acoustic"],
        film_gamma=sizes["film_gamma"],
        window_seconds=sizes["whisper_config"]["max_source_positions"] / 50,
    )


def build_codec(fixture: NumericFixture) -> ReasoningCodecModel:
    """The codec of a fixture, with the recorded weights `w.` and, if there are any, `sq.`, in evaluation mode."""
    config = codec_config(fixture.facts)
    codec = ReasoningCodecModel(config)
    load_recorded(codec, codec_key_table(config), fixture.tensors("w."))
    if "scalar_config" in fixture.facts:
        codec.scalar_codec.load_state_dict(scalar_codec_state_dict(fixture.tensors("sq."), config.scalar_config))
    return codec.eval()


class Recorder:
    """Collects what modules receive and return in a forward pass, under names of one's own."""

    def __init__(self):
        self.stages: dict[str, torch.Tensor] = {}

    def output(self, name: str, module: nn.Module, index: int | None = None) -> None:
        """Keeps what `module` returns, or the element `index` of it."""
        module.register_forward_hook(
            lambda _module, _inputs, output: self.stages.update({name: output if index is None else output[index]})
        )

    def input(self, name: str, module: nn.Module, index: int = 0) -> None:
        """Keeps the positional argument `index` of `module`."""
        module.register_forward_pre_hook(lambda _module, inputs: self.stages.update({name: inputs[index]}))
