import copy
import gc
import logging
import threading
import weakref

import pytest
import torch
from transformers import (
    CompileConfig,
    DynamicCache,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

from uniaudio2.modeling_uniaudio2.configuration_uniaudio2 import AUDIO_ROW
from uniaudio2.modeling_uniaudio2.generation_uniaudio2 import sample_ids

R = 20  # reasoning_vocab_size, the offset of reconstruction ids
REASONING_BOS, REASONING_EOS = [16] * 8, [17] * 8
RECONSTRUCTION_BOS, RECONSTRUCTION_EOS = [24 + R] * 8, [25 + R] * 8
PADDING_ROW = [27 + R] * 8 + [62]

SAMPLING = {"do_sample": True, "temperature": 1.3, "top_k": 12, "top_p": 0.95}


def seeded(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


class Script(LogitsProcessor):
    """Makes the depth decoder say given frames: `frames[item]` is a list of eight ids each; later ones are free."""

    def __init__(self, *frames: list[list[int]]):
        self.frames = frames
        self.codebook = -1

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.codebook = (self.codebook + 1) % 8
        step = input_ids.shape[1]
        for item, frames in enumerate(self.frames):
            if step < len(frames):
                scores[item] = -torch.inf
                scores[item, frames[step][self.codebook]] = 0.0
        return scores


def scripted(*frames) -> LogitsProcessorList:
    return LogitsProcessorList([Script(*frames)])


@pytest.fixture
def prompts(make_rows):
    return [make_rows("ttt", seed=1), make_rows("tttttt", seed=2), make_rows("ttaaaattt", seed=3)]


# --- Audio answers ---


def test_first_frames_are_the_most_likely_codes(language_model, make_rows):
    """Greedy frames by hand: whole sequences again and again, no cache, codebook after codebook."""
    rows = make_rows("ttat")
    sequences = language_model.generate(**rows, generation_mode="audio", max_new_tokens=3)
    stack = language_model.model
    ids, kinds = rows["input_ids"], rows["mm_token_type_ids"]
    with torch.no_grad():
        for _ in range(3):
            known = [stack(ids, mm_token_type_ids=kinds).last_hidden_state[0, -1]]
            frame = []
            for codebook in range(8):
                state = language_model.depth_decoder(torch.stack(known)[None]).last_hidden_state[0, -1]
                frame.append(int((state @ language_model.audio_head.weight[codebook]).argmax()))
                known.append(stack.audio_embeddings.weight[frame[-1] + 48 * codebook])
            ids = torch.cat([ids, torch.tensor([[[*frame, 0]]])], dim=1)
            kinds = torch.cat([kinds, torch.tensor([[AUDIO_ROW]])], dim=1)
    assert torch.equal(sequences, ids)


def test_from_reasoning_to_reconstruction_to_the_end(language_model, make_rows):
    """Each item on its own: one ends while the other goes on, and its rows become padding rows."""
    first = [REASONING_BOS, [1] * 8, [2] * 8, REASONING_EOS, RECONSTRUCTION_BOS, [5 + R] * 8, RECONSTRUCTION_EOS]
    second = [REASONING_BOS, REASONING_EOS, RECONSTRUCTION_BOS]
    rows = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in make_rows("tt").items()}
    outputs = language_model.generate(
        **rows,
        generation_mode="audio",
        max_new_tokens=10,
        logits_processor=scripted(first, second),
        return_dict_in_generate=True,
    )
    assert next(iter(outputs)) == "sequences" and outputs.sequences.shape == (2, 12, 9)
    assert outputs.sequences[0, 2:9].tolist() == [[*frame, 0] for frame in first]
    assert outputs.sequences[0, 9:].tolist() == [PADDING_ROW] * 3
    assert outputs.reasoning_codes[0].T.tolist() == [[1] * 8, [2] * 8]
    assert outputs.reconstruction_codes[0].T.tolist() == [[5] * 8]
    assert outputs.num_malformed_frames[0] == 0

    free_frames = outputs.sequences[1, 5:, :-1]  # after the switch reasoning ids are forbidden
    assert free_frames.shape == (7, 8) and (free_frames >= R).all()
    well_formed = free_frames[((free_frames - R) < 24).all(dim=-1)]
    assert torch.equal(outputs.reconstruction_codes[1], well_formed.T - R)
    assert outputs.num_malformed_frames[1] == 7 - len(well_formed)
    assert outputs.reasoning_codes[1].shape == (8, 0)


@pytest.mark.parametrize(
    ("frames", "num_reasoning", "num_reconstruction"),
    [
        ([REASONING_BOS, [3] * 8, RECONSTRUCTION_EOS], 1, 0),  # the end without a switch
        ([RECONSTRUCTION_EOS], 0, 0),  # the end at once
        ([REASONING_EOS, RECONSTRUCTION_EOS], 0, 0),
        ([REASONING_BOS, [3] * 8, [4] * 8], 2, 0),  # neither, and no room for more
    ],
)
def test_parts_may_be_empty(language_model, make_rows, frames, num_reasoning, num_reconstruction):
    outputs = language_model.generate(
        **make_rows("tt"),
        generation_mode="audio",
        max_new_tokens=3,
        logits_processor=scripted(frames),
        return_dict_in_generate=True,
    )
    assert outputs.sequences.shape[1] == 2 + len(frames)
    assert outputs.reasoning_codes[0].shape == (8, num_reasoning)
    assert outputs.reconstruction_codes[0].shape == (8, num_reconstruction)


def test_malformed_frames_stay_in_the_sequences_only(language_model, make_rows, caplog):
    """Half a reasoning end, a reconstruction code among reasoning codes, a special id among reconstruction codes."""
    half_end, foreign, special = [17] * 4 + [1] * 4, [1] * 7 + [3 + R], [2 + R] * 7 + [24 + R]
    frames = [REASONING_BOS, half_end, [1] * 8, foreign, REASONING_EOS, RECONSTRUCTION_BOS, special, [2 + R] * 8]
    frames += [RECONSTRUCTION_EOS]
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        outputs = language_model.generate(
            **make_rows("tt"),
            generation_mode="audio",
            logits_processor=scripted(frames),
            return_dict_in_generate=True,
        )
    finally:
        logger.removeHandler(caplog.handler)
    assert outputs.sequences[0, 2:, :-1].tolist() == frames
    assert outputs.reasoning_codes[0].T.tolist() == [[1] * 8]
    assert outputs.reconstruction_codes[0].T.tolist() == [[2] * 8]
    assert outputs.num_malformed_frames.tolist() == [3]


@pytest.mark.parametrize("cache", [{}, {"cache_implementation": "static"}, {"use_cache": False}])
@pytest.mark.parametrize("options", [{}, SAMPLING, {**SAMPLING, "guidance_scale": 2.5}])
def test_batch_equals_its_items(language_model, prompts, batch_rows, options, cache):
    """With one generator per item, whatever the padding, the cache and the guidance."""
    generators = seeded(1, 2, 3) if "do_sample" in options else None
    options = {"generation_mode": "audio", "max_new_tokens": 5, **options, **cache}
    batch = language_model.generate(**batch_rows(*prompts), **options, generator=generators)
    assert batch.shape == (3, 9 + 5, 9)
    for index, prompt in enumerate(prompts):
        generator = seeded(index + 1)[0] if generators else None
        alone = language_model.generate(**prompt, **options, generator=generator)
        assert torch.equal(batch[index, -5:], alone[0, -5:])


def test_a_generator_is_left_as_after_the_item_alone(language_model, make_rows, batch_rows):
    """So that what comes next with the same generators, the codec, is the same too."""
    short = [REASONING_BOS, REASONING_EOS, RECONSTRUCTION_BOS, RECONSTRUCTION_EOS]
    rows, options = make_rows("tt"), {"generation_mode": "audio", "max_new_tokens": 8, "do_sample": True}
    batch_generators, (single_generator,) = seeded(1, 2), seeded(1)
    language_model.generate(
        **batch_rows(rows, rows), **options, generator=batch_generators, logits_processor=scripted(short)
    )
    language_model.generate(**rows, **options, generator=single_generator, logits_processor=scripted(short))
    assert torch.equal(batch_generators[0].get_state(), single_generator.get_state())


@pytest.mark.parametrize("options", [{}, pytest.param({"guidance_scale": 3.0}, marks=pytest.mark.slow)])
def test_compiled_steps_give_the_same_frames(make_language_model, prompts, batch_rows, options):
    options = {"generation_mode": "audio", "max_new_tokens": 4, "cache_implementation": "static", **options}
    compile_config = CompileConfig(fullgraph=True, backend="eager", mode=None)
    compile_config._compile_all_devices = True
    model = make_language_model(num_hidden_layers=3)
    compiled = model.generate(**batch_rows(*prompts), **options, compile_config=compile_config)
    assert hasattr(model.model, "_compiled_call") and hasattr(model.depth_decoder, "_compiled_call")
    assert torch.equal(compiled, model.generate(**batch_rows(*prompts), **options))


@pytest.fixture
def count_calls():
    """Counts the calls of modules: `calls = count_calls(name=module, ...)` holds the shapes of what they returned."""
    hooks = []

    def count(**modules: torch.nn.Module) -> dict[str, list[tuple[int, ...]]]:
        calls = {name: [] for name in modules}

        def keep(name: str):
            def hook(module, args, output):
                calls[name].append(tuple(getattr(output, "last_hidden_state", output).shape))

            return hook

        hooks.extend(module.register_forward_hook(keep(name)) for name, module in modules.items())
        return calls

    yield count
    for hook in hooks:
        hook.remove()


def test_only_what_an_answer_needs_is_computed(language_model, make_rows, count_calls):
    calls = count_calls(
        lm_head=language_model.lm_head,
        depth_decoder=language_model.depth_decoder,
        audio_head=language_model.audio_head,
        stack=language_model.model,
    )
    frames = [REASONING_BOS, [1] * 8, REASONING_EOS, RECONSTRUCTION_BOS, [5 + R] * 8, RECONSTRUCTION_EOS]
    language_model.generate(**make_rows("ttaa"), generation_mode="audio", logits_processor=scripted(frames))
    assert calls["stack"] == [(1, 4, 32)] + [(1, 1, 32)] * 5
    assert calls["depth_decoder"] == [(1, 1, 24)] * 8 * 6
    # Reasoning ids cannot be said any more once the reconstruction has begun.
    assert calls["audio_head"] == [(1, 1, 48)] * 8 * 3 + [(1, 1, 28)] * 8 * 3
    assert calls["lm_head"] == []

    for shapes in calls.values():
        shapes.clear()
    language_model.generate(**make_rows("ttaa"), max_new_tokens=3, min_new_tokens=3)
    assert calls["stack"] == [(1, 4, 32)] + [(1, 1, 32)] * 2
    assert calls["lm_head"] == [(1, 1, 64)] * 3  # of the prompt the last row alone
    assert calls["depth_decoder"] == calls["audio_head"] == []


def test_scores_are_the_same_without_the_ids_that_cannot_be_said(language_model, make_rows, count_calls):
    """Raw logits are returned whole; to be compared, nothing is left out then."""
    codes = torch.ones(1, 8, 2, dtype=torch.long)
    options = {"reasoning_codes": codes, "max_new_tokens": 5, "guidance_scale": 1.5}
    options |= {"generation_mode": "audio", "return_dict_in_generate": True, "output_scores": True}
    calls = count_calls(audio_head=language_model.audio_head)
    short = language_model.generate(**make_rows("ttaa"), **options)
    whole = language_model.generate(**make_rows("ttaa"), **options, output_logits=True)
    assert calls["audio_head"] == [(2, 1, 28)] * 40 + [(2, 1, 48)] * 40
    assert torch.equal(short.sequences, whole.sequences)
    for part, scores, logits in zip(short.scores, whole.scores, whole.logits, strict=True):
        torch.testing.assert_close(part, scores, rtol=0, atol=1e-5)
        assert logits.isfinite().all() and torch.equal(logits[..., R:], scores[..., R:])


def test_guidance_is_between_the_prompt_and_the_prompt_without_text(language_model, make_rows):
    """Logits `u + scale * (c - u)`; in the unconditional prompt text rows become padding text and audio rows stay."""
    rows = make_rows("ttaat")
    options = {"generation_mode": "audio", "max_new_tokens": 1, "return_dict_in_generate": True, "output_logits": True}
    unconditional = copy.deepcopy(rows)
    unconditional["input_ids"][..., -1][rows["mm_token_type_ids"] == 0] = 62
    guided = language_model.generate(**rows, **options, guidance_scale=3.0)
    (c,), (u,), (mixed,) = (
        language_model.generate(**rows, **options).logits,
        language_model.generate(**unconditional, **options).logits,
        guided.logits,
    )
    torch.testing.assert_close(mixed[:, 0], (u + 3.0 * (c - u))[:, 0], rtol=1e-4, atol=1e-4)
    assert guided.sequences.shape == (1, 6, 9) and mixed.shape == (1, 8, 48)
    # The same through the generation config, as a checkpoint would have it; and no guidance for text.
    language_model.generation_config.guidance_scale = 3.0
    assert torch.equal(language_model.generate(**rows, **options).logits[0], mixed)
    language_model.generate(**rows, max_new_tokens=2)


def test_several_answers_to_every_prompt(language_model, prompts, batch_rows):
    options = {"generation_mode": "audio", "max_new_tokens": 3, **SAMPLING}
    answers = language_model.generate(
        **batch_rows(*prompts[:2]), **options, num_return_sequences=2, generator=seeded(1, 2, 3, 4), guidance_scale=2.0
    )
    for row, (prompt, seed) in enumerate([(0, 1), (0, 2), (1, 3), (1, 4)]):
        alone = language_model.generate(**prompts[prompt], **options, generator=seeded(seed)[0], guidance_scale=2.0)
        assert torch.equal(answers[row, -3:], alone[0, -3:])


def test_what_is_returned_on_request(language_model, make_rows):
    outputs = language_model.generate(
        **make_rows("tta"),
        generation_mode="audio",
        max_new_tokens=2,
        return_dict_in_generate=True,
        output_scores=True,
        output_logits=True,
        output_hidden_states=True,
        **SAMPLING,
    )
    assert [scores.shape for scores in outputs.scores] == [(1, 8, 48)] * 2
    assert all((scores.isfinite().sum(dim=-1) <= 12).all() for scores in outputs.scores)
    assert all(logits.isfinite().all() for logits in outputs.logits)
    assert [states[-1].shape for states in outputs.hidden_states] == [(1, 3, 32), (1, 1, 32)]
    assert outputs.past_key_values.get_seq_length() == 4


def test_stopping_criteria_and_streamers_see_frames(language_model, make_rows):
    class SecondItemStops(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            assert input_ids.shape[::2] == (2, 9)
            return torch.tensor([False, input_ids.shape[1] >= 4])

    class Collect:
        def __init__(self):
            self.pieces, self.ended = [], False

        def put(self, value):
            self.pieces.append(value)

        def end(self):
            self.ended = True

    rows = {key: value.repeat(2, *[1] * (value.ndim - 1)) for key, value in make_rows("tt").items()}
    streamer = Collect()
    sequences = language_model.generate(
        **rows,
        generation_mode="audio",
        max_new_tokens=4,
        stopping_criteria=StoppingCriteriaList([SecondItemStops()]),
        streamer=streamer,
    )
    assert sequences[1, 4:].tolist() == [PADDING_ROW] * 2 and sequences[0, 5].tolist() != PADDING_ROW
    assert streamer.ended and torch.equal(torch.stack(streamer.pieces[1:], dim=1), sequences[:, 2:])


def test_repetition_penalty_sees_a_codebooks_own_frames(language_model, make_rows):
    """The codes of the prompt, and the zeros of its text rows, are not penalised."""
    rows, options = make_rows("taaat"), {"generation_mode": "audio", "max_new_tokens": 6}
    plain = language_model.generate(**rows, **options)
    penalised = language_model.generate(**rows, **options, repetition_penalty=1000.0)
    assert torch.equal(plain[:, :6], penalised[:, :6])
    for codebook in range(8):
        assert len(set(penalised[0, 5:, codebook].tolist())) == 6


def test_a_cache_may_hold_the_beginning_of_the_prompt(language_model, make_rows):
    rows = make_rows("ttaat")
    expected = language_model.generate(**rows, generation_mode="audio", max_new_tokens=3)
    cache = DynamicCache(config=language_model.config)
    beginning = {key: value[:, :3] for key, value in rows.items()}
    language_model(**beginning, past_key_values=cache, use_cache=True)
    sequences = language_model.generate(**rows, generation_mode="audio", max_new_tokens=3, past_key_values=cache)
    assert torch.equal(sequences, expected)


def test_parts_may_be_offloaded(language_model, make_rows, tmp_path):
    """With weights on disk until they are needed, the answers of both kinds stay the same."""
    language_model.save_pretrained(tmp_path / "model")
    offloaded = type(language_model).from_pretrained(
        tmp_path / "model",
        device_map={"model": "disk", "lm_head": "cpu", "depth_decoder": "disk", "audio_head": "disk"},
        offload_folder=tmp_path / "offload",
    )
    for options in ({"generation_mode": "audio", "guidance_scale": 2.0}, {"generation_mode": "text"}):
        expected = language_model.generate(**make_rows("tat"), **options, max_new_tokens=3)
        assert torch.equal(offloaded.generate(**make_rows("tat"), **options, max_new_tokens=3), expected)


def test_plain_text_may_be_answered_in_audio(language_model, make_rows):
    rows = make_rows("tttt")
    expected = language_model.generate(**rows, generation_mode="audio", max_new_tokens=2)
    sequences = language_model.generate(rows["input_ids"][..., -1], generation_mode="audio", max_new_tokens=2)
    assert torch.equal(sequences, expected)


def test_default_limit_is_500_frames(language_model, make_rows, monkeypatch):
    monkeypatch.setattr("uniaudio2.modeling_uniaudio2.generation_uniaudio2.DEFAULT_MAX_FRAMES", 7)
    rows = make_rows("tt")
    assert language_model.generate(**rows, generation_mode="audio").shape[1] == 9
    assert language_model.generate(**rows, generation_mode="audio", max_length=5).shape[1] == 5
    config = GenerationConfig(max_new_tokens=4)
    assert language_model.generate(**rows, generation_mode="audio", generation_config=config).shape[1] == 6


# --- Text answers ---


def greedy_text(model, rows: dict, length: int) -> list[int]:
    ids, kinds = rows["input_ids"], rows["mm_token_type_ids"]
    answer = []
    with torch.no_grad():
        while len(answer) < length and 61 not in answer:
            answer.append(int(model(ids, mm_token_type_ids=kinds).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[[0] * 8 + answer[-1:]]])], dim=1)
            kinds = torch.cat([kinds, torch.zeros_like(kinds[:, :1])], dim=1)
    return answer


