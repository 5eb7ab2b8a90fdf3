"""Codec token quality: a language model's surprise at codes, and what a classifier and a recogniser read in them."""

import itertools
import json
from typing import ClassVar

import numpy as np
import pytest
import soundfile
import torch
from safetensors.numpy import load_file

from uniaudio2.evaluation import evaluate
from uniaudio2.evaluation.code_language_model import Budget, CodeLanguageModel
from uniaudio2.evaluation.code_recognizer import CodeRecognizer, RecognizerBudget
from uniaudio2.evaluation.codes import read_codes, write_codes
from uniaudio2.evaluation.metrics import load_metric
from uniaudio2.evaluation.run import score_again

CODEBOOKS, SIZE = 2, 16
BUDGET = {"steps": 40, "batch_size": 8, "window_frames": 16, "hidden_size": 32, "num_layers": 1, "num_heads": 2,
          "learning_rate": 1e-2}  # fmt: skip


def perplexity(train, test, **budget):
    metric = load_metric("token_perplexity", stream="reasoning", **{**BUDGET, **budget})
    values = metric.compute(predictions=[*train, *test], references=["train"] * len(train) + ["test"] * len(test))
    return values["reasoning_perplexity"]


def drawn(count, frames=40, size=SIZE, seed=0):
    return list(np.random.default_rng(seed).integers(0, size, (count, CODEBOOKS, frames)))


class TestPerplexity:
    def test_of_uniform_codes_is_the_size_of_the_codebook(self):
        # One pass over more codes than can be learnt by heart.
        assert perplexity(drawn(200), drawn(20, seed=1), steps=20, learning_rate=1e-3) == pytest.approx(SIZE, rel=0.03)

    def test_of_a_constant_is_one(self):
        constant = [np.full((CODEBOOKS, 40), 5)] * 4
        assert perplexity(constant, constant) == pytest.approx(1, abs=0.01)

    def test_of_independent_codes_is_that_of_their_distribution(self):
        # Codebook 0 uses 4 codes alike and codebook 1 always the same: half of the codes have 4 choices, the others 1.
        codes = drawn(200, size=4)
        for array in codes:
            array[1] = SIZE - 1
        assert perplexity(codes[:180], codes[180:], steps=120) == pytest.approx(2, rel=0.03)

    def test_of_a_markov_chain_is_that_of_its_entropy_rate(self):
        # The code stays with probability 0.9, or is another of 4: what was before tells it.
        generator = np.random.default_rng(3)
        codes = []
        for _ in range(120):
            chain = [generator.integers(4)]
            for _ in range(39):
                chain.append(chain[-1] if generator.random() < 0.9 else (chain[-1] + generator.integers(1, 4)) % 4)
            codes.append(np.array([chain, [SIZE - 1] * 40]))
        rate = -0.9 * np.log(0.9) - 0.1 * np.log(0.1 / 3)
        # The first code of a window, of 40 codes here, has nothing before it: log 4.
        expected = np.exp((39 * rate + np.log(4)) / 80)
        assert perplexity(codes[:100], codes[100:], steps=250, window_frames=40) == pytest.approx(expected, rel=0.04)

    def test_the_loss_is_that_of_transformers(self):
        """Logits of all ids, restricted to the codebook that is due, shifted by one: by Llama's own forward."""
        budget = Budget(steps=1, batch_size=2, window_frames=8, hidden_size=16, num_layers=1, num_heads=2)
        model = CodeLanguageModel(CODEBOOKS, SIZE, budget, seed=1)
        codes = drawn(1, frames=8)[0]
        ids = torch.as_tensor(codes.T + np.array([0, SIZE])).flatten()
        with torch.no_grad():
            logits = model.model(torch.cat((torch.tensor([CODEBOOKS * SIZE]), ids))[None]).logits[0, :-1]
        surprise = 0.0
        for place, (token, row) in enumerate(zip(ids.tolist(), logits.double(), strict=True)):
            first = place % CODEBOOKS * SIZE
            surprise -= row[first : first + SIZE].log_softmax(dim=0)[token - first].item()
        assert model.surprise(codes) == pytest.approx(surprise, rel=1e-5)
        # A recording of several windows is their sum, and no window knows the one before.
        assert model.surprise(np.tile(codes, 3)) == pytest.approx(3 * surprise, rel=1e-5)

    def test_the_same_seed_gives_the_same_number(self):
        codes = drawn(12, frames=10)
        assert perplexity(codes[:8], codes[8:], steps=3) == perplexity(codes[:8], codes[8:], steps=3)
        assert perplexity(codes[:8], codes[8:], steps=3, seed=1) != perplexity(codes[:8], codes[8:], steps=3)

    def test_items_that_are_not_held_out_count_nowhere(self):
        metric = load_metric("token_perplexity", stream="reasoning", **{**BUDGET, "steps": 2})
        rows = metric.items(drawn(4, frames=10), ["train", "test", "elsewhere", "test"])
        assert np.isfinite(rows).all(axis=1).tolist() == [False, True, False, True]
        assert rows[1, 1] == CODEBOOKS * 10

    def test_nothing_to_learn_from_is_an_error(self):
        with pytest.raises(ValueError, match="0 items of the split 'train'"):
            load_metric("token_perplexity").items(drawn(2), ["test", "test"])


