# ruff: noqa: RUF001  (Chinese punctuation)
"""Long recordings in, long texts out."""

import itertools
import json
import math
import re
from pathlib import Path

import jiwer
import numpy as np
import pytest
import soundfile
import torch

from uniaudio2 import TINY, UniAudio2ForConditionalGeneration, UniAudio2Processor, speak_long, transcribe_long
from uniaudio2.long_form import join_waveforms, merge_transcripts, plan_chunks, split_sentences
from uniaudio2.processing.rows import AudioCodes

RATE = 24_000
RECORDINGS = Path(__file__).parents[1] / "benchmarks" / "recordings"


# --- Chunks of a recording ---


def loud(seconds: float, seed: int = 0) -> torch.Tensor:
    return 0.1 * torch.randn(round(seconds * RATE), generator=torch.Generator().manual_seed(seed))


def test_chunks_end_in_pauses():
    """In the quietest one that is in reach, and nothing is heard twice."""
    hiss = loud(0.4, seed=1) / 50
    recording = torch.cat([loud(1.0), hiss, loud(1.5), hiss / 2, loud(0.8), hiss, loud(0.7)])
    chunks = plan_chunks(recording, chunk=4 * RATE, overlap=RATE, search=2 * RATE)
    assert [end for _, end in chunks[:-1]] == [pytest.approx(3.1 * RATE, abs=0.15 * RATE)]
    assert chunks == [(0, chunks[0][1]), (chunks[0][1], len(recording))]
    # Only the last pause is in reach, then all three.
    (_, end), _ = plan_chunks(recording, chunk=round(4.5 * RATE), overlap=RATE, search=RATE)
    assert end == pytest.approx(4.3 * RATE, abs=0.15 * RATE)
    assert len(plan_chunks(recording, chunk=round(1.8 * RATE), overlap=0, search=2 * RATE)) == 4
    # Silence is as good in one place as in another: chunks are long.
    assert plan_chunks(torch.zeros(10 * RATE), 4 * RATE, RATE, 2 * RATE)[:2] == [
        (0, round(3.9 * RATE)),
        (round(3.9 * RATE), round(7.8 * RATE)),
    ]


