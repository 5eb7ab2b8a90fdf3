"""The processor: values of a task to prompts, and what `generate` returns back to texts and waveforms."""

import numpy as np
import pytest
import soundfile
import torch
from transformers import PreTrainedTokenizerFast

from uniaudio2.commands.tasks import given_fields
from uniaudio2.feature_extraction import UniAudio2FeatureExtractor
from uniaudio2.processing import TASKS, AudioCodes, UniAudio2Processor
from uniaudio2.processing.rows import Rows

TEXT_ROW, AUDIO_ROW = 0, 3


def text_of(processor, row_ids, kinds):
    return processor.tokenizer.decode(row_ids[kinds == TEXT_ROW][:, -1])


# Going in


def test_text_alone_is_spoken(processor):
    inputs = processor("seven three nine")
    assert list(inputs) == processor.model_input_names
    assert inputs["input_ids"].shape[-1] == 9 and inputs["input_ids"].dtype == torch.long
    assert (inputs["mm_token_type_ids"] == TEXT_ROW).all() and inputs["output_modality"].tolist() == [AUDIO_ROW]
    assert text_of(processor, inputs["input_ids"][0], inputs["mm_token_type_ids"][0]) == (
        f"<|begin_of_text|>{TASKS['TTS'].prompts[0]}\n\n<|end_of_text|>"
        "<transcription><|begin_of_text|>seven three nine<|end_of_text|></transcription>"
    )


def test_a_recording_alone_is_transcribed(processor, codes):
    reasoning, reconstruction = codes()
    inputs = processor(audio=(reasoning, reconstruction))
    kinds = inputs["mm_token_type_ids"][0]
    assert inputs["output_modality"].tolist() == [TEXT_ROW]
    assert (kinds == AUDIO_ROW).sum() == reasoning.shape[1] + 2 + reconstruction.shape[1] + 2
    assert text_of(processor, inputs["input_ids"][0], kinds) == (
        f"<|begin_of_text|>{TASKS['ASR'].prompts[0]}\n\n<|end_of_text|>"
    )


def test_text_and_recording_are_a_question(processor, codes):
    inputs = processor(text="How many?", audio=codes())
    assert torch.equal(
        inputs["input_ids"], processor(task="audio_understanding", question="How many?", audio=codes())["input_ids"]
    )
    assert inputs["output_modality"].tolist() == [TEXT_ROW]


def test_the_same_codes_in_any_container(processor, codes):
    reasoning, reconstruction = codes()
    expected = processor(audio=(reasoning, reconstruction))["input_ids"]
    named = {"reasoning_codes": reasoning, "reconstruction_codes": reconstruction}
    for audio in (
        named,
        AudioCodes(reasoning, reconstruction),
        {name: value.numpy().astype(np.int32) for name, value in named.items()},
        {name: value.tolist() for name, value in named.items()},
        {name: value[None] for name, value in named.items()},
        [named],
    ):
        assert torch.equal(processor(audio=audio)["input_ids"], expected)


def test_waveforms_and_files_give_the_codes_of_the_codec(processor, codec, tone, tmp_path):
    short, long = tone(0.4, 300), tone(1.0, 500)
    path = tmp_path / "long.wav"
    soundfile.write(path, long, 24_000, subtype="FLOAT")
    batch = processor(audio=[short, str(path)], sampling_rate=24_000)
    for index, audio in enumerate((short, long)):
        alone = codec.encode(torch.from_numpy(audio)[None])
        expected = processor(audio=(alone.reasoning_codes[0], alone.reconstruction_codes[0]))["input_ids"]
        own = batch["attention_mask"][index].bool()
        assert torch.equal(batch["input_ids"][index, own], expected[0])


def test_every_task_makes_a_prompt(processor, codes):
    for task in TASKS.values():
        values = {name: "a text" if task.is_text(name) else codes(4.0) for name in given_fields(task)}
        inputs = processor(task=task.name, **values)
        assert inputs["output_modality"].tolist() == [AUDIO_ROW if task.output == "audio" else TEXT_ROW]


