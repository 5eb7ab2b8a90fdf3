"""What audio answers consist of and how their codes are chosen: durations, given reasoning, parts, their settings."""

import logging

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from uniaudio2.modeling_uniaudio2.audio_answers_uniaudio2 import (
    REASONING,
    RECONSTRUCTION,
    max_part_frames,
    min_reconstruction_frames,
)

R = 20  # reasoning_vocab_size, the offset of reconstruction ids
REASONING_BOS, REASONING_EOS = [16] * 8, [17] * 8
RECONSTRUCTION_BOS, RECONSTRUCTION_EOS = [24 + R] * 8, [25 + R] * 8
AUDIO = {"generation_mode": "audio", "return_dict_in_generate": True}


class Prefer(LogitsProcessor):
    """Makes given ids likelier than all others wherever they are allowed, the first most of all."""

    def __init__(self, *ids: int):
        self.ids = ids

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        scores = scores.clone()
        for rank, token_id in enumerate(self.ids):
            scores[:, token_id] += 2000.0 - 200.0 * rank
        return scores


class Script(LogitsProcessor):
    """Gives frames, one after the other; what comes after them is free."""

    def __init__(self, frames: list[list[int]]):
        self.frames = [token_id for frame in frames for token_id in frame]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if not self.frames:
            return scores
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor(self.frames.pop(0)), 0.0)


def prefer(*ids: int) -> LogitsProcessorList:
    return LogitsProcessorList([Prefer(*ids)])


def script(*frames: list[int]) -> LogitsProcessorList:
    return LogitsProcessorList([Script(list(frames))])


def answer(outputs, prompt_length: int) -> list[list[int]]:
    return outputs.sequences[0, prompt_length:, :-1].tolist()


# --- Durations ---


def test_seconds_are_frames():
    assert [min_reconstruction_frames(seconds) for seconds in (0, 0.01, 0.08, 0.24, 0.25, 1.0)] == [0, 1, 1, 3, 4, 13]
    assert [max_part_frames(seconds, RECONSTRUCTION) for seconds in (0.08, 0.24, 0.25, 1.0)] == [1, 3, 3, 12]
    assert [max_part_frames(seconds, REASONING) for seconds in (0.1, 0.2, 1.0)] == [1, 2, 6]


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_no_end_before_the_minimum(language_model, make_rows, guidance_scale):
    """A model that would end at once: in its reasoning, then after every frame."""
    outputs = language_model.generate(
        **make_rows("tt"),
        **AUDIO,
        min_duration=0.4,
        guidance_scale=guidance_scale,
        logits_processor=prefer(25 + R, 17, 3 + R),
    )
    assert answer(outputs, 2) == [REASONING_EOS, *[[3 + R] * 8] * 6, RECONSTRUCTION_EOS]
    assert outputs.reconstruction_codes[0].shape == (8, 5)  # the first frame stands where bos does


def test_malformed_frames_do_not_count_towards_the_minimum(language_model, make_rows):
    good, special = [3 + R] * 8, [3 + R] * 7 + [26 + R]
    frames = [REASONING_BOS, REASONING_EOS, RECONSTRUCTION_BOS, special, good, special]
    processors = LogitsProcessorList([*script(*frames), *prefer(25 + R, 3 + R)])
    outputs = language_model.generate(**make_rows("tt"), **AUDIO, min_duration=0.24, logits_processor=processors)
    assert answer(outputs, 2)[6:] == [good, good, RECONSTRUCTION_EOS]
    assert outputs.reconstruction_codes[0].shape == (8, 3) and outputs.num_malformed_frames[0] == 2


