"""From a suite to a report: predictions once, metrics from the manifest alone, the same numbers after a kill."""

import json
import re
import shutil
from urllib.parse import unquote

import numpy as np
import pytest
import soundfile
import yaml

from uniaudio2.cli import main
from uniaudio2.evaluation import evaluate
from uniaudio2.evaluation.compare import as_table, compare
from uniaudio2.evaluation.predict import Predictor
from uniaudio2.evaluation.run import score_again


@pytest.fixture(scope="module")
def finished(model_folder, data_folder, definition, tmp_path_factory):
    """A suite that has been run over all four items."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "small.yaml").write_text(yaml.safe_dump(definition()))
    evaluate(
        str(folder / "small.yaml"),
        model=str(model_folder),
        data=str(data_folder),
        output=folder / "out",
        batch_size=2,
    )
    return folder


def numbers(folder, test="small/listening", speed=False):
    """Scores by name, without those that measure time."""
    summary = json.loads((folder / test / "scores.json").read_text())
    return {
        entry["score"]: (entry["value"], entry["low"], entry["high"], entry["per_item"])
        for entry in summary["scores"]
        if speed or entry["metric"] != "speed"
    }


def run(finished, folder, model_folder, data_folder, **options):
    suite = str(finished / "small.yaml")
    options = {"batch_size": 2, **options}
    return evaluate(suite, model=str(model_folder), data=str(data_folder), output=folder, **options)


def test_a_run_leaves_manifest_scores_and_report(finished):
    out = finished / "out"
    names = {path.name for path in out.iterdir()}
    assert {"small", "report.md", "report.html", "model-index.yaml"} <= names
    rows = [json.loads(line) for line in (out / "small/round-trip/predictions.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["000000", "000001", "000002", "000003"]
    for row in rows:
        waveform, rate = soundfile.read(out / "small/round-trip" / row["answer"]["audio"])
        assert rate == 24000 and len(waveform) == 9600 and row["seconds"] > 0
    header = json.loads((out / "small/listening/run.json").read_text())
    assert header["seed"] == 0 and header["versions"]["torch"] and header["generation"]["max_new_tokens"] == 5


def test_kill_and_resume_end_with_the_same_numbers(finished, model_folder, data_folder, tmp_path, monkeypatch):
    answers, asked = Predictor.answers, []

    def dies_at_the_second_batch(self, test, questions):
        asked.extend((test.name, question.seed) for question in questions)
        if len(asked) == 4:
            raise KeyboardInterrupt
        return answers(self, test, questions)

    monkeypatch.setattr(Predictor, "answers", dies_at_the_second_batch)
    with pytest.raises(KeyboardInterrupt):
        run(finished, tmp_path, model_folder, data_folder)
    assert not (tmp_path / "small/listening/predictions.jsonl").exists()
    run(finished, tmp_path, model_folder, data_folder)
    # Only what was not done is asked again.
    assert asked.count(("listening", 0)) == 1 and asked.count(("listening", 2)) == 2
    for test in ("small/listening", "small/round-trip"):
        assert numbers(tmp_path, test) == numbers(finished / "out", test)


def test_a_limit_takes_the_first_items_and_may_grow(finished, model_folder, data_folder, tmp_path):
    (first,) = run(finished, tmp_path, model_folder, data_folder, limit=1, tests=["listening"])
    assert first["items"] == 1
    run(finished, tmp_path, model_folder, data_folder, tests=["listening"])
    assert numbers(tmp_path) == numbers(finished / "out")
    (again,) = run(finished, tmp_path, model_folder, data_folder, limit=1, tests=["listening"])
    assert again["items"] == 1


@pytest.mark.parametrize("option", ["limit", "batch_size"])
def test_nothing_to_do_is_an_error(finished, model_folder, data_folder, tmp_path, option):
    with pytest.raises(ValueError, match=f"`{option}` must be at least 1, but is 0"):
        run(finished, tmp_path, model_folder, data_folder, **{option: 0})


def test_another_run_in_the_same_folder_is_refused(finished, model_folder, data_folder):
    with pytest.raises(ValueError, match=r"another run.*seed was 0 and is 1"):
        run(finished, finished / "out", model_folder, data_folder, seed=1)


def test_a_failed_item_is_counted_and_the_others_go_on(finished, model_folder, data_folder, tmp_path):
    broken = tmp_path / "data"
    shutil.copytree(data_folder, broken)
    (broken / "2.wav").write_text("this is not audio")
    summaries = run(finished, tmp_path / "out", model_folder, broken)
    listening, round_trip = summaries
    assert list(listening["failed"]) == list(round_trip["failed"]) == ["000002"]
    # Nothing was heard, so all its words are errors; a distance it cannot have, and says so.
    assert listening["scores"][0]["per_item"]["000002"] == 1
    mel = round_trip["scores"][0]
    assert mel["items"] == 3 and "cannot be read" in mel["failures"]["000002"]
    report = (tmp_path / "out/report.md").read_text()
    assert "1 items failed" in report and "3, 1 failed" in report


def test_hostile_recordings_are_answered_or_counted(finished, model_folder, data_folder, tmp_path):
    """One sample, silence, NaN, another rate with two channels: a page for each, and no number out of nothing."""
    strange = tmp_path / "data"
    shutil.copytree(data_folder, strange)
    soundfile.write(strange / "0.wav", np.zeros(1), 24000)
    soundfile.write(strange / "1.wav", np.zeros(9600), 24000)
    soundfile.write(strange / "2.wav", np.full(9600, np.nan, np.float32), 24000, subtype="FLOAT")
    soundfile.write(strange / "3.wav", 0.1 * np.random.default_rng(1).standard_normal((4000, 2)), 8000)
    listening, round_trip = run(finished, tmp_path / "out", model_folder, strange)
    assert list(listening["failed"]) == list(round_trip["failed"]) == ["000002"]
    assert listening["scores"][0]["items"] == 4 and listening["scores"][0]["per_item"]["000002"] == 1
    mel = round_trip["scores"][0]
    assert sorted(mel["failures"]) == ["000000", "000002"] and np.isfinite(mel["value"])
    assert "less than one window" in mel["failures"]["000000"]
    page = (tmp_path / "out/report.html").read_text()
    for row in json.loads((tmp_path / "out/small/round-trip/scores.json").read_text())["scores"][0]["per_item"]:
        assert f"<b>{row}</b>" in page


def test_a_test_without_data_is_left_out_and_listed(
    finished, model_folder, data_folder, write_suite, tmp_path, capsys
):
    """One test has its data; the other's are not here: the first is run, and the second is not passed over."""

    def change(tests):
        tests["listening"]["data"] = {"folder": str(data_folder), "split": "test"}

    suite, out = write_suite(change), tmp_path / "out"
    listening, round_trip = evaluate(suite, model=str(model_folder), output=out, limit=1, batch_size=1)
    assert listening["items"] == 1 and round_trip["items"] == 0 and round_trip["scores"] == []
    (absent,) = round_trip["left_out"]
    assert absent["metric"] == "mel_distance" and "pass its folder as `--data`" in absent["reason"]
    assert "left out: small/round-trip reads 'elsewhere'" in capsys.readouterr().err
    for name in ("report.md", "report.html"):
        page = (out / name).read_text()
        assert "small/round-trip" in page and "mel_distance: small/round-trip reads" in page
    with pytest.raises(ValueError, match="pass its folder as `--data`"):
        evaluate(suite, model=str(model_folder), output=out, tests=["round-trip"])


