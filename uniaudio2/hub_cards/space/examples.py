"""Recordings to try things on: digits read by speech synthesisers, which the shipped checkpoint was not trained on."""

from pathlib import Path

RECORDINGS = sorted(Path(__file__).with_name("recordings").glob("*.flac"))