@pytest.mark.parametrize("options", [{}, {"cache_implementation": "static"}])
def test_greedy_text(language_model, prompts, batch_rows, options):
    sequences = language_model.generate(**batch_rows(*prompts), max_new_tokens=6, **options)
    for row, prompt in zip(sequences.tolist(), prompts, strict=True):
        expected = greedy_text(language_model, prompt, 6)
        assert row[: len(expected)] == expected and set(row[len(expected) :]) <= {62}


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "num_return_sequences": 2},
        {"num_beams": 3, "cache_implementation": "static"},
        {"no_repeat_ngram_size": 1},
        {"repetition_penalty": 1.5, "min_new_tokens": 4},
        {"num_beams": 2, "no_repeat_ngram_size": 2, "length_penalty": 0.5},
        {"bad_words_ids": [[3], [7]], "suppress_tokens": [1, 2]},
    ],
)
@pytest.mark.filterwarnings("ignore:Passing")  # that penalties apply to the answer and not to the prompt: as wanted
def test_methods_of_text_generation_equal_those_on_plain_ids(language_model, options):
    """A text prompt in nine streams and the same prompt in plain ids, which is transformers' own way throughout."""
    ids = torch.randint(60, (2, 5), generator=torch.Generator().manual_seed(5))
    options = {**options, "max_new_tokens": 5}
    if "no_repeat_ngram_size" in options or "repetition_penalty" in options:
        embeds = language_model.model.embed_tokens(ids)
        expected = super(type(language_model), language_model).generate(inputs_embeds=embeds, **options)
    else:
        expected = language_model.generate(ids, **options)[:, 5:]
    rows = torch.cat([torch.zeros(2, 5, 8, dtype=torch.long), ids[..., None]], dim=-1)
    ones = torch.ones_like(ids)
    answers = language_model.generate(rows, attention_mask=ones, mm_token_type_ids=0 * ones, **options)
    assert torch.equal(answers, expected)


