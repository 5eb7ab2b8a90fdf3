"""Recordings and texts that are longer than what the language model hears or says at once."""

# ruff: noqa: RUF001  (typographic and Chinese punctuation)

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .processing.rows import AudioCodes

# Both streams have whole frames in 0.4 s: two of reasoning, five of reconstruction.
UNIT_SECONDS, UNIT_REASONING, UNIT_RECONSTRUCTION = 0.4, 2, 5
# A place is quiet where this many seconds are this much quieter than the chunk before its end.
PAUSE_SECONDS, PAUSE_DECIBELS = 0.2, 20.0
# Waveforms are joined in gaps of this length, the first that are this near to the quietest; below a power of -80 dB
# everything is silence.
GAP_SECONDS, NEARLY_DECIBELS, SILENT_POWER = 0.05, 3.0, 1e-8
# Loudness is the power of a stretch of this length, above a floor of -50 dB.
LOUDNESS_SECONDS, LOUDNESS_FLOOR = 0.02, 1e-5
# What chunks repeat of each other, and the longest piece of a text, if the call does not say.
OVERLAP_SECONDS, PIECE_SECONDS = 4.0, 12.0
# Rows kept for an answer in text if neither the call nor the checkpoint limits it.
DEFAULT_ANSWER_ROWS = 448

VOICE_TASK = "prompt_instruct_tts"
# The task wants a description too; the voice is in the recording.
NEUTRAL_CAPTION = "The voice of the recording."

# One character of Chinese, Japanese or Korean: a word as far as pieces of text are concerned.
WIDE = r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff]"
WORD = re.compile(rf"{WIDE}|(?:(?!{WIDE})[\w'’])+")
# Where a text may be cut, the best places first. Cuts are behind the match.
BOUNDARIES = (
    re.compile(r"""[.!?…]+["'”’)\]]*(?=\s)\s*|[。！？…]+[”’」』）]*\s*|\n+"""),
    re.compile(r"[,;:]+(?=\s)\s*|[，；：、]+\s*|\s+[–—-]\s+"),
    re.compile(rf"\s+|(?<={WIDE})"),
    re.compile(r"(?<=.)", re.DOTALL),
)
# Roughly how many characters are said in a second.
LETTERS_PER_SECOND, WIDE_PER_SECOND = 15.0, 4.0


# Long recordings to text


def transcribe_long(
    model: Any,
    processor: Any,
    audio: Any,
    sampling_rate: int | None = None,
    task: str = "ASR",
    chunk_seconds: float | None = None,
    overlap_seconds: float = OVERLAP_SECONDS,
    search_seconds: float = 5.0,
    batch_size: int = 1,
    **generate_options,
) -> str:
    """
    The text of a recording of any length.

    A recording whose rows and the answer would not fit into the context that the model was trained on is cut into
    chunks, in pauses where there are any ([`plan_chunks`]). Each is encoded and understood by itself. Where there was
    no pause the chunks overlap, and their texts are joined where they say the same ([`merge_transcripts`]).

    Codes that are given tell nothing of pauses: their chunks are all of one length, and overlap.

    Args:
        model ([`UniAudio2ForConditionalGeneration`]): The language model.
        processor ([`UniAudio2Processor`]): Its processor, with the codec.
        audio (recording or [`AudioCodes`]): As in [`~UniAudio2Processor.__call__`].
        sampling_rate (`int`, *optional*): Rate of a waveform in hertz.
        task (`str`, *optional*, defaults to `"ASR"`): A task from a recording alone to text.
        chunk_seconds (`float`, *optional*): Longest chunk; by default what fits into `trained_context_length`.
        overlap_seconds (`float`, *optional*, defaults to 4.0):
            What a chunk repeats of the one before if there is no pause between them.
        search_seconds (`float`, *optional*, defaults to 5.0):
            How long before the longest chunk would end a pause is looked for; three quarters of a chunk if that
            is less.
        batch_size (`int`, *optional*, defaults to 1): Chunks that are understood together.
        generate_options: Options of [`~UniAudio2GenerationMixin.generate`]. `max_new_tokens` is per chunk.

    Raises:
        ValueError: If a chunk is not longer than the overlap, or longer than the context, or `search_seconds` is
            negative.
    """
    if search_seconds < 0:
        raise ValueError(f"`search_seconds` must not be negative, got {search_seconds}.")
    if generate_options.get("max_new_tokens") is None:
        generate_options["max_new_tokens"] = model.generation_config.max_new_tokens or DEFAULT_ANSWER_ROWS
    most = _units_in_context(model, processor, task, generate_options["max_new_tokens"])
    chunk = most if chunk_seconds is None else int(chunk_seconds / UNIT_SECONDS + 1e-6)
    overlap = math.ceil(overlap_seconds / UNIT_SECONDS - 1e-6)
    if not 0 <= overlap < chunk <= most:
        raise ValueError(
            f"A chunk must be longer than the overlap ({overlap_seconds} s) and at most {most * UNIT_SECONDS:g} s, "
            f"what the context of {model.config.trained_context_length} rows holds beside "
            f"{generate_options['max_new_tokens']} of the answer; got {chunk * UNIT_SECONDS:g} s."
        )
    if isinstance(audio, AudioCodes):
        chunks, overlaps = _chunks_of_codes(audio, chunk, overlap)
    else:
        rate = processor.feature_extractor.sampling_rate
        inputs = processor.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="pt")
        waveform, unit = inputs["input_values"][0, 0], round(UNIT_SECONDS * rate)
        planned = plan_chunks(waveform, chunk * unit, overlap * unit, round(search_seconds * rate), rate)
        chunks = [{"array": waveform[start:end], "sampling_rate": rate} for start, end in planned]
        overlaps = [before[1] > after[0] for before, after in itertools.pairwise(planned)]
    texts = []
    for first in range(0, len(chunks), batch_size):
        inputs = processor(audio=chunks[first : first + batch_size], task=task)
        texts += processor.batch_decode(model.generate(**inputs, **generate_options))
    text = texts[0]
    for following, repeats in zip(texts[1:], overlaps, strict=True):
        text = merge_transcripts(text, following) if repeats else _side_by_side(text, following)
    return text


