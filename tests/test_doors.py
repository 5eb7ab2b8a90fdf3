"""All 26 tasks through the three doors: `processor` + `generate`, the command line, and `pipeline("text-to-audio")`.

The model has random weights and would hardly ever end an answer. So its answers are scripted: a logits processor says
when which marker row comes and that codes are codes; which codes is the model's own choice. Everything else is real.
"""

import numpy as np
import pytest
import soundfile
import torch
from transformers import LogitsProcessor, LogitsProcessorList, pipeline

from uniaudio2 import TASKS, UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.cli import main
from uniaudio2.commands.codes_file import load_codes
from uniaudio2.commands.tasks import given_fields, option
from uniaudio2.processing import read_provenance

RATE, SAMPLES_PER_FRAME = 24_000, 1_920  # 12.5 Hz
ANSWER = "three nine"
FRAMES = {"reasoning": 2, "reconstruction": 5}
SECONDS = FRAMES["reconstruction"] / 12.5

ALL = list(TASKS.values())
SPEAKING = [task for task in ALL if task.num_recordings > 0]


class Script(LogitsProcessor):
    """Leaves the model the ids of a step, and among several the choice. Steps follow each other row by row."""

    def __init__(self, steps):
        self.steps = steps

    def __call__(self, input_ids, scores):
        allowed = torch.zeros(scores.shape[-1], dtype=torch.bool)
        allowed[self.steps[input_ids.shape[1]]] = True
        return scores.masked_fill(~allowed, -torch.inf)


def marker(processor, kind, name):
    offset = processor.reasoning_vocab_size if kind == "reconstruction" else 0
    return getattr(processor, f"{kind}_{name}_token_id") + offset