class TestProbe:
    def probe(self, codes, labels, **options):
        metric = load_metric("token_probe", stream="reasoning", **options)
        return metric.compute(predictions=codes, references=labels)

    def test_codes_that_carry_the_label_are_read(self):
        labels = ["low", "high"] * 20
        # Half of the codes are noise; the other half says which.
        codes = drawn(40)
        for array, label in zip(codes, labels, strict=True):
            array[0, ::2] = 3 if label == "low" else 12
        values = self.probe(codes, labels)
        assert values["reasoning_accuracy"] == 1 and values["reasoning_macro_f1"] == 1
        assert values["reasoning_majority"] == pytest.approx(0.5)

    def test_codes_that_say_nothing_are_chance(self):
        labels = np.random.default_rng(1).choice(["a", "b", "c", "d"], 300).tolist()
        values = self.probe(drawn(300), labels)
        # Four standard errors of 300 guesses at one of four.
        assert values["reasoning_accuracy"] == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 300))

    def test_agrees_with_scikit_learn_on_dense_features(self):
        from sklearn.linear_model import LogisticRegression
        from sklearn.model_selection import StratifiedKFold, cross_val_predict

        generator = np.random.default_rng(4)
        labels = generator.choice(["a", "b", "c"], 90)
        codes = [generator.integers(0, 8 + 2 * "abc".index(label), (CODEBOOKS, 30)) for label in labels]
        size = 1 + max(array.max() for array in codes)
        features = [
            np.sqrt(np.concatenate([np.bincount(row, minlength=size) for row in array]) / 30) for array in codes
        ]
        folds = StratifiedKFold(5, shuffle=True, random_state=0)
        expected = cross_val_predict(LogisticRegression(C=10.0, max_iter=1000), np.array(features), labels, cv=folds)
        assert self.probe(codes, labels.tolist())["reasoning_accuracy"] == pytest.approx((expected == labels).mean())

    def test_too_few_of_a_class_are_an_error(self):
        with pytest.raises(ValueError, match="3 of 'b'"):
            self.probe(drawn(13), ["a"] * 10 + ["b"] * 3)


