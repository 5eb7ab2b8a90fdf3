"""The tab Listen: what is said, what is heard, and answers to questions about it."""

from collections.abc import Iterator
from typing import Any

import gradio as gr

from .answering import NEW_SEED, chosen_seed, offers, starts, told, words_of
from .examples import recordings_to_try
from .inference import Engine, Request
from .layout import buttons, choice_of_clients, heading, note, recording, reuse_button, seed_field
from .limits import MAX_RECORDING_SECONDS, check_recording, check_text
from .links import link_to
from .live import facts_line, live_player

TAB = "listen"
# What can be asked, under the name that the API has for it.
ACTIONS = {
    "transcribe": ("Transcribe speech", "ASR"),
    "lyrics": ("Write down lyrics", "lyric_recognition"),
    "describe_sound": ("Describe the sound", "audio_caption"),
    "describe_music": ("Describe the music", "music_caption"),
    "ask": ("Answer my question", "audio_understanding"),
}


def build(engine: Engine) -> dict[str, gr.components.Component]:
    """Builds the tab. Returns the fields that a link can fill."""
    checkpoint = engine.checkpoint
    known = {name: label for name, (label, task) in ACTIONS.items() if checkpoint.knows(task)}
    missing = [task for _, task in ACTIONS.values() if not checkpoint.knows(task)]
    heading("Listen", "Record something or choose a file, and read what is in it.")
    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            audio = recording(f"Recording (up to {MAX_RECORDING_SECONDS:.0f} seconds)", "listen-recording")
            action = gr.Radio(
                [(label, name) for name, label in known.items()],
                value=next(iter(known), None),
                label="What to do with it",
                elem_id="listen-action",
            )
            question = gr.Textbox(
                value="",
                label="Question",
                placeholder="How many people are speaking?",
                visible="ask" in known,
                elem_id="listen-question",
            )
            go, stop = buttons(TAB, "Listen", interactive=bool(known))
            recordings_to_try(TAB, audio)
            if missing:
                note(checkpoint.reason_against(*missing))
            with gr.Accordion("Settings", open=False, elem_id="listen-settings"):
                seed = seed_field(TAB)
                temperature = gr.Slider(
                    0.0, 1.5, value=0.0, step=0.05, label="Temperature", info="0 writes the likeliest words."
                )
        with gr.Column(scale=6, min_width=320):
            live = live_player("listen-live")
            text = gr.Textbox(label="What I hear", lines=6, interactive=False, elem_id="listen-text")
            facts = facts_line("listen-facts")
            reuse_button(TAB, facts, seed)

    def listen(
        audio: str,
        action: str = "transcribe",
        question: str = "",
        seed: int = NEW_SEED,
        temperature: float = 0.0,
    ) -> Iterator[tuple[Any, ...]]:
        """Transcribes or describes a recording, or answers a question about it. `action` is one of transcribe, lyrics,
        describe_sound, describe_music, ask. Returns the text, and the facts: seed, link."""

        def work() -> Iterator[Any]:
            task = ACTIONS[action][1]
            engine.checkpoint.require(task)
            parts = [{"type": "audio", "path": check_recording(audio)}]
            if action == "ask":
                parts.insert(0, {"type": "text", "text": check_text(question, "The question")})
            used = chosen_seed(seed)
            link = link_to(TAB, action=action, question=question, seed=used, temperature=temperature)
            messages = [{"role": "user", "task": task, "content": parts}]
            yield from words_of(engine, Request(messages, False, used, temperature), link)

        yield from told(engine, 3, work())

    inputs = [audio, action, question, seed, temperature]
    starts([go.click], stop, live, listen, inputs, [text, facts], TAB)
    offers(listen, [audio, choice_of_clients(action, ACTIONS), *inputs[2:]], [text], TAB)
    return {"action": action, "question": question, "seed": seed, "temperature": temperature}