def test_plain_text_prompts_are_returned_with_the_answer(language_model):
    ids = torch.randint(60, (2, 4))
    sequences = language_model.generate(ids, max_new_tokens=3)
    assert sequences.shape[1] > 4 and torch.equal(sequences[:, :4], ids)


def test_sampled_text_with_a_generator_per_item(language_model, prompts, batch_rows):
    options = {"max_new_tokens": 6, **SAMPLING}
    batch = language_model.generate(**batch_rows(*prompts), **options, generator=seeded(1, 2, 3))
    for index, prompt in enumerate(prompts):
        alone = language_model.generate(**prompt, **options, generator=seeded(index + 1)[0])[0]
        assert torch.equal(batch[index, : len(alone)], alone)
    again = language_model.generate(**batch_rows(*prompts), **options, generator=seeded(4, 5, 6))
    assert not torch.equal(again, batch)


def test_streamed_text(language_model, make_rows):
    class Tokenizer:
        def decode(self, ids, **kwargs):
            return "".join(f"<{id}> " for id in ids)

    class Collect(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):
            self.text += text

    streamer = Collect(Tokenizer())
    sequences = language_model.generate(**make_rows("taa"), max_new_tokens=4, streamer=streamer)
    assert streamer.text.split() == [f"<{id}>" for id in sequences[0].tolist()]


