"""The cards: valid metadata, facts that are those of the weights, and a source for every number."""

import ast
import json
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from packaging.requirements import Requirement

from uniaudio2 import (
    TINY,
    ReasoningCodecConfig,
    ReasoningCodecModel,
    UniAudio2Config,
    UniAudio2ForConditionalGeneration,
)
from uniaudio2.hub_cards.cards import app, codec_card, language_model_card, space_card
from uniaudio2.hub_cards.facts import RELEASE_CARD, Facts, read_card, requirements
from uniaudio2.hub_cards.results import PAPER_URL, measured_results, recorded_results, reported_results
from uniaudio2.hub_cards.stage import stage

BENCHMARKS = Path(__file__).parents[2] / "benchmarks" / "results"
SECTIONS = ["How to use it", "Training", "Results", "Limits", "Misuse, and consent", "Licence", "Hardware", "Versions",
            "Citation"]  # fmt: skip


def front(card):
    """The metadata of a card, as the Hub reads it."""
    return yaml.safe_load(re.match(r"---\n(.*?)\n---\n", card, flags=re.DOTALL)[1])


def sections(card):
    """The sections of a card, by their titles."""
    parts = re.split(r"^## (.*)\n", card, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.fixture(scope="module")
def release(codec):
    """The facts of the converted release: a language model of its size, without values; a small codec."""
    with torch.device("meta"):
        model = UniAudio2ForConditionalGeneration(UniAudio2Config()).to(torch.bfloat16)
    conversion = {
        "source": "Dongchao/UniAudio2_ckpt",
        "revision": "0123abc",
        "files": {"llm_ep3.checkpoint": {"bytes": 9_700_000_000, "sha256": "0f" * 32}},
        "versions": {"uniaudio2": "0.1.0", "torch": "2.13.0"},
        "warnings": ["the language model is larger than it looks."],
    }
    return Facts(read_card(RELEASE_CARD), conversion, None, SimpleNamespace(model=model, codec=codec))


@pytest.fixture(scope="module")
def released_cards(release):
    results = reported_results()
    names = {"codec": "me/Llama-uniaudio2-codec", "space": "me/Llama-uniaudio2-demo"}
    text = language_model_card(
        release, [result for result in results if not result.is_of_codec], "me/Llama-uniaudio2", **names
    )
    codec = codec_card(
        release,
        [result for result in results if result.is_of_codec],
        names["codec"],
        language_model="me/Llama-uniaudio2",
        space=names["space"],
    )
    return text, codec, space_card(release, "me/Llama-uniaudio2", names["codec"])


def test_every_section_is_there(session_staged, released_cards):
    staged = [(session_staged / name / "README.md").read_text() for name in ("language-model", "codec")]
    for card in (*staged, *released_cards[:2]):
        assert list(sections(card)) == SECTIONS
        assert "{{" not in card and "None" not in card.replace("- None.", "")


def test_metadata_of_the_released_models(released_cards):
    text, codec, _ = map(front, released_cards)
    assert text["license"] == "llama3.2"
    assert text["base_model"] == "meta-llama/Llama-3.2-3B" and text["base_model_relation"] == "finetune"
    assert text["pipeline_tag"] == "text-to-audio" and codec["pipeline_tag"] == "feature-extraction"
    assert codec["license"] == "other" and codec["license_name"] and codec["license_link"].startswith("https://")
    for metadata in (text, codec):
        assert metadata["library_name"] == "transformers"
        assert metadata["language"] == ["en", "zh", "yue"]
        assert "custom_code" in metadata["tags"]
    # huggingface_hub reads them too.
    assert ModelCard(released_cards[0]).data.license == "llama3.2"


def test_the_licence_of_llama_is_named_where_people_look(released_cards):
    text, _, space = released_cards
    assert "**Built with Llama.**" in text and "**Built with Llama.**" in space
    assert "Llama 3.2 Community License" in sections(text)["Licence"]


def test_every_number_has_its_source(released_cards):
    for card in released_cards[:2]:
        metadata = front(card)
        rows = re.findall(
            r"^\| ([\w/-]+) \| .* \| ([\w ]+) \| ([\d.]+).* \| (.*) \|$", sections(card)["Results"], re.M
        )
        index = [(result["task"]["name"], metric["type"], metric["value"], result["source"])
                 for result in metadata["model-index"][0]["results"] for metric in result["metrics"]]  # fmt: skip
        assert len(rows) == len(index) > 0
        for test, score, value, source in rows:
            assert source == "arXiv 2602.04683, as reported"
            expected = (test, score, float(value), {"name": source, "url": PAPER_URL})
            assert expected in index
    recognised = [row for row in front(released_cards[0])["model-index"][0]["results"]
                  if row["dataset"] == {"name": "openslr/librispeech_asr", "type": "openslr/librispeech_asr",
                                        "config": "clean", "split": "test"}]  # fmt: skip
    assert [metric["value"] for metric in recognised[0]["metrics"]] == [2.71]


def test_the_numbers_are_those_of_the_last_epoch_in_its_size(release, model):
    assert release.is_released
    earlier = {**release.conversion, "files": {"llm_ep2.checkpoint": {"bytes": 1, "sha256": "0f" * 32}}}
    assert not replace(release, conversion=earlier).is_released
    assert not replace(release, conversion=None).is_released
    small = SimpleNamespace(model=model, codec=release.folder.codec)
    assert not replace(release, folder=small).is_released


def test_numbers_of_other_systems_are_not_claimed(released_cards):
    values = [metric["value"] for card in released_cards[:2]
              for result in front(card)["model-index"][0]["results"] for metric in result["metrics"]]  # fmt: skip
    # MiMo-Audio, Qwen2.5-Omni, Mimi, a ReasoningCodec without one of its parts.
    assert not {3.50, 3.92, 86.7, 25.9} & set(values) and {2.71, 90.5} <= set(values)


def test_what_the_release_was_made_of_stands_in_its_card(released_cards):
    training = sections(released_cards[0])["Training"]
    for fact in (
        "`Dongchao/UniAudio2_ckpt` at revision `0123abc`",
        "9,700,000,000",
        "0f" * 32,
        "larger than it looks",
    ):
        assert fact in training
    assert "100 billion text tokens" in training


def test_hardware_is_computed_from_the_weights(release, released_cards):
    rows = {row["part"]: row for row in release.sizes}
    parameters = sum(weight.numel() for weight in release.folder.model.parameters())
    assert rows["language model"]["parameters"] == f"{parameters:,}"
    assert rows["language model"]["type"] == "bfloat16" and rows["codec"]["type"] == "float32"
    assert rows["language model"]["bytes"] == f"{2 * parameters / 1e9:.1f} GB"
    # 2 x 33 layers x 8 heads x 128 values x 2048 rows x 2 bytes
    assert rows["key-value cache of one sequence of 2,048 rows"]["bytes"] == "276.8 MB"
    assert rows["together"]["bytes"] in sections(released_cards[0])["Hardware"]


@pytest.mark.slow
def test_hardware_of_both_released_models(release):
    with torch.device("meta"):
        codec = ReasoningCodecModel(ReasoningCodecConfig())
    facts = replace(release, folder=SimpleNamespace(model=release.folder.model, codec=codec))
    # What the converter has measured of them: 9.7 GB in bfloat16, and 7.5 GB.
    assert [row["bytes"] for row in facts.sizes[:2]] == ["9.7 GB", "7.5 GB"]
    assert facts.space_hardware == "l4x1"


def test_metadata_of_the_space(release, released_cards, session_staged):
    space = front(released_cards[2])
    assert space["sdk"] == "gradio" and space["sdk_version"] == "6.31.0" and space["app_file"] == "app.py"
    assert space["models"] == ["me/Llama-uniaudio2", "me/Llama-uniaudio2-codec"]
    assert space["suggested_hardware"] == "t4-small"  # 10 GB of weights into 16
    assert len(space["short_description"]) <= 60
    assert front((session_staged / "space" / "README.md").read_text())["suggested_hardware"] == "cpu-basic"
    # A model that does not fit a CPU waits for a GPU.
    waits = 'if os.environ.get("SPACES_ZERO_GPU") == "true" or torch.cuda.is_available():'
    assert waits in app(release, "me/Llama-uniaudio2")
    assert "torch" not in (session_staged / "space" / "app.py").read_text()


def test_a_card_says_what_it_was_trained_on_and_only_that(session_staged, released_cards):
    # Nobody has written down the tasks of these models: all are listed.
    assert "| `TTM` |" in sections(released_cards[0])["How to use it"]
    assert "It was trained on these tasks alone" not in released_cards[0]


def test_a_checkpoint_of_two_tasks_lists_two(folder, tmp_path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "tasks": ["ASR", "audio_caption"]}))
    stage(folder, tmp_path / "staged")
    card = (tmp_path / "staged" / "language-model" / "README.md").read_text()
    use = sections(card)["How to use it"]
    assert re.findall(r"^\| `(\w+)` \|", use, flags=re.MULTILINE) == ["ASR", "audio_caption"]
    # It cannot speak, so no example speaks.
    assert "text-to-audio" not in use and "It was trained on these tasks alone" in use
    # Nor do the tags, which people search by.
    assert front(card)["pipeline_tag"] == "any-to-any"
    assert front(card)["tags"] == [
        "uniaudio2", "audio", "automatic-speech-recognition", "audio-text-to-text", "audio-understanding",
        "custom_code",
    ]  # fmt: skip


