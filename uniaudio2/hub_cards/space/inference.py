"""The one model of the demo: requests in, progress and sound and answers out."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import TextStreamer

from ... import UniAudio2ForConditionalGeneration, UniAudio2Processor
from ...processing import AudioCodes
from ...streaming import STREAMING_WINDOW_SECONDS
from .background import in_background
from .checkpoint import Checkpoint
from .files import ResultFiles
from .limits import MAX_WORK_SECONDS
from .zero_gpu import IS_ZERO_GPU, on_gpu

# Tokens of a written answer.
MAX_NEW_TOKENS = 200


@dataclass(frozen=True)
class Request:
    """
    What is asked of the model.

    Args:
        messages (`list[dict]`):
            A conversation as `UniAudio2Processor.apply_chat_template` takes it, the last message being the question.
            Recordings are paths or codes.
        answers_in_audio (`bool`): Whether the answer is a recording.
        seed (`int`): The same seed gives the same answer.
        temperature (`float`): 0 takes the likeliest codes.
        guidance_scale (`float`): Above 1 follows the text more closely; for answers in audio.
        max_seconds (`float`): Longest answer in audio.
    """

    messages: list[dict[str, Any]]
    answers_in_audio: bool
    seed: int
    temperature: float = 0.0
    guidance_scale: float = 1.0
    max_seconds: float = 10.0


@dataclass(frozen=True)
class Reconstruction:
    """A recording to encode and to decode again, from the reconstruction codes or `from_both` streams."""

    path: str
    num_steps: int
    guidance_scale: float
    from_both: bool
    seed: int


@dataclass(frozen=True)
class Progress:
    """How far the work is, from 0 to 1, and what it is doing."""

    fraction: float
    text: str


@dataclass(frozen=True)
class Sound:
    """The next samples of an answer, float32."""

    samples: np.ndarray


@dataclass(frozen=True)
class Words:
    """The next words of an answer."""

    text: str


@dataclass(frozen=True)
class Heard:
    """The codes of the recordings in the last message, in their order."""

    codes: list[AudioCodes]


@dataclass(frozen=True)
class Answer:
    """A whole answer: a text, or samples with the codes that they were decoded from."""

    text: str | None = None
    samples: np.ndarray | None = None
    codes: AudioCodes | None = None


@dataclass(frozen=True)
class Reconstructed:
    """A recording, its codes, and what they sound like."""

    original: np.ndarray
    samples: np.ndarray
    codes: AudioCodes


@dataclass
class _Reporter:
    """Reports to whoever listens, and ends what takes too long."""

    send: Callable[[Any], None]
    deadline: float = field(default_factory=lambda: time.monotonic() + MAX_WORK_SECONDS)

    def __call__(self, message: Any) -> None:
        if time.monotonic() > self.deadline:
            raise TimeoutError(
                f"This took longer than the {MAX_WORK_SECONDS} seconds that one request has here: ask for something "
                "shorter, or run the model on your own machine."
            )
        self.send(message)


class Engine:
    """
    Holds a model and its codec, once, and does one request at a time.

    Args:
        checkpoint (`Checkpoint`): Which model. Its weights are loaded by [`~Engine.load`], or with the first request.
        files (`ResultFiles`): Where results go.
    """

    def __init__(self, checkpoint: Checkpoint, files: ResultFiles):
        self.checkpoint = checkpoint
        self.files = files
        self._lock = threading.Lock()
        self._model: UniAudio2ForConditionalGeneration | None = None
        self._processor: UniAudio2Processor | None = None
        # Decorated here and not in the class: where the work is done in another process, arguments travel there, and
        # the model must not be one.
        self.answer: Callable[[Request], Iterator[Any]] = on_gpu(self._answer)
        self.reconstruct: Callable[[Reconstruction], Iterator[Any]] = on_gpu(self._reconstruct)

    def load(self) -> None:
        """Loads the weights, unless they are there."""
        with self._lock:
            self._load()

    @property
    def processor(self) -> UniAudio2Processor:
        self.load()
        return self._processor

    @property
    def sampling_rate(self) -> int:
        """Of what comes out, in hertz."""
        return self.processor.feature_extractor.sampling_rate

    def _load(self) -> None:
        if self._model is not None:
            return
        device = torch.device("cuda" if IS_ZERO_GPU else _accelerator())
        processor = UniAudio2Processor.from_pretrained(self.checkpoint.model_id, codec_device=device)
        # Loads it: requests find it there.
        processor.codec.eval()
        model = UniAudio2ForConditionalGeneration.from_pretrained(self.checkpoint.model_id).to(device).eval()
        self._processor, self._model = processor, model

    def _answer(self, request: Request) -> Iterator[Any]:
        """Gives `Progress`, `Sound` or `Words`, `Heard`, at last an `Answer`, and `None` where there is no news."""
        yield from in_background(lambda send: self._work(self._write_answer, request, send))

    def _reconstruct(self, request: Reconstruction) -> Iterator[Any]:
        """Gives `Progress`, at last `Reconstructed`, and `None` where there is no news."""
        yield from in_background(lambda send: self._work(self._code_and_decode, request, send))

    def _work(self, work: Callable, request: Request | Reconstruction, send: Callable[[Any], None]) -> None:
        with self._lock, torch.no_grad():
            self._load()
            report = _Reporter(send)
            report(Progress(0.0, "Listening" if isinstance(request, Reconstruction) else "Reading"))
            work(request, report)

    def _write_answer(self, request: Request, report: _Reporter) -> None:
        messages, heard = self._encoded(request.messages)
        report(Heard(heard))
        inputs = self._processor.apply_chat_template(
            messages, tokenize=True, return_dict=True, add_generation_prompt=True
        )
        options = {"do_sample": request.temperature > 0, "generator": self._generator(request.seed)}
        if request.temperature > 0:
            options["temperature"] = request.temperature
        if request.answers_in_audio:
            report(self._sound(inputs, options, request, report))
        else:
            streamer = _WordStreamer(self._processor.tokenizer, report)
            ids = self._model.generate(**inputs, **options, max_new_tokens=MAX_NEW_TOKENS, streamer=streamer)
            report(Answer(text=self._processor.decode(ids[0]).strip()))

    def _sound(self, inputs: Any, options: dict[str, Any], request: Request, report: _Reporter) -> Answer:
        frames = self._model.iterate_frames(
            **inputs,
            **options,
            guidance_scale=request.guidance_scale,
            max_duration=request.max_seconds,
            return_dict_in_generate=True,
        )
        written = []
        pieces = self._processor.codec.decode_stream(
            self._codes_to_hear(frames, request.max_seconds, report, written),
            generator=self._generator(request.seed),
            window_seconds=STREAMING_WINDOW_SECONDS,
        )
        heard = []
        for piece in pieces:
            heard.append(piece.float().cpu().numpy())
            report(Sound(heard[-1]))
        if not heard:
            raise ValueError("The answer came out empty: try another seed or another text.")
        output = written[0]
        return Answer(
            samples=np.concatenate(heard),
            codes=AudioCodes(output.reasoning_codes[0].cpu(), output.reconstruction_codes[0].cpu()),
        )

    def _codes_to_hear(
        self, frames: Iterator[Any], max_seconds: float, report: _Reporter, written: list[Any]
    ) -> Iterator[torch.LongTensor]:
        """The codes that will be heard, as they are written; at the end what `generate` would return is `written`."""
        limit, offset = 17.5 * max_seconds + 5, self._model.config.reasoning_vocab_size
        number = 0
        while True:
            try:
                frame = next(frames)
            except StopIteration as end:
                written.append(end.value)
                return
            number += 1
            is_heard = bool(frame.is_reconstruction[0])
            report(Progress(min(number / limit, 1.0), "Making the sound" if is_heard else "Reasoning"))
            if is_heard:
                yield frame.rows[0, :-1, None] - offset

    def _code_and_decode(self, request: Reconstruction, report: _Reporter) -> None:
        processor, codec = self._processor, self._processor.codec
        inputs = processor.feature_extractor(request.path, return_tensors="pt")
        encoded = codec.encode(**inputs)
        num_windows = -(-encoded.reconstruction_codes.shape[-1] // int(12.5 * codec.config.decode_window_seconds))
        calls = 0

        def count(*_) -> None:  # what a hook returns would take the place of the module's output
            nonlocal calls
            calls += 1
            report(Progress(min(calls / (request.num_steps * num_windows), 1.0), "Decoding"))

        hook = codec.flow_decoder.register_forward_hook(count)
        try:
            audio = codec.decode(
                encoded.reconstruction_codes,
                reasoning_codes=encoded.reasoning_codes if request.from_both else None,
                num_inference_steps=request.num_steps,
                guidance_scale=request.guidance_scale,
                generator=self._generator(request.seed),
            ).audio_values[0, 0]
        finally:
            hook.remove()
        original = inputs["input_values"][0, 0].numpy()
        report(
            Reconstructed(
                original=original,
                # The codes stand for whole frames; the recording ends inside the last one.
                samples=audio[: len(original)].float().cpu().numpy(),
                codes=AudioCodes(encoded.reasoning_codes[0].cpu(), encoded.reconstruction_codes[0].cpu()),
            )
        )

    def _encoded(self, messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], list[AudioCodes]]:
        """The conversation with codes in the place of paths, and the codes of the last message."""
        encoded, heard = [], []
        for message in messages:
            parts, heard = [], []
            for part in message["content"]:
                if "path" in part:
                    codes = self._processor.encode_audio(part["path"])[0]
                    part = {name: value for name, value in part.items() if name != "path"} | codes_part(codes)
                    heard.append(codes)
                parts.append(part)
            encoded.append({**message, "content": parts})
        return encoded, heard

    @staticmethod
    def _generator(seed: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed)


def codes_part(codes: AudioCodes) -> dict[str, Any]:
    """A recording that was encoded before, as a part of a message."""
    return {
        "type": "audio",
        "reasoning_codes": codes.reasoning_codes,
        "reconstruction_codes": codes.reconstruction_codes,
    }


class _WordStreamer(TextStreamer):
    """Reports the words of an answer, each when it is complete."""

    def __init__(self, tokenizer: Any, report: _Reporter):
        super().__init__(tokenizer, skip_special_tokens=True)
        self.report = report

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        self.report(Words(text))


def _accelerator() -> str:
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    return "cpu" if accelerator is None else accelerator.type