def test_stopping_criteria_of_text(language_model, make_rows):
    class AfterTwo(StoppingCriteria):
        def __call__(self, input_ids, scores, **kwargs):
            return torch.full((len(input_ids),), input_ids.shape[1] >= 2)

    criteria = StoppingCriteriaList([AfterTwo()])
    assert language_model.generate(**make_rows("taa"), max_new_tokens=9, stopping_criteria=criteria).shape == (1, 2)


# --- Both kinds in one batch ---


@pytest.fixture
def mixed_prompts(make_rows):
    kinds = ["ttt", "tttaaat", "ttaaaaaat", "tt", "taaaat", "tttttttttt", "ttat", "aaaat"]
    return [make_rows(kind, seed=seed) for seed, kind in enumerate(kinds)], torch.tensor([3, 0, 0, 3, 3, 0, 3, 0])


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 7},
        {"max_new_tokens": 7, "cache_implementation": "static"},
        {"max_duration": 0.4, "min_duration": 0.2, "guidance_scale": 2.0, "max_new_tokens": 12, "num_beams": 2},
    ],
)
def test_batch_of_both_kinds_equals_its_items(language_model, mixed_prompts, batch_rows, options):
    """Eight prompts of every length: text and audio answers, each stopping by itself."""
    prompts, output_modality = mixed_prompts
    batch = language_model.generate(**batch_rows(*prompts), output_modality=output_modality, **options)
    for answer, prompt, modality in zip(batch, prompts, output_modality, strict=True):
        foreign = ("max_duration", "min_duration", "guidance_scale") if modality == 0 else ("num_beams",)
        own = {name: value for name, value in options.items() if name not in foreign}
        alone = language_model.generate(**prompt, output_modality=modality[None], **own)
        assert torch.equal(answer, alone[0])
    assert len({len(answer) for answer in batch}) > 2


