"""Suites are data: those of the package are sound, and a mistake in one is one clear error."""

import pytest

from uniaudio2.evaluation.data import DataUnavailableError, load_items
from uniaudio2.evaluation.suite import load_suite, suite_names


@pytest.mark.parametrize("name", suite_names())
def test_the_suites_of_the_package_are_sound(name):
    tests = load_suite(name)
    assert tests
    for test in tests:
        for number in test.published:
            assert number.source and number.system
        # Data that has to be prepared says how.
        assert test.data.folder is None or test.suite == "tiny" or test.data.how


def wrong_metric(tests):
    tests["listening"]["metrics"][0]["metric"] = "word_error_rat"


def wrong_option(tests):
    tests["listening"]["metrics"][0]["options"] = {"normaliser": "none"}


def wrong_task(tests):
    tests["listening"]["task"] = "ASSR"


def wrong_key(tests):
    tests["listening"]["promt"] = "Write it down."


def no_input(tests):
    del tests["listening"]["columns"]["audio"]


def no_reference(tests):
    tests["listening"]["metrics"][0]["reference"] = "transcript"


def same_labels(tests):
    tests["listening"]["metrics"] *= 2


def no_data(tests):
    tests["listening"]["data"] = {"split": "test"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (wrong_metric, "Unknown metric 'word_error_rat'"),
        (wrong_option, "no option 'normaliser'; its options are: normalizer"),
        (wrong_task, "Unknown task 'ASSR'"),
        (wrong_key, "unknown 'promt'"),
        (no_input, r"the task ASR needs \['audio'\]"),
        (no_reference, "reads 'transcript'"),
        (same_labels, "called alike"),
        (no_data, "either `hub` or `folder`"),
    ],
)
def test_a_mistake_is_one_error_that_says_where(write_suite, change, message):
    with pytest.raises(ValueError, match=message) as error:
        load_suite(write_suite(change))
    assert str(error.value).startswith("Suite 'small', test 'listening': ")


def test_unknown_suites_are_errors():
    with pytest.raises(ValueError, match=r"no suite 'tinny'.*tiny"):
        load_suite("tinny")


def test_items_have_the_fields_of_the_task(write_suite, data_folder):
    items = load_items(load_suite(write_suite())[0], str(data_folder))
    assert len(items) == 4
    assert items[1] == {"id": "000001", "fields": {"audio": str(data_folder / "1.wav"), "text": "one two three"}}


def test_a_missing_column_is_named(write_suite, data_folder):
    def change(tests):
        tests["listening"]["columns"]["text"] = "transcript"

    with pytest.raises(ValueError, match=r"needs the column 'transcript'.*'file', 'text'"):
        load_items(load_suite(write_suite(change))[0], str(data_folder))


def test_missing_data_are_named(write_suite, tmp_path):
    test = load_suite(write_suite())[0]
    with pytest.raises(ValueError, match="`--data`"):
        load_items(test)
    with pytest.raises(ValueError, match="no folder"):
        load_items(test, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"neither manifest.jsonl nor metadata.jsonl"):
        load_items(test, str(tmp_path))


class TestFewShot:
    def items(self, write_suite, data_folder, **few_shot):
        def change(tests):
            tests["listening"]["few_shot"] = few_shot

        return load_items(load_suite(write_suite(change))[0], str(data_folder))

    def test_examples_are_others_and_the_same_every_time(self, write_suite, data_folder):
        items = self.items(write_suite, data_folder, count=2, match="speaker")
        for index in range(4):
            ids = [shot["id"] for shot in items.shots(index, seed=0)]
            assert len(set(ids)) == 2 and items[index]["id"] not in ids
            assert ids == [shot["id"] for shot in items.shots(index, seed=0)]
        drawn = {tuple(shot["id"] for shot in items.shots(0, seed)) for seed in range(20)}
        assert len(drawn) > 1

    def test_each_class_has_its_example(self, write_suite, data_folder):
        items = self.items(write_suite, data_folder, count=1, each="emotion")
        emotions = [items.rows[int(shot["id"])]["emotion"] for shot in items.shots(0, seed=0)]
        assert sorted(emotions) == ["happy", "sad"]

    def test_too_few_examples_are_an_error(self, write_suite, data_folder):
        items = self.items(write_suite, data_folder, count=9)
        with pytest.raises(ValueError, match="too few examples"):
            items.shots(0, seed=0)


@pytest.fixture
def hub_folder(data_folder, tmp_path):
    """A data set laid out as on the Hub: a table with bytes of recordings, and a split that nobody should read."""
    import datasets

    folder = tmp_path / "set"
    (folder / "clean").mkdir(parents=True)
    recordings = {"bytes": (data_folder / "0.wav").read_bytes(), "path": None}
    table = datasets.Dataset.from_dict({"file": [recordings], "text": ["one"]})
    table.cast_column("file", datasets.Audio(decode=False)).to_parquet(folder / "clean/test-0.parquet")
    (folder / "clean/train-0.parquet").write_text("this is no table")
    splits = "".join(f"\n  - split: {name}\n    path: clean/{name}-*" for name in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: clean\n  data_files:{splits}\n---\n")
    return folder


def test_recordings_inside_a_data_set_become_files(write_suite, hub_folder, data_folder, tmp_path, monkeypatch):
    """The manifest names a file with the bytes of the table. Other splits are left where they are."""
    from uniaudio2.evaluation.predict import _kept

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def change(tests):
        tests["listening"]["data"] = {"hub": str(hub_folder), "config": "clean", "split": "test"}

    test = load_suite(write_suite(change))[0]
    (item,) = load_items(test)
    recording = (data_folder / "0.wav").read_bytes()
    assert item["fields"] == {"audio": recording, "text": "one"}
    (tmp_path / "audio").mkdir()
    written, readable = _kept(test, item, tmp_path)
    assert written["audio"] == {"audio": "audio/000000-audio.wav"}
    assert (tmp_path / "audio/000000-audio.wav").read_bytes() == recording and readable["audio"].endswith(".wav")


def test_data_that_cannot_be_fetched_say_how(write_suite, monkeypatch):
    def change(tests):
        tests["listening"]["data"] = {"hub": "nobody/nothing", "split": "test"}

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr("datasets.load_dataset_builder", unreachable)
    with pytest.raises(DataUnavailableError, match="hf download --repo-type dataset nobody/nothing"):
        load_items(load_suite(write_suite(change))[0])