def test_the_metadata_claim_what_a_checkpoint_was_trained_on(release, released_cards, tmp_path):
    stage(Path(TINY), tmp_path / "staged")
    card, space = (
        front((tmp_path / "staged" / name / "README.md").read_text()) for name in ("language-model", "space")
    )
    assert card["language"] == ["en"] and card["pipeline_tag"] == "text-to-audio"
    assert card["tags"] == [
        "uniaudio2", "audio", "text-to-speech", "automatic-speech-recognition", "any-to-any", "custom_code",
    ]  # fmt: skip
    assert space["tags"] == ["audio", "text-to-speech", "automatic-speech-recognition", "any-to-any"]
    assert {result["dataset"]["name"] for result in card["model-index"][0]["results"]} == {"uniaudio2 spoken digits"}
    # The release lists no tasks, and so has all that the paper trains.
    released = front(released_cards[0])
    assert {"audio-understanding", "music-generation", "text-to-audio", "any-to-any"} <= set(released["tags"])
    # Without the Cantonese tasks there is no Cantonese.
    config = UniAudio2Config(tasks=["ASR", "TTS"])
    part = replace(release, folder=SimpleNamespace(model=SimpleNamespace(config=config)))
    assert release.languages == ["en", "zh", "yue"] and part.languages == ["en", "zh"]