def test_batch_of_both_kinds_when_sampled(language_model, mixed_prompts, batch_rows):
    prompts, output_modality = mixed_prompts
    options = {**SAMPLING, "max_new_tokens": 5, "num_return_sequences": 2, "text_top_k": 3, "reasoning_top_k": 4}
    outputs = language_model.generate(
        **batch_rows(*prompts),
        output_modality=output_modality,
        **options,
        generator=seeded(*range(16)),
        return_dict_in_generate=True,
    )
    assert len(outputs.sequences) == len(outputs.reconstruction_codes) == len(outputs.num_malformed_frames) == 16
    for index, sequence in enumerate(outputs.sequences):
        prompt, modality = prompts[index // 2], output_modality[index // 2]
        foreign = ("num_return_sequences", "text_top_k" if modality else "reasoning_top_k")
        own = {name: value for name, value in options.items() if name not in foreign}
        alone = language_model.generate(
            **prompt, output_modality=modality[None], **own, generator=seeded(index), return_dict_in_generate=True
        )
        assert torch.equal(sequence, alone.sequences[0])
        codes = alone.reasoning_codes[0] if modality else torch.zeros(8, 0)
        assert torch.equal(outputs.reasoning_codes[index], codes)


def test_given_reasoning_and_parts_in_a_batch_of_both_kinds(language_model, make_rows, batch_rows):
    prompts = [make_rows("ttaat", 1), make_rows("tt", 2), make_rows("ttt", 3)]
    codes, modality = torch.full((8, 3), 2), torch.tensor([0, 3, 3])
    outputs = language_model.generate(
        **batch_rows(*prompts),
        output_modality=modality,
        reasoning_codes=[None, codes, None],
        answer_parts=[[1, 2], [1, 2], [2, 0]],
        max_new_tokens=4,
        return_dict_in_generate=True,
    )
    assert torch.equal(outputs.sequences[0], language_model.generate(**prompts[0], max_new_tokens=4)[0])
    options = {"generation_mode": "audio", "max_new_tokens": 4}
    alone = language_model.generate(**prompts[1], **options, reasoning_codes=codes[None])[0]
    assert torch.equal(outputs.sequences[1], alone) and torch.equal(outputs.reasoning_codes[1], codes)
    alone = language_model.generate(**prompts[2], **options, answer_parts=[[2]])[0]
    assert torch.equal(outputs.sequences[2], alone)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"streamer": TextStreamer(None)}, "two calls"),
        ({"output_scores": True}, "two calls"),
        ({"generator": seeded(1, 2, 3), "do_sample": True}, "3 generators for 2 items"),
    ],
)
def test_what_both_kinds_cannot_have_together(language_model, make_rows, batch_rows, options, message):
    rows = batch_rows(make_rows("tt"), make_rows("tta"))
    with pytest.raises(ValueError, match=message):
        language_model.generate(**rows, output_modality=torch.tensor([0, 3]), max_new_tokens=2, **options)


