"""Every metric against something that knows the answer: a closed form, a published value, another package, a hand."""

import json
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace

import evaluate
import numpy as np
import pesq
import pystoi
import pytest
import soundfile
import soxr
import yaml
from scipy.linalg import sqrtm
from sklearn.metrics import accuracy_score, f1_score

import uniaudio2
from uniaudio2.evaluation.metric import MetricUnavailableError
from uniaudio2.evaluation.metrics import METRICS, load_metric
from uniaudio2.evaluation.metrics.class_divergence import divergence
from uniaudio2.evaluation.metrics.frechet_distance import gaussian_distance
from uniaudio2.evaluation.metrics.mel_distance import FLOOR, log_mel
from uniaudio2.evaluation.run import score_again

RATE = 16000
FOLDER = Path(uniaudio2.__file__).parent / "evaluation" / "metrics"
PAIRED = ("perceptual_quality", "intelligibility", "signal_distortion", "mel_distance")


@pytest.fixture
def speech():
    """A recording of spoken digits, 24 kHz, 2 s."""
    recording = Path(__file__).parents[2] / "benchmarks" / "recordings" / "heldout-00002.flac"
    samples, rate = soundfile.read(recording, dtype="float32", frames=48000)
    return samples, rate


def noisy(samples, level, seed=0):
    return (samples + level * np.random.default_rng(seed).standard_normal(len(samples))).astype(np.float32)


class TestWordErrorRate:
    @pytest.mark.parametrize(
        ("reference", "prediction", "wer"),
        [
            # By hand: substitutions, deletions and insertions over the words of the reference.
            ("one two three four", "one two three four", 0.0),
            ("one two three four", "one too three four", 0.25),
            ("one two three four", "one three four", 0.25),
            ("one two", "one oh two two", 1.0),
            ("one two three", "", 1.0),
        ],
    )
    def test_hand_counted(self, reference, prediction, wer):
        assert load_metric("word_error_rate", normalizer="none").compute(
            predictions=[prediction], references=[reference]
        )["wer"] == pytest.approx(wer)

    def test_errors_are_pooled_not_averaged(self):
        values = load_metric("word_error_rate", normalizer="none").compute(
            predictions=["a x c d", "b"], references=["a b c d", "a"]
        )
        assert values == {"wer": pytest.approx(2 / 5), "cer": pytest.approx(2 / 8), "exact": 0.0}

    def test_agrees_with_a_plain_edit_distance_on_random_texts(self):
        generator = np.random.default_rng(7)
        draw = lambda: " ".join(generator.choice(list("abcd"), generator.integers(1, 9)))  # noqa: E731
        pairs = [(draw(), draw()) for _ in range(40)]
        values = load_metric("word_error_rate", normalizer="none").compute(
            references=[pair[0] for pair in pairs], predictions=[pair[1] for pair in pairs]
        )
        words = sum(edit_distance(a.split(), b.split()) for a, b in pairs) / sum(len(a.split()) for a, _ in pairs)
        characters = sum(edit_distance(a, b) for a, b in pairs) / sum(len(a) for a, _ in pairs)
        assert values["wer"] == pytest.approx(words) and values["cer"] == pytest.approx(characters)

    def test_english_rules(self):
        # Whisper's rules: case, punctuation, contractions and numbers do not count.
        metric = load_metric("word_error_rate")
        assert metric.compute(predictions=["we're 12, OK"], references=["We are twelve: ok!"])["wer"] == 0

    def test_chinese_words_are_characters(self):
        values = load_metric("word_error_rate", normalizer="chinese").compute(
            predictions=["今天天汽很好"], references=["今天天气很好。"]
        )
        assert values["wer"] == pytest.approx(1 / 6)

    def test_the_rates_of_the_items_are_averaged_where_asked_for(self):
        values = load_metric("word_error_rate", normalizer="none", average="items").compute(
            predictions=["a x c d", "b"], references=["a b c d", "a"]
        )
        assert values["wer"] == pytest.approx((1 / 4 + 1) / 2)
        with pytest.raises(ValueError, match="'words' or 'items'"):
            load_metric("word_error_rate", average="speakers")

    def test_an_empty_reference_has_no_value(self):
        with pytest.raises(ValueError, match="holds no word"):
            load_metric("word_error_rate").compute(predictions=["one"], references=[" . "])

    def test_audio_is_heard_and_silence_is_an_empty_text(self, speech, tmp_path):
        samples, rate = speech
        metric = load_metric("word_error_rate", normalizer="none", recogniser="digits")
        audio = [samples, np.zeros(rate, np.float32), np.full(rate, np.nan, np.float32), np.zeros(1, np.float32)]
        rows = metric.items(audio, ["nine zero four"] + ["one"] * 3, rate)
        assert metric.heard[0].split()[:3] == ["nine", "zero", "four"]
        assert rows[2:, 0].tolist() == [1, 1]
        # A missing file counts like silence: answering with nothing gains nothing.
        assert metric.items([str(tmp_path / "missing.wav")], ["one two"])[0, 0] == 2


