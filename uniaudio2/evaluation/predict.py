"""Runs a model over the items of a test and writes down what it answers. Every item is kept as soon as it is done."""

import importlib.metadata
import io
import json
import platform
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import soundfile
import torch
from accelerate import PartialState
from tqdm import tqdm

from .. import UniAudio2ForConditionalGeneration, UniAudio2Processor, __version__
from ..processing import AudioCodes
from .codes import write_codes
from .data import Items
from .manifest import (
    AUDIO_FOLDER,
    CODES_FOLDER,
    ITEM_FOLDER,
    PREDICTIONS_FILE,
    RUN_FILE,
    audio_value,
    codes_value,
    read_run,
    write_atomically,
    write_json,
)
from .suite import CODES_TASK, RECONSTRUCTION_TASK, SuiteTest

PACKAGES = ("torch", "transformers", "diffusers", "numpy", "soundfile", "soxr")


class Question(NamedTuple):
    """
    One item, as a model takes it.

    Args:
        fields (`dict[str, Any]`): Its values.
        shots (`list[dict[str, Any]]`): The values of the examples before it.
        seed (`int`): Of all random numbers of this item, so that it does not depend on the others.
    """

    fields: dict[str, Any]
    shots: list[dict[str, Any]]
    seed: int


class Answer(NamedTuple):
    """A text, a waveform on the CPU or codes, and how many tokens or frames it took."""

    content: str | torch.Tensor | AudioCodes
    tokens: int


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
    def answers(self, test: SuiteTest, questions: Sequence[Question]) -> list[Answer]:
        """
        The answers to a batch of items, each what it is alone.

        Raises:
            ValueError, TypeError, OSError: if one of the items cannot be asked.
        """
        generators = [torch.Generator().manual_seed(question.seed) for question in questions]
        if test.task == CODES_TASK:
            codes = self.processor.encode_audio([question.fields["audio"] for question in questions])
            return [Answer(item, sum(stream.shape[1] for stream in vars(item).values())) for item in codes]
        if test.task == RECONSTRUCTION_TASK:
            return self._reconstructions(test, questions, generators)
        inputs = self._inputs(test, questions).to(self.device)
        settings = {**test.generation}
        if settings.get("num_beams", 1) == 1:
            settings["generator"] = generators
        sequences = self.model.generate(**inputs, **settings)
        if test.format.output == "text":
            end_ids = settings.get("eos_token_id", self.model.generation_config.eos_token_id)
            lengths = _text_lengths(sequences, end_ids)
            return list(map(Answer, self.processor.decode(sequences), lengths))
        waveforms = self.processor.decode(sequences, generator=generators, **test.codec)
        lengths = self._frame_counts(sequences[:, inputs["input_ids"].shape[1] :])
        return list(map(Answer, waveforms, lengths))

    def _reconstructions(
        self, test: SuiteTest, questions: Sequence[Question], generators: list[torch.Generator]
    ) -> list[Answer]:
        recordings = [question.fields["audio"] for question in questions]
        inputs = self.processor.feature_extractor(recordings, return_tensors="pt").to(self.device)
        encoded = self.processor.codec.encode(**inputs)
        decoded = self.processor.codec.decode(encoded.reconstruction_codes, generator=generators, **test.codec)
        # The codes stand for whole frames; the recording ends inside the last one.
        lengths = inputs["padding_mask"].sum(dim=1).tolist()
        frames = encoded.reconstruction_mask.sum(dim=1).tolist()
        return [
            Answer(audio[0, :length].float().cpu(), count)
            for audio, length, count in zip(decoded.audio_values, lengths, frames, strict=True)
        ]

    def _frame_counts(self, rows: torch.LongTensor) -> list[int]:
        """How many frames were generated: what follows an item's end is padding."""
        config = self.model.config
        padding = config.reconstruction_pad_token_id + config.reasoning_vocab_size
        return (rows[..., :-1] != padding).any(dim=-1).sum(dim=1).tolist()

    def _inputs(self, test: SuiteTest, questions: Sequence[Question]):
        names = test.format.condition_fields
        if test.few_shot is None:
            given = {name: [question.fields[name] for question in questions] for name in names}
            return self.processor(**given, task=test.task, prompt=test.prompt)
        return self.processor.apply_chat_template(
            [self._conversation(test, question) for question in questions],
            tokenize=True,
            return_dict=True,
            add_generation_prompt=True,
        )

    def _conversation(self, test: SuiteTest, question: Question) -> list[dict[str, Any]]:
        given = test.format.condition_fields
        answers = [name for name in test.format.fields if name not in given]
        messages = [{"role": "system", "content": test.prompt}] if test.prompt else []
        for shot in question.shots:
            messages.append(self._message("user", test, {name: shot[name] for name in given}))
            messages.append(self._message("assistant", test, {name: shot[name] for name in answers}))
        return [*messages, self._message("user", test, {name: question.fields[name] for name in given})]

    def _message(self, role: str, test: SuiteTest, values: dict[str, Any]) -> dict[str, Any]:
        parts = [
            {"type": "audio", "path": value, "field": name}
            if test.is_audio(name)
            else {"type": "text", "text": value, "field": name}
            for name, value in values.items()
        ]
        return {"role": role, "content": parts, "task": test.task}