# --- Frame by frame ---


def test_frames_may_be_iterated(language_model, prompts, batch_rows):
    options = {"max_duration": 0.3, "do_sample": True, "return_dict_in_generate": True, "guidance_scale": 1.5}
    expected = language_model.generate(
        **batch_rows(*prompts), **options, generation_mode="audio", generator=seeded(1, 2, 3)
    )
    iterator = language_model.iterate_frames(**batch_rows(*prompts), **options, generator=seeded(1, 2, 3))
    rows, heard = [], [[], [], []]
    while True:
        try:
            frame = next(iterator)
        except StopIteration as end:
            outputs = end.value
            break
        assert not torch.is_grad_enabled() or not frame.rows.requires_grad
        rows.append(frame.rows)
        for item in frame.is_reconstruction.nonzero()[:, 0].tolist():
            heard[item].append(frame.rows[item, :-1] - R)
    assert torch.equal(torch.stack(rows, dim=1), expected.sequences[:, 9:])
    assert torch.equal(outputs.sequences, expected.sequences)
    for item, codes in enumerate(expected.reconstruction_codes):
        assert torch.equal(torch.stack(heard[item]).T if heard[item] else torch.zeros(8, 0), codes)


def test_an_iteration_that_is_given_up_frees_everything(language_model, make_rows):
    """Nothing runs between two frames, so closing the iterator, or dropping it, is the end of it."""
    grad_mode = torch.is_grad_enabled()
    cache = DynamicCache(config=language_model.config)
    reference, threads = weakref.ref(cache), threading.active_count()
    iterator = language_model.iterate_frames(**make_rows("tt"), past_key_values=cache, max_new_tokens=50)
    del cache
    next(iterator), next(iterator)
    assert reference() is not None and threading.active_count() == threads
    iterator.close()
    gc.collect()
    assert reference() is None and torch.is_grad_enabled() == grad_mode
    with pytest.raises(ValueError, match="temprature"):
        language_model.iterate_frames(**make_rows("tt"), temprature=1)  # at once, not with the first frame


