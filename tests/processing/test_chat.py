"""Conversations: which task each turn is, what its parts are, and that the rows are those of single calls."""

import numpy as np
import pytest
import torch

from uniaudio2.processing import TASKS, AudioCodes


def user(*parts, **more):
    content = parts[0] if len(parts) == 1 and isinstance(parts[0], str) else list(parts)
    return {"role": "user", "content": content, **more}


def assistant(content):
    return {"role": "assistant", "content": content}


def system(content):
    return {"role": "system", "content": content}


def text(value, **more):
    return {"type": "text", "text": value, **more}


def audio(codes, **more):
    return {"type": "audio", "reasoning_codes": codes[0], "reconstruction_codes": codes[1], **more}


@pytest.fixture
def rows(processor):
    def make(conversation, **options):
        inputs = processor.apply_chat_template(
            conversation, tokenize=True, return_dict=True, add_generation_prompt=True, **options
        )
        return inputs["input_ids"]

    return make


def test_a_text_is_spoken_as_in_a_call(processor, rows):
    expected = processor("seven three nine")["input_ids"]
    assert torch.equal(rows([user("seven three nine")]), expected)
    assert torch.equal(rows([user(text("seven three nine"))]), expected)


def test_a_recording_is_transcribed_and_a_question_answered_as_in_a_call(processor, rows, codes):
    assert torch.equal(rows([user(audio(codes()))]), processor(audio=codes())["input_ids"])
    asked = rows([user(audio(codes()), text("How many?"))])
    assert torch.equal(asked, processor("How many?", audio=codes())["input_ids"])


def test_a_message_or_the_call_names_the_task(processor, rows):
    expected = processor("a dog barks", task="TTA")["input_ids"]
    assert torch.equal(rows([user("a dog barks", task="TTA")]), expected)
    assert torch.equal(rows([user("a dog barks")], task="TTA"), expected)
    assert torch.equal(rows([user("a dog barks")], processor_kwargs={"task": "TTA"}), expected)


def test_a_system_message_is_the_instruction(processor, rows):
    expected = processor("one", prompt="Whisper this.")["input_ids"]
    assert torch.equal(rows([system("Whisper this."), user("one")]), expected)


def test_parts_fill_the_fields_in_order_or_by_name(processor, rows):
    expected = processor("one", caption="calm", task="InstructTTS")["input_ids"]
    assert torch.equal(rows([user(text("calm"), text("one"), task="InstructTTS")]), expected)
    assert torch.equal(rows([user(text("one", field="text"), text("calm"), task="InstructTTS")]), expected)


def test_earlier_turns_are_examples(processor, rows, codes):
    chat = [user(audio(codes())), assistant("seven"), user(audio(codes(seed=1)))]
    row_format = processor.row_format
    ids = [
        processor.tokenizer(words, add_special_tokens=False)["input_ids"]
        for words in (TASKS["ASR"].prompts[0] + "\n\n", "seven")
    ]
    example = row_format.training_rows(TASKS["ASR"], {"audio": AudioCodes(*codes()), "text": ids[1]}, ids[0])
    expected = torch.cat([example.input_ids, processor(audio=codes(seed=1))["input_ids"][0]])
    assert torch.equal(rows(chat)[0], expected)


def test_spoken_answers_are_examples_too(processor, rows, codes):
    chat = [user("one"), assistant([audio(codes())]), user("two")]
    ids = rows(chat)[0]
    assert len(ids) == len(rows([user("one")])[0]) + 5 + 13 - 1 + 4 + len(rows([user("two")])[0])


def test_a_batch_of_conversations_is_padded(processor, rows):
    batch = rows([[user("one")], [user("two three four")]])
    assert batch.shape[0] == 2
    assert torch.equal(batch[1], rows([user("two three four")])[0])


def test_the_beginning_of_an_answer_is_continued(processor, codes):
    chat = [user(audio(codes())), assistant([text("seven")])]
    inputs = processor.apply_chat_template(chat, tokenize=True, return_dict=True, continue_final_message=True)
    prompt = processor(audio=codes())["input_ids"][0]
    start = inputs["input_ids"][0, len(prompt) :, -1]
    assert torch.equal(inputs["input_ids"][0, : len(prompt)], prompt)
    assert processor.tokenizer.decode(start) == "<transcription><|begin_of_text|>seven"


