from transformers import GenerationMixin


class UniAudio2GenerationMixin(GenerationMixin):
    pass