def script(processor, task):
    """What a well-behaved model answers."""
    tokenizer = processor.tokenizer
    if task.output == "text":
        (target,) = task.targets
        opening = [] if target.wrapper is None else [f"<{target.wrapper}>"]
        # A text that goes on has begun already.
        opening = tokenizer.convert_tokens_to_ids([*opening, "<|begin_of_text|>"] if task.conditions else [])
        return [*opening, *tokenizer(ANSWER, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
    steps = []
    for segment in task.targets:
        offset = processor.reasoning_vocab_size if segment.kind == "reconstruction" else 0
        codes = slice(offset, offset + getattr(processor, f"{segment.kind}_codebook_size"))
        steps += [marker(processor, segment.kind, "bos"), *[codes] * FRAMES[segment.kind]]
        steps.append(marker(processor, segment.kind, "eos"))
    # Where nothing comes before the answer, the prompt is its first row.
    return steps if task.conditions else steps[1:]


@pytest.fixture
def answering(monkeypatch, processor):
    """Has every `generate` follow the script of a task."""
    generate = UniAudio2ForConditionalGeneration.generate

    def install(task):
        scripted = LogitsProcessorList([Script(script(processor, task))])
        monkeypatch.setattr(
            UniAudio2ForConditionalGeneration,
            "generate",
            lambda self, *args, **kwargs: generate(self, *args, **{**kwargs, "logits_processor": scripted}),
        )

    return install


@pytest.fixture
def values(codes):
    """Something for every field of a task."""

    def make(task):
        return {
            name: f"seven {name}" if task.is_text(name) else codes(0.4 + 0.4 * index, seed=index)
            for index, name in enumerate(given_fields(task))
        }

    return make


def by_name(tasks):
    return pytest.mark.parametrize("task", tasks, ids=lambda task: task.name)


@by_name(ALL)
def test_processor_and_generate(processor, model, answering, values, task):
    given = values(task)
    inputs = processor(task=task.name, **given)
    prompt, kinds = inputs["input_ids"][0], inputs["mm_token_type_ids"][0]

    # The prompt: the instruction, then what is given, in the order and the wrappers of the task.
    read = processor.parse_sequence(prompt)
    if task.name == "audio_only":
        assert prompt.tolist() == [[processor.reasoning_bos_token_id] * 8 + [0]]
        read.pop(0)
    if task.prompts:
        assert read.pop(0) == {"type": "text", "text": task.prompts[0] + "\n\n", "wrapper": None}
    for name in given_fields(task):
        part = read.pop(0)
        if task.is_text(name):
            (segment,) = [segment for segment in task.segments if segment.field == name]
            wrapper = segment.wrapper if task.conditions else None
            assert part == {"type": "text", "text": given[name], "wrapper": wrapper}
        else:
            streams = {segment.kind for segment in task.conditions if segment.field == name}
            assert ("reasoning_codes" in part) == ("reasoning" in streams)
            for stream, expected in zip(("reasoning_codes", "reconstruction_codes"), given[name], strict=True):
                if stream in part:
                    assert torch.equal(part[stream], expected)
    assert read == []
    assert torch.equal(kinds == 3, (prompt[:, -1] == 0) & (kinds != 0))
    assert inputs["output_modality"].tolist() == [0 if task.output == "text" else 3]

    answering(task)
    output = model.generate(**inputs, do_sample=False, max_new_tokens=30, return_dict_in_generate=True)
    if task.output == "text":
        assert output.sequences[0].tolist() == script(processor, task)
        assert processor.decode(output.sequences) == [ANSWER]
        return

    # The answer: bos, codes and eos of every stream, the switches between them, and nothing after the last.
    rows = output.sequences[0, len(prompt) :]
    steps = script(processor, task)
    assert rows.shape == (len(steps), 9) and (rows[:, -1] == 0).all()
    for row, step in zip(rows[:, :-1], steps, strict=True):
        ids = range(step.start, step.stop) if isinstance(step, slice) else [step]
        assert all(code in ids for code in row.tolist())
    assert output.num_malformed_frames.tolist() == [0]
    streams = [segment.kind for segment in task.targets]
    for kind in FRAMES:
        found = output[f"{kind}_codes"][0]
        found = found if isinstance(found, list) else [found]
        assert [item.shape[1] for item in found] == [FRAMES[kind] * (kind in streams)] * len(found)
    if task.num_recordings == 0:
        return
    (waveforms,) = processor.decode(output)
    waveforms = waveforms if isinstance(waveforms, list) else [waveforms]
    assert [len(waveform) for waveform in waveforms] == [FRAMES["reconstruction"] * SAMPLES_PER_FRAME] * (
        task.num_recordings
    )
    assert len(waveforms[0]) / RATE == SECONDS
    if task.num_recordings == 2:
        assert not torch.equal(*output.reconstruction_codes[0])


@pytest.fixture
def uniaudio2(capsys, monkeypatch, model, processor):
    """The command line with the random model, which is not loaded again for every task."""
    for kind, loaded in ((UniAudio2ForConditionalGeneration, model), (UniAudio2Processor, processor)):
        monkeypatch.setattr(kind, "from_pretrained", lambda *_, loaded=loaded, **__: loaded)

    def run(*arguments):
        status = main([*map(str, arguments), "--device", "cpu"])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def arguments(processor, tone, tmp_path):
    """The options for a task, with files on disk."""

    def make(task):
        options = ["run", "--task", task.name]
        for index, name in enumerate(given_fields(task)):
            value = f"seven {name}"
            if not task.is_text(name):
                value = tmp_path / f"{name}.flac"
                processor.save_audio(tone(0.4 + 0.4 * index), value)
            options += [option(name), value]
        return options

    return make


@by_name(ALL)
def test_the_command_line(uniaudio2, answering, arguments, tmp_path, task):
    answering(task)
    options = [*arguments(task), "--max-new-tokens", 30]
    if task.output == "text":
        assert uniaudio2(*options)[:2] == (0, f"{ANSWER}\n")
        return
    suffix = "wav" if task.num_recordings else "safetensors"
    status, out, err = uniaudio2(*options, "--output", tmp_path / f"out.{suffix}")
    assert (status, out) == (0, ""), err
    written = sorted(path.name for path in tmp_path.glob("out*"))
    if task.num_recordings == 0:
        codes = load_codes(tmp_path / "out.safetensors")
        assert codes.reasoning_codes.shape == (8, FRAMES["reasoning"]) and codes.reconstruction_codes is None
    else:
        assert written == (["out.wav"] if task.num_recordings == 1 else ["out-1.wav", "out-2.wav"])
    for name in written[: task.num_recordings]:
        waveform, rate = soundfile.read(tmp_path / name)
        assert rate == RATE and len(waveform) / rate == SECONDS
        assert f"{SECONDS:.2f} s of audio" in err
        assert read_provenance(tmp_path / name)["task"] == task.name


@by_name(SPEAKING)
def test_the_pipeline(model, processor, answering, values, task):
    answering(task)
    speak = pipeline("text-to-audio", model=model, tokenizer=processor.tokenizer, processor=processor, device="cpu")
    given = values(task)
    texts_only = all(task.is_text(name) for name in given)
    as_parts = [
        {"type": "text", "text": value, "field": name}
        if task.is_text(name)
        else {"type": "audio", "reasoning_codes": value[0], "reconstruction_codes": value[1], "field": name}
        for name, value in given.items()
    ]
    said = [speak([{"role": "user", "content": as_parts, "task": task.name}])]
    if texts_only and given:
        text = given.pop("text", None) or given.pop(next(iter(given)))
        said.append(speak(text, preprocess_params={"task": task.name, **given}))
    for item in said:
        item = item[0] if isinstance(item, list) else item
        assert item["sampling_rate"] == RATE and np.isfinite(item["audio"]).all()
        samples = FRAMES["reconstruction"] * SAMPLES_PER_FRAME
        # Two recordings are two channels, and what was taken apart is neither of them.
        assert item["audio"].shape == ((2, samples) if task.num_recordings == 2 else (samples,))
        assert (item["audio"] != 0).any(axis=-1).all()


def test_audio_by_itself_takes_nothing(processor, model, codes, uniaudio2, tone, tmp_path):
    with pytest.raises(ValueError, match=r"audio_only .* takes nothing, but got 'audio'"):
        processor(audio=codes(), task="audio_only")
    processor.save_audio(tone(), tmp_path / "tone.wav")
    arguments = ("run", "--task", "audio_only", "--audio", tmp_path / "tone.wav", "--output", tmp_path / "out.wav")
    assert uniaudio2(*arguments)[0] == 2
    # Its reasoning may be given: then all that is left is the sound.
    inputs, reasoning = processor(task="audio_only"), codes()[0]
    output = model.generate(
        **inputs, reasoning_codes=reasoning[None], max_duration=0.4, min_duration=0.4, return_dict_in_generate=True
    )
    assert torch.equal(output.sequences[0, 1 : 1 + reasoning.shape[1], :-1], reasoning.T)
    assert torch.equal(output.reasoning_codes[0], reasoning)


def test_more_parts_than_the_context_holds(processor, model, codes, monkeypatch, caplog):
    monkeypatch.setattr(model.config, "max_position_embeddings", 512)
    monkeypatch.setattr(model.config, "trained_context_length", 256)

    def answer(num_recordings):
        reasoning, reconstruction = codes(1.0)
        part = {"type": "audio", "reasoning_codes": reasoning, "reconstruction_codes": reconstruction}
        asked = [{"role": "user", "content": [part] * num_recordings, "answer": "text"}]
        inputs = processor.apply_chat_template(asked, tokenize=True, return_dict=True, add_generation_prompt=True)
        return model.generate(**inputs, max_new_tokens=2)

    answer(8)
    assert "trained on at most" not in caplog.text
    answer(16)
    assert "trained on at most 256" in caplog.text
    with pytest.raises(ValueError, match="leaves no room in the model's 512 positions"):
        answer(32)