def _text_lengths(sequences: torch.LongTensor, end_ids: int | list[int] | None) -> list[int]:
    """How many ids were generated, the first end included: what follows it is padding."""
    ends = torch.isin(sequences, torch.tensor([] if end_ids is None else end_ids, device=sequences.device))
    return ((ends.cumsum(dim=1) - ends.long()) == 0).sum(dim=1).tolist()


def predict(
    test: SuiteTest,
    items: Items,
    predictor: Predictor,
    folder: Path,
    seed: int = 0,
    limit: int | None = None,
    batch_size: int = 1,
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
        batch_size (`int`, *optional*, defaults to 1): Items that are answered together; they share the seconds.

    Raises:
        ValueError: if the folder holds another run.
    """
    state = PartialState()
    run = run_description(test, predictor, seed, batch_size)
    if state.is_main_process:
        _claim(folder, run)
    state.wait_for_everyone()

    indices = list(range(min(len(items), limit or len(items))))
    done = _done(folder)
    # The same batches however many processes there are, and after a kill: an item's numbers may depend on those
    # beside it in their last digits.
    batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
    mine = batches[state.process_index :: state.num_processes]
    bar = tqdm(desc=test.full_name, total=sum(map(len, mine)), unit=" items", disable=not state.is_main_process)
    with bar:
        for batch in mine:
            is_done = all(f"{index:06d}" in done for index in batch)
            for row in [] if is_done else _answered(test, items, batch, predictor, folder, seed):
                if row["id"] not in done:
                    path = folder / ITEM_FOLDER / f"{row['id']}.json"
                    write_atomically(path, json.dumps(row, ensure_ascii=False))
            bar.update(len(batch))
    state.wait_for_everyone()
    if state.is_main_process:
        _collect(folder)
    state.wait_for_everyone()


def run_description(test: SuiteTest, predictor: Predictor, seed: int, batch_size: int) -> dict[str, Any]:
    """What `run.json` says: what is asked, of whom, with what."""
    return {
        "suite": test.suite,
        "test": test.name,
        "task": test.task,
        "prompt": test.prompt,
        "data": {
            name: value for name, value in vars(test.data).items() if value is not None and name not in ("how", "name")
        },
        "columns": dict(test.columns),
        "values": dict(test.values),
        "generation": dict(test.generation),
        "codec": dict(test.codec),
        "few_shot": vars(test.few_shot) if test.few_shot else None,
        "model": predictor.name,
        "revision": predictor.revision,
        "seed": seed,
        "batch_size": batch_size,
        "processes": PartialState().num_processes,
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
    for name in (AUDIO_FOLDER, CODES_FOLDER):
        (folder / name).mkdir(exist_ok=True)
    if not (folder / RUN_FILE).exists():
        write_json(folder / RUN_FILE, run)
        return
    before = read_run(folder)
    # How it is done may change between a kill and its resumption; what is asked may not.
    asked = [name for name in run if name not in ("versions", "device", "batch_size", "processes")]
    different = [name for name in asked if before.get(name) != json.loads(json.dumps(run[name]))]
    if different:
        changes = "; ".join(f"{name} was {before.get(name)!r} and is {run[name]!r}" for name in different)
        raise ValueError(f"{folder} holds another run ({changes}): choose another `--output`, or delete it.")


def _done(folder: Path) -> set[str]:
    done = {path.stem for path in (folder / ITEM_FOLDER).glob("*.json")}
    if (folder / PREDICTIONS_FILE).exists():
        done |= {json.loads(line)["id"] for line in (folder / PREDICTIONS_FILE).read_text("utf-8").splitlines()}
    return done


# A recording that cannot be read, or an answer without audio: this item failed, the others go on.
ITEM_ERRORS = (ValueError, TypeError, OSError)


def _answered(
    test: SuiteTest, items: Items, indices: Sequence[int], predictor: Predictor, folder: Path, seed: int
) -> Iterator[dict[str, Any]]:
    """What the manifest says of some items: all of them asked at once, or one by one if that fails."""
    rows, questions = [], []
    for index in indices:
        item = items[index]
        row: dict[str, Any] = {"id": item["id"], "fields": {}, "seed": seed + index}
        try:
            row["fields"], fields = _kept(test, item, folder)
            shots = [_kept(test, shot, folder)[1] for shot in items.shots(index, seed)]
        except ITEM_ERRORS as error:
            yield {**row, "error": _one_line(error)}
            continue
        rows.append(row)
        questions.append(Question(fields, shots, seed + index))
    if not rows:
        return
    try:
        start = time.perf_counter()
        answers = predictor.answers(test, questions)
        seconds = (time.perf_counter() - start) / len(rows)
    except ITEM_ERRORS as error:
        if len(rows) == 1:
            yield {**rows[0], "error": _one_line(error)}
        else:
            for row in rows:
                yield from _answered(test, items, [int(row["id"])], predictor, folder, seed)
        return
    for row, question, answer in zip(rows, questions, answers, strict=True):
        row |= {"tokens": answer.tokens, "seconds": seconds}
        try:
            row |= _stored(answer, question.fields, row["id"], predictor, folder)
        except ITEM_ERRORS as error:
            row["error"] = _one_line(error)
        yield row


def _stored(answer: Answer, fields: dict[str, Any], name: str, predictor: Predictor, folder: Path) -> dict[str, Any]:
    """An answer as the manifest has it, and the seconds of audio that were read or made."""
    if isinstance(answer.content, torch.Tensor):
        if answer.content.numel() == 0:
            raise ValueError("the answer holds no audio frame")
        path = f"{AUDIO_FOLDER}/{name}.flac"
        predictor.processor.save_audio(answer.content, folder / path)
        return {"answer": audio_value(path), "audio_seconds": len(answer.content) / predictor.sampling_rate}
    stored: dict[str, Any] = {"answer": answer.content}
    if isinstance(answer.content, AudioCodes):
        path = f"{CODES_FOLDER}/{name}.safetensors"
        write_codes(
            folder / path,
            reasoning=answer.content.reasoning_codes.numpy(),
            reconstruction=answer.content.reconstruction_codes.numpy(),
        )
        stored = {"answer": codes_value(path)}
    if fields.get("audio") is not None:
        stored["audio_seconds"] = soundfile.info(fields["audio"]).duration
    return stored


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


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