def test_a_voice_prompt_is_three_seconds(processor, codes):
    inputs = processor("one", task="prompt_instruct_tts", caption="calm", audio_prompt=codes(10.0))
    audio = inputs["input_ids"][0][inputs["mm_token_type_ids"][0] == AUDIO_ROW]
    assert len(audio) == 37 + 2
    assert audio[0, 0] == processor.audio_prompt_bos_token_id and audio[-1, 0] == processor.audio_prompt_eos_token_id


def test_a_batch_pads_on_the_left_and_each_item_stays_as_it_is_alone(processor):
    texts, tasks = ["one", "three four five six"], ["TTS", "TTA"]
    batch = processor(texts, task=tasks)
    assert batch["attention_mask"][:, -1].all() and not batch["attention_mask"].all()
    for index, (text, task) in enumerate(zip(texts, tasks, strict=True)):
        own = batch["attention_mask"][index].bool()
        assert torch.equal(batch["input_ids"][index, own], processor(text, task=task)["input_ids"][0])


def test_one_value_serves_a_whole_batch(processor):
    batch = processor(["one", "two"], caption="a calm voice", task="InstructTTS")
    again = processor(["one", "two"], caption=["a calm voice"] * 2, task="InstructTTS")
    assert torch.equal(batch["input_ids"], again["input_ids"])


def test_padding_to_a_length(processor):
    inputs = processor("one", padding="max_length", max_length=64)
    assert inputs["input_ids"].shape == (1, 64, 9)
    assert torch.equal(inputs["input_ids"][0][inputs["attention_mask"][0].bool()], processor("one")["input_ids"][0])


def test_an_instruction_of_ones_own(processor):
    inputs = processor("one", prompt="  Shout this.  ")
    assert processor.post_process_multimodal_output(inputs["input_ids"])[0].startswith(
        "<|begin_of_text|>Shout this.\n\n<|end_of_text|>"
    )


def test_text_only_goes_on_from_the_text(processor):
    ids = processor("one two", task="text_only")["input_ids"][0, :, -1]
    assert processor.tokenizer.decode(ids) == "<|begin_of_text|>one two"


@pytest.mark.parametrize("text", ["</transcription>", "a <|end_of_text|> b", "<text_pad_token>", "<caption>"])
def test_special_tokens_that_a_user_types_are_text(processor, text):
    special = [token_id for token_id, token in processor.tokenizer.added_tokens_decoder.items() if token.special]
    plain, typed = (processor(words)["input_ids"][0, :, -1] for words in ("one", text))
    assert torch.isin(typed, torch.tensor(special)).sum() == torch.isin(plain, torch.tensor(special)).sum()
    assert text in processor.tokenizer.decode(typed)
    # In an instruction, too.
    asked = processor("one", prompt=text)["input_ids"][0, :, -1]
    assert torch.isin(asked, torch.tensor(special)).sum() == torch.isin(plain, torch.tensor(special)).sum()


@pytest.mark.parametrize("text", ["你好世界", "naïve café", "Здравствуйте 🎵", "七三九"])
def test_text_of_any_language(processor, text):
    inputs = processor(text)
    assert text in processor.tokenizer.decode(inputs["input_ids"][0, :, -1])


def test_transcription_requests_choose_the_task_by_language(processor, codes):
    audio = codes()
    for language, task in ((None, "ASR"), ("en", "ASR"), ("zh", "ASR"), ("yue", "Yue_ASR")):
        inputs = processor.apply_transcription_request(audio, language=language)
        assert torch.equal(inputs["input_ids"], processor(audio=audio, task=task)["input_ids"])
    batch = processor.apply_transcription_request([audio, codes(seed=1)], language=["en", "yue"])
    assert len(batch["input_ids"]) == 2
    with pytest.raises(ValueError, match="Unknown language 'klingon'"):
        processor.apply_transcription_request(audio, language="klingon")


