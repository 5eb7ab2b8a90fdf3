"""Audio streams: the same sound as in one piece, while it is being generated."""

import gc
import threading
import weakref

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TextIteratorStreamer

from uniaudio2 import stream

WINDOW = 0.64  # eight frames: six of them are heard at once, two are looked ahead
OPTIONS = {
    "do_sample": True,
    "min_duration": 1.6,
    "max_duration": 1.6,
    "reasoning_codes": torch.ones(1, 8, 3, dtype=torch.long),
}


class Prefer(LogitsProcessor):
    """Codes rather than special ids, so that every frame is heard."""

    def __call__(self, input_ids, scores):
        scores = scores.clone()
        scores[:, 16:20], scores[:, 20 + 32 :] = -torch.inf, -torch.inf
        return scores


def preferred():
    return LogitsProcessorList([Prefer()])


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def answers():
    """What the model answers, kept from test to test."""
    return {}


@pytest.fixture
def whole(model, processor, answers):
    """The waveform in one piece, decoded with a window."""

    def make(window_seconds, **decode_options):
        if not answers:
            options = {**OPTIONS, "generator": seeded(1), "logits_processor": preferred()}
            answers.update(model.generate(**processor("one"), **options, return_dict_in_generate=True))
        return processor.decode(answers, generator=seeded(2), window_seconds=window_seconds, **decode_options)[0]

    return make


@pytest.mark.parametrize(
    ("window_seconds", "decode_mode"), [(WINDOW, "exact"), (WINDOW, "release"), (0.9, "exact"), (None, "exact")]
)
def test_chunks_are_the_waveform(model, processor, whole, window_seconds, decode_mode):
    """Within 1e-5, for windows that divide the answer or not, and for the codec's own, which holds all of it."""
    chunks = list(
        stream(
            model,
            processor,
            processor("one"),
            window_seconds=window_seconds,
            decode_options={"generator": seeded(2), "decode_mode": decode_mode},
            generator=seeded(1),
            logits_processor=preferred(),
            **OPTIONS,
        )
    )
    expected = whole(window_seconds, decode_mode=decode_mode)
    assert len(expected) == 20 * 1920 and expected.std() > 0
    torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-5)
    assert all(len(chunk) > 0 and chunk.dtype is torch.float32 for chunk in chunks)
    if window_seconds == WINDOW:
        assert [len(chunk) for chunk in chunks] == [6 * 1920] * 3 + [2 * 1920]


def test_sound_comes_before_the_answer_is_complete(model, processor):
    """After the reasoning and one window of frames, and not a frame later."""
    steps = []
    handle = model.model.register_forward_hook(lambda *_: steps.append(None))
    chunks = stream(
        model,
        processor,
        processor("one"),
        window_seconds=WINDOW,
        logits_processor=preferred(),
        **OPTIONS,
    )
    assert len(steps) == 0
    next(chunks)
    assert len(steps) == 1 + 8  # a frame for bos, then a window
    next(chunks)
    assert len(steps) == 1 + 8 + 6
    handle.remove()


def test_cancelling_frees_everything(model, processor):
    """The cache and the rest: nothing of the stream is left, and there never was a thread."""
    threads = threading.active_count()

    def caches():
        gc.collect()
        return [thing for thing in gc.get_objects() if type(thing).__name__ == "DynamicCache"]

    before = len(caches())
    chunks = stream(model, processor, processor("one"), window_seconds=WINDOW, logits_processor=preferred(), **OPTIONS)
    first = weakref.ref(next(chunks))
    assert threading.active_count() == threads and len(caches()) > before
    chunks.close()
    assert first() is None and len(caches()) == before and list(chunks) == []
    assert torch.is_grad_enabled()
    # Letting go of it is enough.
    chunks = stream(model, processor, processor("one"), window_seconds=WINDOW, logits_processor=preferred(), **OPTIONS)
    next(chunks)
    del chunks
    assert len(caches()) == before


def test_an_answer_without_frames_has_no_chunks(model, processor):
    assert list(stream(model, processor, processor("one"), max_new_tokens=2)) == []


def test_codes_may_arrive_in_pieces_of_any_size(codec, codes):
    reconstruction = torch.cat([codes(seed=seed)[1] for seed in range(3)], dim=1)
    options = {"window_seconds": WINDOW, "num_inference_steps": 1}
    expected = codec.decode(reconstruction[None], **options, generator=seeded(0)).audio_values[0, 0]
    for sizes in (36, 1, [3, 20, 13]):
        chunks = list(codec.decode_stream(reconstruction.split(sizes, dim=1), **options, generator=seeded(0)))
        torch.testing.assert_close(torch.cat(chunks), expected, rtol=0, atol=1e-5)
    assert list(codec.decode_stream([])) == []


def test_what_cannot_be_streamed_is_refused(model, processor, codes):
    with pytest.raises(ValueError, match="one prompt, got 2"):
        stream(model, processor, processor(["one", "two"]))
    with pytest.raises(ValueError, match="`streamer`"):
        stream(model, processor, processor(audio=codes()))
    with pytest.raises(ValueError, match=r"the parts of this answer are \[1, 2, 1, 2\]"):
        stream(model, processor, processor(audio=codes(), task="speech_ss"))
    with pytest.raises(ValueError, match="window_seconds"):
        stream(model, processor, processor("one"), window_seconds=0.1)
    with pytest.raises(ValueError, match="temprature"):
        stream(model, processor, processor("one"), temprature=1.0)
    with pytest.raises(ValueError, match=r"lie in \[0, 32\)"):
        list(processor.codec.decode_stream([torch.full((8, 1), 40)]))


def test_text_is_streamed_by_transformers_streamers(model, processor, codes):
    inputs, options = processor(audio=codes(), task="ASR"), {"max_new_tokens": 12, "min_new_tokens": 12}
    streamer = TextIteratorStreamer(processor.tokenizer, skip_special_tokens=True)
    thread = threading.Thread(target=model.generate, kwargs={**inputs, **options, "streamer": streamer})
    thread.start()
    text = "".join(streamer)
    thread.join()
    assert text.strip() == processor.decode(model.generate(**inputs, **options))[0].strip() != ""