class TestScoringAlone:
    def test_from_the_manifest_the_numbers_are_the_same(self, finished, tmp_path):
        copy = tmp_path / "copy"
        shutil.copytree(finished / "out", copy)
        for name in ("listening", "round-trip"):
            (copy / "small" / name / "scores.json").unlink()
        score_again(copy, [str(finished / "small.yaml")])
        assert numbers(copy, speed=True) == numbers(finished / "out", speed=True)

    def test_another_systems_answers(self, finished, write_suite, tmp_path):
        folder = tmp_path / "other"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"suite": "small", "test": "listening", "model": "other"}))
        lines = [
            {"id": str(i), "fields": {"text": "one two"}, "answer": text} for i, text in enumerate(("one", "one two"))
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (summary,) = score_again(folder, [write_suite()])
        assert summary["scores"][0]["value"] == pytest.approx(0.25)
        # It did not say how long it took: that is left out, with the reason.
        assert [item["metric"] for item in summary["left_out"]] == ["speed"]

    def test_another_systems_recordings(self, write_suite, data_folder, tmp_path):
        """Ids may be numbers or hold slashes, names any character; what has no recording is a failure."""
        folder = tmp_path / "other system"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps({"suite": "small", "test": "round-trip", "model": "other"}))
        for index in range(2):
            shutil.copy(data_folder / f"{index}.wav", folder / f"#{index} 50%.wav")
        lines = [
            {
                "id": f"a/{index}" if index else 0,
                "fields": {"audio": {"audio": str(data_folder / f"{index}.wav")}},
                "answer": {"audio": f"#{index} 50%.wav"},
            }
            for index in range(3)
        ]
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (summary,) = score_again(folder, [write_suite()])
        assert list(summary["scores"][0]["per_item"].items()) == [("0", 0.0), ("a/1", 0.0)]
        assert list(summary["failed"]) == list(summary["scores"][0]["failures"]) == ["a/2"]
        # The page has all that it shows beside it, recordings of the data too.
        links = re.findall(r'src="([^"]+)"', (folder / "report.html").read_text())
        assert len(links) == 6 and all((folder / unquote(link)).is_file() for link in links)
        assert not any(link.startswith("..") for link in links)

    def test_values_that_are_one_but_for_rounding_have_no_histogram(self, write_suite, tmp_path):
        """STOI of copies is such a case: 1, and 1 less the last digit."""

        def change(tests):
            tests["listening"]["metrics"] = [{"metric": "speed", "prediction": "seconds", "reference": "tokens"}]

        (tmp_path / "run.json").write_text(json.dumps({"suite": "small", "test": "listening"}))
        lines = [
            {"id": str(i), "fields": {}, "answer": "one", "seconds": value, "tokens": 1}
            for i, value in enumerate((1.0, np.nextafter(1.0, 0.0)))
        ]
        (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        score_again(tmp_path, [write_suite(change)])
        assert "Histogram" not in (tmp_path / "report.html").read_text()

    def test_a_damaged_header_is_one_error(self, write_suite, tmp_path):
        (tmp_path / "run.json").write_text('{"suite": "small"')
        (tmp_path / "predictions.jsonl").write_text("{}\n")
        with pytest.raises(ValueError, match=r"run.json is no JSON"):
            score_again(tmp_path, [write_suite()])

    @pytest.mark.parametrize(
        ("test", "line", "message"),
        [
            ("round-trip", {"answer": "0.wav"}, r"answer of small/round-trip is audio, written as .*, but is '0.wav'"),
            (
                "round-trip",
                {"answer": None, "fields": {"audio": "0.wav"}},
                "field 'audio' of small/round-trip is audio",
            ),
            ("listening", {"answer": 7}, "answer of small/listening is text"),
        ],
    )
    def test_answers_of_another_kind_are_an_error(self, write_suite, tmp_path, test, line, message):
        """Not heard as silence, and not scored as if nothing had been said."""
        (tmp_path / "run.json").write_text(json.dumps({"suite": "small", "test": test}))
        (tmp_path / "predictions.jsonl").write_text(json.dumps({"id": "0", "fields": {"text": "one"}, **line}))
        with pytest.raises(ValueError, match=message):
            score_again(tmp_path, [write_suite()])

    @pytest.mark.parametrize(
        ("header", "lines", "message"),
        [
            (
                {"suite": "small", "test": "listening"},
                [{"id": 1, "fields": {}, "answer": ""}] * 2,
                "two items of the id",
            ),
            ({"suite": "small", "test": "listening"}, ["seven"], "line 1: an item has"),
            ({"suite": "big", "test": "listening"}, [], "predictions of big/listening"),
            ({"suite": "small", "test": "singing"}, [], "predictions of small/singing"),
            ({"suite": "small", "test": "listening"}, [], "empty"),
            ({"suite": "small", "test": "listening"}, [{"id": "0"}], "line 1"),
            ({"suite": "small", "test": "listening"}, [{"id": "0", "fields": {}, "answer": "a"}], "no field 'text'"),
        ],
    )
    def test_a_wrong_manifest_is_one_error(self, write_suite, tmp_path, header, lines, message):
        folder = tmp_path / "wrong"
        folder.mkdir()
        (folder / "run.json").write_text(json.dumps(header))
        (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        with pytest.raises(ValueError, match=message):
            score_again(folder, [write_suite()])

    def test_no_predictions_are_an_error(self, tmp_path):
        with pytest.raises(ValueError, match=r"no predictions.jsonl"):
            score_again(tmp_path)


class TestReport:
    def test_the_table_has_published_numbers_and_peoples_scores(self, finished):
        text = (finished / "out/report.md").read_text()
        assert "2.71 UniAudio 2.0 (as reported)" in text
        assert "scores by people, as reported" in text and "90.5" in text

    def test_a_published_number_stands_beside_its_metric_alone(self, write_suite, tmp_path):
        def change(tests):
            listening = tests["listening"]
            listening["metrics"] = [
                {"metric": "word_error_rate", "label": label, "reference": "text", "options": {"normalizer": rules}}
                for label, rules in (("as written", "none"), ("by rules", "basic"))
            ]
            listening["published"] = [
                {"score": "wer", "metric": "by rules", "value": 2.5, "system": "A", "source": "somewhere"}
            ]

        (tmp_path / "run.json").write_text(json.dumps({"suite": "small", "test": "listening"}))
        line = {"id": "0", "fields": {"text": "one two"}, "answer": "One, two."}
        (tmp_path / "predictions.jsonl").write_text(json.dumps(line) + "\n")
        score_again(tmp_path, [write_suite(change)])
        rows = [line for line in (tmp_path / "report.md").read_text().splitlines() if line.startswith("| wer")]
        assert rows[0].startswith("| wer (as written) | 100.00%") and "2.5" not in rows[0]
        assert rows[1].startswith("| wer (by rules) | 0.00%") and rows[1].endswith("| 2.5 A (somewhere) |")

    def test_what_the_page_refers_to_is_there(self, finished):
        page = (finished / "out/report.html").read_text()
        links = re.findall(r'src="([^"]+)"', page)
        assert sum(link.endswith(".png") for link in links) >= 8 and "<audio" in page
        for link in links:
            assert (finished / "out" / link).is_file(), link

    def test_model_card_entries(self, finished):
        index = yaml.safe_load((finished / "out/model-index.yaml").read_text())["model-index"]
        metrics = {m["type"]: m["value"] for result in index[0]["results"] for m in result["metrics"]}
        value = numbers(finished / "out")["wer"][0]
        assert metrics["wer"] == pytest.approx(100 * value, abs=1e-3)


class TestCompare:
    def test_a_run_with_itself_differs_by_nothing(self, finished):
        for entry in compare(finished / "out", finished / "out"):
            assert entry["difference"] == 0 and entry["low"] == entry["high"] == 0 and entry["p"] == 1

    def test_a_clear_difference_is_found_on_the_items_that_both_have(self, finished, write_suite, tmp_path):
        for name, answer in (("good", "one two three"), ("bad", "nine nine nine")):
            folder = tmp_path / name
            folder.mkdir()
            (folder / "run.json").write_text(json.dumps({"suite": "small", "test": "listening"}))
            count = 20 if name == "good" else 15
            lines = [{"id": f"{i}", "fields": {"text": "one two three"}, "answer": answer} for i in range(count)]
            (folder / "predictions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
            score_again(folder, [write_suite()])
        entries = {entry["score"]: entry for entry in compare(tmp_path / "good", tmp_path / "bad")}
        assert entries["wer"]["difference"] == 1 and entries["wer"]["items"] == 15
        assert entries["wer"]["p"] < 0.01 and entries["exact"]["difference"] == -1
        assert "| small/listening | wer (word_error_rate) |" in as_table(list(entries.values()))

    def test_nothing_in_common_is_an_error(self, finished, tmp_path):
        with pytest.raises(ValueError, match="no test that both have"):
            compare(finished / "out", tmp_path)


def test_the_command_line(finished, model_folder, data_folder, tmp_path, capsys):
    suite, out = str(finished / "small.yaml"), str(tmp_path / "out")
    arguments = ["--model", str(model_folder), "--data", str(data_folder), "--limit", "2", "--output", out]
    assert main(["evaluate", "--suite", suite, "--device", "cpu", *arguments]) == 0
    assert "| wer (word_error_rate) |" in capsys.readouterr().out
    assert main(["evaluate", "score", out, "--suite", suite]) == 0
    assert "small/round-trip" in capsys.readouterr().out
    assert main(["evaluate", "compare", out, str(finished / "out")]) == 0
    assert "95% interval" in capsys.readouterr().out
    assert main(["evaluate", "--list"]) == 0
    assert "tiny/listening: ASR" in capsys.readouterr().out
    for wrong in (["evaluate"], ["evaluate", "--suite", "tinny"], ["evaluate", "compare", out, "nowhere"]):
        assert main(wrong) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.checkpoint
def test_the_tiny_suite_runs_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    summaries = evaluate("tiny", limit=2, output=tmp_path, tests=["listening", "speaking", "round-trip"], device="cpu")
    scores = {
        (summary["test"], entry["score"]): entry["value"] for summary in summaries for entry in summary["scores"]
    }
    assert scores["listening", "wer"] < 0.2
    assert np.isfinite([scores["speaking", "wer"], scores["speaking", "rtf"], scores["round-trip", "pesq"]]).all()
    assert "tiny/speaking" in (tmp_path / "report.md").read_text()
