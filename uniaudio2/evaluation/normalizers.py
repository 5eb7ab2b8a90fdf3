"""Texts before they are compared: by rules that packages keep, so that numbers compare with those of others."""

import json
import string
from collections.abc import Callable
from functools import cache
from importlib.resources import files

from transformers.models.whisper.english_normalizer import BasicTextNormalizer, EnglishTextNormalizer

from .metric import EXTRA

Normalizer = Callable[[str], str]


@cache
def get_normalizer(name: str) -> Normalizer:
    """
    A function from text to the text that is compared; white space counts once.

    Args:
        name (`str`):
            - `"none"`: the text itself.
            - `"english"`: Whisper's English rules, as transformers keeps them: case, punctuation, fillers,
              contractions, numbers, and British spellings by the table in the package whisper-normalizer.
            - `"basic"`: case and punctuation, for other languages.
            - `"chinese"`: simplified characters (OpenCC), Arabic numbers written out (cn2an), then as basic with one
              character per word, so that word errors are character errors.
            - `"seed_english"`, `"seed_chinese"`: the rules of SEED-TTS-eval, which change less: the punctuation of
              ASCII and of Chinese (by zhon) goes, but for the apostrophe; English in lower case, Chinese in simplified
              characters, one per word. Numbers stay.

    Raises:
        ValueError: if there is no such normaliser.
        ImportError: if a package that it needs is not installed.
    """
    if name not in NORMALIZERS:
        raise ValueError(f"Unknown normaliser {name!r}. There are: {', '.join(NORMALIZERS)}.")
    try:
        normalize = NORMALIZERS[name]()
    except ModuleNotFoundError as error:
        raise ImportError(f"The normaliser {name!r} needs {error.name}: {EXTRA}") from error
    return lambda text: " ".join(normalize(text).split())


def _english() -> Normalizer:
    table = files("whisper_normalizer").joinpath("normalizers", "english.json").read_text(encoding="utf-8")
    return EnglishTextNormalizer(json.loads(table))


def _chinese() -> Normalizer:
    import cn2an

    simplify, basic = _simplifier(), BasicTextNormalizer(split_letters=True)
    return lambda text: basic(cn2an.transform(simplify(text), "an2cn"))


def _seed_english() -> Normalizer:
    strip = _without_punctuation()
    return lambda text: strip(text).lower()


def _seed_chinese() -> Normalizer:
    simplify, strip = _simplifier(), _without_punctuation()
    return lambda text: " ".join(strip(simplify(text)))


def _simplifier() -> Normalizer:
    from opencc import OpenCC

    return OpenCC("t2s").convert


def _without_punctuation() -> Normalizer:
    from zhon.hanzi import punctuation

    table = str.maketrans("", "", (punctuation + string.punctuation).replace("'", ""))
    return lambda text: text.translate(table)


NORMALIZERS: dict[str, Callable[[], Normalizer]] = {
    "none": lambda: str,
    "english": _english,
    "basic": BasicTextNormalizer,
    "chinese": _chinese,
    "seed_english": _seed_english,
    "seed_chinese": _seed_chinese,
}
