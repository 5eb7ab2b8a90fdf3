"""The music front end against recordings of the released code."""

from functools import cache

import torch
from numeric_fixtures import NumericFixture, assert_close, over_recorded

from uniaudio2.conversion.music_encoder import music_encoder_state_dict
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import MusicEncoderConfig
from uniaudio2.modeling_uniaudio2.modeling_music_encoder import MusicEncoder, mel_decibels


def build_music_encoder(fixture: NumericFixture) -> MusicEncoder:
    facts = fixture.facts
    layers = facts["config"]["w2v2"]
    config = MusicEncoderConfig(
        num_mel_bins=facts["config"]["n_mels"],
        n_fft=facts["config"]["n_fft"],
        hop_length=facts["config"]["hop_length"],
        mel_mean=facts["config"]["norm_mean"],
        mel_std=facts["config"]["norm_std"],
        conv_dim=facts["config"]["musicfm"]["conv_dim"],
        num_hidden_layers=facts["config"]["num_hidden_layers"],
        **layers,
    )
    encoder = MusicEncoder(config)
    encoder.load_state_dict(music_encoder_state_dict(fixture.tensors("w.model."), config.num_hidden_layers))
    return encoder.eval()


@cache
def encoder_stages(fixture: NumericFixture) -> dict[str, torch.Tensor]:
    """One forward pass; what goes in and out of the modules, under the names it was recorded with."""
    encoder = build_music_encoder(fixture)
    wave = fixture.tensors()["in.wave"]
    stages = {}

    def keep(name: str):
        def hook(_module, _inputs, output):
            stages[name] = output[0] if isinstance(output, tuple) else output  # attention returns its weights too

        return hook

    encoder.subsampling.blocks.register_forward_hook(keep("stage.conv1"))
    encoder.subsampling.register_forward_hook(keep("stage.conv_out"))
    for index, layer in enumerate(encoder.layers):
        for name, module in layer.named_children():
            module.register_forward_hook(keep(f"stage.layer{index}.{name}"))

    with torch.no_grad():
        hidden_states = encoder(wave)
        samples = wave.shape[-1] // encoder.config.frame_length * encoder.config.frame_length
        stages["stage.mel_db"] = mel_decibels(wave[:, 0, :samples], encoder.config)
        stages["stage.conv_in"] = encoder.log_mel(wave)[:, None]
    stages |= {f"out.hidden_states.{index}": states for index, states in enumerate(hidden_states)}
    # The codec's two features; it asks for no more layers than it reads.
    for name, index in (("acoustic_layer4", 4), ("semantic_layer11", 11)):
        if index < len(hidden_states):
            with torch.no_grad():
                stages[f"out.{name}"] = encoder(wave, num_layers=index)[index].transpose(1, 2)
    return stages


@over_recorded("codec_bestrq", "stage.", "out.", holding=("in.wave", "w."))
def test_each_stage(fixture: NumericFixture, key: str):
    assert_close(encoder_stages(fixture)[key], fixture.tensors()[key])