# --- Which kind of answer ---


def test_output_modality_and_generation_mode(language_model, make_rows):
    rows = {**make_rows("tt"), "max_new_tokens": 2}
    text, audio = torch.tensor([0]), torch.tensor([3])
    assert language_model.generate(**rows).ndim == 2
    assert language_model.generate(**rows, output_modality=text).ndim == 2
    assert language_model.generate(**rows, output_modality=audio).ndim == 3
    assert language_model.generate(**rows, output_modality=audio, generation_mode="text").ndim == 2
    assert language_model.generate(**rows, output_modality=text, generation_mode="audio").ndim == 3


def test_what_pipelines_pass_is_accepted(language_model, make_rows):
    options = {"return_dict_in_generate": True, "pad_token_id": 5, "max_new_tokens": 2}
    options["generation_config"] = GenerationConfig(max_new_tokens=256, eos_token_id=[60, 61])
    assert language_model.generate(**make_rows("tt"), **options, output_modality=torch.tensor([3])).reasoning_codes
    assert language_model.generate(**make_rows("tt"), **options, generation_mode="text").sequences.ndim == 2


# --- Bad input ---


def test_wrong_shapes_are_refused(language_model, make_rows):
    rows = make_rows("tta")
    with pytest.raises(ValueError, match=r"9 ids .*got shape \(1, 3, 8\)"):
        language_model.generate(**{**rows, "input_ids": rows["input_ids"][..., 1:]})
    with pytest.raises(ValueError, match="integers of shape"):
        language_model.generate(**{**rows, "input_ids": rows["input_ids"].float()})
    with pytest.raises(ValueError, match="not empty"):
        language_model.generate(torch.zeros(1, 0, 9, dtype=torch.long))
    with pytest.raises(ValueError, match=r"`mm_token_type_ids` must have shape \(1, 3\)"):
        language_model.generate(**{**rows, "mm_token_type_ids": torch.zeros(1, 2)})
    with pytest.raises(ValueError, match=r"`attention_mask` must have shape \(1, 3\)"):
        language_model.generate(**{**rows, "attention_mask": torch.ones(1, 4)})
    with pytest.raises(ValueError, match="need `mm_token_type_ids`"):
        language_model.generate(rows["input_ids"])
    with pytest.raises(ValueError, match="once"):
        language_model.generate(rows["input_ids"], **rows)


