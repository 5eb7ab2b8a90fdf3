"""The Space: a Gradio demo of every kind of thing the model does."""