class TestRecognition:
    WORDS = ("no", "hi", "up", "at", "we", "so")
    BUDGET: ClassVar = {"steps": 200, "batch_size": 16, "hidden_size": 32, "num_layers": 2, "num_heads": 2,
                        "learning_rate": 1e-2}  # fmt: skip

    def spoken(self):
        """All sentences of one to three words, a frame per word: one codebook says which, the other is noise."""
        generator = np.random.default_rng(0)
        sentences = [words for count in (1, 2, 3) for words in itertools.product(range(6), repeat=count)]
        generator.shuffle(sentences)
        codes = [np.stack((2 * np.array(words), generator.integers(0, SIZE, len(words)))) for words in sentences]
        return codes, [" ".join(self.WORDS[word] for word in words) for words in sentences]

    def recognition(self, **options):
        return load_metric("token_recognition", normalizer="none", **{**self.BUDGET, **options})

    @pytest.mark.parametrize("say_something", [True, False])
    def test_writes_what_the_codes_say_and_guesses_where_they_say_nothing(self, say_something):
        codes, texts = self.spoken()
        if not say_something:
            codes = [np.random.default_rng(index).integers(0, SIZE, array.shape) for index, array in enumerate(codes)]
        metric = self.recognition()
        parts = ["train"] * 228 + ["test"] * 30
        # None of the 30 sentences is among those learnt from.
        values = metric.compute(predictions=codes, references=list(zip(parts, texts, strict=True)))
        assert len(metric.heard) == 30
        if say_something:
            assert values["reasoning_wer"] < 0.1 and values["reasoning_cer"] < 0.1 and values["reasoning_exact"] > 0.8
        else:
            # One of six words is right by chance, where the number of words is that of the frames.
            assert 0.6 < values["reasoning_wer"] < 1.1 and values["reasoning_exact"] < 0.2
        rows = np.array([metric.errors.item(*pair, None) for pair in zip(metric.heard, texts[228:], strict=True)])
        assert values["reasoning_wer"] == pytest.approx(rows[:, 0].sum() / rows[:, 1].sum())

    def test_the_loss_is_that_of_each_character_after_all_frames(self):
        model = CodeRecognizer(
            CODEBOOKS,
            SIZE,
            "abc",
            RecognizerBudget(steps=1, batch_size=2, hidden_size=16, num_layers=1, num_heads=2),
            seed=1,
        )
        recordings = [array[:, :frames] for array, frames in zip(drawn(2), (3, 7), strict=True)]
        surprises = []
        for codes, text in zip(recordings, ([2, 3], [4, 2, 3, 3, 2]), strict=True):
            frames = sum(model.code_embeddings.weight[q * SIZE + torch.as_tensor(codes[q])] for q in range(CODEBOOKS))
            letters = model.model.model.embed_tokens.weight[[1, *text]]
            logits = model.model(inputs_embeds=torch.cat((frames, letters))[None]).logits[0, len(frames) :]
            surprises += (-logits.log_softmax(dim=-1)[range(len(text) + 1), [*text, 0]]).tolist()
        loss = model._loss(recordings, [torch.tensor([2, 3, 0]), torch.tensor([4, 2, 3, 3, 2, 0])])
        assert loss.item() == pytest.approx(np.mean(surprises), rel=1e-5)

    def test_recordings_are_written_together_as_alone_and_greedily(self):
        model = CodeRecognizer(
            CODEBOOKS,
            SIZE,
            "abc",
            RecognizerBudget(steps=5, batch_size=3, hidden_size=16, num_layers=2, num_heads=2),
            seed=2,
        )
        recordings = [array[:, :frames] for array, frames in zip(drawn(5), (3, 17, 9, 1, 30), strict=True)]
        model.learn(recordings, ["ab", "c", "abcabc", "bb", "ca"])
        written = model.write(recordings)
        assert written == [model.write([codes])[0] for codes in recordings]
        for codes, text in zip(recordings, written, strict=True):
            inputs, expected = model._prompt(codes), ""
            for _ in range(14):
                best = model.model(inputs_embeds=inputs[None]).logits[0, -1].argmax().item()
                if best == 0:
                    break
                expected += "abc"[best - 2] if best >= 2 else ""
                inputs = torch.cat((inputs, model.model.model.embed_tokens.weight[[best]]))
            assert text == expected
        assert any(written)

    def test_the_same_seed_gives_the_same_texts_and_others_count_nowhere(self):
        codes, texts = self.spoken()
        references = list(zip(["train", "test", "elsewhere", "test"], [*texts[:2], None, texts[3]], strict=True))
        written = []
        for seed in (0, 0, 1):
            metric = self.recognition(steps=2, seed=seed)
            rows = metric.items(codes[:4], references)
            assert np.isfinite(rows).all(axis=1).tolist() == [False, True, False, True]
            written.append(metric.heard)
        assert written[0] == written[1] != written[2]

    @pytest.mark.parametrize(
        ("references", "message"),
        [
            ([("test", "no")] * 2, "0 items of the split 'train'"),
            ([("train", "no")] * 2, "0 of 'test' to measure"),
            ([("train", "no"), ("test", " ")], "Item 1: the transcript ' ' holds no word"),
            ([("train", None), ("test", "no")], "Item 0: the transcript None holds no word"),
            (["train", "test"], "Item 0: a reference is the split and the transcript of the item, but is 'train'"),
            (None, "the split and the transcript"),
        ],
    )
    def test_what_cannot_be_learnt_or_measured_is_an_error(self, references, message):
        with pytest.raises(ValueError, match=message):
            self.recognition().items(drawn(2), references)

    def test_codes_of_two_codecs_are_an_error(self):
        with pytest.raises(ValueError, match=r"items have \[1, 2\] codebooks"):
            self.recognition().items([drawn(1)[0], drawn(1)[0][:1]], [("train", "no"), ("test", "no")])


