"""Audio that is heard while it is still being generated."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch

# Seconds of codes that are decoded together. Longer windows sound better, shorter ones speak earlier.
STREAMING_WINDOW_SECONDS = 2.0


def stream(
    model: Any,
    processor: Any,
    inputs: Mapping[str, torch.Tensor],
    window_seconds: float | None = STREAMING_WINDOW_SECONDS,
    decode_options: Mapping[str, Any] | None = None,
    **generate_options,
) -> Iterator[torch.Tensor]:
    """
    Generate an audio answer and give its waveform chunk by chunk.

    The language model writes frames, and as soon as there are enough for a window of the codec, its sound is given:
    three quarters of a window at a time. An answer begins with its reasoning, which is not heard, so the first chunk
    comes after the reasoning (5 rows per second of the answer) and the first window (12.5 rows per second).

    The chunks put together are the waveform of

    ```python
    output = model.generate(**inputs, **generate_options, return_dict_in_generate=True)
    processor.decode(output, window_seconds=window_seconds, **decode_options)[0]
    ```

    up to rounding, where the generators given to both are in the same state and are not the same object: here the
    codec draws its noise before the language model has drawn its last number.

    Nothing runs in the background: work is done when a chunk is asked for. To cancel, close the iterator or let go of
    it.

    Args:
        model ([`UniAudio2ForConditionalGeneration`]): The language model.
        processor ([`UniAudio2Processor`]): Its processor, with the codec.
        inputs (`Mapping[str, torch.Tensor]`): One prompt whose answer is one recording, as the processor makes it.
        window_seconds (`float`, *optional*, defaults to 2.0):
            Window of decoding; `None` is that of the codec, with which `processor.decode` does the same by default.
        decode_options (`Mapping[str, Any]`, *optional*):
            Options of [`~ReasoningCodecModel.decode_stream`]: `generator`, `num_inference_steps`, `guidance_scale`,
            `decode_mode`.
        generate_options: Options of [`~UniAudio2GenerationMixin.generate`] for audio answers, as `max_duration`.

    Returns:
        An iterator of float32 waveforms of shape `(samples,)` on the CPU; it has none if the answer holds no
        reconstruction frames.

    Raises:
        ValueError: If there is more than one prompt, if the answer is text or not one recording, and for options that
            `generate` and the codec do not know.
    """
    batch_size = len(inputs["input_ids"])
    if batch_size != 1:
        raise ValueError(f"`stream` takes one prompt, got {batch_size}: make a stream for each.")
    if inputs.get("output_modality") is not None and not any(inputs["output_modality"].tolist()):
        raise ValueError("The answer to this prompt is text: pass a `streamer` to `generate` instead.")
    # 2 stands for reconstruction.
    if inputs.get("answer_parts") is not None and inputs["answer_parts"].tolist()[0].count(2) != 1:
        raise ValueError(
            f"`stream` gives one recording, but the parts of this answer are {inputs['answer_parts'].tolist()[0]}."
        )
    frames = model.iterate_frames(**inputs, **generate_options)
    chunks = processor.codec.decode_stream(
        _reconstruction_codes(frames, model.config.reasoning_vocab_size),
        **{"window_seconds": window_seconds, **(decode_options or {})},
    )
    return _until_closed(chunks)


def _reconstruction_codes(frames: Iterator[Any], offset: int) -> Iterator[torch.LongTensor]:
    """The codes that will be heard, `(num_codebooks, 1)` each."""
    with contextlib.closing(frames):
        for frame in frames:
            if frame.is_reconstruction[0]:
                yield frame.rows[0, :-1, None] - offset


def _until_closed(chunks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    with contextlib.closing(chunks):
        for chunk in chunks:
            yield chunk.float().cpu()


__all__ = ["STREAMING_WINDOW_SECONDS", "stream"]
