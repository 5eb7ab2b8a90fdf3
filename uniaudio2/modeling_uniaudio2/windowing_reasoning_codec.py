"""Window arithmetic of the codec: which samples are encoded together, which codes are decoded together, how they join.

Pure integer arithmetic, no tensors. `reference=True` gives the arithmetic of the released code wherever that differs.
"""

import math
from dataclasses import dataclass

from .configuration_reasoning_codec import ReasoningCodecConfig

# The released code encodes 10 ms more than a window's codes describe.
SEGMENT_MARGIN = 240


@dataclass(frozen=True)
class EncodingPlan:
    """
    How one recording is encoded.

    Args:
        starts (`tuple[int, ...]`): First sample of each window.
        lengths (`tuple[int, ...]`): Samples of each window; the recording is continued as `periodic` says.
        periodic (`bool`): Whether the recording repeats beyond its end; otherwise silence follows.
        num_reasoning_frames, num_reconstruction_frames (`int`): Frames to keep of the windows' frames put together.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    periodic: bool
    num_reasoning_frames: int
    num_reconstruction_frames: int


@dataclass(frozen=True)
class DecodingPlan:
    """
    How the reconstruction codes of one recording are decoded.

    Args:
        starts, lengths (`tuple[int, ...]`):
            First frame and number of frames of each window. Frames beyond the recording's own repeat it from the
            start.
        context_start, context_length (`int`):
            Latent frames of a window with which the next one begins; the start counts from the end if negative.
        hop_samples (`int`): Samples between the starts of two windows' audio.
        overlap_samples (`int`): Samples over which two windows are cross-faded.
        window_samples (`int`): Samples that are kept of a whole window's audio.
        num_samples (`int`): Samples of the result.
    """

    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    context_start: int
    context_length: int
    hop_samples: int
    overlap_samples: int
    window_samples: int
    num_samples: int


def plan_encoding(
    num_samples: int, config: ReasoningCodecConfig, mode: str, window_seconds: float, reference: bool = False
) -> EncodingPlan:
    """Plans the windows of a recording of `num_samples` samples.

    `exact`: windows of `window_seconds` one after the other, the last zero-padded to the next 0.4 s, and as many
    frames as it takes to cover the recording.

    `release`: windows of `window_seconds` and 10 ms, over the recording repeated for ever, and one frame more than
    fits in whole numbers. With `reference` the windows do not overlap, so that 10 ms are lost in each.

    Raises:
        ValueError: If `window_seconds` does not hold whole frames of both streams, or is longer than Whisper hears.
    """
    window = round(window_seconds * config.sampling_rate)
    whisper_samples = config.whisper_config.max_source_positions * config.sampling_rate // 50
    unit = config.reasoning_hop_length if reference and mode == "release" else config.frame_unit
    if window < unit or window % unit or window > whisper_samples:
        raise ValueError(
            f"`window_seconds` must be a multiple of {unit / config.sampling_rate:g} s of at most "
            f"{whisper_samples / config.sampling_rate:g} s, got {window_seconds}."
        )
    if mode == "exact":
        return _plan_exact_encoding(num_samples, config, window, reference)
    return _plan_release_encoding(num_samples, config, window, reference)


def _plan_exact_encoding(num_samples: int, config: ReasoningCodecConfig, window: int, reference: bool) -> EncodingPlan:
    padded = math.ceil(num_samples / config.frame_unit) * config.frame_unit
    starts = tuple(range(0, padded, window))
    reasoning = math.ceil(num_samples / config.reasoning_hop_length)
    reconstruction = math.ceil(num_samples / config.reconstruction_hop_length)
    if reference:
        reasoning, reconstruction = _released_frame_counts(num_samples, config)
    return EncodingPlan(
        starts=starts,
        lengths=tuple(min(window, padded - start) for start in starts),
        periodic=False,
        num_reasoning_frames=min(reasoning, padded // config.reasoning_hop_length),
        num_reconstruction_frames=min(reconstruction, padded // config.reconstruction_hop_length),
    )


def _plan_release_encoding(
    num_samples: int, config: ReasoningCodecConfig, window: int, reference: bool
) -> EncodingPlan:
    segment = window + SEGMENT_MARGIN
    if reference:
        reasoning, reconstruction = _released_frame_counts(num_samples, config)
    else:
        reasoning = num_samples // config.reasoning_hop_length + 1
        reconstruction = num_samples // config.reconstruction_hop_length + 1
    num_windows = max(
        math.ceil(reasoning / (segment // config.reasoning_hop_length)),
        math.ceil(reconstruction / (segment // config.reconstruction_hop_length)),
    )
    hop = segment if reference else window
    return EncodingPlan(
        starts=tuple(index * hop for index in range(num_windows)),
        lengths=(segment,) * num_windows,
        periodic=True,
        num_reasoning_frames=reasoning,
        num_reconstruction_frames=reconstruction,
    )


def _released_frame_counts(num_samples: int, config: ReasoningCodecConfig) -> tuple[int, int]:
    """Frame counts of the released code, with its floating-point truncation."""
    seconds = num_samples / config.sampling_rate
    frame_rate = config.sampling_rate / config.latent_hop_length
    return int(seconds * (frame_rate / config.reasoning_interval)) + 1, int(seconds * (frame_rate / 2)) + 1


def plan_decoding(
    num_frames: int, config: ReasoningCodecConfig, mode: str, window_seconds: float, reference: bool = False
) -> DecodingPlan:
    """Plans the windows of `num_frames` reconstruction frames.

    Windows of `m` frames begin every `hop = m // 4 * 3` frames. A later window begins with known latents: those of the
    window before at the same place in time. `exact` ends with a window as short as it can be; `release` repeats the
    codes until they fill whole windows.

    With `reference`, as in the released code, the known latents are taken from the end of the window before, too late
    by more than the overlap, and the audio of a window is placed by a hop in samples that is longer than the hop in
    codes.

    Raises:
        ValueError: If a window holds fewer than four frames or more than the flow decoder has positions for.
    """
    frame = config.reconstruction_hop_length
    window = int(config.sampling_rate / frame * window_seconds)
    positions = config.flow_config.max_positions
    if not 4 <= window <= positions // 2:
        raise ValueError(
            f"`window_seconds` must lie between {4 * frame / config.sampling_rate:g} and "
            f"{positions // 2 * frame / config.sampling_rate:g} s, got {window_seconds}."
        )
    hop = window // 4 * 3
    overlap = window - hop
    num_windows = max(1, math.ceil((num_frames - overlap) / hop))
    starts = tuple(index * hop for index in range(num_windows))
    ends = num_frames if mode == "exact" else starts[-1] + window
    if reference:
        window_samples = int(config.sampling_rate * window_seconds)
        hop_samples = window_samples // 4 * 3
        context_length = overlap // 2
        context_start = -context_length
        num_samples = int(num_frames / (config.sampling_rate / frame) * config.sampling_rate)
    else:
        window_samples = window * frame
        hop_samples = hop * frame
        context_length = min(config.max_incontext_length, 2 * overlap)
        context_start = 2 * hop
        num_samples = num_frames * frame
    return DecodingPlan(
        starts=starts,
        lengths=tuple(min(window, ends - start) for start in starts),
        context_start=context_start,
        context_length=context_length,
        hop_samples=hop_samples,
        overlap_samples=window_samples - hop_samples,
        window_samples=window_samples,
        num_samples=num_samples,
    )
