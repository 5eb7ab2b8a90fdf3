"""The tab Codec: a recording as two streams of tokens, and what they sound like."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .answering import NEW_SEED, Outputs, chosen_seed, offers, starts, told
from .examples import recordings_to_try
from .inference import Engine, Reconstructed, Reconstruction
from .layout import audio_result, buttons, heading, recording, seed_field
from .limits import MAX_RECORDING_SECONDS, check_recording
from .links import link_to
from .live import facts
from .pictures import compared, streams

TAB = "codec"
SOURCES = {"reconstruction": "Reconstruction codes", "both": "Reasoning and reconstruction codes"}
MAX_STEPS = 50


def build(engine: Engine) -> dict[str, gr.components.Component]:
    """Builds the tab. Returns the fields that a link can fill."""
    heading(
        "Codec",
        "See what the model sees: <b>reasoning</b> codes say what is in a recording, five times a second; "
        "<b>reconstruction</b> codes say how it sounds. Hear what is left of it.",
    )
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            audio = recording(f"Recording (up to {MAX_RECORDING_SECONDS:.0f} seconds)", "codec-recording")
            go, stop = buttons(TAB, "Encode and decode")
            recordings_to_try(TAB, audio)
            steps = gr.Slider(
                1,
                MAX_STEPS,
                value=10,
                step=1,
                label="Steps of the decoder",
                info="More is slower and a little clearer.",
            )
            guidance_scale = gr.Slider(1.0, 4.0, value=2.5, step=0.1, label="Guidance", info="1 switches it off.")
            source = gr.Radio(
                [(label, name) for name, label in SOURCES.items()],
                value="reconstruction",
                label="Decode from",
                info="The decoder was trained on the reconstruction codes alone.",
                elem_id="codec-source",
            )
            seed = seed_field(TAB)
        with gr.Column(scale=6, min_width=320):
            result = audio_result(TAB, seed, "Reconstruction")
            comparison = gr.HTML(elem_id="codec-spectrograms", label="Spectrograms")
            tokens = gr.HTML(elem_id="codec-tokens", label="Codes")

    def codec(
        audio: str,
        steps: float = 10,
        guidance_scale: float = 2.5,
        source: str = "reconstruction",
        seed: int = NEW_SEED,
    ) -> Iterator[tuple[Any, ...]]:
        """Encodes a recording to reasoning and reconstruction codes and decodes it again, from the reconstruction
        codes (`source` is "reconstruction") or from "both" streams. Returns the audio file, the codes, and the facts:
        seed, seconds, link."""

        def work() -> Iterator[Any]:
            used = chosen_seed(seed)
            if not 1 <= steps <= MAX_STEPS:
                raise ValueError(f"{steps:g} steps are too many or too few: the decoder takes 1 to {MAX_STEPS} here.")
            request = Reconstruction(check_recording(audio), int(steps), guidance_scale, source == "both", used)
            link = link_to(TAB, steps=int(steps), guidance_scale=guidance_scale, source=source, seed=used)
            for message in engine.reconstruct(request):
                if not isinstance(message, Reconstructed):
                    yield message
                    continue
                processor, rate = engine.processor, engine.sampling_rate
                seconds = len(message.original) / rate
                sound, stream = engine.files.save(processor, message.samples, message.codes, "reconstruct")
                spectrograms = compared(message.original, message.samples, rate)
                heat_maps = streams(
                    message.codes,
                    processor.reasoning_codebook_size,
                    processor.reconstruction_codebook_size,
                    seconds,
                )
                yield Outputs((sound, stream, facts(used, link, seconds), spectrograms, heat_maps))

        yield from told(engine, 6, work())

    inputs = [audio, steps, guidance_scale, source, seed]
    outputs = [*result.outputs, result.facts, comparison, tokens]
    starts([go.click], stop, result.live, codec, inputs, outputs, TAB)
    offers(codec, inputs, result.outputs, TAB)
    return {"steps": steps, "guidance_scale": guidance_scale, "source": source, "seed": seed}
