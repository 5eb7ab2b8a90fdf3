"""Texts before they are compared: the rules of Whisper's evaluation, as transformers keeps them."""

from collections.abc import Callable
from functools import cache

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer


@cache
def get_normalizer(name: str) -> Callable[[str], str]:
    """
    A function from text to the text that is compared.

    Args:
        name (`str`):
            `"none"` (white space aside, the text itself), `"english"` (Whisper's English rules: case, punctuation,
            contractions, numbers; without its table of British spellings, which is a file of its checkpoints),
            `"basic"` (case and punctuation, for other languages), or `"chinese"` (as basic, and one character per
            word, so that word errors are character errors; traditional characters are not simplified).

    Raises:
        ValueError: if there is no such normaliser.
    """
    if name not in NORMALIZERS:
        raise ValueError(f"Unknown normaliser {name!r}. There are: {', '.join(NORMALIZERS)}.")
    normalize = NORMALIZERS[name]()
    return lambda text: " ".join(normalize(text).split())


NORMALIZERS: dict[str, Callable[[], Callable[[str], str]]] = {
    "none": lambda: str,
    "english": lambda: EnglishTextNormalizer({}),
    "basic": BasicTextNormalizer,
    "chinese": lambda: BasicTextNormalizer(split_letters=True),
}