@pytest.mark.parametrize(
    "arguments, error, message",
    [
        ({}, ValueError, "nothing to process"),
        ({"text": ""}, ValueError, "'text' of TTS is empty"),
        ({"text": " \n"}, ValueError, "empty"),
        ({"text": ["one", ""]}, ValueError, "empty"),
        ({"text": "one", "task": "speak"}, ValueError, "Unknown task 'speak'. The tasks are: ASR"),
        ({"text": "one", "task": "ASR"}, ValueError, "'text' is what ASR answers"),
        ({"text": "one", "task": "InstructTTS"}, ValueError, "needs 'caption' and 'text', but 'caption' is missing"),
        ({"text": "one", "caption": "calm", "task": "TTS"}, ValueError, "takes 'text', but got 'caption' too"),
        ({"text": np.zeros(3)}, TypeError, "'text' of TTS is a text, but got ndarray. Audio goes in `audio`"),
        ({"text": 3}, TypeError, "is a text, but got int"),
        ({"text": "one", "prompt": " "}, ValueError, "`prompt` must be a text that is not empty"),
        ({"text": "one", "task": "text_only", "prompt": "Go on."}, ValueError, "leave `prompt` out"),
        ({"text": ["one", "two"], "task": ["TTS"] * 3}, ValueError, "2 in 'text', 3 in 'task'"),
        ({"text": []}, ValueError, "at least one"),
        ({"text": "one", "images": [1]}, ValueError, "not images"),
        ({"text": "one", "padding": "sideways"}, ValueError, "'sideways'"),
        ({"text": "one", "padding": "max_length"}, ValueError, "needs `max_length`"),
        ({"text": "one", "padding": "max_length", "max_length": 3}, ValueError, "Sequences cannot be cut"),
        ({"text": ["one", "one two three"], "padding": False}, ValueError, "pass `padding=True`"),
        ({"text": "one", "padding_side": "top"}, ValueError, "'top'"),
        ({"text": "one", "return_tensors": "np"}, ValueError, "only PyTorch"),
        ({"audio": "missing.wav"}, FileNotFoundError, r"no audio file 'missing\.wav'"),
        ({"audio": np.zeros(10, dtype=np.float32)}, ValueError, "sampling_rate=16000"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused_with_the_fix(processor, arguments, error, message):
    with pytest.raises(error, match=message):
        processor(**arguments)


def test_codes_that_cannot_be_codes_are_refused(processor, codes):
    reasoning, reconstruction = codes()
    with pytest.raises(ValueError, match=r"'reasoning_codes' of 'audio' must lie between 0 and 15.*and 16"):
        processor(audio=(reasoning.clone().fill_(16), reconstruction))
    with pytest.raises(ValueError, match="between -1 and -1"):
        processor(audio=(reasoning, reconstruction.clone().fill_(-1)))
    with pytest.raises(ValueError, match=r"integers of shape \(8, frames\), but are torch\.int64 of shape \(5, 8\)"):
        processor(audio=(reasoning.T, reconstruction))
    with pytest.raises(ValueError, match="float32"):
        processor(audio=(reasoning.float(), reconstruction))
    with pytest.raises(ValueError, match="empty"):
        processor(audio=(reasoning[:, :0], reconstruction))
    with pytest.raises(ValueError, match="needs 'reasoning_codes', but they are missing"):
        processor(audio={"reconstruction_codes": reconstruction})
    with pytest.raises(ValueError, match="A tuple is"):
        processor(audio=(reasoning,))


def test_a_tokenizer_without_the_special_tokens_is_refused_by_name(tokenizer):
    reduced = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(
            tokenizer.backend_tokenizer.to_str().replace("<lyric>", "<song>")
        )
    )
    processor = UniAudio2Processor(UniAudio2FeatureExtractor(), reduced)
    with pytest.raises(ValueError, match="no token '<lyric>'"):
        processor("one")


# Coming out


def rows_of(processor, codes, task="audio_only", **values):
    return processor.row_format.training_rows(TASKS[task], {"audio": AudioCodes(*codes), **values}, None)


def test_texts_lose_their_special_tokens(processor):
    tokenizer = processor.tokenizer
    ids = [
        *tokenizer.convert_tokens_to_ids(["<transcription>", "<|begin_of_text|>"]),
        *tokenizer("seven 你好", add_special_tokens=False)["input_ids"],
        *tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<text_pad_token>"]),
    ]
    assert processor.decode(ids) == processor.decode(torch.tensor(ids)) == "seven 你好"
    assert processor.decode(torch.tensor([ids, ids])) == ["seven 你好"] * 2
    assert processor.batch_decode(torch.tensor(ids)) == ["seven 你好"]
    assert processor.decode(ids, skip_special_tokens=False).startswith("<transcription><|begin_of_text|>seven")
    assert processor.post_process_multimodal_output(torch.tensor([ids])) == ["seven 你好"]


def test_a_batch_of_texts_as_long_as_a_row_is_wide_is_text(processor):
    ids = torch.tensor(processor.tokenizer(["QWXYZQWXY"] * 3, add_special_tokens=False)["input_ids"])
    assert ids.shape == (3, 9)
    assert processor.decode(ids) == ["QWXYZQWXY"] * 3


def test_sequences_become_the_waveform_of_what_was_generated(processor, codec, codes):
    prompt = processor(audio=codes(2.0, seed=1), task="speech_s2s")["input_ids"]
    answers = [codes(1.0, seed=2), codes(2.0, seed=3)]
    sequences = [
        Rows.join([rows_of(processor, answer), processor.row_format.padding_rows(padding)]).input_ids
        for answer, padding in zip(answers, (18, 0), strict=True)
    ]
    assert len(sequences[0]) == len(sequences[1])
    batch = torch.stack([torch.cat([prompt[0], rows]) for rows in sequences])

    generators = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    waveforms = processor.decode(batch, generator=generators)
    for seed, (_, reconstruction), waveform in zip((0, 1), answers, waveforms, strict=True):
        expected = codec.decode(reconstruction[None], generator=torch.Generator().manual_seed(seed)).audio_values
        torch.testing.assert_close(waveform, expected[0, 0], atol=1e-5, rtol=0)
        assert waveform.device.type == "cpu" and waveform.dtype == torch.float32


def test_one_sequence_is_one_waveform(processor, codes):
    rows = rows_of(processor, codes(1.0)).input_ids
    seeded = {"generator": torch.Generator().manual_seed(0)}
    waveform = processor.decode(rows, generator=torch.Generator().manual_seed(0))
    assert waveform.ndim == 1 and waveform.shape[0] > 0
    (in_batch,) = processor.decode(rows[None], **seeded)
    assert torch.equal(waveform, in_batch)
    (array,) = processor.post_process_multimodal_output(rows, generation_mode="audio")
    assert isinstance(array, np.ndarray) and array.shape == waveform.shape
    with pytest.raises(ValueError, match="generation_mode='audio'"):
        processor.post_process_multimodal_output(rows)


def test_an_output_of_generate_is_decoded_by_its_codes(processor, codes):
    reconstruction = [codes(1.0)[1], codes(0.5, seed=1)[1], torch.zeros(8, 0, dtype=torch.long)]
    output = {"sequences": torch.zeros(3, 4, 9, dtype=torch.long), "reconstruction_codes": reconstruction}
    waveforms = processor.decode(output)
    assert [waveform.shape[0] > 0 for waveform in waveforms] == [True, True, False]
    assert waveforms[0].shape[0] > waveforms[1].shape[0]
    text_output = {"sequences": torch.tensor([processor.tokenizer("one")["input_ids"]])}
    assert processor.decode(text_output) == ["one"]


def test_malformed_frames_are_left_out_with_a_warning(processor, codes, caplog):
    rows = rows_of(processor, codes(1.0)).input_ids
    malformed = rows[-2:-1].clone()
    malformed[0, 3] = processor.reconstruction_eos_token_id + processor.reasoning_vocab_size
    waveform = processor.decode(torch.cat([rows[:-1], malformed, rows[-1:]]))
    assert "1 generated frames mix codes" in caplog.text
    assert waveform.shape == processor.decode(rows).shape


def test_recordings_are_encoded_once_for_later(processor, tone):
    first, second = processor.encode_audio([tone(0.4), tone(1.0)], sampling_rate=24_000)
    assert first.reasoning_codes.shape == (8, 2) and first.reconstruction_codes.shape == (8, 5)
    assert second.reasoning_codes.shape == (8, 5) and second.reconstruction_codes.shape == (8, 13)
    inputs = processor(audio=[first, second])
    assert torch.equal(inputs["input_ids"], processor(audio=[tone(0.4), tone(1.0)], sampling_rate=24_000)["input_ids"])


# Files


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3"])
def test_waveforms_are_written_and_read_again(processor, tone, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    processor.save_audio(torch.from_numpy(tone(0.5)), path)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    samples, rate = soundfile.read(path)
    assert rate == 24_000 and abs(len(samples) - 12_000) < 2_500
    assert np.sqrt(np.mean(np.square(samples))) == pytest.approx(0.3 / np.sqrt(2), rel=0.15)


def test_several_waveforms_of_several_kinds_are_written(processor, tone, tmp_path):
    audio = [torch.from_numpy(tone())[None], np.stack([tone(), tone()])]
    paths = [tmp_path / "a.wav", str(tmp_path / "b.wav")]
    processor.save_audio(audio, paths, sampling_rate=16_000)
    assert [soundfile.info(path).channels for path in paths] == [1, 2]
    assert soundfile.info(paths[0]).samplerate == 16_000


def test_a_failed_write_leaves_the_old_file_and_nothing_else(processor, tone, tmp_path, monkeypatch):
    path = tmp_path / "out.wav"
    path.write_bytes(b"old")

    def broken(file, samples):
        assert len(list(tmp_path.iterdir())) == 2
        raise OSError("disk full")

    monkeypatch.setattr(soundfile.SoundFile, "write", broken)
    with pytest.raises(OSError, match="disk full"):
        processor.save_audio(tone(), path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    "audio, name, message",
    [
        (np.zeros(0), "a.wav", "no samples.*max_new_tokens"),
        (np.array([np.nan]), "a.wav", "NaN"),
        (np.zeros(9), "a.xyz", "no known audio format"),
        (np.zeros(9), "a", "no known audio format"),
        (np.zeros((2, 2, 2)), "a.wav", r"\(2, 2, 2\)"),
        ([np.zeros(9)] * 2, "a.wav", "as many paths"),
    ],
)
def test_what_cannot_be_written_is_refused(processor, tmp_path, audio, name, message):
    with pytest.raises(ValueError, match=message):
        processor.save_audio(audio, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(processor, tone, tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        processor.save_audio(tone(), tmp_path / "nowhere" / "a.wav")


# Talking to the model


def test_both_kinds_of_answers_come_out_of_the_model(processor, model, codes):
    text = processor.decode(model.generate(**processor(audio=[codes(), codes(2.0, 1)]), max_new_tokens=4))
    assert len(text) == 2 and all(isinstance(item, str) for item in text)
    output = model.generate(**processor(["one", "two three"]), max_new_tokens=4, return_dict_in_generate=True)
    waveforms = processor.decode(output)
    assert len(waveforms) == 2 and all(waveform.ndim == 1 for waveform in waveforms)
