"""UniAudio 2.0 for transformers."""

__version__ = "0.1.0"
