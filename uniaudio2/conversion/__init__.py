"""The released checkpoints in the format of this package, and the language model back."""

from .codec import codec_state_dict
from .convert import convert_release, restore_release
from .language_model import language_model_state_dict, original_language_model_state_dict
from .scalar_codec import scalar_codec_state_dict

__all__ = [
    "codec_state_dict",
    "convert_release",
    "language_model_state_dict",
    "original_language_model_state_dict",
    "restore_release",
    "scalar_codec_state_dict",
]