def plan_chunks(
    waveform: torch.Tensor, chunk: int, overlap: int, search: int, sampling_rate: int = 24_000
) -> list[tuple[int, int]]:
    """
    Where a recording is cut into chunks.

    A chunk ends at the quietest place of its last `search` samples, and the next begins there, if it is a pause: 0.2 s
    which are 20 dB quieter than the longest chunk that could be. Without a pause, speech goes on across the border.
    Then the next chunk begins about `overlap` samples before the end of this one, each at the quietest place nearby.

    Args:
        waveform (`torch.Tensor` of shape `(samples,)`): The recording.
        chunk (`int`): Samples of the longest chunk.
        overlap (`int`): Samples that a chunk repeats at most where there is no pause; fewer than `chunk`.
        search (`int`): Samples before the end of the longest chunk in which a pause is looked for; three
            quarters of it if that is less.
        sampling_rate (`int`, *optional*, defaults to 24000): Rate of the waveform in hertz.

    Returns:
        `list[tuple[int, int]]`: First and last sample (exclusive) of each chunk. They cover the recording.
    """
    pause, nearby = round(PAUSE_SECONDS * sampling_rate), min(overlap, chunk - overlap) // 4
    chunks, start = [], 0
    while len(waveform) - start > chunk:
        longest = waveform[start : start + chunk]
        end = start + chunk - min(search, chunk * 3 // 4)
        end, power = _quietest_place(waveform, end, start + chunk, pause)
        if power <= longest.double().square().mean() * 10 ** (-PAUSE_DECIBELS / 10):
            chunks.append((start, end))
            start = end
            continue
        end, _ = _quietest_place(waveform, start + chunk - nearby, start + chunk, pause)
        chunks.append((start, end))
        start, _ = _quietest_place(waveform, end - overlap, end - overlap + nearby, pause)
    return [*chunks, (start, len(waveform))]


def _quietest_place(waveform: torch.Tensor, first: int, last: int, length: int) -> tuple[int, float]:
    """The middle of the quietest `length` samples between two places, the latest of equal ones, and their power."""
    length = min(length, last - first)
    if length == 0:
        return last, math.inf
    powers = _powers(waveform[first:last], length).flip(0)
    quietest = int(powers.argmin())
    return last - quietest - length // 2, float(powers[quietest])


def merge_transcripts(left: str, right: str) -> str:
    """
    Join the texts of two chunks that overlap.

    Words (characters in Chinese, Japanese and Korean) are compared without case and punctuation. The texts are joined
    at the longest run of words that the end of `left` and the start of `right` have in common. What `left` has after
    the run and `right` before it was heard at the edge of a chunk and is dropped, so a run counts for less by as much:
    twice its length, less what is dropped. Of equal ones the longer is taken. If no run is worth more than it costs,
    nothing was said twice, and the texts follow one another. A single character is no run.

    Args:
        left, right (`str`): The texts, in the order of the recording.
    """
    left_words, right_words = list(WORD.finditer(left)), list(WORD.finditer(right))
    left_keys = [word.group().casefold() for word in left_words]
    right_keys = [word.group().casefold() for word in right_words]
    best_value, best_length, cut = 0, 0, None
    lengths = [0] * (len(right_keys) + 1)  # of the runs that end with the left word before
    for left_end, left_key in enumerate(left_keys, start=1):
        longer = [0] * len(lengths)
        for right_end, right_key in enumerate(right_keys, start=1):
            if left_key == right_key:
                length = longer[right_end] = lengths[right_end - 1] + 1
                if length == 1 and re.fullmatch(WIDE, left_key):
                    continue
                value = 2 * length - (len(left_keys) - left_end) - (right_end - length)
                if value > best_value or (value == best_value and cut is not None and length > best_length):
                    best_value, best_length = value, length
                    cut = left_words[left_end - 1].end(), right_words[right_end - 1].end()
        lengths = longer
    if cut is not None:
        return left[: cut[0]] + right[cut[1] :]
    return _side_by_side(left, right)


def _side_by_side(left: str, right: str) -> str:
    left, right = left.rstrip(), right.lstrip()
    is_wide = bool(left and right and (re.match(WIDE, right[0]) or re.match(WIDE, left[-1])))
    return left + ("" if is_wide or not left or not right else " ") + right


def _units_in_context(model: Any, processor: Any, task: str, answer_rows: int) -> int:
    """The most units of 0.4 s that fit into the context beside the rest of the prompt and the answer."""
    rows_of_unit = UNIT_REASONING + UNIT_RECONSTRUCTION
    codes = torch.zeros(processor.num_codebooks, UNIT_RECONSTRUCTION, dtype=torch.long)
    unit = AudioCodes(codes[:, :UNIT_REASONING], codes)
    num_other_rows = processor(audio=unit, task=task)["input_ids"].shape[1] - rows_of_unit
    return (model.config.trained_context_length - num_other_rows - answer_rows) // rows_of_unit


def _chunks_of_codes(codes: AudioCodes, chunk: int, overlap: int) -> tuple[list[AudioCodes], list[bool]]:
    """Chunks of whole units, each beginning `overlap` units before the end of the one before, and whether it does."""
    num_units = math.ceil(codes.reconstruction_codes.shape[1] / UNIT_RECONSTRUCTION)
    chunks = []
    for start in range(0, max(num_units - overlap, 1), chunk - overlap):
        # The last chunk has all frames that there are.
        end = None if start + chunk >= num_units else start + chunk
        reasoning, reconstruction = (
            slice(start * size, None if end is None else end * size) for size in (UNIT_REASONING, UNIT_RECONSTRUCTION)
        )
        chunks.append(AudioCodes(codes.reasoning_codes[:, reasoning], codes.reconstruction_codes[:, reconstruction]))
    return chunks, [overlap > 0] * (len(chunks) - 1)


# Long texts to speech


def speak_long(
    model: Any,
    processor: Any,
    text: str,
    task: str = "TTS",
    audio_prompt: Any = None,
    caption: str | None = None,
    piece_seconds: float = PIECE_SECONDS,
    seed: int = 0,
    batch_size: int = 4,
    decode_options: Mapping[str, Any] | None = None,
    **generate_options,
) -> torch.Tensor:
    """
    Speech for a text of any length, in one voice.

    The text is cut into pieces of whole sentences ([`split_sentences`]), each is spoken by itself, and the sounds are
    joined where they are quietest ([`join_waveforms`]). The voice is that of `audio_prompt`. Without one, a checkpoint
    that was trained to follow a recorded voice (the task `prompt_instruct_tts`) follows the first piece; with any
    other checkpoint all pieces begin with the same random numbers, which makes their voices alike and not the same.

    Args:
        model ([`UniAudio2ForConditionalGeneration`]): The language model.
        processor ([`UniAudio2Processor`]): Its processor, with the codec.
        text (`str`): What is spoken.
        task (`str`, *optional*, defaults to `"TTS"`):
            The task of the pieces that follow no recorded voice: `"TTS"`, `"Yue_TTS"` or `"InstructTTS"`.
        audio_prompt (recording, *optional*): A voice to speak in, as in [`~UniAudio2Processor.__call__`].
        caption (`str`, *optional*): A description of the voice or the style, for the tasks that take one.
        piece_seconds (`float`, *optional*, defaults to 12.0): Roughly the longest piece.
        seed (`int`, *optional*, defaults to 0): Of the random numbers of every piece.
        batch_size (`int`, *optional*, defaults to 4): Pieces that are spoken together.
        decode_options (`Mapping[str, Any]`, *optional*): Options of the codec's `decode`.
        generate_options: Options of [`~UniAudio2GenerationMixin.generate`] for audio answers.

    Returns:
        `torch.Tensor` of shape `(samples,)`, float32, on the CPU.
    """
    pieces = split_sentences(text, piece_seconds)
    if not pieces:
        raise ValueError("There is no text to speak.")
    follows_first = audio_prompt is None and VOICE_TASK in (model.config.tasks or ())
    waveforms = []
    while len(waveforms) < len(pieces):
        # The first piece is alone where the others follow its voice.
        size = 1 if follows_first and audio_prompt is None else batch_size
        batch = pieces[len(waveforms) : len(waveforms) + size]
        if audio_prompt is None:
            inputs = processor(text=batch, task=task, caption=caption)
        else:
            inputs = processor(
                text=batch, task=VOICE_TASK, caption=caption or NEUTRAL_CAPTION, audio_prompt=audio_prompt
            )
        generators = [torch.Generator().manual_seed(seed) for _ in batch]
        options = {**generate_options, "generator": generators, "return_dict_in_generate": True}
        output = model.generate(**inputs, **options)
        waveforms += processor.decode(output, generator=generators, **(decode_options or {}))
        if follows_first and audio_prompt is None and output.reconstruction_codes[0].shape[1] > 0:
            audio_prompt = AudioCodes(reconstruction_codes=output.reconstruction_codes[0].cpu())
    return join_waveforms(waveforms, processor.feature_extractor.sampling_rate)


def split_sentences(text: str, max_seconds: float = PIECE_SECONDS) -> list[str]:
    """
    Cut a text into pieces that take about `max_seconds` or less to say, at the ends of sentences if possible.

    Sentences that fit are kept together. One that is too long is cut at commas, then between words, then anywhere.
    Latin and Chinese punctuation are known; a full stop ends a sentence only before a space, so `3.5` is whole.

    Args:
        text (`str`): The text.
        max_seconds (`float`, *optional*, defaults to 12.0): Longest piece, by an average rate of speech.
    """
    if not max_seconds > 0:
        raise ValueError(f"`max_seconds` must be positive, got {max_seconds}.")
    pieces: list[str] = []
    for part in _cut_text(text.strip(), max_seconds, BOUNDARIES):
        if pieces and _seconds(pieces[-1] + part) <= max_seconds:
            pieces[-1] += part
        else:
            pieces.append(part)
    return [piece.strip() for piece in pieces if WORD.search(piece)]


def join_waveforms(
    waveforms: Sequence[torch.Tensor],
    sampling_rate: int = 24_000,
    fade_seconds: float = 0.005,
    search_seconds: float = 0.35,
) -> torch.Tensor:
    """
    Put waveforms one after the other without a seam.

    At each seam both sides are cut where they are quietest, at most `search_seconds` from the edge, and cross-faded.
    The fade keeps the power and is short: a long one would bend the rise and the fall of the sounds beside it. Where
    that is not enough, because a side is loud up to its edge, a fade that keeps the amplitude is tried, then longer
    ones of both kinds, until no step at the seam, of samples or of loudness, is larger than the largest inside the two
    sides. If none is good enough, for instance where noise follows noise that is much louder, it is the best of them.

    Args:
        waveforms (`Sequence[torch.Tensor]`): Waveforms of shape `(samples,)`; empty ones are left out.
        sampling_rate (`int`, *optional*, defaults to 24000): Their rate in hertz.
        fade_seconds (`float`, *optional*, defaults to 0.005): Shortest cross-fade.
        search_seconds (`float`, *optional*, defaults to 0.35): How far from its edge a side may be cut.
    """
    waveforms = [waveform for waveform in waveforms if len(waveform) > 0]
    if not waveforms:
        return torch.zeros(0)
    fade, search = round(fade_seconds * sampling_rate), round(search_seconds * sampling_rate)
    gap, around = max(fade, round(GAP_SECONDS * sampling_rate)), round(LOUDNESS_SECONDS * sampling_rate)
    joined = [waveforms[0]]
    for right in waveforms[1:]:
        left = joined.pop()
        left_spare, right_spare = _quiet_from_edge(left.flip(0), gap, search), _quiet_from_edge(right, gap, search)
        inside = [
            max(steps) for steps in zip(_largest_steps(left, around), _largest_steps(right, around), strict=True)
        ]
        best, best_excess = None, math.inf
        for length, keeps_power in itertools.product(_fade_lengths(fade, search), (True, False)):
            parts = _cross_faded(left, right, left_spare, right_spare, length, keeps_power)
            beside = [parts[0][-2 * around - 1 :], parts[1], parts[2][: 2 * around + 1]]
            excess = max(
                seam / step if step > 0 else math.inf if seam > 0 else 0.0
                for seam, step in zip(_largest_steps(torch.cat(beside), around), inside, strict=True)
            )
            if excess < best_excess:
                best, best_excess = parts, excess
            if excess <= 1:
                break
        joined += best
    return torch.cat(joined)


def _fade_lengths(shortest: int, longest: int) -> list[int]:
    lengths = [shortest]
    while 0 < lengths[-1] * 2 <= longest:
        lengths.append(lengths[-1] * 2)
    return lengths


def _cross_faded(
    left: torch.Tensor, right: torch.Tensor, left_spare: int, right_spare: int, length: int, keeps_power: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """
    Two sides with their cross-fade between them. It is around the places that are `left_spare` samples before the end
    and `right_spare` samples after the start, or, if there is less beyond them, ends and begins at the edges.
    """
    length = min(length, len(left) // 2, len(right) // 2) // 2 * 2
    left_end = len(left) - left_spare + min(length // 2, left_spare)
    right_start = right_spare - min(length // 2, right_spare)
    share = torch.linspace(0, 1, length + 2, device=left.device)[1:-1]
    falling, growing = 1 - share, share
    if keeps_power:
        falling, growing = (share * math.pi / 2).cos(), (share * math.pi / 2).sin()
    fading, rising = left[left_end - length : left_end], right[right_start : right_start + length]
    return (
        left[: left_end - length],
        fading * falling + rising * growing,
        right[right_start + length :],
    )


def _largest_steps(waveform: torch.Tensor, around: int) -> tuple[float, float]:
    """
    The largest difference between neighbouring samples, and the largest change of loudness, in decibels, between the
    `around` samples before a place and those after it.
    """
    if len(waveform) < 2:
        return 0.0, 0.0
    sample_step = float(waveform.diff().abs().max())
    if len(waveform) < 2 * around:
        return sample_step, 0.0
    loudness = 10 * (_powers(waveform, around) + LOUDNESS_FLOOR).log10()
    return sample_step, float((loudness[around:] - loudness[:-around]).abs().max())


def _quiet_from_edge(waveform: torch.Tensor, length: int, search: int) -> int:
    """
    The middle of a quiet stretch of `length` samples near the start.

    It belongs to the first that are nearly as quiet as any: silence at the edge is better than a stop inside the last
    word.
    """
    # The other half is for the other seam of the waveform.
    length = min(length, len(waveform) // 2)
    if length == 0:
        return 0
    powers = _powers(waveform[: max(min(search, len(waveform) // 2), length)], length)
    quiet = powers <= (powers.min() + SILENT_POWER) * 10 ** (NEARLY_DECIBELS / 10)
    first = int(quiet.int().argmax())
    return first + int(powers[first : first + length].argmin()) + length // 2


def _powers(waveform: torch.Tensor, length: int) -> torch.Tensor:
    """Mean powers of all stretches of `length` samples."""
    energies = torch.nn.functional.pad(waveform.double().square().cumsum(0), (1, 0))
    return (energies[length:] - energies[:-length]) / length


def _cut_text(text: str, max_seconds: float, boundaries: Sequence[re.Pattern]) -> list[str]:
    """Parts that fit, cut at the first kinds of boundaries as long as these suffice."""
    if _seconds(text) <= max_seconds or not boundaries:
        return [text]
    ends = [match.end() for match in boundaries[0].finditer(text)]
    ends = sorted({0, len(text), *ends})
    parts = [text[start:end] for start, end in itertools.pairwise(ends)]
    return [piece for part in parts for piece in _cut_text(part, max_seconds, boundaries[1:])]


def _seconds(text: str) -> float:
    """How long it takes to say a text, roughly."""
    num_wide = len(re.findall(WIDE, text))
    return num_wide / WIDE_PER_SECOND + (len(text.strip()) - num_wide) / LETTERS_PER_SECOND


__all__ = ["join_waveforms", "merge_transcripts", "plan_chunks", "speak_long", "split_sentences", "transcribe_long"]
