"""Runs a model over the items of a test and writes down what it answers. Every item is kept as soon as it is done."""

import importlib.metadata
import io
import json
import platform
import shutil
import time
from pathlib import Path
from typing import Any

import soundfile
import torch
from accelerate import PartialState
from tqdm import tqdm

from .. import UniAudio2ForConditionalGeneration, UniAudio2Processor, __version__
from .data import Items
from .manifest import (
    AUDIO_FOLDER,
    ITEM_FOLDER,
    PREDICTIONS_FILE,
    RUN_FILE,
    audio_value,
    read_run,
    write_atomically,
    write_json,
)
from .suite import RECONSTRUCTION_TASK, SuiteTest

PACKAGES = ("torch", "transformers", "diffusers", "numpy", "soundfile", "soxr")


class Predictor:
    """
    A model, its processor, and how to ask them what a test asks.

    Args:
        model (`str`): A model folder or a Hub id.
        device (`torch.device`): Where both models run.
    """

    def __init__(self, model: str, device: torch.device):
        self.name, self.device = model, device
        self.processor = UniAudio2Processor.from_pretrained(model, codec_device=device)
        self.model = UniAudio2ForConditionalGeneration.from_pretrained(model).to(device).eval()
        # Loaded now: the first item would count the time otherwise.
        self.processor.codec.eval()
        self.sampling_rate = self.processor.feature_extractor.sampling_rate

    @property
    def revision(self) -> str | None:
        """The commit of a model from the Hub."""
        return getattr(self.model.config, "_commit_hash", None)

    @torch.no_grad()
    def answer(
        self, test: SuiteTest, fields: dict[str, Any], shots: list[dict[str, Any]], seed: int
    ) -> tuple[str | torch.Tensor, int]:
        """
        The answer to one item, and how many tokens or frames it took.

        Args:
            test (`SuiteTest`): The task and its settings.
            fields (`dict[str, Any]`): The values of the item.
            shots (`list[dict[str, Any]]`): The values of the examples before it.
            seed (`int`): Of all random numbers of this item, so that it does not depend on the others.
        """
        generator = torch.Generator().manual_seed(seed)
        if test.task == RECONSTRUCTION_TASK:
            inputs = self.processor.feature_extractor(fields["audio"], return_tensors="pt").to(self.device)
            codes = self.processor.codec.encode(**inputs).reconstruction_codes
            audio = self.processor.codec.decode(codes, generator=generator, **test.codec).audio_values[0, 0]
            # The codes stand for whole frames; the recording ends inside the last one.
            return audio[: inputs["input_values"].shape[-1]].float().cpu(), codes.shape[-1]
        inputs = self._inputs(test, fields, shots).to(self.device)
        settings = {**test.generation}
        if settings.get("num_beams", 1) == 1:
            settings["generator"] = generator
        sequences = self.model.generate(**inputs, **settings)
        if test.format.output == "text":
            return self.processor.decode(sequences)[0], sequences.shape[1]
        waveform = self.processor.decode(sequences, generator=generator, **test.codec)[0]
        if waveform.numel() == 0:
            raise ValueError("the answer holds no audio frame")
        return waveform, sequences.shape[1] - inputs["input_ids"].shape[1]

    def _inputs(self, test: SuiteTest, fields: dict[str, Any], shots: list[dict[str, Any]]):
        format_ = test.format
        given = {name: fields[name] for name in format_.condition_fields}
        if not shots:
            return self.processor(**given, task=test.task, prompt=test.prompt)
        answers = [name for name in format_.fields if name not in format_.condition_fields]
        messages = [{"role": "system", "content": test.prompt}] if test.prompt else []
        for shot in shots:
            messages.append(self._message("user", test, {name: shot[name] for name in given}))
            messages.append(self._message("assistant", test, {name: shot[name] for name in answers}))
        messages.append(self._message("user", test, given))
        return self.processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )

    def _message(self, role: str, test: SuiteTest, values: dict[str, Any]) -> dict[str, Any]:
        parts = [
            {"type": "audio", "path": value, "field": name}
            if test.is_audio(name)
            else {"type": "text", "text": value, "field": name}
            for name, value in values.items()
        ]
        return {"role": role, "content": parts, "task": test.task}


def predict(
    test: SuiteTest, items: Items, predictor: Predictor, folder: Path, seed: int = 0, limit: int | None = None
) -> None:
    """
    Answer all items of a test, those that are not answered yet.

    Under `accelerate launch` every process takes its share; the first one puts the manifest together. An item that
    fails is written down with its error and counted later, never left out.

    Args:
        test (`SuiteTest`), items (`Items`): What is asked.
        predictor (`Predictor`): Who is asked.
        folder (`Path`): See `manifest.py`.
        seed (`int`, *optional*, defaults to 0): Item `n` is seeded with `seed + n`.
        limit (`int`, *optional*): Take only the first items.

    Raises:
        ValueError: if the folder holds another run.
    """
    state = PartialState()
    run = _run(test, predictor, seed)
    if state.is_main_process:
        _claim(folder, run)
    state.wait_for_everyone()

    indices = list(range(min(len(items), limit or len(items))))
    done = _done(folder)
    mine = indices[state.process_index :: state.num_processes]
    bar = tqdm(mine, desc=test.full_name, unit=" items", disable=not state.is_main_process)
    for index in bar:
        if f"{index:06d}" not in done:
            _predict_one(test, items, index, predictor, folder, seed)
    state.wait_for_everyone()
    if state.is_main_process:
        _collect(folder)
    state.wait_for_everyone()


