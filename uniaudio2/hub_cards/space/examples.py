"""Recordings to try things on: digits read by speech synthesisers, which the shipped checkpoint was not trained on."""

from pathlib import Path

import gradio as gr

RECORDINGS = sorted(Path(__file__).with_name("recordings").glob("*.flac"))


def recordings_to_try(tab: str, audio: gr.Audio) -> None:
    """Lets people choose one of them."""
    gr.Examples(
        [str(path) for path in RECORDINGS],
        [audio],
        label="Try one",
        example_labels=[path.stem.replace("-", " ") for path in RECORDINGS],
        elem_id=f"{tab}-examples",
    )