def test_nothing_is_claimed_of_a_model_that_was_not_measured(session_staged):
    for name in ("language-model", "codec"):
        card = (session_staged / name / "README.md").read_text()
        assert "model-index" not in front(card)
        assert "Nothing has been measured" in sections(card)["Results"]


def scores(folder, test, *entries):
    """What `uniaudio2 evaluate` writes, as far as cards read it."""
    target = folder / "tiny" / test
    target.mkdir(parents=True)
    summary = {"suite": "tiny", "test": test, "model": "/data/alice/model", "revision": None, "seed": 7, "scores": []}
    for metric, score, value, percent in entries:
        entry = {"metric": metric, "score": score, "value": value, "low": 0.9 * value, "high": 1.1 * value}
        summary["scores"].append({**entry, "percent": percent, "items": 100})
    (target / "scores.json").write_text(json.dumps(summary))


def test_measured_numbers(folder, tmp_path):
    evaluation = tmp_path / "evaluation"
    scores(evaluation, "listening", ("word_error_rate", "wer", 0.0486, True), ("speed", "rtf", 0.5, False))
    scores(evaluation, "round-trip", ("perceptual_quality", "pesq", 1.397, False))
    stage(folder, tmp_path / "staged", evaluation=evaluation, namespace="lab")
    for name, address, test, score, value, shown in (
        ("language-model", "lab/uniaudio2-random", "tiny/listening", "wer", 4.86, "4.86% (4.37% to 5.35%)"),
        ("codec", "lab/uniaudio2-random-codec", "tiny/round-trip", "pesq", 1.397, "1.397 (1.257 to 1.537)"),
    ):
        card = (tmp_path / "staged" / name / "README.md").read_text()
        (entry,) = front(card)["model-index"][0]["results"]
        assert entry["task"]["name"] == test
        # Speed says as much of the machine as of the model.
        (metric,) = entry["metrics"]
        assert (metric["type"], metric["value"]) == (score, value)
        source = "measured with uniaudio2 evaluate, seed 7"
        assert entry["source"] == {
            "name": source,
            "url": f"https://huggingface.co/{address}/blob/main/evaluation.json",
        }
        assert f"| {shown} | {source} |" in sections(card)["Results"]
    recorded = [
        [(row["test"], row["value"], row["items"]) for row in json.loads(path.read_text())["results"]]
        for path in sorted((tmp_path / "staged").glob("*/evaluation.json"))
    ]
    # The language model's repository holds the codec, and what is known of it.
    assert recorded == [
        [("tiny/round-trip", 1.397, 100)],
        [("tiny/listening", 4.86, 100), ("tiny/round-trip", 1.397, 100)],
    ]
    assert "alice" not in (tmp_path / "staged" / "language-model" / "evaluation.json").read_text()

    # What is recorded in a model folder needs no `--evaluation`.
    shutil.copyfile(tmp_path / "staged" / "language-model" / "evaluation.json", folder / "evaluation.json")
    stage(folder, tmp_path / "again", namespace="lab")
    for name in ("language-model", "codec"):
        assert (tmp_path / "again" / name / "README.md").read_text() == (
            tmp_path / "staged" / name / "README.md"
        ).read_text()


