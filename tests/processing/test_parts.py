"""Whatever goes into a sequence comes out of it again: the texts, the recordings and their order."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from uniaudio2.processing import TASKS
from uniaudio2.processing.parts import Part, read_parts
from uniaudio2.processing.rows import Rows

many = settings(
    max_examples=40, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

# Any characters but lone surrogates, and something to see: an empty text is refused.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(str.strip)


def frames(size):
    """Codes of shape `(8, frames)`, with many frames that look like the marker rows or like no row at all."""
    same = st.integers(0, size - 1).map(lambda code: [code] * 8)
    mixed = st.lists(st.integers(0, size - 1), min_size=8, max_size=8)
    return st.lists(st.one_of(same, mixed), min_size=1, max_size=4).map(lambda rows: torch.tensor(rows).T)


recordings = st.tuples(frames(16), frames(32))


def as_part(value):
    """A value as part of a message."""
    if isinstance(value, str):
        return {"type": "text", "text": value}
    return {"type": "audio", "reasoning_codes": value[0], "reconstruction_codes": value[1]}


@st.composite
def task_turns(draw):
    """A turn of a task: its name, and the values of its fields."""
    task = TASKS[draw(st.sampled_from([name for name, task in TASKS.items() if task.conditions]))]
    return task, {name: draw(texts if task.is_text(name) else recordings) for name in task.fields}


def messages_of(turns):
    """The conversation of turns, the last of which is not answered."""
    messages = []
    for task, values in turns:
        answers = [name for name in task.fields if name not in task.condition_fields]
        asked = [{**as_part(values[name]), "field": name} for name in task.condition_fields]
        answered = [{**as_part(values[name]), "field": name} for name in answers]
        messages += [
            {"role": "user", "content": asked, "task": task.name},
            {"role": "assistant", "content": answered},
        ]
    return messages[:-1]


def parts_of(turns):
    """What such a conversation is made of: kind, wrapper and content of its parts."""
    for index, (task, values) in enumerate(turns):
        yield "text", None, task.prompts[0] + "\n\n"
        for segment in task.segments if index < len(turns) - 1 else task.conditions:
            value = values[segment.field]
            if segment.kind != "text":
                value = value[0] if segment.kind == "reasoning" else value[1]
                value = value.tolist()
            yield segment.kind, segment.wrapper, value


def rows_of(processor, messages):
    return processor.apply_chat_template(messages, tokenize=True, add_generation_prompt=True)[0]


@many
@given(st.lists(task_turns(), min_size=1, max_size=4), st.integers(0, 3))
def test_a_conversation_of_any_tasks_comes_apart_into_its_parts(processor, turns, padding):
    rows = rows_of(processor, messages_of(turns))
    rows = torch.cat([processor.row_format.padding_rows(padding).input_ids, rows])
    found = read_parts(processor.row_format, rows)
    decoded = [
        (part.kind, part.wrapper, processor.tokenizer.decode(part.ids))
        if part.kind == "text"
        else (part.kind, part.wrapper, torch.tensor(part.ids).T.tolist())
        for part in found
    ]
    assert decoded == list(parts_of(turns))
    assert all(part.is_complete and part.num_malformed_frames == 0 for part in found)


@many
@given(
    st.lists(st.one_of(texts, recordings), min_size=2, max_size=12),
    st.sampled_from(["text", "audio"]),
    st.sampled_from([None, "transcription", "lyric", "caption"]),
)
def test_parts_of_any_number_and_order_come_out_as_they_went_in(processor, values, answer, wrapper):
    parts = [as_part(value) for value in values]
    parts = [{**part, "wrapper": wrapper} if part["type"] == "text" else part for part in parts]
    messages = [{"role": "user", "content": parts, "answer": answer}]
    inputs = processor.apply_chat_template(messages, tokenize=True, return_dict=True, add_generation_prompt=True)
    assert inputs["output_modality"].tolist() == [0 if answer == "text" else 3]
    found = processor.parse_sequence(inputs["input_ids"][0])
    assert [part["type"] for part in found] == [part["type"] for part in parts]
    for part, expected in zip(found, parts, strict=True):
        if part["type"] == "text":
            assert part == expected
        else:
            assert torch.equal(part["reasoning_codes"], expected["reasoning_codes"])
            assert torch.equal(part["reconstruction_codes"], expected["reconstruction_codes"])
    # And they can go in again.
    again = rows_of(processor, [{"role": "user", "content": found, "answer": answer}])
    assert torch.equal(again, inputs["input_ids"][0])


@many
@given(st.lists(st.one_of(texts, recordings), min_size=1, max_size=5), st.data())
def test_a_sequence_cut_anywhere_lacks_only_its_end(processor, values, data):
    rows = rows_of(processor, [{"role": "user", "content": [as_part(value) for value in values], "answer": "text"}])
    row_format = processor.row_format
    whole = read_parts(row_format, rows)
    cut = data.draw(st.integers(1, len(rows)))
    found = read_parts(row_format, rows[:cut])
    assert found[:-1] == whole[: len(found) - 1]
    last, expected = found[-1], whole[len(found) - 1]
    assert last.kind == expected.kind and last.ids == expected.ids[: len(last.ids)]


def test_parts_that_lack_their_marker_rows_are_still_parts(processor, codes):
    row_format = processor.row_format
    reasoning, reconstruction = codes()
    rows = rows_of(processor, [{"role": "user", "content": [as_part(codes())], "answer": "text"}])
    bos_of_reconstruction = 1 + reasoning.shape[1] + 1
    kept = [index for index in range(len(rows)) if index not in (0, bos_of_reconstruction, len(rows) - 1)]
    first, second = read_parts(row_format, rows[kept])
    assert first == Part("reasoning", None, reasoning.T.tolist(), is_complete=True)
    assert second == Part("reconstruction", None, reconstruction.T.tolist(), is_complete=False)


def test_frames_of_a_voice_that_look_like_its_marker_rows_are_frames(processor, codes):
    # Its bos and eos ids carry no offset, so in the table of all ids they are the codes 16 and 17.
    voice = torch.tensor([[16], [17], [3], [17], [16]]).expand(5, 8).T
    inputs = processor("one", task="prompt_instruct_tts", caption="calm", audio_prompt=(codes()[0], voice))
    _, prompt, caption, text = processor.parse_sequence(inputs["input_ids"][0])
    assert torch.equal(prompt["reconstruction_codes"], voice)
    assert (caption["text"], text["text"]) == ("calm", "one")


def test_a_text_without_its_bos_is_a_text(processor):
    tokenizer = processor.tokenizer
    ids = tokenizer("one two", add_special_tokens=False)["input_ids"]
    rows = torch.zeros(len(ids) + 1, 9, dtype=torch.long)
    rows[:, -1] = torch.tensor([*ids, tokenizer.eos_token_id])
    assert processor.parse_sequence(rows) == [{"type": "text", "text": "one two", "wrapper": None}]


def test_an_empty_sequence_has_no_parts(processor):
    padding: Rows = processor.row_format.padding_rows(5)
    assert processor.parse_sequence(padding.input_ids) == processor.parse_sequence(padding.input_ids[:0]) == []


def test_a_batch_is_no_sequence(processor):
    with pytest.raises(ValueError, match="items of a batch one by one"):
        processor.parse_sequence(processor("one")["input_ids"])
