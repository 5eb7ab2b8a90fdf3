"""The speech front ends against recordings of the released code: 24 kHz audio to Whisper and WavLM features."""

from functools import cache

import torch
from codec_fixtures import Recorder, load_recorded
from numeric_fixtures import NumericFixture, assert_close, over_recorded
from transformers import WavLMConfig, WhisperConfig

from uniaudio2.conversion.codec import WAVLM_PREFIX, WHISPER_PREFIX
from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import (
    FlowDecoderConfig,
    MusicEncoderConfig,
    ReasoningCodecConfig,
    ScalarCodecConfig,
)
from uniaudio2.modeling_uniaudio2.modeling_codec_front_ends import (
    CodecFrontEnds,
    resample,
    resampling_kernel,
    whisper_log_mel,
)


@cache
def build_front_ends(fixture: NumericFixture) -> CodecFrontEnds:
    sizes = fixture.facts["config"]
    config = ReasoningCodecConfig(
        whisper_config=WhisperConfig(**sizes["whisper"]),
        wavlm_config=WavLMConfig(**sizes["wavlm"]),
        music_encoder_config=MusicEncoderConfig(
            conv_dim=1, hidden_size=8, num_hidden_layers=11, num_attention_heads=1, intermediate_size=8
        ),
        flow_config=FlowDecoderConfig(num_layers=1, in_channels=4 + 128, out_channels=2),
        scalar_config=ScalarCodecConfig(init_channel=1, latent_hidden_dim=2),
        hidden_size=128,
        window_seconds=sizes["whisper"]["max_source_positions"] / 50,
    )
    front_ends = CodecFrontEnds(config).eval()
    weights = fixture.tensors("w.")
    for module, prefix in ((front_ends.whisper, WHISPER_PREFIX), (front_ends.wavlm, WAVLM_PREFIX)):
        own = {key: value for key, value in weights.items() if key.startswith(prefix)}
        load_recorded(module, {prefix + key: key for key in module.state_dict()}, own)
    return front_ends


@cache
@torch.no_grad()
def stages(fixture: NumericFixture) -> dict[str, torch.Tensor]:
    front_ends = build_front_ends(fixture)
    wave = fixture.tensors("in.wave24")[""][:, 0]
    frames = fixture.facts["bestrq_frames"]
    resampled = resample(wave, 24000, 16000)
    whisper = front_ends.whisper.config
    recorder = Recorder()
    recorder.input("stage.mel", front_ends.whisper)
    recorder.input("stage.wavlm_in", front_ends.wavlm.feature_extractor)
    recorder.input("first", front_ends.wavlm.encoder.layers[0])
    for index, layer in enumerate(front_ends.wavlm.encoder.layers, start=1):
        recorder.output(f"layer {index}", layer, 0)
    recorder.output("stage.whisper_last_hidden", front_ends.whisper)
    whisper_embeds = front_ends.whisper_features(resampled, wave.shape[1], frames)
    wavlm_embeds = front_ends.wavlm_features(resampled)[..., : 2 * frames]
    recorded = recorder.stages
    layers = [recorded["first"]] + [recorded[key] for key in sorted_layers(recorded)]
    return recorded | {
        "stage.resample_kernel": resampling_kernel(3, 2)[0],
        "stage.wave16": resampled,
        "stage.mel": whisper_log_mel(resampled, whisper.num_mel_bins, 2 * whisper.max_source_positions),
        "stage.whisper_last_hidden": recorded["stage.whisper_last_hidden"].last_hidden_state,
        "stage.wavlm_hidden_states": torch.stack(layers, dim=1),
        "out.whisper_embeds": whisper_embeds,
        "out.wavlm_embeds": wavlm_embeds,
    }


def sorted_layers(recorded: dict) -> list[str]:
    return sorted((key for key in recorded if key.startswith("layer ")), key=lambda key: int(key.split()[1]))


@over_recorded("codec_encoders", "stage.", "out.", holding=("in.wave24",))
def test_stage_equals_the_recorded_one(fixture: NumericFixture, key: str):
    actual, expected = stages(fixture)[key], fixture.tensors(key)[""]
    if key == "stage.wavlm_hidden_states":
        # The layers above the highest one that is used do not run.
        assert actual.shape[1] == max(build_front_ends(fixture).wavlm_layers) + 1
        expected = expected[:, : actual.shape[1]]
    assert_close(actual, expected)