def test_a_damaged_record_of_results(tmp_path):
    (tmp_path / "evaluation.json").write_text(json.dumps({"results": [{"test": "tiny/listening"}]}))
    with pytest.raises(ValueError, match=r"evaluation.json is not what"):
        recorded_results(tmp_path / "evaluation.json")


def test_the_card_of_the_shipped_checkpoint_has_the_numbers_of_its_benchmark():
    recorded = {
        (result.test, result.score): result.value for result in recorded_results(Path(TINY, "evaluation.json"))
    }
    measured = json.loads((BENCHMARKS / "tiny_quality.json").read_text())
    # Greedy, so that two programs count the same errors; texts are compared word for word in both.
    assert recorded["tiny/listening", "wer"] == pytest.approx(measured["heldout"]["asr"]["wer_percent"], abs=0.01)
    unseen = measured["unseen"]["asr"]["wer_percent"]
    assert recorded["tiny/listening-unseen-voice", "wer"] == pytest.approx(unseen, abs=0.01)


def test_a_text_benchmark_is_a_number_of_the_card(tmp_path):
    """It has no metrics of the suite, and the harness no error for some of its numbers."""
    summary = {"suite": "mmlu", "test": "mmlu", "seed": 0, "scores": []}
    for score, interval in (("mmlu acc", {"low": 0.43, "high": 0.45}), ("mmlu acc_norm", {"low": None, "high": None})):
        entry = {"metric": "lm-eval", "score": score, "value": 0.44, **interval, "percent": True, "items": 14042}
        summary["scores"].append(entry)
    (tmp_path / "scores.json").write_text(json.dumps(summary))
    results = measured_results(tmp_path)
    assert [result.shown for result in results] == ["44.00% (43.00% to 45.00%)", "44.00%"]
    assert results[0].test == "mmlu/mmlu" and results[0].value == 44.0


def test_a_folder_without_scores_is_no_evaluation(tmp_path):
    with pytest.raises(ValueError, match=r"There is no scores.json in .*makes it"):
        measured_results(tmp_path)
    scores(tmp_path, "whistling")
    with pytest.raises(ValueError, match="scores of tiny/whistling, which no suite has"):
        measured_results(tmp_path)


def test_the_requirements_are_what_the_code_imports(session_staged):
    imported = set()
    for path in [*(session_staged / "codec").rglob("*.py"), *(session_staged / "language-model").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
    needed = {Requirement(text).name.replace("-", "_") for text in requirements()}
    # The second comes with transformers.
    assert imported - sys.stdlib_module_names - {"huggingface_hub"} <= needed
    card = (session_staged / "codec" / "README.md").read_text()
    for text in requirements():
        assert f'"{text}"' in card


def test_what_the_space_installs_is_what_it_imports(session_staged):
    installed = {Requirement(line).name.replace("-", "_")
                 for line in (session_staged / "space" / "requirements.txt").read_text().splitlines()}  # fmt: skip
    assert "gradio" not in installed  # the card names its version
    imported = set()
    for path in (session_staged / "space").rglob("*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add(node.module.partition(".")[0])
            elif isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
    assert imported - sys.stdlib_module_names - {"uniaudio2", "gradio"} <= installed
