"""Recordings to codes, once: Parquet shards that training reads again and again."""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from tqdm import tqdm

from ..processing.processing_uniaudio2 import UniAudio2Processor
from ..processing.rows import AudioCodes
from .manifest import audio_fields, checked_rows, import_datasets, load_manifest

SKIPPED_FILE = "skipped.jsonl"
SETTINGS_FILE = "settings.json"


def tokenize(
    manifest: str,
    output: Path,
    processor: UniAudio2Processor,
    tasks: Sequence[str] = (),
    rows_per_shard: int = 1000,
    batch_size: int = 8,
    max_skipped: int = 10,
    semantic_features: bool = False,
    streaming: bool = False,
    split: str = "train",
) -> Path:
    """
    Write the codes of all recordings of a manifest, beside its other columns.

    A column with recordings becomes `{"reasoning_codes", "reconstruction_codes"}`, both int16 lists, frame after frame
    (8 codes each). Shards are shared out among the processes that `accelerate launch` starts; unless the manifest is a
    stream, each reads the rows of its own alone. A shard is written aside and renamed, and one that is there is not
    made again.

    Args:
        manifest (`str`): As of [`~uniaudio2.training.manifest.load_manifest`], so `split` and `streaming`.
        output (`Path`): The folder of the shards.
        processor (`UniAudio2Processor`): With its codec.
        tasks (`Sequence[str]`, *optional*): Tasks whose fields every row must have.
        rows_per_shard, batch_size (`int`): Rows of a shard, recordings that are encoded together.
        max_skipped (`int`, *optional*, defaults to 10):
            How many recordings of a shard may be unreadable. They are left out and listed in `skipped.jsonl` files.
        semantic_features (`bool`, *optional*, defaults to `False`):
            Whether to write the features of the Whisper encoder too, as 12.5 Hz means of `audio`, for the
            understanding warm-up.

    Returns:
        `Path`: The folder, for [`~uniaudio2.training.manifest.load_manifest`].

    Raises:
        ValueError: For a row that is not as it should be, if too many recordings cannot be read, or if the folder
            holds shards that were made with other settings.
    """
    state = PartialState()
    dataset = load_manifest(manifest, split, streaming)
    columns = dataset.column_names or list(next(iter(dataset)))
    audio = audio_fields(columns)
    if not audio:
        raise ValueError(f"The manifest has no column with recordings, such as 'audio'; it has {columns}.")
    folder = Path(manifest).parent if Path(manifest).exists() else Path()
    output.mkdir(parents=True, exist_ok=True)
    if state.is_main_process:
        settings = {"manifest": manifest, "split": split, "rows_per_shard": rows_per_shard, "tasks": list(tasks),
                    "semantic_features": semantic_features}  # fmt: skip
        _check_settings(output / SETTINGS_FILE, settings)
    state.wait_for_everyone()
    total = None if streaming else _rows_of(state.process_index, state.num_processes, len(dataset), rows_per_shard)
    with tqdm(total=total, desc="recordings", unit="", file=sys.stderr, disable=not state.is_main_process) as bar:
        for number, chunk in _shards(dataset, rows_per_shard):
            if number % state.num_processes != state.process_index:
                continue
            path = output / f"shard-{number:06d}.parquet"
            if path.exists():
                bar.update(len(chunk))
            else:
                rows = list(checked_rows(chunk, audio, folder, tasks, first_number=number * rows_per_shard))
                _write_shard(rows, dataset.features, path, audio, processor, batch_size, max_skipped,
                             semantic_features, bar)  # fmt: skip
    state.wait_for_everyone()
    return output


def _check_settings(path: Path, settings: dict[str, Any]) -> None:
    """Shards that are there are kept, so they must be of the same making."""
    if path.exists():
        theirs = json.loads(path.read_text())
        differing = [name for name, value in settings.items() if theirs.get(name) != value]
        if differing:
            raise ValueError(
                f"{path.parent} holds shards made with other settings ({', '.join(differing)}: "
                f"{[theirs.get(name) for name in differing]} there, {[settings[name] for name in differing]} now): "
                "give another folder, or remove that one."
            )
        return
    staged = path.with_suffix(".unfinished")
    staged.write_text(json.dumps(settings) + "\n")
    os.replace(staged, path)


def _shards(dataset, rows_per_shard: int) -> Iterator[tuple[int, Sequence]]:
    """The rows of each shard, by number. A stream is read whole, of other data only those that are looked at."""
    if isinstance(dataset, import_datasets().IterableDataset):
        rows = iter(dataset)
        yield from enumerate(iter(lambda: list(islice(rows, rows_per_shard)), []))
    else:
        for number, start in enumerate(range(0, len(dataset), rows_per_shard)):
            yield number, dataset.select(range(start, min(start + rows_per_shard, len(dataset))))


