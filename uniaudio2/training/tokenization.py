"""Recordings to codes, once: Parquet shards that training reads again and again."""

import json
import os
import sys
from collections.abc import Mapping, Sequence
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
    (8 codes each). Shards are shared out among the processes that `accelerate launch` starts. A shard is written aside
    and renamed, and one that is there is not made again.

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
        ValueError: For a row that is not as it should be, or if too many recordings cannot be read.
    """
    state = PartialState()
    dataset = load_manifest(manifest, split, streaming)
    columns = dataset.column_names or list(next(iter(dataset)))
    audio = audio_fields(columns)
    if not audio:
        raise ValueError(f"The manifest has no column with recordings, such as 'audio'; it has {columns}.")
    folder = Path(manifest).parent if Path(manifest).exists() else Path()
    output.mkdir(parents=True, exist_ok=True)
    rows = checked_rows(dataset, audio, folder, tasks)
    shard = 0
    with tqdm(desc="recordings", unit="", file=sys.stderr, disable=not state.is_main_process) as bar:
        while chunk := list(islice(rows, rows_per_shard)):
            path = output / f"shard-{shard:06d}.parquet"
            if shard % state.num_processes == state.process_index and not path.exists():
                _write_shard(chunk, path, audio, processor, batch_size, max_skipped, semantic_features, bar)
            else:
                bar.update(len(chunk))
            shard += 1
    state.wait_for_everyone()
    return output


def _write_shard(
    rows: list[dict[str, Any]],
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
                loaded = {name: _load(processor, row[name]) for name in audio}
            except (ValueError, OSError) as error:
                skipped.append({**{name: _name_of(row[name]) for name in audio}, "error": str(error)})
                if len(skipped) > max_skipped:
                    raise ValueError(
                        f"More than {max_skipped} recordings of {path.name} cannot be read, the last because: "
                        f"{error} Repair the manifest or raise the limit."
                    ) from error
                continue
            batch.append((row, loaded))
        if not batch:
            continue
        encoded = {name: processor.encode_audio([loaded[name] for _, loaded in batch]) for name in audio}
        for index, (row, loaded) in enumerate(batch):
            record = {name: value for name, value in row.items() if name not in audio}
            record |= {name: _flat(encoded[name][index]) for name in audio}
            if semantic_features:
                frames = encoded["audio"][index].reconstruction_codes.shape[1]
                record["semantic_features"] = whisper_features(processor, loaded["audio"], frames).flatten().numpy()
            done.append(record)
        bar.update(len(batch))
    if skipped:
        lines = "".join(json.dumps(line) + "\n" for line in skipped)
        path.with_name(f"{path.stem}.{SKIPPED_FILE}").write_text(lines)
    others = [{name: value for name, value in rows[0].items() if name not in audio}]
    features = datasets.Dataset.from_list(others).features
    codes = {name: datasets.List(datasets.Value("int16")) for name in ("reasoning_codes", "reconstruction_codes")}
    features = datasets.Features({**features, **dict.fromkeys(audio, codes)})
    if semantic_features:
        features["semantic_features"] = datasets.List(datasets.Value("float16"))
    staged = path.with_suffix(".unfinished")
    datasets.Dataset.from_list(done, features=features).to_parquet(str(staged))
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
