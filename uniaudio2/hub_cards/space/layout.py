"""Pieces of a page that several tabs have."""

from collections.abc import Iterable
from dataclasses import dataclass

import gradio as gr

from .answering import NEW_SEED
from .checkpoint import Checkpoint
from .limits import MAX_ANSWER_SECONDS
from .live import facts_line, live_player


def heading(title: str, text: str) -> None:
    """What a tab is for."""
    gr.HTML(f'<h2>{title}</h2><p class="lead">{text}</p>', elem_classes="tab-heading")


def note(text: str) -> None:
    """Why something is switched off."""
    gr.Markdown(f"Switched off: {text}.", elem_classes="switched-off")


def recording(label: str, elem_id: str, interactive: bool = True) -> gr.Audio:
    """A recording from a file or from the microphone."""
    return gr.Audio(
        sources=["upload", "microphone"],
        type="filepath",
        label=label,
        elem_id=elem_id,
        interactive=interactive,
        # What is not there cannot be downloaded; gradio shows a player without a file otherwise.
        visible=interactive,
        buttons=[],
    )


@dataclass(frozen=True)
class Settings:
    """The settings of an answer in audio."""

    seed: gr.Number
    temperature: gr.Slider
    guidance_scale: gr.Slider
    max_seconds: gr.Slider

    @property
    def inputs(self) -> list[gr.components.Component]:
        return [self.seed, self.temperature, self.guidance_scale, self.max_seconds]


def seed_field(tab: str) -> gr.Number:
    """The seed."""
    return gr.Number(
        value=NEW_SEED,
        precision=0,
        label="Seed",
        info=f"{NEW_SEED} is a new one each time. The same seed gives the same result.",
        elem_id=f"{tab}-seed",
    )


def audio_settings(tab: str, checkpoint: Checkpoint) -> Settings:
    """Folded away, because they are good as they are."""
    with gr.Accordion("Settings", open=False, elem_id=f"{tab}-settings"):
        seed = seed_field(tab)
        temperature = gr.Slider(
            0.0,
            1.5,
            value=checkpoint.temperature,
            step=0.05,
            label="Temperature",
            info="0 takes the likeliest sound; more is more varied.",
        )
        guidance_scale = gr.Slider(
            1.0,
            4.0,
            value=1.0,
            step=0.1,
            label="Guidance",
            info="Above 1 follows the text more closely, and is slower.",
        )
        max_seconds = gr.Slider(1.0, MAX_ANSWER_SECONDS, value=10.0, step=1.0, label="Longest answer in seconds")
    return Settings(seed, temperature, guidance_scale, max_seconds)


def choice_of_clients(shown: gr.Radio, names: Iterable[str]) -> gr.Radio:
    """The same choice for an endpoint: with what is switched off too, which is then refused with the reason for it."""
    names = list(names)
    return gr.Radio(names, value=shown.value or names[0], label=shown.label, visible=False)


def buttons(tab: str, label: str, interactive: bool = True) -> tuple[gr.Button, gr.Button]:
    """The one thing to do on a tab, and the way to stop it, which is shown while it is done."""
    with gr.Row(elem_classes="actions"):
        go = gr.Button(label, variant="primary", elem_id=f"{tab}-go", interactive=interactive, scale=3)
        stop = gr.Button("Stop", variant="stop", elem_id=f"{tab}-stop", elem_classes="stop", scale=1)
    return go, stop


@dataclass(frozen=True)
class Result:
    """Where an answer in audio appears."""

    live: gr.HTML
    audio: gr.Audio
    codes: gr.DownloadButton
    facts: gr.HTML

    @property
    def outputs(self) -> list[gr.components.Component]:
        return [self.audio, self.codes]


def audio_result(tab: str, seed: gr.Number, label: str = "Sound") -> Result:
    """The live player, the sound, its codes, and what is to be known of them."""
    live = live_player(f"{tab}-live")
    audio = gr.Audio(
        label=label,
        interactive=False,
        type="filepath",
        elem_id=f"{tab}-audio",
        elem_classes="answer-audio",
        buttons=["download"],
        waveform_options=gr.WaveformOptions(waveform_color="#94a3b8", waveform_progress_color="#0f766e"),
    )
    facts = facts_line(f"{tab}-facts")
    return Result(live, audio, follow_ups(tab, facts, seed), facts)


def follow_ups(tab: str, facts: gr.HTML, seed: gr.Number) -> gr.DownloadButton:
    """What can be done with a result in audio; returns the button that its codes are for."""
    with gr.Row(elem_classes="follow-ups"):
        reuse_button(tab, facts, seed)
        return gr.DownloadButton("Download its codes", size="sm", elem_id=f"{tab}-codes")


def reuse_button(tab: str, facts: gr.HTML, seed: gr.Number) -> None:
    """Puts the seed of the result into the form, so that the next run repeats it."""
    reuse = gr.Button("Keep this seed", size="sm", elem_id=f"{tab}-reuse", elem_classes="follow-up")
    reuse.click(None, js="(facts) => facts.seed", inputs=facts, outputs=seed, api_visibility="private", queue=False)
