"""Manifests, codes on disk, auditory sentences and the plan that mixes and packs them."""

import json
import re
import runpy
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
import soundfile as sf
import torch
from PIL import Image

from uniaudio2.processing.rows import AUDIO_ROW, AudioCodes
from uniaudio2.processing.tasks import TASKS
from uniaudio2.training import auditory_sentences as sentences
from uniaudio2.training.language_model_stages import targets_of
from uniaudio2.training.manifest import checked_rows, load_manifest
from uniaudio2.training.mixture import (
    NOTED_BATCHES,
    Draw,
    EveryExample,
    Mixture,
    MixtureBatches,
    Records,
    TaskSource,
    make_source,
)
from uniaudio2.training.tokenization import tokenize

TEXTS = ["seven three nine", "one", "zero eight six five", "two four", "nine nine one two three", "six"]
DOCS = Path(__file__).parents[2] / "docs" / "auditory-sentences.md"


@pytest.fixture
def manifest(tmp_path, tone):
    rows = []
    for index, text in enumerate(TEXTS):
        seconds = 0.4 + 0.2 * index
        sf.write(tmp_path / f"{index}.wav", tone(seconds, frequency=200.0 + 50 * index), 24_000)
        rows.append({"audio": f"{index}.wav", "text": text, "recording": f"book-{index // 3}", "start": -float(index)})
    path = tmp_path / "manifest.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def records(codes):
    """Twelve records of random codes, as `tokenize` writes them."""
    rows = []
    for index in range(12):
        row = {"text": TEXTS[index % 6], "caption": f"voice {index}", "recording": index // 4, "start": -index}
        row |= {"question": "who", "answer": "me", "lyric": "la la"}
        for place, field in enumerate(("audio", "target_audio", "target_audio_1", "target_audio_2", "audio_prompt")):
            reasoning, reconstruction = codes(1.0 + 0.4 * (index % 5), seed=10 * index + place)
            row[field] = {
                "reasoning_codes": reasoning.T.flatten().tolist(),
                "reconstruction_codes": reconstruction.T.flatten().tolist(),
            }
        frames = len(row["audio"]["reconstruction_codes"]) // 8
        row["semantic_features"] = torch.arange(1.0, 1 + 3 * frames).tolist()
        rows.append(row)
    return datasets.Dataset.from_list(rows)


# --- Manifests and codes on disk ---


def test_codes_on_disk_are_those_of_each_recording(manifest, processor, tmp_path):
    folder = tokenize(str(manifest), tmp_path / "codes", processor, tasks=["ASR"], rows_per_shard=4, batch_size=3)
    assert sorted(path.name for path in folder.glob("*.parquet")) == ["shard-000000.parquet", "shard-000001.parquet"]
    dataset = load_manifest(str(folder))
    assert dataset["text"][:] == TEXTS
    assert dataset.features["audio"]["reasoning_codes"].feature.dtype == "int16"
    for index in range(len(TEXTS)):
        (expected,) = processor.encode_audio(str(manifest.parent / f"{index}.wav"))
        record = Records(dataset, processor, ["audio"], ["text"])[index]["audio"]
        assert torch.equal(record.reasoning_codes, expected.reasoning_codes)
        assert torch.equal(record.reconstruction_codes, expected.reconstruction_codes)


def test_finished_shards_are_not_made_again(manifest, processor, tmp_path, monkeypatch):
    folder = tokenize(str(manifest), tmp_path / "codes", processor, rows_per_shard=2)
    before = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    (folder / "shard-000001.parquet").unlink()
    calls = []
    encode = processor.encode_audio
    monkeypatch.setattr(processor, "encode_audio", lambda audio: calls.append(len(audio)) or encode(audio))
    tokenize(str(manifest), tmp_path / "codes", processor, rows_per_shard=2)
    assert calls == [2]
    assert (folder / "shard-000000.parquet").stat().st_mtime_ns == before["shard-000000.parquet"]
    assert load_manifest(str(folder))["text"][:] == TEXTS
    with pytest.raises(ValueError, match=r"other settings \(rows_per_shard: \[2\] there, \[3\] now\)"):
        tokenize(str(manifest), tmp_path / "codes", processor, rows_per_shard=3)


def test_a_process_reads_the_rows_of_its_own_shards(manifest, processor, tmp_path, monkeypatch):
    """The second of two processes; a bad row of the first one's is not its business."""
    rows = [json.loads(line) for line in manifest.read_text().splitlines()]
    rows[0]["text"] = " "
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("uniaudio2.training.tokenization.PartialState", lambda: SimpleNamespace(
        num_processes=2, process_index=1, is_main_process=False, wait_for_everyone=lambda: None))  # fmt: skip
    folder = tokenize(str(manifest), tmp_path / "codes", processor, tasks=["ASR"], rows_per_shard=2)
    assert [path.name for path in folder.iterdir()] == ["shard-000001.parquet"]
    assert load_manifest(str(folder))["text"][:] == TEXTS[2:4]
    rows[3]["text"] = ""
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match="Row 3: 'text' must be a text that is not empty"):
        tokenize(str(manifest), tmp_path / "again", processor, tasks=["ASR"], rows_per_shard=2)


