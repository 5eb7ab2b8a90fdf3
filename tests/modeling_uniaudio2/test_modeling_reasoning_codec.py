import math
import os
import subprocess
import sys
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from tiny_codec import LATENT_DIM, make_codec, make_codec_config
from transformers import WavLMModel, WhisperFeatureExtractor, set_seed

from uniaudio2.modeling_uniaudio2.losses_reasoning_codec import flow_matching_loss, masked_mean_squared_error
from uniaudio2.modeling_uniaudio2.modeling_codec_front_ends import resample, whisper_log_mel
from uniaudio2.modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel

SECOND = 24000


@pytest.fixture(scope="module")
def codec() -> ReasoningCodecModel:
    return make_codec()


def noise_burst(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def random_codes(codec: ReasoningCodecModel, batch_size: int, frames: int, seed: int = 0) -> torch.LongTensor:
    size = codec.config.reconstruction_codebook_size
    return torch.randint(size, (batch_size, 8, frames), generator=torch.Generator().manual_seed(seed))


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class TestFrontEnds:
    def test_a_tone_is_the_same_tone_at_the_other_rate(self):
        source = torch.sin(2 * math.pi * 1000 * torch.arange(SECOND) / SECOND)[None]
        target = torch.sin(2 * math.pi * 1000 * torch.arange(16000) / 16000)[None]
        resampled = resample(source, 24000, 16000)
        assert resampled.shape == target.shape
        assert (resampled - target)[:, 100:-100].abs().max() < 1e-3

    def test_tones_above_the_new_rate_are_removed(self):
        source = torch.sin(2 * math.pi * 10000 * torch.arange(SECOND) / SECOND)[None]
        assert resample(source, 24000, 16000)[:, 100:-100].abs().max() < 1e-2

    @pytest.mark.parametrize("num_samples", [1, 2, 3, 1000, 1001])
    def test_resampled_length(self, num_samples: int):
        assert resample(torch.zeros(2, num_samples), 24000, 16000).shape == (2, math.ceil(num_samples * 2 / 3))

    @pytest.mark.parametrize("num_samples", [8000, 32000, 40000])  # padded, filling and cut
    def test_log_mel_is_that_of_the_whisper_feature_extractor(self, num_samples: int):
        extractor = WhisperFeatureExtractor(chunk_length=2)
        loud, quiet = noise_burst(num_samples, seed=1), 0.01 * noise_burst(num_samples, seed=2)
        expected = extractor([loud.numpy(), quiet.numpy()], sampling_rate=16000, return_tensors="pt").input_features
        assert torch.equal(whisper_log_mel(torch.stack((loud, quiet)), 80, 200), expected)

    def test_wavlm_features_are_the_mean_of_its_hidden_states(self, codec: ReasoningCodecModel):
        wavlm = codec.front_ends.wavlm
        assert isinstance(wavlm, WavLMModel)
        wave = noise_burst(2, 6400)
        with torch.no_grad():
            hidden_states = wavlm(torch.nn.functional.pad(wave, (0, 160)), output_hidden_states=True).hidden_states
            expected = (hidden_states[1] + hidden_states[2]).transpose(1, 2) / 2
            actual = codec.front_ends.wavlm_features(wave)
        assert actual.shape[-1] == 20
        torch.testing.assert_close(actual, expected)

    def test_layers_above_the_highest_one_used_do_not_run(self, codec: ReasoningCodecModel):
        calls = []
        layers = (codec.front_ends.wavlm.encoder.layers[2], codec.front_ends.music_encoder.layers[2])
        handles = [layer.register_forward_hook(lambda *_: calls.append(1)) for layer in layers]
        codec.encode(noise_burst(1, 9600))
        assert not calls
        for handle in handles:
            handle.remove()


class TestEncode:
    @pytest.mark.parametrize(
        "mode, num_samples, reasoning, reconstruction",
        [
            ("exact", 2400, 1, 2),
            ("exact", SECOND, 5, 13),
            ("exact", 5 * SECOND, 25, 63),
            ("release", 2400, 1, 2),
            ("release", SECOND, 6, 13),
            ("release", 5 * SECOND, 26, 63),
        ],
    )
    def test_shapes(
        self, codec: ReasoningCodecModel, mode: str, num_samples: int, reasoning: int, reconstruction: int
    ):
        encoded = codec.encode(noise_burst(2, 1, num_samples), encode_mode=mode)
        assert encoded.reasoning_codes.shape == (2, 8, reasoning) and encoded.reasoning_mask.all()
        assert encoded.reconstruction_codes.shape == (2, 8, reconstruction) and encoded.reconstruction_mask.all()
        assert encoded.reasoning_codes.max() < 32 and encoded.reconstruction_codes.max() < 48

    @pytest.mark.parametrize("mode", ["exact", "release"])
    @pytest.mark.parametrize("window_batch_size", [1, 3])
    @pytest.mark.parametrize("side", ["right", "left"])
    def test_an_item_of_a_batch_has_the_codes_it_has_alone(self, mode: str, window_batch_size: int, side: str):
        codec = make_codec(window_batch_size=window_batch_size)
        lengths = [2400, 5 * SECOND, 2 * SECOND, 54321]
        batch, mask = torch.zeros(4, max(lengths)), torch.zeros(4, max(lengths), dtype=torch.bool)
        for item, length in enumerate(lengths):
            place = slice(0, length) if side == "right" else slice(max(lengths) - length, None)
            batch[item, place] = noise_burst(length, seed=item)
            mask[item, place] = True
        together = codec.encode(batch, mask, encode_mode=mode)
        for item, length in enumerate(lengths):
            alone = codec.encode(noise_burst(1, length, seed=item), encode_mode=mode)
            assert torch.equal(
                together.reasoning_codes[item][:, together.reasoning_mask[item]], alone.reasoning_codes[0]
            )
            assert torch.equal(
                together.reconstruction_codes[item][:, together.reconstruction_mask[item]],
                alone.reconstruction_codes[0],
            )
            assert (together.reconstruction_codes[item][:, ~together.reconstruction_mask[item]] == -1).all()

    def test_it_is_deterministic_and_changes_nothing_even_in_training_mode(self):
        codec = make_codec()
        wave = noise_burst(1, SECOND)
        expected = codec.encode(wave).reconstruction_codes
        before = {name: value.clone() for name, value in codec.state_dict().items()}
        codec.train()
        assert torch.equal(codec.encode(wave).reconstruction_codes, expected)
        assert all(torch.equal(value, before[name]) for name, value in codec.state_dict().items())

    def test_windows_are_cut_where_their_codes_begin(self, codec: ReasoningCodecModel):
        wave = noise_burst(1, 4 * SECOND)
        whole = codec.encode(wave, encode_mode="exact").reconstruction_codes
        halves = [codec.encode(half, encode_mode="exact").reconstruction_codes for half in wave.split(2 * SECOND, 1)]
        assert torch.equal(whole, torch.cat(halves, dim=-1))

    def test_release_mode_repeats_a_short_clip(self, codec: ReasoningCodecModel):
        clip = noise_burst(1, SECOND)
        once = codec.encode(clip, encode_mode="release")
        twice = codec.encode(clip.repeat(1, 2), encode_mode="release")
        assert torch.equal(once.reconstruction_codes, twice.reconstruction_codes[..., :13])

    def test_attention_kernels_agree(self):
        wave = noise_burst(2, SECOND)
        sdpa, eager = make_codec(), make_codec()
        eager.set_attn_implementation("eager")
        assert sdpa.reasoning_branch.layers[0].self_attn.config._attn_implementation == "sdpa"
        assert sdpa.front_ends.whisper.config._attn_implementation == "sdpa"
        assert eager.front_ends.whisper.config._attn_implementation == "eager"
        with torch.no_grad():
            expected, actual = sdpa.front_ends(wave), eager.front_ends(wave)
            torch.testing.assert_close(actual.whisper, expected.whisper)
            expected = sdpa.reasoning_branch(expected.whisper, expected.music_semantic).quantized
            actual = eager.reasoning_branch(actual.whisper, actual.music_semantic).quantized
        torch.testing.assert_close(actual, expected)

    def test_no_more_windows_than_allowed_are_encoded_together(self):
        codec = make_codec(window_batch_size=2)
        sizes = []
        codec.front_ends.register_forward_pre_hook(lambda _module, inputs: sizes.append(inputs[0].shape[0]))
        codec.encode(noise_burst(2, 5 * SECOND), encode_mode="exact")
        assert max(sizes) == 2 and sum(sizes) == 6

    @pytest.mark.parametrize(
        "arguments, message",
        [
            (
                {"input_values": torch.zeros(SECOND)},
                r"must have the shape \(batch_size, num_samples\) or .*\(24000,\)",
            ),
            ({"input_values": torch.zeros(1, 2, SECOND)}, "has 2 channels.*Mix them down"),
            ({"input_values": torch.zeros(1, 1, 1, 9)}, "must have the shape"),
            ({"input_values": torch.zeros(1, 0)}, "holds no audio"),
            ({"input_values": torch.zeros(1, 9600, dtype=torch.int16)}, "floating-point tensor.*torch.int16"),
            ({"input_values": np.zeros((1, 9600))}, "floating-point tensor"),
            ({"input_values": torch.full((1, 9600), math.nan)}, "NaN or infinite"),
            ({"padding_mask": torch.ones(1, 100)}, r"here \(1, 9600\), got \(1, 100\)"),
            ({"padding_mask": torch.zeros(1, 9600)}, "leaves no sample of item 0"),
            ({"padding_mask": torch.tensor([[1, 0, 1] * 3200])}, "one contiguous stretch"),
            ({"encode_mode": "fast"}, r"`encode_mode` must be one of \('release', 'exact'\), got 'fast'"),
            ({"window_seconds": 1.0}, "multiple of 0.4 s of at most 2 s, got 1.0"),
        ],
    )
    def test_bad_input_is_named(self, codec: ReasoningCodecModel, arguments: dict, message: str):
        with pytest.raises(ValueError, match=message):
            codec.encode(**{"input_values": torch.zeros(1, 9600), **arguments})


class TestDecode:
    @pytest.mark.parametrize("mode", ["exact", "release"])
    @pytest.mark.parametrize("frames", [1, 12, 25, 26, 70])
    def test_a_frame_is_1920_samples(self, codec: ReasoningCodecModel, mode: str, frames: int):
        decoded = codec.decode(random_codes(codec, 2, frames), decode_mode=mode)
        assert decoded.audio_values.shape == (2, 1, frames * 1920) and decoded.padding_mask.all()
        assert decoded.audio_values.isfinite().all()

    @pytest.mark.parametrize("mode", ["exact", "release"])
    @pytest.mark.parametrize("shared", [False, True])
    def test_an_item_of_a_batch_sounds_as_it_does_alone(self, codec: ReasoningCodecModel, mode: str, shared: bool):
        """With one generator for all, the first item gets what it gets alone."""
        lengths = [60, 7, 44]
        batch = torch.full((3, 8, 60), -1)
        for item, length in enumerate(lengths):
            batch[item, :, :length] = random_codes(codec, 1, length, seed=item)[0]
        generator = seeded(0) if shared else [seeded(item) for item in range(3)]
        together = codec.decode(batch, generator=generator, decode_mode=mode)
        for item, length in enumerate(lengths[:1] if shared else lengths):
            alone = codec.decode(batch[item : item + 1, :, :length], generator=seeded(item), decode_mode=mode)
            audio = together.audio_values[item, 0]
            assert together.padding_mask[item].sum() == length * 1920
            torch.testing.assert_close(audio[: length * 1920], alone.audio_values[0, 0], atol=1e-5, rtol=1e-5)
            assert not audio[length * 1920 :].any()

    def test_the_generator_decides(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 30)
        first, again, other = (codec.decode(codes, generator=seeded(seed)).audio_values for seed in (1, 1, 2))
        assert torch.equal(first, again) and not torch.equal(first, other)

    def test_without_a_generator_the_global_seed_decides(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 10)
        set_seed(3)
        first = codec.decode(codes).audio_values
        assert not torch.equal(codec.decode(codes).audio_values, first)
        set_seed(3)
        assert torch.equal(codec.decode(codes).audio_values, first)

    @pytest.mark.parametrize("guidance_scale, batch", [(1.5, 4), (1.0, 2), (0.0, 2)])
    def test_guidance_runs_the_flow_decoder_twice_unless_there_is_none(
        self, codec: ReasoningCodecModel, guidance_scale: float, batch: int
    ):
        sizes = []
        handle = codec.flow_decoder.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
        codec.decode(random_codes(codec, 2, 10), num_inference_steps=3, guidance_scale=guidance_scale)
        handle.remove()
        assert sizes == [batch] * 3

    def test_windows_of_several_items_are_decoded_together(self):
        """As many as allowed: a window waits for the one before in its own item, not for those of the others."""
        codec, sizes = make_codec(window_batch_size=2), []
        codec.flow_decoder.register_forward_pre_hook(lambda _module, inputs: sizes.append(len(inputs[0])))
        codec.decode(random_codes(codec, 3, 40), num_inference_steps=2, guidance_scale=1.0)
        assert sizes == [2, 2, 1, 1] * 2

    def test_defaults_come_from_the_config(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 10)
        explicit = codec.decode(codes, num_inference_steps=2, guidance_scale=1.5, generator=seeded(0))
        assert torch.equal(codec.decode(codes, generator=seeded(0)).audio_values, explicit.audio_values)

    def test_given_noise_is_used(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 30)
        noise = torch.randn(1, 2, 50, LATENT_DIM)
        first = codec.decode(codes, noise=noise, generator=seeded(0)).audio_values
        assert torch.equal(codec.decode(codes, noise=noise, generator=seeded(1)).audio_values, first)

    @pytest.mark.parametrize("mode", ["exact", "release"])
    @pytest.mark.parametrize("seconds", [2.0, 1.0])  # an even and an odd number of frames in a window
    def test_windows_join_without_a_seam(
        self, codec: ReasoningCodecModel, mode: str, seconds: float, monkeypatch: pytest.MonkeyPatch
    ):
        """Latents and samples that tell the time they belong to: every sample must lie at its time, and the latents
        with which a window begins must be those of its beginning."""
        frames = 90
        windows = []

        def tell_the_time(features, noise, known, **_):
            start = len(windows) * 2 * (int(12.5 * seconds) // 4 * 3)
            windows.append(start)
            times = torch.arange(start, start + 2 * features.shape[1]).float()
            times = times[None, :, None].expand(1, -1, LATENT_DIM)
            if known is not None:
                assert torch.equal(known, times[:, : known.shape[1]]) and known.shape[1] > 0
            return times

        monkeypatch.setattr(codec, "_decode_latents", tell_the_time)
        monkeypatch.setattr(codec.scalar_codec, "decode", lambda latents: latents[:, :1].repeat_interleave(960, dim=2))
        audio = codec.decode(random_codes(codec, 1, frames), decode_mode=mode, window_seconds=seconds).audio_values
        assert len(windows) > 3
        torch.testing.assert_close(audio[0, 0], torch.arange(2 * frames).repeat_interleave(960).float())

    def test_each_stream_of_codes_is_heard(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 10)
        base = codec.reconstruction_branch.dequantize(codes.transpose(1, 2))
        for stream in range(8):
            changed = codes.clone()
            changed[0, stream, 0] = (changed[0, stream, 0] + 1) % 48
            difference = codec.reconstruction_branch.dequantize(changed.transpose(1, 2)) - base
            assert difference[0, 0].abs().max() > 0 and not difference[0, 1:].any()

    def test_reasoning_codes_are_optional_and_follow_the_windows(self, codec: ReasoningCodecModel):
        codes = random_codes(codec, 1, 60)
        reasoning = codec.encode(noise_burst(1, 60 * 1920), encode_mode="exact").reasoning_codes
        arguments = {"generator": seeded(0), "decode_mode": "exact"}
        without = codec.decode(codes, **arguments).audio_values
        changed = reasoning.clone()
        changed[..., -1] = (changed[..., -1] + 1) % 32
        first, second = (
            codec.decode(codes, reasoning_codes=item, generator=seeded(0), decode_mode="exact").audio_values
            for item in (reasoning, changed)
        )
        assert not torch.equal(first, without)
        # The last reasoning frame belongs to the last window alone.
        last_window = 2 * 18 * 1920
        assert torch.equal(first[..., :last_window], second[..., :last_window])
        assert not torch.equal(first[..., last_window:], second[..., last_window:])

    def test_a_missing_last_reasoning_frame_is_repeated(self, codec: ReasoningCodecModel):
        """Clips whose length mod 0.4 s lies between 0.16 and 0.2 s have one; the released code fails on them."""
        codes = random_codes(codec, 1, 13)
        reasoning = torch.randint(32, (1, 8, 5))
        short = codec.decode(codes, reasoning, generator=seeded(0), decode_mode="exact").audio_values
        repeated = torch.cat((reasoning, reasoning[..., -1:]), dim=-1)
        whole = codec.decode(codes, repeated, generator=seeded(0), decode_mode="exact").audio_values
        assert torch.equal(short, whole)

    @pytest.mark.parametrize(
        "scheduler",
        [
            diffusers.FlowMatchHeunDiscreteScheduler,
            diffusers.FlowMatchEulerDiscreteScheduler,
        ],
    )
    def test_the_scheduler_can_be_swapped_and_is_saved(self, scheduler: type, tmp_path):
        codec = make_codec()
        codec.scheduler = scheduler.from_config(codec.scheduler.config)
        expected = codec.decode(random_codes(codec, 1, 10), generator=seeded(0)).audio_values
        codec.save_pretrained(tmp_path)
        assert (tmp_path / "scheduler" / "scheduler_config.json").is_file()
        loaded = ReasoningCodecModel.from_pretrained(tmp_path)
        assert type(loaded.scheduler) is scheduler
        assert torch.equal(loaded.decode(random_codes(codec, 1, 10), generator=seeded(0)).audio_values, expected)

    @pytest.mark.parametrize(
        "codes, message",
        [
            (torch.zeros(1, 8, 5), "must be an integer tensor, got torch.float32"),
            ([[0] * 8], "must be an integer tensor"),
            (torch.zeros(8, 5, dtype=torch.long), r"must have the shape \(batch_size, 8, frames\), got \(8, 5\)"),
            (torch.zeros(1, 5, 8, dtype=torch.long), r"got \(1, 5, 8\)"),
            (torch.zeros(1, 8, 0, dtype=torch.long), "holds an item without a frame"),
            (torch.full((1, 8, 5), -1), "holds an item without a frame"),
            (torch.full((1, 8, 5), 48), r"must lie in \[0, 48\).*from 48 to 48.*special tokens"),
            (torch.tensor([[[-1, 3]] * 8]), "only after an item's last frame"),
            (torch.tensor([[[3, 3]] * 7 + [[3, -1]]]), "only after an item's last frame"),
        ],
    )
    def test_bad_codes_are_named(self, codec: ReasoningCodecModel, codes: torch.Tensor, message: str):
        with pytest.raises(ValueError, match=message):
            codec.decode(codes)

    @pytest.mark.parametrize(
        "arguments, message",
        [
            ({"reasoning_codes": torch.full((2, 8, 4), 32)}, r"`reasoning_codes` must lie in \[0, 32\)"),
            ({"reasoning_codes": torch.zeros(1, 8, 4, dtype=torch.long)}, "batches of 1 and 2"),
            ({"decode_mode": "fast"}, "`decode_mode` must be one of"),
            ({"window_seconds": 9.0}, "between 0.32 and 4 s, got 9.0"),
            ({"generator": [torch.Generator()]}, "one generator per item, 2, got 1"),
            ({"noise": torch.zeros(2, 20, 6)}, r"at least \(2, 1, 50, 6\), got \(2, 20, 6\)"),
            ({"num_inference_steps": 0}, "must be at least 1"),
        ],
    )
    def test_bad_arguments_are_named(self, codec: ReasoningCodecModel, arguments: dict, message: str):
        with pytest.raises(ValueError, match=message):
            codec.decode(random_codes(codec, 2, 10), **arguments)


class TestForward:
    def test_it_encodes_and_decodes(self, codec: ReasoningCodecModel):
        wave = noise_burst(2, 30000)
        mask = torch.ones(2, 30000, dtype=torch.bool)
        mask[1, 20000:] = False
        output = codec(wave, mask, generator=seeded(0))
        encoded = codec.encode(wave, mask)
        decoded = codec.decode(encoded.reconstruction_codes, generator=seeded(0)).audio_values
        assert torch.equal(output.reconstruction_codes, encoded.reconstruction_codes)
        assert output.audio_values.shape == (2, 1, 30000) and torch.equal(output.padding_mask, mask)
        assert torch.equal(output.audio_values[0, 0], decoded[0, 0, :30000])
        assert torch.equal(output.audio_values[1, 0, :20000], decoded[1, 0, :20000])
        assert not output.audio_values[1, 0, 20000:].any()

    def test_tuples_on_request(self, codec: ReasoningCodecModel):
        encoded = codec.encode(noise_burst(1, 9600), return_dict=False)
        assert [part.shape for part in encoded[:2]] == [(1, 8, 3), (1, 8, 6)]
        assert codec.decode(encoded[1], return_dict=False)[0].shape == (1, 1, 6 * 1920)

    def test_either_audio_or_features(self, codec: ReasoningCodecModel):
        with pytest.raises(ValueError, match="either `input_values` or `features`"):
            codec()


class TestTraining:
    def test_losses_are_weighted_as_in_the_paper(self):
        codec = make_codec(structure_feature_loss_weight=0.25).train()
        output = codec(noise_burst(2, SECOND))
        expected = (
            output.flow_loss
            + 0.1 * output.phone_feature_loss
            + 0.25 * output.structure_feature_loss
            + 0.5 * output.commitment_loss
        )
        torch.testing.assert_close(output.loss.detach(), expected)
        assert min(output.flow_loss, output.phone_feature_loss, output.commitment_loss) > 0

    def test_features_that_were_computed_before_give_the_same_losses(self):
        codec = make_codec().train()
        wave, mask = noise_burst(2, 30000), torch.arange(30000) < torch.tensor([[30000], [20000]])
        before = {name: value.clone() for name, value in codec.state_dict().items()}
        set_seed(1)
        expected = codec(wave, mask)
        codec.load_state_dict(before)
        features = codec.extract_features(wave, mask)
        set_seed(1)
        assert torch.equal(codec(features=features).loss, expected.loss)
        assert features.latents.shape == (2, 40, LATENT_DIM)
        assert features.latent_mask.sum(dim=1).tolist() == [32, 21]

    def test_only_the_reconstruction_stage_is_trained(self):
        codec = make_codec().train()
        codec(noise_burst(2, 2 * SECOND)).loss.backward()
        trained = {name.split(".")[0] for name, value in codec.named_parameters() if value.grad is not None}
        assert trained == {
            "reconstruction_branch",
            "flow_conditioner",
            "flow_decoder",
            "phone_feature_decoder",
            "structure_feature_decoder",
        }
        codec.freeze_for_reconstruction_training()
        assert {name.split(".")[0] for name, value in codec.named_parameters() if value.requires_grad} == trained

    def test_codebooks_of_the_reconstruction_branch_follow_the_data_in_training_alone(self):
        codec = make_codec().train()
        before = {name: value.clone() for name, value in codec.named_buffers()}
        codec(noise_burst(2, SECOND))
        moved = {name for name, value in codec.named_buffers() if not torch.equal(value, before[name])}
        assert moved and all("reconstruction_branch" in name and "_codebook" in name for name in moved)
        codec.eval()
        before = {name: value.clone() for name, value in codec.named_buffers()}
        assert codec(noise_burst(2, SECOND), return_loss=True).loss > 0
        assert all(torch.equal(value, before[name]) for name, value in codec.named_buffers())

    def test_frozen_encoders_never_leave_evaluation_mode(self):
        codec = make_codec().train()
        assert codec.training and codec.reconstruction_branch.training
        assert not any(module.training for module in codec.front_ends.modules())
        assert not any(module.training for module in codec.scalar_codec.modules())

    def test_modulation_is_dropped_per_sample_and_stream(self):
        film = make_codec().reconstruction_branch.phone_film
        features, condition = torch.randn(200, 3, 32), torch.randn(200, 3, 32)
        kept = film(features, condition)
        set_seed(0)
        dropped = film(features, condition, dropout=0.2)
        bypassed = (dropped == features).all(dim=(1, 2))
        assert 20 < bypassed.sum() < 60
        assert torch.equal(dropped[~bypassed], kept[~bypassed])

    def test_padding_is_neither_quantised_nor_counted_in_feature_losses(self):
        prediction, target = torch.randn(2, 3, 8), torch.randn(2, 3, 8)
        mask = torch.arange(8) < torch.tensor([[8], [5]])
        expected = torch.cat(((prediction - target)[0].T, (prediction - target)[1, :, :5].T)).square().mean()
        torch.testing.assert_close(masked_mean_squared_error(prediction, target, mask), expected)

    def test_the_flow_loss_of_a_perfect_velocity_is_zero(self):
        latents, noise, time = torch.randn(2, 5, 3), torch.randn(2, 5, 3), torch.rand(2)
        velocity = latents - (1 - 1e-4) * noise
        weight = torch.ones(2, 5)
        arguments = {"condition": torch.zeros(2, 5, 4), "incontext_latents": torch.zeros(2, 5, 3), "weight": weight}
        arguments |= {"latents": latents, "noise": noise, "time": time, "sigma_min": 1e-4}
        assert flow_matching_loss(lambda hidden_states, t: velocity, **arguments) == 0
        # Summed over channels, averaged over frames and channels; the weight is squared only above the line.
        arguments["weight"] = 0.5 * weight
        loss = flow_matching_loss(lambda hidden_states, t: velocity + 2, **arguments)
        torch.testing.assert_close(loss, torch.tensor(0.5 * 4.0))

    def test_known_frames_are_given_in_half_of_the_batches(self, codec: ReasoningCodecModel):
        set_seed(0)
        draws = [codec._draw_known_frames(4, 50, torch.device("cpu")) for _ in range(200)]
        present = [draw for draw in draws if draw.any()]
        assert 70 < len(present) < 130
        lengths = torch.stack([draw.sum(dim=1) for draw in present])
        assert (lengths.min(), lengths.max()) == (8, 12)
        assert all(draw[0, : draw[0].sum()].all() for draw in present)

    def test_it_learns(self):
        """The flow loss of one batch falls below that of a decoder that knows nothing."""
        codec = make_codec().train()
        codec.freeze_for_reconstruction_training()
        features = codec.extract_features(noise_burst(4, SECOND))
        optimizer = torch.optim.AdamW([p for p in codec.parameters() if p.requires_grad], lr=3e-3)
        losses = []
        for _ in range(40):
            loss = codec(features=features).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        assert sum(losses[-10:]) < 0.9 * sum(losses[:10])

    def test_training_audio_must_fit_whisper(self, codec: ReasoningCodecModel):
        with pytest.raises(ValueError, match=r"at most 2 s at once, and a recording lasts 2\.00004 s"):
            codec.extract_features(torch.zeros(1, 48001))

    def test_activation_checkpointing_gives_the_same_gradients(self):
        gradients = []
        for checkpointing in (False, True):
            codec = make_codec().train()
            if checkpointing:
                codec.activation_checkpointing_enable()
                assert codec.flow_decoder.gradient_checkpointing
            set_seed(0)
            codec(noise_burst(1, SECOND)).loss.backward()
            gradients.append(codec.flow_decoder.proj_in.conv.weight.grad)
        torch.testing.assert_close(gradients[0], gradients[1])


class TestLoading:
    def test_everything_comes_back(self, codec: ReasoningCodecModel, tmp_path):
        codec.save_pretrained(tmp_path)
        loaded, info = ReasoningCodecModel.from_pretrained(tmp_path, output_loading_info=True)
        assert not any(info.values())
        tensors = dict(codec.named_parameters()) | dict(codec.named_buffers())
        for name, value in (*loaded.named_parameters(), *loaded.named_buffers()):
            assert torch.equal(value, tensors.pop(name)), name
        assert not tensors
        wave = noise_burst(1, SECOND)
        assert torch.equal(loaded.encode(wave).reconstruction_codes, codec.encode(wave).reconstruction_codes)

    def test_what_a_file_lacks_is_initialised(self):
        """`from_pretrained` builds the model without memory: nothing may be left as it was found there.

        Deterministic mode makes that visible, for it fills new memory with NaN and with the largest integers.
        """
        torch.use_deterministic_algorithms(True)
        try:
            loaded = ReasoningCodecModel.from_pretrained(None, config=make_codec_config(), state_dict={})
        finally:
            torch.use_deterministic_algorithms(False)
        for name, value in (*loaded.named_parameters(), *loaded.named_buffers()):
            assert value.isfinite().all() and value.float().abs().max() < 100, name
        codebook = loaded.reasoning_branch.quantizer.layers[0]._codebook
        assert codebook.initted and torch.equal(codebook.embed, codebook.embed_avg) and codebook.embed.std() > 0.01

    def test_a_file_that_lost_weights_is_an_error(self, codec: ReasoningCodecModel, tmp_path):
        weights = {name: value for name, value in codec.state_dict().items() if "query_token" not in name}
        codec.save_pretrained(tmp_path, state_dict=weights)
        with pytest.raises(ValueError, match=r"reasoning_branch\.query_token is missing"):
            ReasoningCodecModel.from_pretrained(tmp_path)

    def test_weights_of_other_sizes_are_an_error(self, codec: ReasoningCodecModel, tmp_path):
        codec.save_pretrained(tmp_path)
        make_codec_config(reasoning_codebook_size=16, architectures=["ReasoningCodecModel"]).save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"has shape .*; and 21 more"):
            ReasoningCodecModel.from_pretrained(tmp_path)

    def test_codebooks_stay_in_single_precision(self, codec: ReasoningCodecModel, tmp_path):
        codec.save_pretrained(tmp_path)
        loaded = ReasoningCodecModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
        assert loaded.dtype == torch.bfloat16
        embed = loaded.reconstruction_branch.acoustic_quantizer.layers[5]._codebook.embed
        assert torch.equal(embed, codec.reconstruction_branch.acoustic_quantizer.layers[5]._codebook.embed)
        encoded = loaded.encode(noise_burst(1, SECOND))
        audio = loaded.decode(encoded.reconstruction_codes, encoded.reasoning_codes).audio_values
        assert audio.dtype == torch.float32 and audio.isfinite().all()

    def test_a_folder_without_a_scheduler_is_an_error(self, codec: ReasoningCodecModel, tmp_path):
        codec.save_pretrained(tmp_path)
        (tmp_path / "scheduler" / "scheduler_config.json").unlink()
        with pytest.raises(OSError, match=r"scheduler_config\.json"):
            ReasoningCodecModel.from_pretrained(tmp_path)

    def test_an_unknown_scheduler_is_an_error(self, codec: ReasoningCodecModel, tmp_path):
        codec.save_pretrained(tmp_path)
        path = tmp_path / "scheduler" / "scheduler_config.json"
        path.write_text(path.read_text().replace("FlowMatchEulerDiscreteScheduler", "NoSuchScheduler"))
        with pytest.raises(ValueError, match="'NoSuchScheduler', which is no scheduler"):
            ReasoningCodecModel.from_pretrained(tmp_path)


HOUR = """
import resource, sys
import torch
from tiny_codec import TINY_CODEC, make_codec

RELEASED_WINDOWS = {
    "whisper_config": {**TINY_CODEC["whisper_config"], "max_source_positions": 1500},
    "flow_config": {**TINY_CODEC["flow_config"], "max_positions": 500},
    "window_seconds": 30.0,
    "decode_window_seconds": 20.0,
    "window_batch_size": 2,
}

def peak_of(seconds):
    codec = make_codec(**RELEASED_WINDOWS)
    wave = 0.1 * torch.randn(1, seconds * 24000)
    encoded = codec.encode(wave, torch.ones_like(wave, dtype=torch.bool), encode_mode=sys.argv[1])
    assert encoded.reconstruction_codes.shape[-1] == int(seconds * 12.5) + (sys.argv[1] == "release")
    decoded = codec.decode(encoded.reconstruction_codes, decode_mode=sys.argv[1], num_inference_steps=1)
    assert decoded.audio_values.shape[-1] == encoded.reconstruction_codes.shape[-1] * 1920
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
print(peak_of(64), peak_of(3600))
"""


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["exact", "release"])
def test_an_hour_needs_its_samples_and_no_more(mode: str):
    """Beyond what goes in and comes out (samples, and a mask for each), an hour takes the memory of a minute, and a
    fifth for codes and for the gaps that the allocator leaves."""
    run = subprocess.run(
        [sys.executable, "-c", HOUR, mode],
        capture_output=True,
        text=True,
        check=True,
        # A fixed threshold: glibc otherwise raises it as it goes, and then keeps what was freed.
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join((str(Path(__file__).parent), *sys.path)),
            "MALLOC_MMAP_THRESHOLD_": "1000000",
        },
    )
    minute, hour = map(int, run.stdout.split())
    samples = 3600 * SECOND
    in_and_out = 2 * samples * (4 + 1)
    assert hour - minute < 1.2 * in_and_out
