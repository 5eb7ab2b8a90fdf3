"""The tab Speak: a text read aloud, in a style, in somebody's voice."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .answering import NEW_SEED, chosen_seed, offers, sound_of, starts, told
from .inference import Engine, Request
from .layout import audio_result, audio_settings, buttons, heading, note, recording
from .limits import MAX_ANSWER_SECONDS, MAX_CHARACTERS, check_length, check_recording, check_text
from .links import link_to

TAB = "speak"
EXAMPLES = ("seven three nine", "one two", "eight six five four", "zero zero seven")
ANY_STYLE = "a natural voice"


def build(engine: Engine) -> dict[str, gr.components.Component]:
    """Builds the tab. Returns the fields that a link can fill."""
    checkpoint = engine.checkpoint
    takes_style, takes_voice = checkpoint.knows("InstructTTS"), checkpoint.knows("prompt_instruct_tts")
    heading("Speak", "Write something and hear it, while it is still being made.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            text = gr.Textbox(
                label="Text",
                lines=3,
                placeholder="seven three nine",
                elem_id="speak-text",
                info=f"Up to {MAX_CHARACTERS} characters.",
            )
            go, stop = buttons(TAB, "Speak", interactive=checkpoint.knows("TTS"))
            gr.Examples([[example] for example in EXAMPLES], inputs=[text], label="Try one", elem_id="speak-examples")
            with gr.Accordion("Style and voice", open=takes_style or takes_voice, elem_id="speak-voice-settings"):
                if not (takes_style and takes_voice):
                    note(checkpoint.reason_against("InstructTTS", "prompt_instruct_tts"))
                style = gr.Textbox(
                    value="",
                    label="Style",
                    placeholder="an old man, slowly" if takes_style else "",
                    interactive=takes_style,
                    elem_id="speak-style",
                )
                voice = recording("Voice to speak in (its first three seconds)", "speak-voice", takes_voice)
                consent = gr.Checkbox(
                    label="The person whose voice this is has agreed to it",
                    interactive=takes_voice,
                    elem_id="speak-consent",
                )
            settings = audio_settings(TAB, checkpoint)
        with gr.Column(scale=6, min_width=320):
            result = audio_result(TAB, settings.seed, "Speech")

    def speak(
        text: str,
        style: str = "",
        voice: str | None = None,
        consent: bool = False,
        seed: int = NEW_SEED,
        temperature: float = 0.0,
        guidance_scale: float = 1.0,
        max_seconds: float = 10.0,
    ) -> Iterator[tuple[Any, ...]]:
        """Reads a text aloud, in a described style, in the voice of a recording. Returns the audio file, its codes,
        and the facts: seed, seconds, link."""

        def work() -> Iterator[Any]:
            task, parts = _question(engine, text, style, voice, consent)
            used = chosen_seed(seed)
            link = link_to(
                TAB,
                text=text.strip(),
                style=(style or "").strip(),
                seed=used,
                temperature=temperature,
                guidance_scale=guidance_scale,
                max_seconds=max_seconds,
            )
            request = Request(
                [{"role": "user", "task": task, "content": parts}],
                answers_in_audio=True,
                seed=used,
                temperature=temperature,
                guidance_scale=guidance_scale,
                max_seconds=min(max_seconds, MAX_ANSWER_SECONDS),
            )
            yield from sound_of(engine, request, task, link)

        yield from told(engine, 4, work())

    inputs = [text, style, voice, consent, *settings.inputs]
    starts([go.click, text.submit], stop, result.live, speak, inputs, [*result.outputs, result.facts], TAB)
    offers(speak, inputs, result.outputs, TAB)
    return {
        "text": text,
        "style": style,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "guidance_scale": settings.guidance_scale,
        "max_seconds": settings.max_seconds,
    }


def _question(
    engine: Engine, text: str, style: str, voice: str | None, consent: bool
) -> tuple[str, list[dict[str, Any]]]:
    """The task, and the parts of the message that asks for it."""
    words = {"type": "text", "text": check_text(text, "The text"), "field": "text"}
    style = check_length(style, "The style")
    task = "prompt_instruct_tts" if voice else "InstructTTS" if style else "TTS"
    engine.checkpoint.require(task)
    if task == "TTS":
        return task, [words]
    caption = {"type": "text", "text": style or ANY_STYLE, "field": "caption"}
    if task == "InstructTTS":
        return task, [caption, words]
    if not consent:
        raise ValueError(
            "Tick that the person whose voice this is has agreed to it: without, no voice is copied here."
        )
    path = check_recording(voice, "The voice")
    return task, [{"type": "audio", "path": path, "field": "audio_prompt"}, caption, words]