@pytest.mark.parametrize("streaming", [False, True])
def test_mixtures_differ_in_their_number_of_sources(processor, tmp_path, tone, streaming):
    """Two or three; texts that are empty in the first rows keep their type."""
    rows = []
    for index in range(4):
        names = ["audio", "target_audio_1", "target_audio_2"][: 2 + index % 2]
        rows.append({name: f"{index}-{name}.wav" for name in names} | {"caption": None if index < 2 else "rain"})
        for place, name in enumerate(names):
            sf.write(tmp_path / f"{index}-{name}.wav", tone(0.4, frequency=200.0 + 100 * place), 24_000)
    (tmp_path / "mixtures.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tokenize(str(tmp_path / "mixtures.jsonl"), tmp_path / "codes", processor, rows_per_shard=2, batch_size=2)
    dataset = load_manifest(str(folder), streaming=streaming)
    assert [row["target_audio_2"] is None for row in dataset] == [True, False, True, False]
    assert [row["caption"] for row in dataset] == [None, None, "rain", "rain"]
    source = make_source({"sentences": "mixture_and_sources"}, dataset, processor, 0, 0)
    counts = []
    for draw in islice(source.draws(0, 4000), 4):
        (rows,) = processor.example_rows([[source.turn(draw, 4000)]])
        counts.append(len(source.turn(draw, 4000).values))
        assert len(rows) == draw.length
    assert sorted(counts) == [2, 2, 3, 3]
    with pytest.raises(ValueError, match=r"no 'target_audio_2'|lacks \['target_audio_2'\]"):
        next(make_source({"task": "speech_ss"}, dataset, processor, 0, 0).draws(0, 4000))


def test_a_shard_of_corrupt_recordings_alone_is_an_empty_one(manifest, processor, tmp_path):
    for index in (0, 1):
        (tmp_path / f"{index}.wav").write_bytes(b"nothing")
    folder = tokenize(str(manifest), tmp_path / "codes", processor, rows_per_shard=2)
    assert load_manifest(str(folder))["text"][:] == TEXTS[2:]


def test_features_of_the_frozen_encoder_are_written_too(manifest, processor, tmp_path):
    folder = tokenize(str(manifest), tmp_path / "codes", processor, semantic_features=True)
    for row in load_manifest(str(folder)):
        frames = len(row["audio"]["reconstruction_codes"]) // 8
        assert len(row["semantic_features"]) == frames * processor.codec.config.whisper_config.d_model


def test_corrupt_recordings_are_listed_and_skipped_up_to_a_limit(manifest, processor, tmp_path):
    (tmp_path / "1.wav").write_bytes(b"RIFF and nothing")
    (tmp_path / "2.wav").unlink()
    folder = tokenize(str(manifest), tmp_path / "codes", processor, max_skipped=2)
    assert load_manifest(str(folder))["text"][:] == [TEXTS[0], *TEXTS[3:]]
    lines = [json.loads(line) for line in (folder / "shard-000000.skipped.jsonl").read_text().splitlines()]
    assert [Path(line["audio"]).name for line in lines] == ["1.wav", "2.wav"]
    assert "cannot be read as audio" in lines[0]["error"]
    with pytest.raises(ValueError, match="More than 1 recordings of shard-000000"):
        tokenize(str(manifest), tmp_path / "again", processor, max_skipped=1)


def test_recordings_as_bytes_and_streamed(manifest, processor, tmp_path):
    rows = [
        {"audio": {"bytes": (tmp_path / f"{i}.wav").read_bytes(), "path": None}, "text": TEXTS[i]} for i in range(3)
    ]
    datasets.Dataset.from_list(rows).to_parquet(str(tmp_path / "bytes.parquet"))
    from_bytes = tokenize(str(tmp_path / "bytes.parquet"), tmp_path / "b", processor)
    streamed = tokenize(str(manifest), tmp_path / "s", processor, streaming=True)
    assert load_manifest(str(from_bytes))["audio"][:] == load_manifest(str(streamed))["audio"][:3]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"audio": "a.wav"}, "Row 1 of the manifest has no 'text'"),
        ({"audio": "a.wav", "text": " "}, "Row 1: 'text' must be a text that is not empty"),
        ({"audio": 3, "text": "one"}, "Row 1: 'audio' must be a path"),
        ({"text": "one"}, "Row 1 of the manifest has no 'audio'"),
    ],
)
def test_a_bad_row_is_named_with_its_field(row, message):
    rows = [{"audio": "a.wav", "text": "fine"}, row]
    with pytest.raises(ValueError, match=message):
        list(checked_rows(rows, ["audio"], Path(), tasks=["ASR"]))