@pytest.mark.parametrize(
    ("row", "stream", "value", "message"),
    [
        (0, -1, 64, "text ids .*0 and 63"),
        (0, -1, -1, "text ids"),
        (2, 3, 48, "audio ids .*0 and 47"),
        (2, 0, -5, "got"),
    ],
)
def test_ids_out_of_range_on_active_streams_are_refused(language_model, make_rows, row, stream, value, message):
    rows = make_rows("tta")
    rows["input_ids"][0, row, stream] = value
    for mode in ("text", "audio"):
        with pytest.raises(ValueError, match=message):
            language_model.generate(**rows, generation_mode=mode)
    rows = make_rows("tta")
    rows["input_ids"][0, row, 0 if stream == -1 else -1] = value  # inactive: no matter
    language_model.generate(**rows, max_new_tokens=1)


def test_rows_of_no_or_of_both_kinds_are_refused(language_model, make_rows):
    rows = make_rows("tta")
    rows["mm_token_type_ids"][0, 1] = 1
    with pytest.raises(ValueError, match=r"either text \(0\) or audio \(3\).*got \[0, 1, 3\]"):
        language_model.generate(**rows)


def test_batches_need_a_mask_and_padding_on_the_left(language_model, make_rows, batch_rows):
    items = [make_rows("tta"), make_rows("ta")]
    batch = batch_rows(*items)
    with pytest.raises(ValueError, match="batch of 2 prompts needs an `attention_mask`"):
        language_model.generate(batch["input_ids"], mm_token_type_ids=batch["mm_token_type_ids"])
    with pytest.raises(ValueError, match="left"):
        language_model.generate(**batch_rows(*items, side="right"))


def test_long_prompts(make_language_model, make_rows, caplog):
    model = make_language_model(max_position_embeddings=40, trained_context_length=12)
    with pytest.raises(ValueError, match=r"40 rows .* 40 positions"):
        model.generate(**make_rows("t" * 40))
    logger = logging.getLogger("transformers")
    logger.addHandler(caplog.handler)
    try:
        model.generate(**make_rows("t" * 12), max_new_tokens=1)
        assert "trained on" not in caplog.text
        model.generate(**make_rows("t" * 13), max_new_tokens=1)
        assert "13 rows; the model was trained on at most 12" in caplog.text
    finally:
        logger.removeHandler(caplog.handler)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generation_mode": "image"}, "'text' or 'audio', got 'image'"),
        ({"output_modality": torch.tensor([0, 3])}, "2 entries for 1 prompts"),
        ({"output_modality": torch.tensor([1])}, r"got \[1\]"),
        ({"generation_mode": "audio", "num_beams": 2}, "num_beams=2"),
        ({"generation_mode": "audio", "bad_words_ids": [[1]]}, "bad_words_ids"),
        ({"generation_mode": "audio", "guidance_scale": 0.5}, "at least 1"),
        ({"generation_mode": "audio", "temprature": 0.5}, "temprature"),
        ({"generation_mode": "audio", "do_sample": True, "generator": seeded(1, 2)}, "2 generators for 1 items"),
        ({"temprature": 0.5}, "temprature"),
        ({"guidance_scale": 2.0}, "guides audio answers"),
        ({"prefill_chunk_size": 2}, "prefill_chunk_size"),
        ({"num_beams": 2, "do_sample": True, "generator": seeded(1)[0]}, "beams"),
    ],
)
def test_options_that_do_not_apply_are_refused(language_model, make_rows, options, message):
    with pytest.raises(ValueError, match=message):
        language_model.generate(**make_rows("tta"), max_new_tokens=2, **options)


# --- Sampling ---


def test_sampled_ids_have_the_probabilities_of_the_scores():
    scores = torch.tensor([[0.0, 1.0, -torch.inf, 2.0], [3.0, -torch.inf, 0.0, 0.0]])
    (generator,) = seeded(0)
    drawn = torch.stack([sample_ids(scores, generator) for _ in range(20_000)])
    frequencies = torch.stack([(drawn == index).float().mean(dim=0) for index in range(4)], dim=-1)
    torch.testing.assert_close(frequencies, scores.softmax(dim=-1), rtol=0, atol=0.015)
    assert (frequencies[scores == -torch.inf] == 0).all()
