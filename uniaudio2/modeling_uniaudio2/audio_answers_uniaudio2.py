"""Audio answers while they are written: which part every item is in, which ids it may say next, what it has said."""

import math

import torch

from .configuration_uniaudio2 import UniAudio2Config

# The parts of an audio answer. A recording is a reasoning part, then a reconstruction part.
NO_PART, REASONING, RECONSTRUCTION = 0, 1, 2
# Frames in a second of audio (paper).
REASONING_FRAME_RATE, RECONSTRUCTION_FRAME_RATE = 5.0, 12.5


def max_part_frames(max_duration: float, part: int) -> int:
    """Most frames of a part of a recording of `max_duration` seconds. The released encoder counts one reasoning frame
    more than fits in whole numbers."""
    # A tiny surplus, so that 0.24 s are three frames of 0.08 s in floating point too.
    if part == REASONING:
        return math.floor(max_duration * REASONING_FRAME_RATE + 1e-6) + 1
    return math.floor(max_duration * RECONSTRUCTION_FRAME_RATE + 1e-6)


def min_reconstruction_frames(min_duration: float) -> int:
    """Fewest reconstruction frames of a recording of at least `min_duration` seconds."""
    return math.ceil(min_duration * RECONSTRUCTION_FRAME_RATE - 1e-6)