def edit_distance(a, b):
    previous = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        current = [i]
        for j, y in enumerate(b, 1):
            current.append(min(previous[j] + 1, current[-1] + 1, previous[j - 1] + (x != y)))
        previous = current
    return previous[-1]


class TestAgainstAReference:
    def test_pesq_is_that_of_the_package_and_best_for_a_copy(self, speech):
        samples, _ = speech
        worse = noisy(samples, 0.02)
        value = lambda band, rate: load_metric("perceptual_quality", band=band).compute(  # noqa: E731
            predictions=[worse], references=[samples], sampling_rate=rate
        )["pesq"]
        assert value("wb", 16000) == pytest.approx(pesq.pesq(16000, samples, worse, "wb"))
        assert value("nb", 8000) == pytest.approx(pesq.pesq(8000, samples, worse, "nb"))
        copy = load_metric("perceptual_quality").compute(
            predictions=[samples], references=[samples], sampling_rate=16000
        )
        # A copy has the raw score 4.5, which P.862.2 and, narrowband, P.862.1 put on their scales.
        assert copy["pesq"] == pytest.approx(0.999 + 4 / (1 + np.exp(3.8224 - 1.3669 * 4.5)), abs=1e-4)
        copy = load_metric("perceptual_quality", band="nb").compute(
            predictions=[samples], references=[samples], sampling_rate=8000
        )
        assert copy["pesq"] == pytest.approx(0.999 + 4 / (1 + np.exp(4.6607 - 1.4945 * 4.5)), abs=1e-4)

    def test_stoi_is_that_of_the_package_and_one_for_a_copy(self, speech):
        samples, rate = speech
        worse = noisy(samples, 0.02)
        values = load_metric("intelligibility").compute(
            predictions=[worse, samples], references=[samples, samples], sampling_rate=rate
        )
        for name, extended in (("stoi", False), ("estoi", True)):
            expected = (pystoi.stoi(samples, worse, rate, extended=extended) + 1) / 2
            assert values[name] == pytest.approx(expected, abs=1e-6)

    def test_stoi_does_not_hear_a_gain(self, speech):
        # Correlations of envelopes, which a factor does not change.
        samples, rate = speech
        values = load_metric("intelligibility").compute(
            predictions=[0.2 * samples], references=[samples], sampling_rate=rate
        )
        assert values == {"stoi": pytest.approx(1, abs=1e-5), "estoi": pytest.approx(1, abs=1e-5)}
        noise = np.random.default_rng(0).standard_normal(len(samples))
        unheard = load_metric("intelligibility").compute(predictions=[noise], references=[samples], sampling_rate=rate)
        assert unheard["estoi"] == pytest.approx(0, abs=0.1)

    @pytest.mark.parametrize("gain", [0.1, 1.0, 3.0])
    @pytest.mark.parametrize("decibel", [-10.0, 0.0, 17.0])
    def test_si_sdr_closed_form(self, gain, decibel):
        # A sine and a cosine are orthogonal: their energies set the ratio, whatever the gain.
        time = np.arange(RATE) / RATE
        target, rest = np.sin(2 * np.pi * 100 * time), np.cos(2 * np.pi * 100 * time)
        prediction = gain * (target + 10 ** (-decibel / 20) * rest)
        values = load_metric("signal_distortion").compute(
            predictions=[prediction], references=[target], sampling_rate=RATE
        )
        assert values["si_sdr"] == pytest.approx(decibel, abs=1e-4)

    def test_si_sdr_is_limited(self):
        tone, silence = np.sin(np.arange(1000) / 5), np.zeros(1000)
        metric = load_metric("signal_distortion")
        assert metric.compute(predictions=[2 * tone], references=[tone], sampling_rate=RATE)["si_sdr"] == 100
        assert metric.compute(predictions=[silence], references=[tone], sampling_rate=RATE)["si_sdr"] == -100

    def test_mel_distance_of_a_gain_is_its_logarithm(self):
        noise = np.random.default_rng(3).standard_normal(24000)
        metric = load_metric("mel_distance")
        values = metric.compute(predictions=[noise / 4], references=[noise], sampling_rate=24000)
        assert values["mel_distance"] == pytest.approx(np.log(4), abs=1e-5)
        assert metric.compute(predictions=[noise], references=[noise], sampling_rate=24000)["mel_distance"] == 0

    def test_mel_distance_of_silence_is_that_of_the_floor(self):
        noise, silence = np.random.default_rng(3).standard_normal(24000), np.zeros(24000)
        metric = load_metric("mel_distance")
        assert metric.compute(predictions=[silence], references=[silence], sampling_rate=24000)["mel_distance"] == 0
        value = metric.compute(predictions=[noise], references=[silence], sampling_rate=24000)["mel_distance"]
        assert value == pytest.approx(np.abs(log_mel(noise) - np.log(FLOOR)).mean(), rel=1e-5)

    @pytest.mark.parametrize("name", PAIRED)
    def test_other_rates_give_nearly_the_same(self, name, speech, tmp_path):
        # The same two recordings, stored at other rates.
        samples, rate = speech
        worse = noisy(samples, 0.05)
        values = []
        for target in (rate, 44100):
            paths = [tmp_path / f"{kind}-{target}.wav" for kind in ("prediction", "reference")]
            for path, signal in zip(paths, (worse, samples), strict=True):
                soundfile.write(path, soxr.resample(signal, rate, target), target, subtype="FLOAT")
            values.append(load_metric(name).items([paths[0]], [paths[1]])[0, 0])
        assert values[1] == pytest.approx(values[0], rel=0.1, abs=0.05)

    @pytest.mark.parametrize("name", PAIRED)
    @pytest.mark.parametrize(
        ("samples", "message"),
        [
            (np.full(16000, np.nan), "NaN"),
            (np.zeros(0), "no samples"),
            (np.zeros((2, 100)), "shape"),
            (np.ones(40000), "aligned"),
        ],
    )
    def test_hostile_input_is_an_error(self, name, samples, message, speech):
        with pytest.raises(ValueError, match=message):
            load_metric(name).items([samples], [speech[0]], RATE)

    def test_a_silent_prediction_has_the_value_that_is_documented(self, speech):
        samples, rate = speech
        silence = np.zeros_like(samples)
        with pytest.raises(ValueError, match="the prediction is silent"):
            load_metric("perceptual_quality").items([silence], [samples], rate)
        assert load_metric("intelligibility").items([silence], [samples], rate) == pytest.approx(0, abs=0.1)
        assert load_metric("signal_distortion").items([silence], [samples], rate) == -100

    def test_stoi_is_the_same_every_time_and_leaves_the_global_generator(self, speech):
        samples, rate = speech
        state = np.random.get_state()[1].copy()
        first, second = (load_metric("intelligibility").items([noisy(samples, 0.02)], [samples], rate) for _ in "ab")
        assert (first == second).all() and (np.random.get_state()[1] == state).all()

    @pytest.mark.parametrize("name", PAIRED)
    def test_a_silent_reference_and_one_sample_are_errors(self, name):
        # Two silent recordings have a mel distance: none.
        for samples in (np.zeros(RATE), np.ones(1))[name == "mel_distance" :]:
            with pytest.raises(ValueError, match="Item 0"):
                load_metric(name).items([samples], [samples], RATE)

    def test_failures_are_collected_where_asked_for(self, speech):
        samples, rate = speech
        failures = {}
        rows = load_metric("signal_distortion").items(
            [samples, np.zeros(0), samples], [samples] * 3, rate, failures=failures
        )
        assert list(failures) == [1] and np.isnan(rows[1]).all() and np.isfinite(rows[[0, 2]]).all()