def test_waveforms_and_paths_are_read(processor, rows, tone, tmp_path):
    wave = tone(0.4)
    expected = processor(audio=wave, sampling_rate=24_000)["input_ids"]
    assert torch.equal(rows([user({"type": "audio", "audio": wave})]), expected)
    slower = tone(0.4, rate=16_000)
    expected = processor(audio=slower, sampling_rate=16_000)["input_ids"]
    assert torch.equal(rows([user({"type": "audio", "audio": slower, "sampling_rate": 16_000})]), expected)
    assert torch.equal(rows([user({"type": "audio", "audio": slower})], sampling_rate=16_000), expected)
    processor.save_audio(slower, tmp_path / "slower.flac", sampling_rate=16_000)
    from_file = processor(audio=str(tmp_path / "slower.flac"))["input_ids"]
    assert torch.equal(rows([user({"type": "audio", "path": str(tmp_path / "slower.flac")})]), from_file)


def test_bytes_are_read(processor, rows, tone, tmp_path):
    processor.save_audio(tone(), tmp_path / "in.flac")
    expected = processor(audio=tmp_path / "in.flac")["input_ids"]
    data = (tmp_path / "in.flac").read_bytes()
    for part in ({"bytes": data}, {"audio": data}, {"audio": {"bytes": data}}):
        assert torch.equal(rows([user({"type": "audio", **part})]), expected)
    assert torch.equal(processor(audio=data)["input_ids"], expected)


def test_a_message_with_an_answer_takes_any_parts_in_their_order(processor, rows, codes):
    """An auditory sentence: two recordings with their captions, and a third."""
    parts = [
        audio(codes()),
        text("a dog", wrapper="caption"),
        audio(codes(seed=1)),
        text("rain", wrapper="caption"),
        audio(codes(seed=2)),
    ]
    ids = rows([user(*parts, answer="text")])[0]
    row_format = processor.row_format
    pieces = [
        row_format.training_rows(TASKS["audio_only"], {"audio": AudioCodes(*part)}, None).input_ids
        if isinstance(part, tuple)
        else row_format.prompt_rows(
            TASKS["TTA"], {"caption": processor.tokenizer(part, add_special_tokens=False)["input_ids"]}, None
        ).input_ids
        for part in (codes(), "a dog", codes(seed=1), "rain", codes(seed=2))
    ]
    assert torch.equal(ids, torch.cat(pieces))


def test_messages_of_any_parts_are_examples_too(processor, rows, codes):
    shown = [user(text("noisy"), audio(codes()), text("clean"), answer="audio"), assistant([audio(codes(seed=1))])]
    asked = user(text("noisy"), audio(codes(seed=2)), text("clean"), answer="audio")
    ids = rows([system("Clean the speech."), *shown, asked])[0]
    read = processor.parse_sequence(ids)
    kinds = [part.get("text") or "audio" for part in read]
    turn = ["Clean the speech.\n\n", "noisy", "audio", "clean"]
    assert kinds == [*turn, "audio", *turn]
    assert torch.equal(read[4]["reconstruction_codes"], codes(seed=1)[1])
    assert "<|reasoning|><|reconstruction|>" in processor.apply_chat_template([*shown, asked])


def test_the_texts_of_a_continued_text_are_one(processor, rows):
    chat = [user("one two", task="text_only"), assistant(" three"), user("four", task="text_only")]
    assert [part["text"] for part in processor.parse_sequence(rows(chat)[0])] == ["one two three", "four"]


def test_the_users_messages_are_not_changed(rows, codes):
    chat = [user(audio(codes())), assistant("seven"), user(audio(codes()))]
    before = [{**message} for message in chat]
    rows(chat)
    assert all(
        message.keys() == old.keys() and message["content"] is old["content"]
        for message, old in zip(chat, before, strict=True)
    )