@pytest.mark.parametrize("name", ["token_perplexity", "token_probe", "token_recognition"])
@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (None, "no codes"),
        ("missing.safetensors", "cannot be read"),
        (np.zeros((2, 0), int), "at least one frame"),
        (np.zeros(3, int), "shape"),
        (np.full((2, 3), np.nan), "integers"),
        (-np.ones((2, 3), int), "at least 0"),
    ],
)
def test_what_is_no_code_is_an_error_of_its_item(name, codes, message):
    with pytest.raises(ValueError, match=f"Item 0.*{message}"):
        reference = ("train", "no") if name == "token_recognition" else "train"
        load_metric(name, stream="reasoning").items([codes], [reference])


def test_a_file_of_codes_is_read_again_by_its_streams(tmp_path):
    codes = drawn(1)[0]
    write_codes(tmp_path / "a.safetensors", reasoning=codes, reconstruction=codes[:, :3])
    assert (read_codes(tmp_path / "a.safetensors", "reconstruction") == codes[:, :3]).all()
    write_codes(tmp_path / "b.safetensors", reasoning=codes)
    with pytest.raises(ValueError, match="has no 'reconstruction_codes', but 'reasoning_codes'"):
        read_codes(tmp_path / "b.safetensors", "reconstruction")
    with pytest.raises(ValueError, match="reasoning, reconstruction"):
        load_metric("token_probe", stream="semantic")


@pytest.fixture
def token_suite(write_suite):
    def change(tests):
        tests.clear()
        tests["tokens"] = {
            "task": "codec_tokens",
            "data": {"folder": "elsewhere"},
            "columns": {"audio": "file", "part": "part", "emotion": "emotion", "text": "text"},
            "metrics": [
                {"metric": "token_perplexity", "reference": "part", "options": {**BUDGET, "steps": 2}},
                {"metric": "token_probe", "reference": "emotion", "options": {"folds": 2}},
                {
                    "metric": "token_recognition",
                    "reference": ["part", "text"],
                    "options": {"steps": 2, "hidden_size": 16, "num_layers": 1, "num_heads": 2},
                },
            ],
        }

    return write_suite(change)


def test_a_suite_stores_codes_and_scores_them_alone(token_suite, model_folder, data_folder, codec, tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [json.loads(line) for line in (data_folder / "manifest.jsonl").read_text().splitlines()]
    rows = [
        {**row, "file": str(data_folder / row["file"]), "part": part}
        for row, part in zip(rows, ["train", "train", "train", "test"], strict=True)
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = tmp_path / "out"
    (summary,) = evaluate(token_suite, model=str(model_folder), data=str(folder), output=out, batch_size=3)
    values = {entry["score"]: entry["value"] for entry in summary["scores"]}
    items = {entry["score"]: entry["items"] for entry in summary["scores"]}
    assert items == {"reconstruction_perplexity": 1, "reasoning_accuracy": 4, "reasoning_macro_f1": 4,
                     "reasoning_majority": 4, "reasoning_wer": 1, "reasoning_cer": 1,
                     "reasoning_exact": 1}  # fmt: skip
    stored = out / "small/tokens"
    # The codes are the codec's own, each recording alone.
    samples, _ = soundfile.read(data_folder / "2.wav", dtype="float32")
    expected = codec.encode(torch.as_tensor(samples)[None])
    found = load_file(stored / "codes/000002.safetensors")
    assert (found["reconstruction_codes"] == expected.reconstruction_codes[0].numpy()).all()
    assert (found["reasoning_codes"] == expected.reasoning_codes[0].numpy()).all()
    (stored / "scores.json").unlink()
    (again,) = score_again(out, [token_suite])
    assert {entry["score"]: entry["value"] for entry in again["scores"]} == values
    # Fewer items than both metrics need: left out, with the reason.
    (less,) = evaluate(token_suite, model=str(model_folder), data=str(folder), output=out, batch_size=3, limit=2)
    assert [item["metric"] for item in less["left_out"]] == ["token_perplexity", "token_probe", "token_recognition"]
    assert "0 of 'test' to measure" in less["left_out"][0]["reason"]
    assert "Left out: token_probe" in (out / "report.md").read_text()