class TestFrechetDistance:
    def test_one_dimension_closed_form(self):
        # (m1 - m2)^2 + (s1 - s2)^2
        assert gaussian_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[9.0]])) == (
            pytest.approx(4 + 1)
        )

    def test_commuting_covariances_closed_form(self):
        generator = np.random.default_rng(0)
        rotation = np.linalg.qr(generator.standard_normal((20, 20)))[0]
        a, b = generator.uniform(0, 5, 20), generator.uniform(0, 5, 20)
        a[0] = b[1] = 0.0  # singular ones too
        mean_1, mean_2 = generator.standard_normal((2, 20))
        expected = ((mean_1 - mean_2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
        rotated = [(rotation * values) @ rotation.T for values in (a, b)]
        assert gaussian_distance(mean_1, rotated[0], mean_2, rotated[1]) == pytest.approx(expected, rel=1e-9)

    def test_agrees_with_the_matrix_root(self):
        generator = np.random.default_rng(1)
        x, y = generator.standard_normal((200, 16)), 1.5 * generator.standard_normal((200, 16)) @ np.triu(np.ones(16))
        covariances = [np.cov(values, rowvar=False) for values in (x, y)]
        root = sqrtm(covariances[0] @ covariances[1])
        expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * np.real(root))
        metric = load_metric("frechet_distance", embedder="uniaudio2.evaluation.audio:read_audio")
        assert metric.aggregate(np.hstack([x, y]))["frechet_distance"] == pytest.approx(expected, rel=1e-8)
        assert metric.aggregate(np.hstack([x, x]))["frechet_distance"] == pytest.approx(0, abs=1e-8)

    def test_one_item_has_no_distance(self):
        with pytest.raises(ValueError, match="two items"):
            load_metric("frechet_distance").aggregate(np.zeros((1, 4)))

    def test_an_unknown_embedder_is_an_error(self):
        with pytest.raises(ValueError, match="clap, ast, wavlm"):
            load_metric("frechet_distance", embedder="vggish")


def test_divergence_by_hand():
    # Two classes, (1/2, 1/2) against (1/4, 3/4): ln(2) / 2 + ln(2/3) / 2.
    value = divergence(np.array([5.0, 5.0]), np.log([1.0, 3.0]))
    assert value == pytest.approx(0.5 * np.log(2) + 0.5 * np.log(2 / 3))
    assert divergence(np.array([1.0, 2.0]), np.array([1.0, 2.0])) == 0


# Tokenised already, so that Java is not needed.
REFERENCES = [
    ["a dog barks twice", "a dog is barking"],
    ["rain falls on a roof", "heavy rain on a tin roof"],
    ["a man speaks", "a man is talking to a crowd"],
]


class TestCaptions:
    def test_bleu_1_by_hand(self):
        # Four words of four, but the brevity penalty of 3 words against the closest reference of 4: exp(1 - 4/3).
        metric = load_metric("caption_similarity", scores=["bleu"], tokenizer="none")
        values = metric.compute(predictions=["a dog barks"], references=[["a dog barks twice"]])
        assert values["bleu_1"] == pytest.approx(np.exp(1 - 4 / 3), rel=1e-6)

    def test_rouge_l_by_hand(self):
        # Longest common subsequence 3; precision 3/3, recall 3/4, beta 1.2.
        metric = load_metric("caption_similarity", scores=["rouge_l"], tokenizer="none")
        values = metric.compute(predictions=["a dog barks"], references=[["a dog barks twice"]])
        assert values["rouge_l"] == pytest.approx((1 + 1.44) * 0.75 / (0.75 + 1.44))

    def test_cider_against_its_definition(self):
        predictions = ["a dog barks", "rain falls", "music"]
        metric = load_metric("caption_similarity", tokenizer="none")
        values = metric.items(predictions, REFERENCES)[:, 0]
        assert values == pytest.approx(cider_d(predictions, REFERENCES))
        assert values[2] == 0

    def test_an_empty_caption_is_zero_and_an_empty_reference_an_error(self):
        metric = load_metric("caption_similarity", scores=["cider", "rouge_l", "bleu"], tokenizer="none")
        failures = {}
        rows = metric.items(["", "rain", "x"], [*REFERENCES[:2], []], failures=failures)
        assert rows[0] == pytest.approx(0, abs=1e-6) and list(failures) == [2] and np.isnan(rows[2]).all()

    def test_one_item_has_no_cider(self):
        """Its words are in every document there is, so that all weights are 0: no score, and no zero."""
        metric = load_metric("caption_similarity", tokenizer="none")
        with pytest.raises(ValueError, match="at least two items"):
            metric.items(["a dog barks twice"], REFERENCES[:1])

    def test_missing_programs_are_told_before_the_start(self, monkeypatch):
        monkeypatch.setenv("PATH", "")
        with pytest.raises(MetricUnavailableError, match="Java"):
            load_metric("caption_similarity").check()

    def test_spider_is_the_mean_of_its_two_parts(self, monkeypatch):
        """SPICE itself needs programs that are not here; how its number is used does not."""

        class Spice:
            def compute_score(self, references, captions):
                assert list(references) == list(captions)
                return 0.3, [{"All": {"f": 0.1 * (1 + index)}} for index in captions]

        monkeypatch.setattr("pycocoevalcap.spice.spice.Spice", Spice)
        metric = load_metric("caption_similarity", scores=["spider", "spice", "cider"], tokenizer="none")
        rows = metric.items(["a dog barks", "rain falls", "a man speaks"], REFERENCES)
        assert rows[:, 1] == pytest.approx([0.1, 0.2, 0.3])
        assert rows[:, 0] == pytest.approx((rows[:, 1] + rows[:, 2]) / 2) and rows[:, 2].any()

    def test_unknown_scores_are_errors(self):
        with pytest.raises(ValueError, match="cidr"):
            load_metric("caption_similarity", scores=["cidr"])

    @pytest.mark.slow
    def test_meteor_and_the_tokenizer_run_in_java(self):
        metric = load_metric("caption_similarity", scores=["meteor", "cider"])
        try:
            metric.check()
        except MetricUnavailableError as error:
            pytest.skip(str(error))
        rows = metric.items(["A dog barks twice.", "nothing alike"], REFERENCES[:2])
        assert rows[0, 0] == pytest.approx(1, abs=1e-6)
        assert rows[1].tolist() == [0, 0]

        # METEOR 1.5 by hand (Denkowski and Lavie 2014: alpha 0.85, beta 0.2, gamma 0.6, delta 0.75): "a" is a function
        # word and weighs a quarter, the others three; precision and recall are equal here.
        def meteor(content, words, chunks):
            overlap = (0.75 * content + 0.25) / (0.75 * words + 0.25)
            return overlap * (1 - 0.6 * (chunks / (content + 1)) ** 0.2)

        metric = load_metric("caption_similarity", scores=["meteor"], tokenizer="none")
        rows = metric.items(["a dog barks", "a table sings loud"], [["a cat barks"], ["a table runs loud"]])
        assert rows[:, 0] == pytest.approx([meteor(1, 2, chunks=2), meteor(2, 3, chunks=2)], abs=1e-6)


def cider_d(predictions, references, sigma=6.0):
    """CIDEr-D (Vedantam et al. 2015) from its definition."""
    from collections import Counter

    def grams(text, n):
        words = text.split()
        return Counter(tuple(words[i : i + n]) for i in range(len(words) - n + 1))

    scores = []
    for prediction, group in zip(predictions, references, strict=True):
        score = 0.0
        for n in range(1, 5):
            documents = [set().union(*(grams(text, n) for text in other)) for other in references]
            idf = lambda gram: np.log(len(references)) - np.log(max(1, sum(gram in d for d in documents)))  # noqa: B023, E731
            weigh = lambda counts: {gram: count * idf(gram) for gram, count in counts.items()}  # noqa: B023, E731
            vector = weigh(grams(prediction, n))
            for text in group:
                other = weigh(grams(text, n))
                norms = np.sqrt(sum(v**2 for v in vector.values()) * sum(v**2 for v in other.values()))
                product = sum(min(value, other.get(gram, 0)) * other.get(gram, 0) for gram, value in vector.items())
                # The original counts bigrams for the length: one less than the words.
                delta = (len(prediction.split()) - 1) - (len(text.split()) - 1)
                if norms:
                    score += product / norms * np.exp(-(delta**2) / (2 * sigma**2)) / len(group)
        scores.append(score / 4 * 10)
    return np.array(scores)


class TestClassification:
    def test_agrees_with_scikit_learn(self):
        generator = np.random.default_rng(5)
        labels = ["happy", "sad", "angry", "neutral"]
        truth, answers = (generator.choice(labels, 50).tolist() for _ in range(2))
        values = load_metric("classification", labels=labels).compute(predictions=answers, references=truth)
        assert values["accuracy"] == pytest.approx(accuracy_score(truth, answers))
        assert values["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))

    def test_answers_are_read(self):
        metric = load_metric("classification", labels=["happy", "very happy", "sad"])
        answers = ["The speaker sounds Happy.", "very happy", "not unhappy", "", "sad, not happy"]
        rows = metric.items(answers, ["happy", "very happy", "happy", "sad", "sad"])
        assert rows[:, 1].tolist() == [0, 1, -1, -1, 2]

    def test_chinese_labels_are_found_inside_a_sentence(self):
        metric = load_metric("classification", labels=["开心", "生气"])
        assert metric.items(["他很开心。", "生气", "不知道"], ["开心"] * 3)[:, 1].tolist() == [0, 1, -1]

    def test_a_reference_that_is_no_label_is_an_error(self):
        with pytest.raises(ValueError, match="none of the labels"):
            load_metric("classification", labels=["a", "b"]).compute(predictions=["a"], references=["c"])


class TestJudge:
    def test_ratings_are_read(self):
        replies = {"five": "5", "middle": "Rating: 3.", "off": "11", "mute": "good"}
        metric = load_metric("judge", model=lambda prompt: next(v for k, v in replies.items() if k in prompt))
        failures = {}
        rows = metric.items(["five", "middle", "off", "mute", " "], ["r"] * 5, failures=failures)
        assert rows[[0, 1, 4], 0].tolist() == [5, 3, 1] and sorted(failures) == [2, 3]
        with pytest.raises(ValueError, match="the reference is empty"):
            metric.items(["five"], [" "])


def test_a_text_that_is_a_number_is_a_failed_item():
    failures = {}
    load_metric("word_error_rate", normalizer="none").items(["one", "two"], ["one", 2], failures=failures)
    assert failures == {1: "a text must be a string, but is 2"}


def test_speed_is_pooled():
    values = load_metric("speed").compute(predictions=[1.0, 1.0], references=[1.0, 3.0])
    assert values == {"rtf": pytest.approx(0.5)}
    for work, audio in ((1.0, 0.0), (-1.0, 1.0), (float("nan"), 1.0)):
        with pytest.raises(ValueError, match="must be a positive number"):
            load_metric("speed").compute(predictions=[work], references=[audio])


@pytest.mark.parametrize("name", METRICS)
def test_evaluate_loads_each_by_its_path(name, tmp_path):
    metric = evaluate.load(str(FOLDER / f"{name}.py"), cache_dir=str(tmp_path))
    assert type(metric).__name__ == METRICS[name] and metric.scores and metric.description


def test_evaluate_gives_what_the_import_gives(speech, tmp_path):
    samples, rate = speech
    worse = noisy(samples, 0.05)
    soundfile.write(tmp_path / "worse.wav", worse, rate, subtype="FLOAT")
    soundfile.write(tmp_path / "good.wav", samples, rate, subtype="FLOAT")
    loaded = evaluate.load(str(FOLDER / "signal_distortion.py"))
    by_path = loaded.compute(predictions=[str(tmp_path / "worse.wav")], references=[str(tmp_path / "good.wav")])
    by_array = loaded.compute(predictions=[worse], references=[samples], sampling_rate=rate)
    assert by_path["si_sdr"] == pytest.approx(by_array["si_sdr"], abs=1e-6)
    combined = evaluate.load(str(FOLDER / "word_error_rate.py"), normalizer="none")
    assert combined.compute(predictions=["a b"], references=["a c"])["wer"] == 0.5


def test_unknown_metrics_and_options_are_errors():
    with pytest.raises(ValueError, match="Unknown metric 'word_error_rat'"):
        load_metric("word_error_rat")
    with pytest.raises(ValueError, match="normaliser"):
        load_metric("word_error_rate", normalizer="klingon")
    with pytest.raises(ValueError, match="band"):
        load_metric("perceptual_quality", band="ultra")


@pytest.mark.parametrize("name", ["speaker_similarity", "clap_score", "class_divergence", "frechet_distance", "judge"])
def test_a_model_that_is_not_here_is_told_before_the_start(name, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    metric = load_metric(name, model="nobody/nothing")
    with pytest.raises(MetricUnavailableError, match="hf download nobody/nothing"):
        metric.check()


def test_a_model_that_is_not_given_to_the_user_is_told_before_the_start(monkeypatch):
    """Anybody may look at a gated repository; its files are for those who have leave."""

    class Hub:
        def model_info(self, *_, **__):
            return SimpleNamespace(gated="manual", siblings=[])

        def auth_check(self, model):
            raise OSError(f"Access to {model} is restricted")

    monkeypatch.setattr("uniaudio2.evaluation.pretrained.HfApi", Hub)
    with pytest.raises(MetricUnavailableError, match=r"Access to some/judge is restricted.*hf download some/judge"):
        load_metric("judge", model="some/judge").check()


def test_a_download_that_fails_leaves_a_metric_out_and_keeps_the_others(tmp_path, monkeypatch):
    """What was there when the run began may be gone when it is wanted."""
    suite = {"tests": {"all": {
        "task": "ASR", "data": {"folder": "elsewhere"}, "columns": {"audio": "file", "text": "text"},
        "metrics": [{"metric": "judge", "reference": "text", "options": {"model": "some/judge"}},
                    {"metric": "word_error_rate", "reference": "text", "options": {"normalizer": "none"}}],
    }}}  # fmt: skip
    (tmp_path / "late.yaml").write_text(yaml.safe_dump(suite))
    (tmp_path / "run.json").write_text(json.dumps({"suite": "late", "test": "all"}))
    (tmp_path / "predictions.jsonl").write_text(json.dumps({"id": "0", "fields": {"text": "a"}, "answer": "a"}))

    def gone(*_):
        raise ConnectionError("the connection was lost")

    monkeypatch.setattr("uniaudio2.evaluation.metrics.judge.check_pretrained", lambda *_: [])
    monkeypatch.setattr("uniaudio2.evaluation.metrics.judge.load_pretrained", gone)
    (summary,) = score_again(tmp_path, [str(tmp_path / "late.yaml")])
    assert summary["left_out"] == [{"metric": "judge", "reason": "the connection was lost"}]
    assert [entry["score"] for entry in summary["scores"]] == ["wer", "cer", "exact"]


def test_opinion_score_needs_its_packages_or_works(speech):
    metric = load_metric("opinion_score")
    try:
        metric.check()
    except MetricUnavailableError as error:
        assert "uniaudio2[mos]" in str(error)
        pytest.skip(str(error))
    samples, rate = speech
    clean, worse = metric.items([samples, noisy(samples, 0.05)], None, rate)
    assert ((clean >= 1) & (clean <= 5)).all() and clean[0] > worse[0]
    for hostile in (np.full(rate, np.nan), np.zeros(1)):
        with pytest.raises(ValueError, match="Item 0"):
            metric.items([hostile], None, rate)


class TestWhatCannotRunHere:
    """UTMOS and SPICE need what is in no package: each says so before it starts, and a suite lists it."""

    HUB = """
import torch
dependencies = ["torch"]

class Loudness(torch.nn.Module):
    def forward(self, wave, sr):
        assert sr == 16000
        return 1 + wave.square().mean(dim=1)

def utmos22_strong(progress=True, pretrained=True):
    return Loudness()
"""

    @pytest.fixture
    def hub(self, tmp_path, monkeypatch):
        """The folder of torch.hub with another predictor in the place of UTMOS."""
        monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
        monkeypatch.setattr("uniaudio2.evaluation.metrics.utmos.find_spec", lambda name: name)
        (tmp_path / "tarepan_SpeechMOS_v1.2.0").mkdir()
        (tmp_path / "tarepan_SpeechMOS_v1.2.0/hubconf.py").write_text(self.HUB)
        (tmp_path / "checkpoints").mkdir()
        (tmp_path / "checkpoints/utmos22_strong_step7459_v1.pt").touch()
        return tmp_path

    def test_utmos_says_what_to_fetch(self, tmp_path, monkeypatch):
        monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
        with pytest.raises(MetricUnavailableError, match=r"torch\.hub\.load\('tarepan/SpeechMOS:v1\.2\.0'") as error:
            load_metric("utmos").check()
        assert str(tmp_path / "checkpoints/utmos22_strong_step7459_v1.pt") in str(error.value)

    def test_utmos_asks_the_predictor_at_its_rate(self, hub, speech):
        metric, (samples, rate) = load_metric("utmos"), speech
        assert metric.check() == []
        expected = 1 + np.mean(soxr.resample(samples, rate, 16000) ** 2)
        assert metric.compute(predictions=[samples], sampling_rate=rate)["utmos"] == pytest.approx(expected, rel=1e-5)
        assert metric.items([np.zeros(rate)], None, rate)[0, 0] == 1
        for hostile in (np.full(rate, np.nan), np.zeros(1), np.zeros(0)):
            with pytest.raises(ValueError, match="Item 0"):
                metric.items([hostile], None, rate)

    def test_spice_says_what_to_fetch(self, tmp_path, monkeypatch):
        monkeypatch.setattr("shutil.which", lambda name: f"/usr/bin/{name}")
        spec = ModuleSpec("pycocoevalcap", None, is_package=True)
        spec.submodule_search_locations.append(str(tmp_path))
        monkeypatch.setattr("uniaudio2.evaluation.metrics.caption_similarity.find_spec", lambda name: spec)
        for score in ("spice", "spider"):
            with pytest.raises(MetricUnavailableError, match=r"python -m pycocoevalcap\.spice\.get_stanford_models"):
                load_metric("caption_similarity", scores=[score]).check()

    def test_a_suite_lists_what_it_left_out_and_shows_no_number_for_it(self, tmp_path, monkeypatch, capsys):
        monkeypatch.setattr("torch.hub._hub_dir", str(tmp_path))
        monkeypatch.setattr("shutil.which", lambda name: None)
        suite = {"tests": {"all": {
            "task": "TTS", "data": {"folder": "elsewhere"}, "columns": {"text": "text"},
            "metrics": [{"metric": "utmos"}, {"metric": "caption_similarity", "reference": "text",
                                              "options": {"scores": ["spice"]}},
                        {"metric": "speed", "prediction": "seconds", "reference": "audio_seconds"}],
            "published": [{"score": "utmos", "value": 4.1, "system": "A", "source": "as reported"}],
        }}}  # fmt: skip
        (tmp_path / "left.yaml").write_text(yaml.safe_dump(suite))
        (tmp_path / "run.json").write_text(json.dumps({"suite": "left", "test": "all"}))
        row = {"id": "0", "fields": {"text": "one"}, "answer": None, "seconds": 1.0, "audio_seconds": 2.0}
        (tmp_path / "predictions.jsonl").write_text(json.dumps(row) + "\n")
        (summary,) = score_again(tmp_path, [str(tmp_path / "left.yaml")])
        assert [item["metric"] for item in summary["left_out"]] == ["utmos", "caption_similarity"]
        assert [entry["score"] for entry in summary["scores"]] == ["rtf"]
        said = capsys.readouterr().err
        assert (
            "left out utmos: UTMOS needs" in said and "left out caption_similarity: caption scores need Java" in said
        )
        report = (tmp_path / "report.md").read_text()
        assert "| utmos | not measured |  |  | 4.1 A (as reported) |" in report
        assert "Left out: utmos: UTMOS needs" in report