def test_the_template_writes_what_the_text_rows_hold(processor, rows, codes):
    chat = [user(audio(codes())), assistant("seven 你好"), user(audio(codes(seed=1)), text("How many?"))]
    rendered = processor.apply_chat_template(chat)
    written = rendered.replace("<|reasoning|>", "").replace("<|reconstruction|>", "")
    assert written == processor.post_process_multimodal_output(rows(chat))[0]
    assert rendered.count("<|reasoning|><|reconstruction|>") == 2
    assert processor.apply_chat_template([chat, chat]) == [rendered, rendered]
    start = [user(audio(codes())), assistant([text("seven")])]
    assert processor.apply_chat_template(start, continue_final_message=True).endswith(
        "<transcription><|begin_of_text|>seven"
    )


@pytest.mark.parametrize(
    "chat, message",
    [
        ([user("one"), user("two")], "Two user messages"),
        ([assistant("one")], "must follow the user message"),
        ([user("one"), {"role": "tool", "content": "x"}], "Unknown role 'tool'"),
        ([system("Speak.")], "no user message"),
        ([user("")], "empty"),
        ([user(text("a"), text("b"))], "more texts than TTS takes"),
        ([user(text("a", field="caption"))], "no text called 'caption'"),
        ([user({"type": "image", "image": "x.png"})], "of type 'image'"),
        ([user(np.zeros(3))], "one of type|list of parts"),
        ([user("one", task="speak")], "Unknown task"),
        ([user("one", task="ASR")], "more texts than ASR takes"),
        ([user(task="ASR")], "needs 'audio'"),
        ([{"role": "user"}], "content of a message"),
        ([system([]), user("one")], "one text and nothing else"),
        ([user("one"), "two"], "A message is .* but got 'two'"),
        (user("one"), "list with at least one message"),
        ([], "list with at least one message"),
        ([[]], "no user message"),
        ([user(text("a"), text("b"))], "give the message an 'answer'"),
        ([user("a", answer="video")], "'video', but must be one of 'text', 'audio'"),
        ([user("a", answer="text", task="TTS")], "not both"),
        ([user(answer="text")], "at least one text or recording"),
        ([user(text("a", wrapper="poem"), answer="text")], "wrapped as 'transcription', 'lyric', 'caption'"),
        ([user(text(" "), answer="text")], "'part_1' of sequence is empty"),
        ([user("a", answer="audio"), assistant("b")], "more texts than sequence takes"),
        ([user("a", answer="text"), assistant([]), user("b")], "needs .*'answer' is missing"),
        ([system(""), user("a", answer="text")], "not empty"),
    ],
)
def test_conversations_that_make_no_sense_are_refused(rows, chat, message):
    with pytest.raises(ValueError, match=message):
        rows(chat)


@pytest.mark.parametrize(
    "part, message",
    [
        ({"path": 5}, "The 'path' of a part is a text, but got int"),
        ({"url": np.zeros(3)}, "The 'url' of a part is a text, but got ndarray. Waveforms go in 'audio'"),
        ({"bytes": "AAAA"}, "The 'bytes' of a part is the bytes of a file, but got str"),
        ({"reasoning_codes": "x", "reconstruction_codes": "y"}, "'reasoning_codes' of 'audio' must be integers"),
        (
            {"reasoning_codes": [[1], [1, 2]], "reconstruction_codes": [[1]]},
            "but are no tensor",
        ),
    ],
)
def test_parts_of_the_wrong_kind_are_refused(rows, part, message):
    with pytest.raises(TypeError, match=message):
        rows([user({"type": "audio", **part})])


def test_there_must_be_something_left_to_answer(processor, rows, codes):
    answered = [user(audio(codes())), assistant("seven")]
    with pytest.raises(ValueError, match="an answer already"):
        rows(answered)
    with pytest.raises(ValueError, match="exclude each other"):
        rows(answered, continue_final_message=True)
    with pytest.raises(ValueError, match="last message by the assistant"):
        processor.apply_chat_template([user("one")], tokenize=True, continue_final_message=True)
    with pytest.raises(ValueError, match="cannot be continued"):
        processor.apply_chat_template(
            [user("one"), assistant([audio(codes())])], tokenize=True, continue_final_message=True
        )
    with pytest.raises(ValueError, match="fixed format"):
        processor.apply_chat_template([user("one")], tokenize=True, chat_template="{{ messages }}")