# --- Auditory sentences ---


def make_sizes(count: int = 10, text: bool = True) -> list[dict]:
    sizes = [{"audio": sentences.AudioSize(20 + i, 50 + i), "text": 3 + i, "caption": 4} for i in range(count)]
    return [size | {f"target_audio_{k}": sentences.AudioSize(10, 25) for k in (1, 2)} for size in sizes]


@pytest.mark.parametrize("name", sentences.BUILDERS)
def test_a_sentence_has_two_to_eight_segments_of_its_records(name):
    builder = sentences.get_builder(name)
    counts = set()
    for seed in range(40):
        segments = builder.build(make_sizes(), np.random.default_rng(seed))
        counts.add(len(segments))
        assert segments == builder.build(make_sizes(), np.random.default_rng(seed))
    assert min(counts) >= 2 and max(counts) <= 8
    if name != "mixture_and_sources":
        assert len(counts) > 3


def test_consecutive_segments_are_the_recording(codes):
    reasoning, reconstruction = codes(seconds=9.2)
    record = {"audio": AudioCodes(reasoning, reconstruction)}
    for turn in islice(sentences.stream_sentences([record] * 5, "consecutive_segments", len, 10_000), 5):
        values = list(turn.values.values())
        assert torch.equal(torch.cat([value.reasoning_codes for value in values], dim=1), reasoning)
        assert torch.equal(torch.cat([value.reconstruction_codes for value in values], dim=1), reconstruction)


def test_streamed_sentences_hold_one_group_at_a_time(codes):
    drawn = []

    def records():
        for index in range(12):
            drawn.append(index)
            reasoning, reconstruction = codes(1.0, seed=index)
            yield {"audio": AudioCodes(reasoning, reconstruction), "text": f"t{index}", "recording": index // 4,
                   "start": index}  # fmt: skip

    stream = sentences.stream_sentences(records(), "interleaved_speech_and_text", len, 10_000)
    turn = next(stream)
    assert len(drawn) == 5  # four of the first recording, and one to see that it ended
    texts = [value for value in turn.values.values() if isinstance(value, str)]
    assert texts == [f"t{index}" for index in range(int(texts[0][1:]), int(texts[0][1:]) + len(texts))]
    assert len(list(stream)) == 2