def _rows_of(process: int, num_processes: int, num_rows: int, rows_per_shard: int) -> int:
    """How many rows a process has to encode."""
    starts = range(0, num_rows, rows_per_shard)[process::num_processes]
    return sum(min(rows_per_shard, num_rows - start) for start in starts)


def _write_shard(
    rows: list[dict[str, Any]],
    known_features: Mapping[str, Any] | None,
    path: Path,
    audio: Sequence[str],
    processor: UniAudio2Processor,
    batch_size: int,
    max_skipped: int,
    semantic_features: bool,
    bar: tqdm,
) -> None:
    datasets = import_datasets()
    done, skipped = [], []
    for start in range(0, len(rows), batch_size):
        batch = []
        for row in rows[start : start + batch_size]:
            try:
                loaded = {name: _load(processor, row[name]) for name in audio if row[name] is not None}
            except (ValueError, OSError) as error:
                names = {name: _name_of(row[name]) for name in audio if row[name] is not None}
                skipped.append({**names, "error": str(error)})
                if len(skipped) > max_skipped:
                    raise ValueError(
                        f"More than {max_skipped} recordings of {path.name} cannot be read, the last because: "
                        f"{error} Repair the manifest or raise the limit."
                    ) from error
                continue
            batch.append((row, loaded))
        bar.update(len(rows[start : start + batch_size]))
        encoded = {}
        for name in audio:
            present = [loaded[name] for _, loaded in batch if name in loaded]
            encoded[name] = iter(processor.encode_audio(present) if present else ())
        for row, loaded in batch:
            codes = {name: next(encoded[name]) if name in loaded else None for name in audio}
            record = {name: value for name, value in row.items() if name not in audio}
            record |= {name: None if value is None else _flat(value) for name, value in codes.items()}
            if semantic_features:
                frames = codes["audio"].reconstruction_codes.shape[1]
                record["semantic_features"] = whisper_features(processor, loaded["audio"], frames).flatten().numpy()
            done.append(record)
    if skipped:
        lines = "".join(json.dumps(line) + "\n" for line in skipped)
        path.with_name(f"{path.stem}.{SKIPPED_FILE}").write_text(lines)
    if known_features is None:
        known_features = datasets.Dataset.from_list(rows).features
    features = {name: feature for name, feature in known_features.items() if name not in audio}
    codes = {name: datasets.List(datasets.Value("int16")) for name in ("reasoning_codes", "reconstruction_codes")}
    features = datasets.Features(features | dict.fromkeys(audio, codes))
    if semantic_features:
        features["semantic_features"] = datasets.List(datasets.Value("float16"))
    staged = path.with_suffix(".unfinished")
    # By columns: a shard of unreadable recordings alone has all of them, and no rows.
    columns = {name: [record[name] for record in done] for name in features}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(str(staged))
    os.replace(staged, path)


@torch.no_grad()
def whisper_features(processor: UniAudio2Processor, recording: Mapping[str, Any], num_frames: int) -> torch.Tensor:
    """
    What the codec's frozen Whisper encoder hears in a recording, at the rate of the reconstruction codes.

    Returns:
        `torch.FloatTensor` of shape `(num_frames, channels)`, in half precision.
    """
    codec = processor.codec
    inputs = processor.feature_extractor(recording, return_tensors="pt")
    waveform = inputs["input_values"].reshape(1, -1)
    window = round(codec.config.window_seconds * codec.config.sampling_rate)
    heard = []
    for start in range(0, waveform.shape[1], window):
        part = waveform[:, start : start + window]
        # Whole frames of 12.5 Hz: the last one is filled up with silence.
        part = torch.nn.functional.pad(part, (0, -part.shape[1] % codec.config.reconstruction_hop_length))
        heard.append(codec.front_ends(part.to(codec.device)).whisper[0].float().cpu())
    features = torch.cat(heard, dim=1)
    return torch.nn.functional.adaptive_avg_pool1d(features[None], num_frames)[0].T.half()


def _load(processor: UniAudio2Processor, recording: str | dict) -> dict[str, Any]:
    """The waveform as the codec takes it: what cannot be used must be known before recordings are encoded together."""
    audio = recording["bytes"] if isinstance(recording, dict) else recording
    values = processor.feature_extractor(audio, return_tensors="pt")["input_values"]
    return {"array": values.flatten().numpy(), "sampling_rate": processor.feature_extractor.sampling_rate}


def _name_of(recording: str | dict) -> str:
    return recording if isinstance(recording, str) else f"{len(recording['bytes'])} bytes"


def _flat(codes: AudioCodes) -> dict[str, Any]:
    return {
        "reasoning_codes": codes.reasoning_codes.T.flatten().short().numpy(),
        "reconstruction_codes": codes.reconstruction_codes.T.flatten().short().numpy(),
    }