@pytest.mark.parametrize("do_sample", [False, True])
def test_the_end_comes_at_the_maximum(language_model, make_rows, do_sample):
    """A model that never ends: both parts are ended for it, and the checkpoint's limit of rows is no matter."""
    language_model.generation_config.max_new_tokens = 4
    outputs = language_model.generate(
        **make_rows("tt"), **AUDIO, max_duration=1.0, do_sample=do_sample, logits_processor=prefer(3, 3 + R)
    )
    assert outputs.reasoning_codes[0].shape == (8, 6) and outputs.reconstruction_codes[0].shape == (8, 12)
    rows = answer(outputs, 2)
    assert rows[7] == REASONING_EOS and rows[-1] == RECONSTRUCTION_EOS and len(rows) == 8 + 14
    # What the call itself says about rows goes first.
    outputs = language_model.generate(**make_rows("tt"), **AUDIO, max_duration=1.0, max_new_tokens=3)
    assert outputs.sequences.shape[1] == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_duration": -1}, "at least 0; got -1"),
        ({"max_duration": 0.05}, r"at least one frame, 0.08; got 0.05"),
        ({"max_duration": float("nan")}, "got nan"),
        ({"min_duration": 2, "max_duration": 1}, r"`min_duration` \(2\) exceeds `max_duration` \(1\)"),
        ({"min_duration": 1, "max_new_tokens": 14}, "takes 15 rows .* `max_new_tokens` is 14"),
        ({"repetition_window": 0}, "at least 1, got 0"),
        ({"answer_parts": [[3]]}, r"1 rows of 1 \(reasoning\) and 2"),
        ({"answer_parts": [[0, 1]]}, "answer_parts"),
        ({"answer_parts": [[1, 2], [1, 2]]}, r"here 1 rows"),
        ({"reasoning_codes": torch.zeros(2, 8, 3).long()}, "2 items for 1 prompts"),
        ({"reasoning_codes": torch.zeros(1, 7, 3).long()}, r"\(8, frames\), got .*\(7, 3\) for item 0"),
        ({"reasoning_codes": torch.full((1, 8, 3), 16)}, "between 0 and 15, got 16 to 16 in item 0"),
        ({"reasoning_codes": torch.full((1, 8, 3), -1)}, "no frames"),
        ({"reasoning_codes": torch.zeros(1, 8, 3).long(), "answer_parts": [[2]]}, "does not begin with"),
        ({"text_temperature": 0.5}, "text_temperature"),
        ({"reasoning_temprature": 0.5}, "reasoning_temprature"),
    ],
)
def test_what_cannot_be_is_refused(language_model, make_rows, options, message):
    with pytest.raises(ValueError, match=message):
        language_model.generate(**make_rows("tta"), **AUDIO, **options)


@pytest.mark.parametrize("options", [{"max_duration": 1}, {"reasoning_top_k": 2}, {"answer_parts": [[1]]}])
def test_options_of_audio_are_refused_for_text(language_model, make_rows, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}.* leave them out"):
        language_model.generate(**make_rows("tta"), **options)


# --- Given reasoning ---


@pytest.mark.parametrize("guidance_scale", [1.0, 2.0])
def test_given_reasoning_stands_where_generated_reasoning_would(language_model, make_rows, batch_rows, guidance_scale):
    """The reasoning of an answer, given back, leads to the same sound, for items of every length in one batch."""
    frames = [[REASONING_BOS, [1] * 8, [2, 5] * 4, REASONING_EOS], [REASONING_BOS, [7] * 8, REASONING_EOS]]
    prompts, options = [make_rows("ttat", 1), make_rows("tt", 2)], {**AUDIO, "guidance_scale": guidance_scale}
    free = [
        language_model.generate(**rows, **options, max_new_tokens=len(own) + 6, logits_processor=script(*own))
        for rows, own in zip(prompts, frames, strict=True)
    ]
    codes = [output.reasoning_codes[0] for output in free]
    given = language_model.generate(**batch_rows(*prompts), **options, reasoning_codes=codes, max_new_tokens=6)
    for item, (output, own) in enumerate(zip(free, codes, strict=True)):
        assert torch.equal(given.sequences[item, -6:], output.sequences[0, -6:])
        assert torch.equal(given.reasoning_codes[item], own)
        assert torch.equal(given.reconstruction_codes[item], output.reconstruction_codes[0])
    # The same as the codec gives codes, with -1 after the last frame of an item; and several answers to each prompt.
    padded = torch.full((2, 8, 2), -1)
    padded[0], padded[1, :, :1] = codes[0], codes[1]
    again = language_model.generate(
        **batch_rows(*prompts),
        **options,
        reasoning_codes=padded,
        max_new_tokens=6,
        num_return_sequences=2,
        do_sample=True,
        top_k=1,
    )
    assert torch.equal(again.sequences[::2], given.sequences)
    assert [item.shape[1] for item in again.reasoning_codes] == [2, 2, 1, 1]


def test_reasoning_may_be_given_for_some_items(language_model, make_rows, batch_rows):
    prompts, codes = [make_rows("ttat", 1), make_rows("tt", 2)], torch.full((8, 2), 3)
    options = {**AUDIO, "max_new_tokens": 5}
    both = language_model.generate(**batch_rows(*prompts), **options, reasoning_codes=[None, codes])
    alone = language_model.generate(**prompts[0], **options)
    assert torch.equal(both.sequences[0, -5:], alone.sequences[0, -5:])
    assert torch.equal(both.reasoning_codes[0], alone.reasoning_codes[0])
    assert (both.sequences[1, -5:, :-1] >= R).all()  # it began with the reconstruction


# --- Parts ---


