"""The tab Create: sounds and music out of a description, songs out of lyrics."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .answering import NEW_SEED, chosen_seed, offers, sound_of, starts, told
from .inference import Engine, Request
from .layout import audio_result, audio_settings, buttons, choice_of_clients, heading, note
from .limits import MAX_ANSWER_SECONDS, MAX_CHARACTERS, check_text
from .links import link_to

TAB = "create"
# What can be made, under the name that the API has for it: a label, the task, an example.
KINDS = {
    "sound": ("A sound", "TTA", "rain on a tin roof"),
    "music": ("Music", "TTM", "slow piano in a large hall"),
    "song": ("A song, out of its lyrics", "LTS", "row, row, row your boat, gently down the stream"),
}


def build(engine: Engine) -> dict[str, gr.components.Component]:
    """Builds the tab. Returns the fields that a link can fill."""
    checkpoint = engine.checkpoint
    known = {name: kind for name, kind in KINDS.items() if checkpoint.knows(kind[1])}
    heading("Create", "Describe a sound or a piece of music, or write the words of a song.")
    if len(known) < len(KINDS):
        note(checkpoint.reason_against(*(task for _, task, _ in KINDS.values())))
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            # What is switched off is shown, so that people see what the full model makes.
            kind = gr.Radio(
                [(label, name) for name, (label, _, _) in (known or KINDS).items()],
                value=next(iter(known or KINDS)),
                label="What to make",
                interactive=bool(known),
                elem_id="create-kind",
            )
            text = gr.Textbox(
                label="Description or lyrics",
                lines=3,
                placeholder="rain on a tin roof",
                interactive=bool(known),
                elem_id="create-text",
                info=f"Up to {MAX_CHARACTERS} characters.",
            )
            go, stop = buttons(TAB, "Create", interactive=bool(known))
            if known:
                gr.Examples(
                    [[name, example] for name, (_, _, example) in known.items()],
                    inputs=[kind, text],
                    label="Try one",
                    elem_id="create-examples",
                )
            settings = audio_settings(TAB, checkpoint)
        with gr.Column(scale=6, min_width=320):
            result = audio_result(TAB, settings.seed)

    def create(
        kind: str,
        text: str,
        seed: int = NEW_SEED,
        temperature: float = 0.0,
        guidance_scale: float = 1.0,
        max_seconds: float = 10.0,
    ) -> Iterator[tuple[Any, ...]]:
        """Makes a sound or music out of a description, or a song out of lyrics. `kind` is one of sound, music, song.
        Returns the audio file, its codes, and the facts: seed, seconds, link."""

        def work() -> Iterator[Any]:
            task = KINDS[kind][1]
            engine.checkpoint.require(task)
            words = check_text(text, "The description")
            used = chosen_seed(seed)
            link = link_to(
                TAB,
                kind=kind,
                text=words,
                seed=used,
                temperature=temperature,
                guidance_scale=guidance_scale,
                max_seconds=max_seconds,
            )
            request = Request(
                [{"role": "user", "task": task, "content": [{"type": "text", "text": words}]}],
                answers_in_audio=True,
                seed=used,
                temperature=temperature,
                guidance_scale=guidance_scale,
                max_seconds=min(max_seconds, MAX_ANSWER_SECONDS),
            )
            yield from sound_of(engine, request, task, link)

        yield from told(engine, 4, work())

    inputs = [kind, text, *settings.inputs]
    starts([go.click, text.submit], stop, result.live, create, inputs, [*result.outputs, result.facts], TAB)
    offers(create, [choice_of_clients(kind, KINDS), *inputs[1:]], result.outputs, TAB)
    return {
        "kind": kind,
        "text": text,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "guidance_scale": settings.guidance_scale,
        "max_seconds": settings.max_seconds,
    }