def _run(test: SuiteTest, predictor: Predictor, seed: int) -> dict[str, Any]:
    return {
        "suite": test.suite,
        "test": test.name,
        "task": test.task,
        "prompt": test.prompt,
        "data": {name: value for name, value in vars(test.data).items() if value is not None and name != "how"},
        "columns": dict(test.columns),
        "values": dict(test.values),
        "generation": dict(test.generation),
        "codec": dict(test.codec),
        "few_shot": vars(test.few_shot) if test.few_shot else None,
        "model": predictor.name,
        "revision": predictor.revision,
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            "uniaudio2": __version__,
            **{name: importlib.metadata.version(name) for name in PACKAGES},
        },
        "device": _device_name(predictor.device),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _claim(folder: Path, run: dict[str, Any]) -> None:
    (folder / ITEM_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / AUDIO_FOLDER).mkdir(exist_ok=True)
    if not (folder / RUN_FILE).exists():
        write_json(folder / RUN_FILE, run)
        return
    before = read_run(folder)
    # Versions and device may change between a kill and its resumption; what is asked may not.
    asked = [name for name in run if name not in ("versions", "device")]
    different = [name for name in asked if before.get(name) != json.loads(json.dumps(run[name]))]
    if different:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {run[name]!r}" for name in different)
        raise ValueError(f"{folder} holds another run ({changes}): choose another `--output`, or delete it.")


def _done(folder: Path) -> set[str]:
    done = {path.stem for path in (folder / ITEM_FOLDER).glob("*.json")}
    if (folder / PREDICTIONS_FILE).exists():
        done |= {json.loads(line)["id"] for line in (folder / PREDICTIONS_FILE).read_text("utf-8").splitlines()}
    return done


def _predict_one(test: SuiteTest, items: Items, index: int, predictor: Predictor, folder: Path, seed: int) -> None:
    item = items[index]
    row: dict[str, Any] = {"id": item["id"], "fields": {}, "seed": seed + index}
    try:
        row["fields"], fields = _kept(test, item, folder)
        shots = [_kept(test, shot, folder)[1] for shot in items.shots(index, seed)]
        start = time.perf_counter()
        answer, row["tokens"] = predictor.answer(test, fields, shots, seed + index)
        row["seconds"] = time.perf_counter() - start
        if isinstance(answer, str):
            row["answer"], heard = answer, fields.get("audio")
            if heard is not None:
                row["audio_seconds"] = soundfile.info(heard).duration
        else:
            name = f"{AUDIO_FOLDER}/{item['id']}.flac"
            predictor.processor.save_audio(answer, folder / name)
            row["answer"] = audio_value(name)
            row["audio_seconds"] = len(answer) / predictor.sampling_rate
    except (ValueError, TypeError, OSError) as error:
        # A recording that cannot be read, or an answer without audio: this item failed, the others go on.
        row["error"] = " ".join(str(error).split())
    write_atomically(folder / ITEM_FOLDER / f"{item['id']}.json", json.dumps(row, ensure_ascii=False))


def _kept(test: SuiteTest, item: dict[str, Any], folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The fields as the manifest has them and as the model takes them; recordings that come as bytes become files."""
    written, readable = dict(item["fields"]), dict(item["fields"])
    for name, value in item["fields"].items():
        if not test.is_audio(name):
            continue
        path = Path(value).resolve() if isinstance(value, str) else None
        if path is None:
            path = Path(AUDIO_FOLDER, f"{item['id']}-{name}.{soundfile.info(io.BytesIO(value)).format.lower()}")
            (folder / path).write_bytes(value)
        written[name], readable[name] = audio_value(path), str(folder / path)
    return written, readable


def _collect(folder: Path) -> None:
    rows = {}
    if (folder / PREDICTIONS_FILE).exists():
        for line in (folder / PREDICTIONS_FILE).read_text("utf-8").splitlines():
            rows[json.loads(line)["id"]] = line
    for path in (folder / ITEM_FOLDER).glob("[0-9]*.json"):
        rows[path.stem] = path.read_text("utf-8")
    write_atomically(folder / PREDICTIONS_FILE, "".join(rows[name] + "\n" for name in sorted(rows)))
    shutil.rmtree(folder / ITEM_FOLDER)