def test_answers_of_two_recordings(language_model, make_rows):
    """Both recordings end as one does, and after the first reasoning ids are allowed again."""
    first = [REASONING_BOS, [1] * 8, REASONING_EOS, RECONSTRUCTION_BOS, [2 + R] * 8, RECONSTRUCTION_EOS]
    second = [REASONING_BOS, [3] * 8, REASONING_EOS, RECONSTRUCTION_BOS, [4 + R] * 8, [5 + R] * 8, RECONSTRUCTION_EOS]
    outputs = language_model.generate(
        **make_rows("tta"), **AUDIO, answer_parts=[[1, 2, 1, 2]], logits_processor=script(*first, *second)
    )
    assert answer(outputs, 3) == [*first, *second]
    assert [codes.T.tolist() for codes in outputs.reasoning_codes[0]] == [[[1] * 8], [[3] * 8]]
    assert [codes.T.tolist() for codes in outputs.reconstruction_codes[0]] == [[[2] * 8], [[4] * 8, [5] * 8]]
    given = language_model.generate(
        **make_rows("tta"),
        **AUDIO,
        answer_parts=[[1, 2, 1, 2]],
        reasoning_codes=torch.ones(1, 8, 1).long(),
        logits_processor=script(*first[3:], *second),
    )
    for name in ("reasoning_codes", "reconstruction_codes"):
        assert [codes.tolist() for codes in given[name][0]] == [codes.tolist() for codes in outputs[name][0]]


def test_a_maximum_holds_for_each_of_two_recordings(language_model, make_rows):
    outputs = language_model.generate(
        **make_rows("tt"),
        **AUDIO,
        answer_parts=[[1, 2, 1, 2]],
        max_duration=0.4,
        logits_processor=prefer(3, 3 + R),
    )
    assert [codes.shape[1] for codes in outputs.reasoning_codes[0]] == [3, 3]
    assert [codes.shape[1] for codes in outputs.reconstruction_codes[0]] == [5, 5]


def test_answers_of_one_part(language_model, make_rows, batch_rows):
    """Reasoning only ends where reasoning does; reconstruction only begins with it."""
    prompts = batch_rows(make_rows("tta", 1), make_rows("tta", 2))
    outputs = language_model.generate(
        **prompts, **AUDIO, answer_parts=[[1], [2]], max_duration=0.4, logits_processor=prefer(3, 3 + R)
    )
    assert outputs.sequences[0, 3:8, :-1].tolist() == [[3] * 8] * 4 + [REASONING_EOS]
    assert outputs.reasoning_codes[0].shape == (8, 3) and outputs.reconstruction_codes[0].shape == (8, 0)
    assert outputs.sequences[1, 3:, :-1].tolist() == [[3 + R] * 8] * 6 + [RECONSTRUCTION_EOS]
    assert outputs.reasoning_codes[1].shape == (8, 0) and outputs.reconstruction_codes[1].shape == (8, 5)


# --- Settings of the parts ---


def kept_ids(scores: tuple[torch.Tensor, ...]) -> list[int]:
    """How many ids of the first codebook could be drawn, frame by frame."""
    return [int(frame[0, 0].isfinite().sum()) for frame in scores]


def test_each_part_is_sampled_by_its_own_settings(language_model, make_rows):
    frames = [REASONING_BOS, [1] * 8, REASONING_EOS]
    options = {**AUDIO, "max_new_tokens": 6, "output_scores": True, "do_sample": True, "top_k": 5}

    def kept(**settings) -> list[int]:
        class Open(Script):
            """The script is likely, not certain, so that the settings after it have something to choose from."""

            def __call__(self, input_ids, scores):
                wanted = self.frames.pop(0) if self.frames else None
                return scores if wanted is None else scores.index_fill(1, torch.tensor(wanted), 1000.0)

        processors = LogitsProcessorList([Open(frames)])
        outputs = language_model.generate(**make_rows("tt"), **options, **settings, logits_processor=processors)
        return kept_ids(outputs.scores)

    assert kept() == [5] * 6
    assert kept(reasoning_top_k=3) == [3] * 3 + [5] * 3
    assert kept(reasoning_top_k=3, reconstruction_top_k=2) == [3] * 3 + [2] * 3
    assert (
        kept(reconstruction_do_sample=False) == [5] * 3 + [28] * 3
    )  # greedy: nothing is taken away but reasoning ids
    # Also as entries of the generation config, of a call's or of the checkpoint's.
    language_model.generation_config.reconstruction_top_k = 4
    assert kept() == [5] * 3 + [4] * 3
    assert kept(generation_config=GenerationConfig(reconstruction_top_k=7)) == [5] * 3 + [7] * 3


