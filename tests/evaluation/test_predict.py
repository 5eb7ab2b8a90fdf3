"""What the model is asked: batches answer as their items alone, examples come before the question."""

import json

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.numpy import load_file

from uniaudio2.evaluation import evaluate
from uniaudio2.evaluation.data import load_items
from uniaudio2.evaluation.manifest import read_predictions
from uniaudio2.evaluation.predict import Predictor, Question, _text_lengths
from uniaudio2.evaluation.suite import SUITE_FOLDER, load_suite

SPEAKERS = ("a", "b", "c")
CLASSES = ("happy", "sad", "neutral", "angry", "surprise")


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Recordings of many lengths with all columns that the suites with examples read."""
    folder = tmp_path_factory.mktemp("recordings")
    generator = np.random.default_rng(0)
    lines = []
    for index in range(10):
        for kind in ("said", "target"):
            samples = 0.1 * generator.standard_normal(4000 + 1500 * index)
            soundfile.write(folder / f"{kind}-{index}.wav", samples, 24000)
        lines.append(
            {
                "file": f"said-{index}.wav",
                "target": f"target-{index}.wav",
                "text": " ".join(["one", "two three"][: 1 + index % 2] * (1 + index % 3)),
                "emotion": CLASSES[index % 5],
                "category": ("rain", "dog")[index % 2],
                "pair": f"{index % 2}-to-{1 - index % 2}",
            }
        )
    (folder / "manifest.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def written(tmp_path, name, test, **changes):
    """A test of a suite of the package, with changes, as a suite of its own."""
    suite = yaml.safe_load((SUITE_FOLDER / f"{name}.yaml").read_text())
    suite["tests"] = {test: {**suite["tests"][test], **changes}}
    path = tmp_path / f"{name}.yaml"
    path.write_text(yaml.safe_dump(suite))
    return str(path)


@pytest.fixture
def batch_suite(tmp_path):
    """Texts, recordings and codes: greedy, and drawn with a seed for each item."""
    data, columns = {"folder": "elsewhere"}, {"audio": "file", "text": "text"}
    greedy = {"do_sample": False, "max_new_tokens": 7}
    # An untrained model must be told when to begin with sound, and when to end.
    spoken = {"min_duration": 0.2, "max_duration": 0.6}
    tests = {
        "listening": {"task": "ASR", "generation": greedy},
        "speaking": {"task": "TTS", "generation": {"do_sample": False, **spoken}},
        "speaking-at-random": {"task": "TTS", "generation": {"do_sample": True, **spoken}},
        "round-trip": {"task": "reconstruction"},
        "tokens": {"task": "codec_tokens"},
    }
    path = tmp_path / "batches.yaml"
    path.write_text(
        yaml.safe_dump({"tests": {name: {**test, "data": data, "columns": columns} for name, test in tests.items()}})
    )
    return str(path)


def test_a_batch_answers_as_its_items_alone(batch_suite, model_folder, recordings, tmp_path):
    for size in (1, 3):
        evaluate(batch_suite, model=str(model_folder), data=str(recordings), output=tmp_path / f"{size}",
                 batch_size=size, limit=4, device="cpu")  # fmt: skip
    for test in load_suite(batch_suite):
        alone, together = (read_predictions(tmp_path / f"{size}" / "batches" / test.name) for size in (1, 3))
        for one, other in zip(alone, together, strict=True):
            # An untrained model may also say nothing that can be heard: then it does in a batch too.
            assert one.get("error") == other.get("error") and one["tokens"] == other["tokens"]
            if one.get("error"):
                assert one["error"] == "the answer holds no audio frame" and test.task == "TTS"
            elif test.answer_kind == "text":
                assert one["answer"] == other["answer"]
            elif test.answer_kind == "codes":
                for name, codes in load_file(one["answer"]).items():
                    assert (load_file(other["answer"])[name] == codes).all()
            else:
                first, second = (soundfile.read(row["answer"])[0] for row in (one, other))
                assert len(first) == len(second) and np.abs(first - second).max() < 1e-3
        assert sum(not row.get("error") for row in alone) >= 2


def test_the_end_counts_and_what_follows_it_does_not():
    ids = torch.tensor([[5, 6, 2, 0, 0], [5, 6, 7, 8, 9], [2, 0, 0, 0, 0], [5, 3, 2, 0, 0]])
    assert _text_lengths(ids, [2, 3]) == [3, 5, 1, 2]
    assert _text_lengths(ids, 2) == [3, 5, 1, 3] and _text_lengths(ids, None) == [5, 5, 5, 5]


@pytest.mark.parametrize(
    ("suite", "test", "examples", "length"),
    [
        ("emotion", "english", 5, {"max_new_tokens": 6}),
        ("sound_classes", "classes", 2, {"max_new_tokens": 6}),
        ("vctk", "conversion", 1, {"min_duration": 0.4, "max_duration": 0.4}),
    ],
)
def test_examples_come_before_the_question(
    suite, test, examples, length, model_folder, recordings, tmp_path, monkeypatch
):
    """The suites of the package with few-shot examples, on local data: answered, stored, scored with what is here."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    path = written(tmp_path, suite, test, generation={"do_sample": False, **length})
    (definition,) = load_suite(path)
    options = {"model": str(model_folder), "data": str(recordings), "limit": 2, "device": "cpu"}
    (summary,) = evaluate(path, output=tmp_path / "out", batch_size=2, **options)
    rows = read_predictions(tmp_path / "out" / suite / test)

    # Each answer is that to a conversation put together by hand.
    predictor, items = Predictor(str(model_folder), torch.device("cpu")), load_items(definition, str(recordings))
    for index, row in enumerate(rows):
        assert not row.get("error"), row
        shots = items.shots(index, seed=0)
        assert len(shots) == examples and items[index]["id"] not in [shot["id"] for shot in shots]
        messages = [{"role": "system", "content": definition.prompt}] if definition.prompt else []
        for shot in [*shots, items[index]]:
            fields = shot["fields"]
            asked = [{"type": "audio", "path": fields["audio"], "field": "audio"}]
            told = {"type": "audio", "path": fields.get("target_audio"), "field": "target_audio"}
            if definition.task == "audio_understanding":
                asked.append({"type": "text", "text": fields["question"], "field": "question"})
                told = {"type": "text", "text": fields["answer"], "field": "answer"}
            messages.append({"role": "user", "content": asked, "task": definition.task})
            messages.append({"role": "assistant", "content": [told], "task": definition.task})
        inputs = predictor.processor.apply_chat_template(
            messages[:-1], tokenize=True, return_dict=True, add_generation_prompt=True
        )
        with torch.no_grad():
            sequences = predictor.model.generate(**inputs, do_sample=False, **length)
        if definition.answer_kind == "text":
            assert row["answer"] == predictor.processor.decode(sequences)[0]
        else:
            generator = torch.Generator().manual_seed(index)
            waveform = predictor.processor.decode(sequences, generator=generator)[0].numpy()
            assert np.abs(soundfile.read(row["answer"])[0] - waveform).max() < 1e-3
    if suite == "vctk":
        assert [item["metric"] for item in summary["left_out"]] == ["word_error_rate", "speaker_similarity"]
        assert {shot["id"] for shot in items.shots(0, 0)} <= {f"{index:06d}" for index in range(0, 10, 2)}
    else:
        assert {entry["score"] for entry in summary["scores"]} == {"accuracy", "macro_f1"}


def test_examples_change_the_answer(model_folder, recordings, tmp_path):
    """The same question after other examples: the model reads them."""
    (definition,) = load_suite(written(tmp_path, "emotion", "english", generation={"do_sample": False}))
    predictor, items = Predictor(str(model_folder), torch.device("cpu")), load_items(definition, str(recordings))
    fields = [items[index]["fields"] for index in range(10)]
    prompts = [
        predictor._inputs(definition, [Question(fields[0], shots, 0)]) for shots in (fields[1:6], fields[2:7], [])
    ]
    with torch.no_grad():
        logits = [predictor.model(**prompt).logits[0, -1] for prompt in prompts]
    assert not torch.allclose(logits[0], logits[1]) and not torch.allclose(logits[0], logits[2])