@pytest.mark.parametrize("overlap", [0.0, 0.5, 1.2])
@pytest.mark.parametrize("pauses", [False, True])
def test_chunks_cover_everything_and_overlap_where_speech_goes_on(overlap, pauses):
    pieces = [loud(1.1 + 0.3 * index, seed=index) for index in range(5)]
    recording = torch.cat([piece for sound in pieces for piece in (sound, torch.zeros(RATE // 3 * pauses))])
    for chunk in (2.0, 3.0):
        chunks = plan_chunks(recording, round(chunk * RATE), round(overlap * RATE), round(chunk * RATE))
        assert chunks[0][0] == 0 and chunks[-1][1] == len(recording)
        assert all(0 < end - start <= chunk * RATE for start, end in chunks)
        overlaps = [before[1] - after[0] for before, after in itertools.pairwise(chunks)]
        if not pauses:
            assert len(overlaps) >= 2 and all(0.75 * overlap * RATE <= width <= overlap * RATE for width in overlaps)
        elif chunk == 3.0:
            assert overlaps == [0] * len(overlaps)
    assert plan_chunks(recording[: 2 * RATE], 2 * RATE, RATE, RATE) == [(0, 2 * RATE)]


def test_borders_avoid_words_where_there_is_no_pause():
    """A murmur of a fifth of a second is no pause, but a better border than the words around it."""
    recording = loud(6.0)
    murmurs = [(2.76, 2.96), (1.9, 2.1)]
    for start, end in murmurs:
        recording[round(start * RATE) : round(end * RATE)] /= 5
    chunks = plan_chunks(recording, chunk=3 * RATE, overlap=RATE, search=2 * RATE)
    assert [chunks[0][1], chunks[1][0]] == pytest.approx([2.86 * RATE, 2.0 * RATE], abs=0.06 * RATE)


@pytest.mark.parametrize(
    ("left", "right", "merged"),
    [
        ("one two three four", "three four five", "one two three four five"),
        ("One, two. Three four", "three, Four: five!", "One, two. Three four: five!"),  # without case, punctuation
        ("one two three four fi", "o three four five", "one two three four five"),  # words that the edges cut
        ("one two", "three four", "one two three four"),  # nothing in common
        ("one two", "", "one two"),
        ("", "one two", "one two"),
        # Repeated words: the run nearest to the edges, and no more than was heard twice.
        ("nine one one", "one one one two", "nine one one one two"),
        ("a b a b", "a b c", "a b a b c"),
        ("go go go stop go go", "go go left", "go go go stop go go left"),
        # A common word far from the edges joins nothing.
        ("the cat sat on a mat and slept", "then we all left the house", None),
        ("今天天气很好，我们", "气很好，我们去公园。", "今天天气很好，我们去公园。"),
        ("今天", "明天", "今天明天"),  # one character is no run
        ("say 今天天气", "天天气 is good", "say 今天天气 is good"),
    ],
)
def test_texts_are_joined_where_they_say_the_same(left, right, merged):
    assert merge_transcripts(left, right) == (merged if merged is not None else f"{left} {right}")


@pytest.mark.parametrize("seed", range(20))
def test_overlapping_halves_of_a_text_are_the_text(seed):
    """Ten words in common, one of them spoilt at each edge."""
    generator = torch.Generator().manual_seed(seed)
    words = [f"w{number}" for number in torch.randint(30, (60,), generator=generator).tolist()]
    left, right = " ".join([*words[:34], "spoilt"]), " ".join(["spoilt", *words[26:]])
    assert merge_transcripts(left, right) == " ".join(words)


class Reader:
    """A model that reads the first code of every reconstruction frame out, one word for each five frames."""

    class generation_config:  # noqa: N801
        max_new_tokens = 40

    def __init__(self, config, tokenizer):
        self.config, self.tokenizer, self.batches = config, tokenizer, []

    def generate(self, input_ids, max_new_tokens, **inputs):
        self.batches.append(len(input_ids))
        texts = []
        for rows in input_ids:
            codes = rows[:, 0] - self.config.reasoning_vocab_size
            codes = codes[(rows[:, -1] == 0) & (codes >= 0) & (codes < self.config.reconstruction_codebook_size)]
            texts.append(" ".join(f"w{code}" for code in codes[::5].tolist()))
        return self.tokenizer(texts, padding=True, return_tensors="pt")["input_ids"]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_long_recording_is_understood_in_chunks(model, processor, batch_size):
    """Every word once and in order, with no chunk longer than the context."""
    length = 23
    reconstruction = torch.arange(length).repeat_interleave(5).repeat(8, 1)
    codes = AudioCodes(torch.zeros(8, 2 * length, dtype=torch.long), reconstruction)
    reader = Reader(model.config, processor.tokenizer)
    options = {"chunk_seconds": 2.8, "overlap_seconds": 0.8, "batch_size": batch_size, "max_new_tokens": 30}
    text = transcribe_long(reader, processor, codes, **options)
    assert text.split() == [f"w{number}" for number in range(length)]
    assert reader.batches == ([1] * 5 if batch_size == 1 else [3, 2])
    # In one go if it fits.
    reader.batches.clear()
    assert transcribe_long(reader, processor, codes).split() == text.split() and reader.batches == [1]


def test_recordings_longer_than_the_context(model, processor, tone, monkeypatch):
    """By default the chunks are as long as the context that the model was trained on allows."""
    monkeypatch.setattr(model.config, "trained_context_length", 120)
    lengths = []
    handle = model.model.register_forward_hook(lambda _m, _a, output: lengths.append(output[0].shape[1]))
    text = transcribe_long(model, processor, tone(seconds=6.0), RATE, overlap_seconds=0.8, max_new_tokens=10)
    handle.remove()
    prompts = [length for length in lengths if length > 1]
    assert isinstance(text, str) and len(prompts) > 1
    assert 110 - 7 < max(prompts) <= 110
    with pytest.raises(ValueError, match=r"longer than the overlap \(4.0 s\) and at most .* got 2 s"):
        transcribe_long(model, processor, tone(seconds=6.0), RATE, chunk_seconds=2.0, max_new_tokens=10)
    with pytest.raises(ValueError, match="`search_seconds` must not be negative, got -1"):
        transcribe_long(model, processor, tone(), RATE, search_seconds=-1)
    with pytest.raises(ValueError, match="120 rows holds beside 100"):
        transcribe_long(model, processor, tone(), RATE, max_new_tokens=100)


@pytest.mark.checkpoint
def test_a_long_recording_is_understood_as_well_as_its_parts():
    """Twenty recordings of the shipped checkpoint's held-out set, one after the other: 33 s, in chunks of 2.4 s.

    Words that are wrong: none of 84 in single recordings, and at most one in all of them together.
    """
    rows = [json.loads(line) for line in (RECORDINGS / "manifest.jsonl").read_text().splitlines()][:20]
    waveforms = [soundfile.read(RECORDINGS / row["file"], dtype="float32")[0] for row in rows]
    model = UniAudio2ForConditionalGeneration.from_pretrained(TINY).eval()
    processor = UniAudio2Processor.from_pretrained(TINY, codec_device="cpu")
    texts = [row["text"] for row in rows]
    options = {"chunk_seconds": 2.4, "overlap_seconds": 0.8, "batch_size": 5, "do_sample": False}
    single = [transcribe_long(model, processor, waveform, RATE, **options) for waveform in waveforms]
    together = transcribe_long(model, processor, np.concatenate(waveforms), RATE, **options)
    assert jiwer.wer(texts, single) == 0
    assert jiwer.wer(" ".join(texts), together) <= 1 / 84


# --- Pieces of a text ---


def test_sentences_are_kept_whole():
    text = 'It costs 3.5 dollars. "Really?" he said. No! Then we left.'
    assert split_sentences(text) == [text]
    assert split_sentences(text, 1.4) == ["It costs 3.5 dollars.", '"Really?" he said.', "No! Then we left."]
    assert split_sentences("今天天气很好。我们去公园吧！你呢？", 2.0) == ["今天天气很好。", "我们去公园吧！", "你呢？"]
    assert split_sentences("One line\nand another", 1.0) == ["One line", "and another"]
    assert split_sentences("  ...  ") == []


def test_long_sentences_are_cut_at_commas_then_between_words_then_anywhere():
    assert split_sentences("first this, then that, and more", 0.8) == ["first this,", "then that,", "and more"]
    assert split_sentences("alpha beta gamma delta", 0.8) == ["alpha beta", "gamma delta"]
    assert split_sentences("今天，天气很好", 1.25) == ["今天，", "天气很好"]
    assert split_sentences("a" * 40, 1.0) == ["a" * 15, "a" * 15, "a" * 10]
    with pytest.raises(ValueError, match="positive, got 0"):
        split_sentences("a", 0)


def test_no_word_is_lost():
    text = "Some words, and others; 3.5 of them. 今天天气很好，我们去公园吧！ Yes? " * 5
    for seconds in (0.3, 0.7, 1.5, 4.0, 20.0):
        pieces = split_sentences(text, seconds)
        assert re.sub(r"\W", "", "".join(pieces)) == re.sub(r"\W", "", text)


# --- Seams ---


# Joined audio is compared with what was joined, without tolerance: steps at a seam may not be larger than the largest
# inside. Sums over different stretches are rounded differently.
ROUNDING = 1e-6


def sample_steps(waveform: torch.Tensor) -> torch.Tensor:
    """Differences between neighbouring samples; at each place that to the sample before."""
    return torch.nn.functional.pad(waveform.diff().abs(), (1, 0))


def loudness_steps(waveform: torch.Tensor) -> torch.Tensor:
    """Changes of loudness between the 20 ms before a place and after it, in decibels above a floor of -50 dB."""
    energies = torch.nn.functional.pad(waveform.double().square().cumsum(0), (1, 0))
    loudness = 10 * torch.log10((energies[480:] - energies[:-480]) / 480 + 1e-5)
    return torch.nn.functional.pad((loudness[480:] - loudness[:-480]).abs(), (480, 479))


def changed(joined: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> slice:
    """The samples that are in neither of two waveforms, and 20 ms on both sides."""
    first = int((joined[: len(left)] != left[: len(joined)]).int().argmax())
    last = int((joined.flip(0)[: len(right)] != right.flip(0)[: len(joined)]).int().argmax())
    return slice(first - 480, len(joined) - last + 480)


def noise(seconds: float, seed: int, level: float = 0.1) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return level * torch.randn(round(seconds * RATE), generator=generator)


def syllables(seconds: float, pitch: float, phase: float = 0.0, breath: float = 0.001, seed: int = 1) -> torch.Tensor:
    """A tone that comes and goes three times a second, with a breath of noise."""
    times = torch.arange(round(seconds * RATE)) / RATE
    tone = (times * 3 * math.pi + phase).sin().square() * (2 * math.pi * pitch * times).sin() * 0.5
    return tone + noise(seconds, seed, breath)


@pytest.mark.parametrize("breath", [0.001, 0.02, 0.04])
def test_pieces_join_without_a_seam(breath):
    """Also those that are cut off in a syllable: no step of samples or loudness is larger than inside the pieces."""
    generator = torch.Generator().manual_seed(0)
    for seed in range(20):
        length, more, *pitches, start, end = torch.rand(6, generator=generator).tolist()
        left = syllables(1 + length, 150 + 100 * pitches[0], 3 * start, breath, seed)
        right = syllables(1.5 + more, 150 + 100 * pitches[1], 3 * end, breath, seed + 100)
        joined = join_waveforms([left, right], RATE)
        whole = len(left) + len(right)
        assert whole - 2 * 0.35 * RATE <= len(joined) <= whole - 2 * 0.02 * RATE
        seam = changed(joined, left, right)
        for steps in (sample_steps, loudness_steps):
            assert steps(joined)[seam].max() <= max(steps(left).max(), steps(right).max()) + ROUNDING


def test_noises_join_without_a_seam():
    """As loud at the edges as anywhere; compared with 20 s of them."""
    for seed in range(10):
        left, right = noise(10.0, seed), noise(10.0, seed + 100)
        joined = join_waveforms([left, right], RATE)
        seam = changed(joined, left, right)
        for steps in (sample_steps, loudness_steps):
            assert steps(joined)[seam].max() <= max(steps(left).max(), steps(right).max()) + ROUNDING
        # And it gets no quieter.
        assert joined[seam].std() == pytest.approx(0.1, rel=0.15)


def test_speech_that_is_cut_off_in_a_word_joins_without_a_seam():
    """Recordings that end and begin anywhere, where no short fade would do."""
    generator = torch.Generator().manual_seed(0)
    pieces = []
    for number in range(0, 40, 2):
        waveform = torch.from_numpy(soundfile.read(RECORDINGS / f"heldout-{number:05}.flac", dtype="float32")[0])
        first, last = (torch.rand(2, generator=generator) * 0.2 * len(waveform)).int().tolist()
        pieces.append(waveform[len(waveform) // 10 + first : -len(waveform) // 10 - last])
    for left, right in itertools.pairwise(pieces):
        joined = join_waveforms([left, right], RATE)
        seam = changed(joined, left, right)
        for steps in (sample_steps, loudness_steps):
            assert steps(joined)[seam].max() <= max(steps(left).max(), steps(right).max()) + ROUNDING


def test_silence_at_the_edge_is_cut_before_a_stop_inside_a_word():
    word = torch.cat([noise(0.5, 0), torch.zeros(RATE // 12), noise(0.1, 1)])
    silence = noise(0.08, 2, 3e-5)
    joined = join_waveforms([torch.cat([word, silence]), torch.cat([silence, word])], RATE)
    assert torch.equal(joined[: len(word)], word) and torch.equal(joined[-len(word) :], word)


def test_joining_keeps_what_is_not_near_a_seam():
    first, second = syllables(1.0, 200.0), syllables(1.2, 300.0)
    joined = join_waveforms([first, torch.zeros(0), second], RATE)
    assert torch.equal(joined[: len(first) - 8400], first[:-8400])
    assert torch.equal(joined[-len(second) + 8400 :], second[8400:])
    assert torch.equal(join_waveforms([first]), first) and join_waveforms([]).shape == (0,)
    assert len(join_waveforms([torch.ones(1), torch.ones(3)])) == 4  # too short to fade
    silence = torch.zeros(RATE)
    assert not join_waveforms([silence, silence]).any()


def check_windows(codec, reconstruction: torch.Tensor, seed: int, monkeypatch) -> None:
    """
    Where windows of the codec meet, samples jump no more than in the two windows at the same place, and loudness no
    more than inside any window. The windows are what the codec's decoder has made before they are put together.
    """
    decoded, decode = [], codec.scalar_codec.decode
    monkeypatch.setattr(
        codec.scalar_codec, "decode", lambda latents: decoded.append(decode(latents)) or decoded[-1], raising=True
    )
    audio = codec.decode(
        reconstruction[None], window_seconds=1.28, generator=torch.Generator().manual_seed(seed)
    ).audio_values[0, 0]
    windows = [window[0, 0] for window in decoded]
    monkeypatch.undo()
    # Windows of 16 frames, one every 12.
    hop, overlap = 12 * 1920, 4 * 1920
    assert len(windows) >= 4 and len(audio) == (len(windows) - 1) * hop + len(windows[-1])
    samples, loudness = sample_steps(audio), loudness_steps(audio)
    loudest = max(loudness_steps(window).max() for window in windows)
    for index, (before, after) in enumerate(itertools.pairwise(windows), start=1):
        place = slice(index * hop, index * hop + overlap)
        there = torch.maximum(sample_steps(before)[hop:], sample_steps(after)[:overlap])
        assert samples[place].max() <= max(there.max(), sample_steps(before)[hop - 1])
        assert loudness[place].max() <= loudest


@pytest.mark.parametrize("seed", range(3))
def test_windows_of_the_codec_join_without_a_seam(codec, codes, seed, monkeypatch):
    check_windows(
        codec, torch.cat([codes(seconds=3.2, seed=2 * seed + part)[1] for part in range(2)], 1), seed, monkeypatch
    )


@pytest.mark.checkpoint
def test_speech_in_windows_has_no_seam(monkeypatch):
    """The shipped codec, whose windows end inside words."""
    waveforms = [soundfile.read(RECORDINGS / f"heldout-{number:05}.flac", dtype="float32")[0] for number in range(5)]
    processor = UniAudio2Processor.from_pretrained(TINY, codec_device="cpu")
    codes = processor.encode_audio([np.concatenate(waveforms)], RATE)[0]
    check_windows(processor.codec, codes.reconstruction_codes, 0, monkeypatch)


# --- Speech for a long text ---


def test_each_piece_sounds_as_alone_and_begins_with_the_same_numbers(model, processor):
    options = {"max_duration": 0.4, "min_duration": 0.4, "do_sample": True}
    speech = speak_long(model, processor, "one. two. three.", piece_seconds=0.45, seed=7, batch_size=2, **options)
    waveforms = []
    for piece in ("one.", "two.", "three."):
        generator = torch.Generator().manual_seed(7)
        output = model.generate(**processor(piece), **options, generator=generator, return_dict_in_generate=True)
        waveforms += processor.decode(output, generator=generator)
    torch.testing.assert_close(speech, join_waveforms(waveforms, RATE), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="no text"):
        speak_long(model, processor, " ... ")


def test_a_checkpoint_that_can_follows_the_voice_of_the_first_piece(model, processor, codes, monkeypatch):
    """The prompts of the others hold its codes; those of all pieces hold a voice that is given."""
    options = {"max_duration": 0.4, "min_duration": 0.4, "piece_seconds": 0.45, "batch_size": 2}
    calls = []

    class Watched:
        def __call__(self, *args, **kwargs):
            calls.append(kwargs)
            return processor(*args, **kwargs)

        def __getattr__(self, name):
            return getattr(processor, name)

    monkeypatch.setattr(model.config, "tasks", ("TTS", "prompt_instruct_tts"))
    speak_long(model, Watched(), "one. two. three. four.", **options)
    assert [(call["task"], call["text"]) for call in calls] == [
        ("TTS", ["one."]),
        ("prompt_instruct_tts", ["two.", "three."]),
        ("prompt_instruct_tts", ["four."]),
    ]
    first = model.generate(**processor("one."), max_duration=0.4, min_duration=0.4, return_dict_in_generate=True)
    for call in calls[1:]:
        assert torch.equal(call["audio_prompt"].reconstruction_codes, first.reconstruction_codes[0])

    calls.clear()
    speak_long(model, Watched(), "one. two.", audio_prompt=codes(), caption="slowly", **options)
    assert [(call["task"], call["caption"]) for call in calls] == [("prompt_instruct_tts", "slowly")]