def test_a_sentence_is_cut_after_the_last_segment_that_fits():
    sizes = make_sizes()
    builder = sentences.get_builder("interleaved_speech_and_text")
    for max_rows in (100, 200, 300, 1000):
        pieces = sentences.plan_sentence(builder, sizes, np.random.default_rng(3), max_rows)
        rows = sum(sentences.piece_rows(piece, sizes[piece.record][piece.field]) for piece in pieces)
        assert rows <= max_rows and len(pieces) % 2 == 0
        assert pieces or max_rows < 2 * 80


def test_everything_in_a_sentence_is_learnt(records, processor):
    source = make_source({"sentences": "same_text_in_styles"}, records, processor, 0, 0)
    (rows,) = processor.example_rows([[source.turn(Draw(0, 0, 0), 4000)]])
    is_audio = rows.mm_token_type_ids == AUDIO_ROW
    assert torch.equal(rows.labels[is_audio][:, :-1], rows.input_ids[is_audio][:, :-1])
    assert torch.equal(rows.labels[~is_audio][:, -1], rows.input_ids[~is_audio][:, -1])


def test_the_picture_in_the_documentation_is_what_the_code_draws():
    sizes = [{"audio": sentences.AudioSize(reasoning, frames), "text": text}
             for reasoning, frames, text in ((6, 15, 3), (4, 10, 2), (8, 20, 4))]  # fmt: skip
    builder = sentences.get_builder("interleaved_speech_and_text")
    pieces = sentences.plan_sentence(builder, sizes, np.random.default_rng(5), 2048)
    assert sentences.draw_sentence(pieces, sizes) in DOCS.read_text(encoding="utf-8")


@pytest.mark.checkpoint
def test_the_picture_of_a_sentence_is_what_its_command_draws(tmp_path, monkeypatch, capsys):
    """Up to what other versions of libraries draw otherwise."""
    command = re.search(
        r"^python (examples/auditory_sentence.py) --output (docs/\S+)$", DOCS.read_text(), re.MULTILINE
    )
    monkeypatch.setattr("sys.argv", [command[1], "--output", str(tmp_path / "picture.png")])
    runpy.run_path(str(DOCS.parents[1] / command[1]), run_name="__main__")
    assert capsys.readouterr().out.startswith("128 rows in 9 parts")
    drawn, shown = (np.asarray(Image.open(path).convert("RGB"), dtype=float)
                    for path in (tmp_path / "picture.png", DOCS.parents[1] / command[2]))  # fmt: skip
    assert drawn.shape == shown.shape and np.abs(drawn - shown).mean() < 5


# --- The plan ---


@pytest.mark.parametrize("task", TASKS)
def test_planned_lengths_are_the_lengths_of_the_rows(records, processor, task):
    source = make_source({"task": task, "condition_dropout": 0.5}, records, processor, 0, seed=3)
    for number in range(5):
        (rows,) = processor.example_rows([[source.turn(Draw(0, number, 0), 4000)]])
        assert source.length(number, 4000) == len(rows)
        assert source.length(number, len(rows) - 1) is None


@pytest.mark.parametrize("name", sentences.BUILDERS)
def test_planned_lengths_of_sentences(records, processor, name):
    if name == "interleaved_audio_and_captions":
        records = records.rename_column("recording", "group")
    source = make_source({"sentences": name}, records, processor, 0, seed=3)
    for number in range(4):
        (rows,) = processor.example_rows([[source.turn(Draw(0, number, 0), 300)]])
        assert source.length(number, 300) == len(rows) <= 300