class AudioAnswers:
    """
    The state of a batch of audio answers.

    A frame of nothing but `reasoning_eos_token_id` ends a reasoning part; a frame of nothing but
    `reconstruction_eos_token_id` ends a reconstruction part, and also the recording of a reasoning part that is still
    open. In a reconstruction part reasoning ids are forbidden. As in the released code the first frame of each part is
    no code, without a look: it is the bos frame. A later frame that mixes codes with special ids or with ids of the
    other stream is malformed: it counts neither as a code nor towards the minimum duration.

    Args:
        config ([`UniAudio2Config`]): The ids.
        parts (`torch.LongTensor` of shape `(num_items, num_parts)`):
            The parts every item has to write, 1 reasoning and 2 reconstruction, followed by 0 if they are fewer.
        last_frames (`torch.LongTensor` of shape `(num_items, num_codebooks)`, *optional*):
            The last rows of the prompts. One that is the bos frame of the first part has begun it.
        min_duration, max_duration (`float`, *optional*):
            Seconds of each recording. Before the minimum a reconstruction part cannot end; at the maximum it ends, and
            a reasoning part does where it describes as much.
    """

    def __init__(
        self,
        config: UniAudio2Config,
        parts: torch.LongTensor,
        last_frames: torch.LongTensor | None = None,
        min_duration: float | None = None,
        max_duration: float | None = None,
    ):
        device = parts.device
        self.parts = torch.nn.functional.pad(parts, (0, 2), value=NO_PART)
        self.part_index = torch.zeros(len(parts), dtype=torch.long, device=device)
        self.is_stopped = torch.zeros(len(parts), dtype=torch.bool, device=device)
        # Frames of the current part, without its bos frame.
        self.num_frames = torch.full_like(self.part_index, -1)
        self.num_codes = torch.zeros_like(self.part_index)

        offset = config.reasoning_vocab_size
        ends = {
            REASONING: config.reasoning_eos_token_id,
            RECONSTRUCTION: config.reconstruction_eos_token_id + offset,
        }
        codes = {
            REASONING: (0, config.reasoning_codebook_size),
            RECONSTRUCTION: (offset, offset + config.reconstruction_codebook_size),
        }
        limits = dict.fromkeys(ends, torch.inf)
        if max_duration is not None:
            limits = {part: max_part_frames(max_duration, part) for part in ends}
        # Tables with one entry per part, finished items included (no frame is a code there).
        self.ends = torch.tensor([0, ends[REASONING], ends[RECONSTRUCTION]], device=device)
        if last_frames is not None:
            bos = [0, config.reasoning_bos_token_id, config.reconstruction_bos_token_id + offset]
            bos = torch.tensor(bos, device=device)[self.current]
            self.num_frames = torch.where((last_frames == bos[:, None]).all(dim=-1), 0, self.num_frames)
        self.first_codes = torch.tensor([0, codes[REASONING][0], codes[RECONSTRUCTION][0]], device=device)
        self.code_limits = torch.tensor([0, codes[REASONING][1], codes[RECONSTRUCTION][1]], device=device)
        self.frame_limits = torch.tensor([torch.inf, limits[REASONING], limits[RECONSTRUCTION]], device=device)
        self.min_codes = 0 if min_duration is None else min_reconstruction_frames(min_duration)
        self.is_reasoning_id = torch.arange(config.audio_vocab_size, device=device) < offset
        self.is_end_id = torch.arange(config.audio_vocab_size, device=device) == ends[RECONSTRUCTION]

        # Per frame: the part that it belongs to, and what it is.
        self.part_history: list[torch.LongTensor] = []
        self.code_history: list[torch.BoolTensor] = []
        self.malformed_history: list[torch.BoolTensor] = []

    @property
    def current(self) -> torch.LongTensor:
        """The part of every item, of shape `(num_items,)`; 0 if it is finished."""
        return self.parts.gather(1, self.part_index[:, None])[:, 0].masked_fill(self.is_stopped, NO_PART)

    @property
    def is_unfinished(self) -> torch.BoolTensor:
        return self.current != NO_PART

    def forbid(self, logits: torch.FloatTensor) -> torch.FloatTensor:
        """Takes the ids that the items cannot say away from logits of shape `(num_items, audio_vocab_size)`."""
        in_reconstruction = self.current == RECONSTRUCTION
        logits = logits.masked_fill(in_reconstruction[:, None] & self.is_reasoning_id, -torch.inf)
        if self.min_codes > 0:
            is_too_short = ~in_reconstruction | (self.num_codes < self.min_codes)
            logits = logits.masked_fill(is_too_short[:, None] & self.is_end_id, -torch.inf)
        return logits

    def force(self, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Leaves items whose part is as long as it may be nothing but its end."""
        current = self.current
        must_end = self.num_frames >= self.frame_limits[current]
        ends = torch.full_like(scores, -torch.inf).scatter(1, self.ends[current][:, None], 0.0)
        return torch.where(must_end[:, None], ends, scores)

    def write(self, frame: torch.LongTensor) -> torch.BoolTensor:
        """
        Takes note of a frame of every item, of shape `(num_items, num_codebooks)`.

        Returns:
            `torch.BoolTensor` of shape `(num_items,)`: The items to whose reconstruction codes the frame belongs.
        """
        current = self.current
        is_reasoning_end = (frame == self.ends[REASONING]).all(dim=-1) & (current == REASONING)
        is_end = (frame == self.ends[RECONSTRUCTION]).all(dim=-1) & (current != NO_PART)
        is_inside = (current != NO_PART) & (self.num_frames >= 0) & ~is_reasoning_end & ~is_end
        in_range = (frame >= self.first_codes[current][:, None]) & (frame < self.code_limits[current][:, None])
        is_code = is_inside & in_range.all(dim=-1)
        self.part_history.append(self.part_index)
        self.code_history.append(is_code)
        self.malformed_history.append(is_inside & ~is_code)

        num_ended = is_reasoning_end.long() + is_end.long() * (1 + (current == REASONING))
        self.part_index = (self.part_index + num_ended).clamp(max=self.parts.shape[1] - 1)
        self.num_frames = torch.where(num_ended > 0, -1, self.num_frames + 1)
        self.num_codes = torch.where(num_ended > 0, 0, self.num_codes + is_code)
        return is_code & (current == RECONSTRUCTION)

    def stop(self, is_stopped: torch.BoolTensor) -> None:
        """Ends items where they are."""
        self.is_stopped = self.is_stopped | is_stopped

    def codes(self, frames: torch.LongTensor, part: int) -> list[torch.LongTensor | list[torch.LongTensor]]:
        """
        The codes that the items have written, offsets taken off.

        Args:
            frames (`torch.LongTensor` of shape `(num_items, num_frames, num_codebooks)`): All frames.
            part (`int`): 1 for the reasoning codes, 2 for the reconstruction codes.

        Returns:
            `list`: For every item a tensor of shape `(num_codebooks, frames)`, or a list of them, one for each of its
            recordings, if its parts make several.
        """
        parts, is_code = torch.stack(self.part_history, dim=1), torch.stack(self.code_history, dim=1)
        items = []
        for kinds, item_parts, item_is_code, item_frames in zip(
            self.parts.tolist(), parts, is_code, frames, strict=True
        ):
            recordings = []
            for numbers in _recordings(kinds):
                wanted = [number for number in numbers if kinds[number] == part]
                is_wanted = torch.isin(item_parts, torch.tensor(wanted, device=frames.device)) & item_is_code
                recordings.append((item_frames[is_wanted] - self.first_codes[part]).T.contiguous())
            items.append(recordings if len(recordings) > 1 else recordings[0])
        return items

    def num_malformed(self) -> torch.LongTensor:
        """Malformed frames of every item, of shape `(num_items,)`."""
        return torch.stack(self.malformed_history, dim=1).sum(dim=1)


def _recordings(kinds: list[int]) -> list[list[int]]:
    """The numbers of the parts of every recording: each reconstruction part ends one."""
    recordings, numbers = [], []
    for number, kind in enumerate(kinds):
        if kind != NO_PART:
            numbers.append(number)
        if kind == RECONSTRUCTION or (kind == NO_PART and numbers):
            recordings.append(numbers)
            numbers = []
    return recordings


__all__ = ["AudioAnswers"]