def test_a_part_may_be_greedy_while_the_other_is_sampled(language_model, make_rows):
    """Greedy reasoning takes no numbers from the generator, whatever is sampled after it."""
    frames = [REASONING_BOS, [1] * 8, REASONING_EOS]
    options = {**AUDIO, "reconstruction_do_sample": True, "reconstruction_temperature": 3.0}
    scripted, given = (
        language_model.generate(**make_rows("tt"), **options, **own, generator=torch.Generator().manual_seed(3))
        for own in (
            {"max_new_tokens": 7, "logits_processor": script(*frames)},
            {"max_new_tokens": 4, "reasoning_codes": torch.ones(1, 8, 1).long()},
        )
    )
    assert torch.equal(scripted.sequences, given.sequences)
    greedy = language_model.generate(
        **make_rows("tt"), **AUDIO, max_new_tokens=4, reasoning_codes=[torch.ones(8, 1).long()]
    )
    assert not torch.equal(greedy.sequences, given.sequences)


def test_items_of_a_batch_may_be_in_different_parts(language_model, make_rows, batch_rows):
    prompts = [make_rows("ttat", 1), make_rows("tt", 2), make_rows("ta", 3)]
    options = {**AUDIO, "do_sample": True, "reasoning_top_k": 4, "reconstruction_temperature": 2.0}
    codes = [None, torch.ones(8, 2).long(), None]
    generators = [torch.Generator().manual_seed(seed) for seed in range(3)]
    batch = language_model.generate(
        **batch_rows(*prompts), **options, reasoning_codes=codes, max_duration=0.4, generator=generators
    )
    for item, prompt in enumerate(prompts):
        alone = language_model.generate(
            **prompt,
            **options,
            reasoning_codes=None if codes[item] is None else [codes[item]],
            max_duration=0.4,
            generator=torch.Generator().manual_seed(item),
        )
        assert torch.equal(batch.reasoning_codes[item], alone.reasoning_codes[0])
        assert torch.equal(batch.reconstruction_codes[item], alone.reconstruction_codes[0])


def test_settings_are_saved_with_the_model(language_model, tmp_path):
    language_model.generation_config.reasoning_temperature = 0.7
    language_model.generation_config.text_do_sample = False
    language_model.generation_config.max_duration = 12.0
    language_model.save_pretrained(tmp_path)
    config = type(language_model).from_pretrained(tmp_path).generation_config
    assert (config.reasoning_temperature, config.text_do_sample, config.max_duration) == (0.7, False, 12.0)


def test_text_has_settings_of_its_own(language_model, make_rows):
    rows = make_rows("tta")
    greedy = language_model.generate(**rows, max_new_tokens=5)
    assert torch.equal(language_model.generate(**rows, max_new_tokens=5, do_sample=True, text_do_sample=False), greedy)
    assert torch.equal(language_model.generate(**rows, max_new_tokens=5, do_sample=True, text_top_k=1), greedy)


def test_settings_of_sampling_without_sampling_are_not_ignored_in_silence(language_model, make_rows, caplog):
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        language_model.generate(**make_rows("tt"), **AUDIO, max_new_tokens=1, reasoning_top_k=3)
        assert "['reasoning_top_k'] have no effect on greedy answers" in caplog.text
        caplog.clear()
        language_model.generate(**make_rows("tt"), max_new_tokens=1, text_temperature=0.5)
        assert "['text_temperature'] have no effect" in caplog.text
        caplog.clear()
        sampled = {"reasoning_top_k": 3, "reasoning_do_sample": True, "reconstruction_repetition_penalty": 1.5}
        language_model.generate(**make_rows("tt"), **AUDIO, max_new_tokens=1, **sampled)
        assert "have no effect" not in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


# --- Repetition ---


def test_repetition_is_penalised_within_a_window_and_a_part(language_model, make_rows):
    """With a window of two frames a codebook may say a code again after two others, and not before."""
    options = {**AUDIO, "answer_parts": [[2]], "max_new_tokens": 9}
    favourites = prefer(1 + R, 2 + R, 3 + R)
    codes = [
        language_model.generate(**make_rows("tt"), **options, **own, logits_processor=favourites).sequences[0, 2:, 0]
        for own in (
            {},
            {"repetition_penalty": 1e6},
            {"repetition_penalty": 1e6, "repetition_window": 2},
            {"reconstruction_repetition_penalty": 1e6, "reconstruction_repetition_window": 1},
            {"reasoning_repetition_penalty": 1e6},
        )
    ]
    always, whole, two, one, other_part = ((part - R).tolist() for part in codes)
    assert always == other_part == [1] * 9
    assert whole[:3] == [1, 2, 3] and len(set(whole)) == 9
    assert two == [1, 2, 3] * 3 and one == [1, 2, 1, 2, 1, 2, 1, 2, 1]