def test_every_record_once_in_each_epoch(records, processor):
    source = make_source({"task": "ASR"}, records, processor, 0, seed=1)
    epochs = [[source.item(number) for number in range(12 * epoch, 12 * epoch + 12)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


@pytest.fixture
def mixture(records, processor):
    def make(packed=True, max_rows=256, seed=0, **kwargs):
        entries = [
            {"task": "ASR", "weight": 3},
            {"task": "TTS", "weight": 2, "condition_dropout": 0.1},
            {"sentences": "consecutive_segments", "weight": 1},
        ]
        sources = [make_source(entry, records, processor, i, seed) for i, entry in enumerate(entries)]
        return Mixture(sources, processor, max_rows, packed, **kwargs)

    return make


def test_weights_are_shares_of_the_rows(mixture):
    """At any time, up to the length of one example; the sources differ in the lengths of theirs."""
    rows = np.zeros(3)
    for count, draw in enumerate(islice(mixture().draws(), 600)):
        rows[draw.source] += draw.length
        if count > 100:
            np.testing.assert_allclose(rows, rows.sum() * np.array([3, 2, 1]) / 6, atol=256)


def test_the_plan_is_a_function_of_the_seed(mixture):
    plans = [list(islice(mixture(seed=seed).sequences(), 20)) for seed in (0, 0, 1)]
    assert plans[0] == plans[1] != plans[2]


def test_packed_sequences_are_full_and_lose_nothing(mixture):
    plan = mixture(max_rows=512)
    sequences = list(islice(plan.sequences(), 60))
    lengths = [sum(draw.length for draw in draws) for draws in sequences]
    assert max(lengths) <= 512 and np.mean(lengths) > 0.85 * 512
    packed = {(draw.source, draw.number) for draws in sequences for draw in draws}
    assert len(packed) == sum(map(len, sequences))
    drawn = [(draw.source, draw.number) for draw in islice(plan.draws(), len(packed) // 2)]
    assert len(set(drawn) - packed) < 16 * 512 / 30  # those still open


def test_packing_equals_not_packing(mixture, model):
    """Losses of packed sequences are those of their examples alone, all rows and zero rows of the experts included."""
    plan = mixture(max_rows=400)
    sequences = list(islice(plan.sequences(), 2))
    batch = plan.collate([plan[draws] for draws in sequences])
    assert "attention_mask" not in batch and batch["labels"].shape[:2] == (2, 400)
    alone = mixture(packed=False, max_rows=400)
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    model = model.double()
    with torch.no_grad():
        packed = model(**batch, use_cache=False)
        for draws in sequences:
            for draw in draws:
                one = alone.collate([alone[(draw,)]])
                outputs = model(**one)
                text, _ = targets_of(one)
                is_audio = one["mm_token_type_ids"][0] == AUDIO_ROW
                count = torch.tensor([(text != -100).sum(), is_audio[1:].sum()], dtype=torch.float64)
                sums += count * torch.stack([outputs.text_loss, outputs.audio_loss])
                counts += count
    model.float()
    torch.testing.assert_close(torch.stack([packed.text_loss, packed.audio_loss]).double(), sums / counts)


def test_an_item_does_not_depend_on_what_came_before(mixture):
    plan = mixture()
    draws = list(islice(plan.sequences(), 6))
    backwards = [plan[item] for item in reversed(draws)][::-1]
    for item, again in zip([plan[item] for item in draws], backwards, strict=True):
        assert all(torch.equal(item[name], again[name]) for name in item)


def test_batches_have_a_budget_of_rows(mixture):
    plan = mixture(packed=False)
    for batch in islice(MixtureBatches(plan, batch_size=4), 60):
        assert len(batch) * max(draws[0].length for draws in batch) <= 4 * 256
    items = plan.collate([plan[draws] for draws in batch])
    assert items["attention_mask"].sum() == sum(draws[0].length for draws in batch)


@pytest.mark.parametrize("packed", [True, False])
def test_a_plan_goes_on_where_it_stood(mixture, packed):
    """Whatever was planned ahead: from the last state that was noted before, with what went before left empty."""
    batches = MixtureBatches(mixture(packed), batch_size=2)
    planned = list(islice(batches, 300))
    for num_batches in (0, 1, NOTED_BATCHES, 150, 290):
        state = json.loads(json.dumps(batches.state_dict(num_batches)))
        assert num_batches - (NOTED_BATCHES if packed else 120) < state["num_batches"] <= num_batches
        resumed = MixtureBatches(mixture(packed), batch_size=2)
        resumed.load_state_dict(state)
        assert resumed.settings() == batches.settings()
        again = list(islice(resumed, 300))
        assert (
            not any(again[: state["num_batches"]]) and again[state["num_batches"] :] == planned[state["num_batches"] :]
        )


def test_features_lie_on_the_rows_of_their_frames(records, processor):
    source = make_source({"task": "ASR"}, records, processor, 0, 0)
    plan = Mixture([source], processor, 300, semantic_features=True)
    (draws,) = islice(plan.sequences(), 1)
    item = plan[draws]
    length = draws[0].length
    record = records[source.item(draws[0].number)]
    frames = len(record["audio"]["reconstruction_codes"]) // 8
    is_audio = item["mm_token_type_ids"][:length] == AUDIO_ROW
    reconstruction = is_audio.nonzero().flatten()[-frames - 1 : -1]
    expected = torch.tensor(record["semantic_features"]).view(frames, 3)
    assert torch.equal(item["semantic_features"][reconstruction], expected)
    assert item["semantic_mask"][:length].sum() == is_audio.sum() - 4  # all but bos and eos rows
    reasoning = is_audio.nonzero().flatten()[1]
    assert item["semantic_features"][reasoning, 0] == expected[: -(-frames * 2 // 5), 0][:3].mean()


# --- Streams ---


@pytest.fixture
def stream(records, tmp_path):
    """The records in three shards, read one after the other."""
    for index in range(3):
        records.shard(3, index, contiguous=True).to_parquet(str(tmp_path / "shards" / f"{index}.parquet"))
    return lambda: load_manifest(str(tmp_path / "shards"), streaming=True)


def test_a_stream_has_every_record_once_each_time_through(stream, records, processor):
    source = make_source({"task": "ASR", "shuffle_buffer": 5}, stream(), processor, 0, seed=1)
    draws = list(islice(source.draws(0, 4000), 36))
    assert [draw.number for draw in draws] == list(range(36))
    starts = [[draw.streamed["start"] for draw in draws[first : first + 12]] for first in (0, 12, 24)]
    assert all(sorted(epoch) == sorted(records["start"]) for epoch in starts)
    assert starts[0] != starts[1] != starts[2]
    again = make_source({"task": "ASR", "shuffle_buffer": 5}, stream(), processor, 0, seed=1)
    assert [draw.streamed["start"] for draw in islice(again.draws(0, 4000), 12)] == starts[0]


def test_examples_of_a_stream_are_those_of_the_same_records(stream, records, processor):
    """Rows, lengths and features, of a task and of sentences."""
    entries = [{"task": "ASR", "weight": 1}, {"sentences": "interleaved_speech_and_text", "weight": 2}]
    sources = [make_source(entry, stream(), processor, i, seed=1) for i, entry in enumerate(entries)]
    plan = Mixture([sources[0]], processor, 4000, packed=False, semantic_features=True)
    for (draw,) in islice(plan.sequences(), 14):
        item = plan[(draw,)]
        same = records.select([records["start"].index(draw.streamed["start"])])
        stored = make_source(entries[0], same, processor, 0, seed=1)
        expected = Mixture([stored], processor, 4000, packed=False, semantic_features=True)[
            (Draw(0, draw.number, draw.length),)
        ]
        assert len(item["labels"]) == draw.length
        assert all(torch.equal(item[name], expected[name]) for name in expected)

    for draw in islice(sources[1].draws(0, 400), 7):
        (rows,) = processor.example_rows([[sources[1].turn(draw, 400)]])
        assert len(rows) == draw.length <= 400
        assert len({record["recording"] for record in draw.streamed}) == 1
        assert [record["start"] for record in draw.streamed] == sorted(record["start"] for record in draw.streamed)


def test_what_streams_cannot_do_is_refused(stream, records, processor):
    with pytest.raises(ValueError, match="others are in random order anyway"):
        make_source({"task": "ASR", "shuffle_buffer": 5}, records, processor, 0, 0)
    with pytest.raises(ValueError, match="leave out 'shuffle_buffer'"):
        make_source({"sentences": "same_text_in_styles", "shuffle_buffer": 5}, stream(), processor, 0, 0)
    with pytest.raises(ValueError, match=r"No example of source 2 \(ASR\) has at most 10 rows: raise data.context"):
        next(make_source({"task": "ASR"}, stream(), processor, 2, 0).draws(2, 10))
    without = stream().remove_columns("text")
    with pytest.raises(ValueError, match=r"record of the stream lacks \['text'\]"):
        next(make_source({"task": "ASR"}, without, processor, 0, 0).draws(0, 4000))


@pytest.mark.parametrize("streamed", [False, True])
def test_examples_that_do_not_fit_are_counted_and_said_once(stream, records, processor, monkeypatch, streamed):
    said = []
    monkeypatch.setattr("uniaudio2.training.mixture.logger", SimpleNamespace(warning=said.append))
    dataset = stream() if streamed else records
    entries = [{"task": "ASR"}, {"sentences": "interleaved_speech_and_text"}]
    sources = [make_source(entry, dataset, processor, i, seed=1) for i, entry in enumerate(entries)]
    plan = Mixture(sources, processor, 80)
    with pytest.raises(ValueError, match=r"No example of source 1 \(interleaved_speech_and_text\)"):
        next(sources[1].draws(1, 40))
    assert [line[:53] for line in said] == ["3 of the 3 examples of source 1 (interleaved_speech_a"]
    said.clear()
    for source, numbers in zip(sources, (12, 3), strict=True):
        fitting = {draw.number for draw in islice(source.draws(0, 80), 4 * numbers) if draw.number < numbers}
        (line,) = said
        left_out = numbers - len(fitting)
        assert 0 < left_out < numbers and line.startswith(f"{left_out} of the {numbers} examples of source 0")
        assert line.endswith("80 rows: raise data.context, or cut recordings and texts into shorter ones.")
        said.clear()
    state = plan.plan()
    fitting = {(draw.source, draw.number) for draw in islice(plan.draws(state), 40)}
    assert state.num_left_out == sum(position.number for position in state.positions) - len(fitting) > left_out
    if not streamed:
        examples = EveryExample(Mixture(sources[:1], processor, 80, packed=False))
        assert said[-1].startswith(f"{12 - len(examples)} of the 12 examples of source 0 (ASR) are left out, as they ")


def test_what_cannot_be_planned_is_refused(mixture, records, processor):
    with pytest.raises(ValueError, match=r"No example of source 0 \(ASR\) has at most 20 rows"):
        next(mixture(max_rows=20).draws())
    with pytest.raises(ValueError, match="has a 'task' or a builder"):
        make_source({"weight": 1}, records, processor, 0, 0)
    with pytest.raises(ValueError, match="Unknown builder of auditory sentences 'songs'"):
        make_source({"sentences": "songs"}, records, processor, 0, 0)
    with pytest.raises(ValueError, match="lack \\['audio'\\]"):
        make_source({"task": "ASR"}, records.remove_columns("audio"), processor, 0, 0)
    with pytest.raises(ValueError, match="weight of a source must be positive"):
        TaskSource(Records(records, processor, ["audio"], ["text"]), TASKS["ASR"], processor, 0.0, (0,))
