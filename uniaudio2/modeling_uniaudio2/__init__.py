"""The two models of UniAudio 2.0: the language model and the codec."""
