"""Window arithmetic at the released sizes: pure numbers, no model."""

import pytest

from uniaudio2.modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from uniaudio2.modeling_uniaudio2.windowing_reasoning_codec import plan_decoding, plan_encoding

CONFIG = ReasoningCodecConfig()
SECOND = 24000


def encoding(num_samples: int, mode: str, seconds: float = 30.0, reference: bool = False):
    return plan_encoding(num_samples, CONFIG, mode, seconds, reference)


def decoding(num_frames: int, mode: str, seconds: float = 20.0, reference: bool = False):
    return plan_decoding(num_frames, CONFIG, mode, seconds, reference)


class TestEncoding:
    @pytest.mark.parametrize(
        "num_samples, reasoning, reconstruction",
        [(SECOND, 6, 13), (2 * SECOND, 11, 26), (43900, 10, 23), (30 * SECOND, 151, 376), (2400, 1, 2)],
    )
    def test_release_counts_one_frame_more_than_fits(self, num_samples: int, reasoning: int, reconstruction: int):
        plan = encoding(num_samples, "release")
        assert (plan.num_reasoning_frames, plan.num_reconstruction_frames) == (reasoning, reconstruction)

    @pytest.mark.parametrize(
        "num_samples, reasoning, reconstruction",
        [(SECOND, 5, 13), (2 * SECOND, 10, 25), (43900, 10, 23), (30 * SECOND, 150, 375), (2400, 1, 2), (1, 1, 1)],
    )
    def test_exact_counts_the_frames_that_cover_the_audio(self, num_samples: int, reasoning: int, reconstruction: int):
        plan = encoding(num_samples, "exact")
        assert (plan.num_reasoning_frames, plan.num_reconstruction_frames) == (reasoning, reconstruction)

    def test_release_reads_a_window_and_ten_milliseconds_of_repeated_audio(self):
        plan = encoding(SECOND, "release")
        assert (plan.starts, plan.lengths, plan.periodic) == ((0,), (720240,), True)

    def test_exact_pads_to_the_next_four_tenths_of_a_second(self):
        plan = encoding(SECOND, "exact")
        assert (plan.starts, plan.lengths, plan.periodic) == ((0,), (28800,), False)

    @pytest.mark.parametrize("mode", ["release", "exact"])
    def test_windows_begin_where_their_codes_do(self, mode: str):
        plan = encoding(95 * SECOND, mode)
        assert plan.starts == (0, 720000, 1440000, 2160000)

    def test_the_reference_loses_ten_milliseconds_per_window(self):
        assert encoding(95 * SECOND, "release", reference=True).starts == (0, 720240, 1440480, 2160720)

    @pytest.mark.parametrize("mode", ["release", "exact"])
    @pytest.mark.parametrize("reference", [False, True])
    def test_windows_give_all_frames_that_are_counted(self, mode: str, reference: bool):
        for num_samples in (1, 1919, 9600, 10001, 719999, 720000, 720001, 3600 * SECOND - 1, 3600 * SECOND):
            plan = encoding(num_samples, mode, reference=reference)
            assert sum(length // 4800 for length in plan.lengths) >= plan.num_reasoning_frames > 0
            assert sum(length // 960 // 2 for length in plan.lengths) >= plan.num_reconstruction_frames > 0

    def test_the_reference_counts_as_the_released_encode_segment(self):
        # `int(seconds * rate) + 1`, cut to what was computed from the padded clip.
        plan = encoding(1920, "exact", reference=True)
        assert (plan.num_reasoning_frames, plan.num_reconstruction_frames) == (1, 2)
        plan = encoding(2 * SECOND, "exact", reference=True)
        assert (plan.num_reasoning_frames, plan.num_reconstruction_frames) == (10, 25)

    @pytest.mark.parametrize("seconds", [0.1, 0.5, 1.0, 30.4])
    def test_windows_must_hold_whole_frames_and_fit_whisper(self, seconds: float):
        with pytest.raises(ValueError, match=r"multiple of 0.4 s of at most 30 s, got"):
            encoding(SECOND, "exact", seconds)

    def test_the_reference_also_takes_windows_that_lose_half_a_frame(self):
        plan = encoding(2 * SECOND, "release", seconds=1.0, reference=True)
        assert plan.lengths == (24240,) * 3  # 12 frames each for 26


class TestDecoding:
    @pytest.mark.parametrize(
        "seconds, window, hop, known, audio_hop", [(20.0, 250, 186, 32, 360000), (30.0, 375, 279, 48, 540000)]
    )
    def test_the_reference_has_the_released_numbers(self, seconds, window, hop, known, audio_hop):
        plan = decoding(1000, "release", seconds, reference=True)
        assert plan.starts[:2] == (0, hop) and set(plan.lengths) == {window}
        assert (plan.context_start, plan.context_length) == (-known, known)
        assert (plan.hop_samples, plan.overlap_samples) == (audio_hop, 24000 * int(seconds) - audio_hop)

    @pytest.mark.parametrize("seconds", [2.0, 3.0, 20.0, 30.0])
    def test_known_latents_are_those_of_the_same_time(self, seconds: float):
        plan = decoding(1000, "release", seconds)
        assert plan.starts[0] * 2 + plan.context_start == plan.starts[1] * 2
        assert plan.context_start + plan.context_length <= 2 * plan.lengths[0]
        assert plan.context_length <= CONFIG.max_incontext_length

    @pytest.mark.parametrize("seconds", [2.0, 3.0, 20.0, 30.0])
    def test_audio_is_placed_where_its_codes_are(self, seconds: float):
        plan = decoding(1000, "release", seconds)
        assert plan.hop_samples == plan.starts[1] * 1920
        assert plan.hop_samples + plan.overlap_samples == plan.window_samples == plan.lengths[0] * 1920

    def test_exact_windows_end_with_the_codes(self):
        for num_frames in (1, 249, 250, 251, 436, 437, 1000, 45000):
            plan = decoding(num_frames, "exact")
            assert plan.starts[-1] + plan.lengths[-1] == num_frames
            assert plan.num_samples == num_frames * 1920
            # A window that continues another holds more than the overlap.
            assert len(plan.starts) == 1 or plan.lengths[-1] * 1920 > plan.overlap_samples

    def test_release_windows_are_always_whole(self):
        for num_frames in (1, 249, 250, 251, 436, 437, 1000, 45000):
            plan = decoding(num_frames, "release")
            assert set(plan.lengths) == {250}
            assert num_frames <= plan.starts[-1] + 250 < num_frames + 250
            assert len(plan.starts) == 1 or plan.starts[-1] + 64 < num_frames

    def test_the_reference_loses_a_sample_to_truncation(self):
        shorter = [n for n in range(1, 5000) if decoding(n, "release", reference=True).num_samples != n * 1920]
        assert shorter and all(decoding(n, "release").num_samples == n * 1920 for n in shorter)

    @pytest.mark.parametrize("seconds", [0.1, 121.0])
    def test_windows_must_fit_the_flow_decoder(self, seconds: float):
        with pytest.raises(ValueError, match=r"between 0.32 and 120 s"):
            decoding(10, "exact", seconds)
