# ruff: noqa: RUF001 (Chinese has commas of its own)
"""Normalisers against the rules and the packages that they are said to follow."""

import string
import sys

import pytest
from whisper_normalizer.english import EnglishTextNormalizer
from zhon.hanzi import punctuation

from uniaudio2.evaluation.normalizers import get_normalizer


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # By hand, from the description in the appendix of Whisper's paper.
        ("Mr. Brown's favourite colour, uh, is grey!", "mister brown is favorite color is gray"),
        ("We won't [laughter] pay twenty one dollars (really).", "we will not pay $21"),
    ],
)
def test_english_rules_with_british_spellings(text, expected):
    assert get_normalizer("english")(text) == expected


def test_english_is_whispers_own():
    normalize, other = get_normalizer("english"), EnglishTextNormalizer()
    for text in ("I've analysed it, gonna go at 10:30.", "The théâtre's centre: 1,200 catalogues!", "HE'D BEEN ILL"):
        assert normalize(text) == " ".join(other(text).split())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("漢字與頭髮", "汉字与头发"),
        ("我有23个苹果。", "我有二十三个苹果"),
        ("２０２４年，好！", "2024年 好"),
    ],
)
def test_chinese_that_is_read_alike_is_alike(first, second):
    normalize = get_normalizer("chinese")
    assert normalize(first) == normalize(second)


def test_chinese_words_are_characters():
    assert get_normalizer("chinese")("今天，3度。") == "今 天 三 度"


@pytest.mark.parametrize("text", ["It's 3 o'clock — “really”?", "  Two  words, two\nlines! ", "rock-'n'-roll"])
def test_english_of_seed_tts_eval(text):
    expected = text
    for mark in punctuation + string.punctuation:
        expected = expected if mark == "'" else expected.replace(mark, "")
    assert get_normalizer("seed_english")(text) == " ".join(expected.lower().split())


def test_chinese_of_seed_tts_eval():
    # Simplified, without punctuation, one character per word; numbers stay as they are written.
    assert get_normalizer("seed_chinese")("「漢字」，3個！") == "汉 字 3 个"


def test_a_missing_package_is_named(monkeypatch):
    get_normalizer.cache_clear()
    monkeypatch.setitem(sys.modules, "opencc", None)
    with pytest.raises(ImportError, match=r"'seed_chinese' needs opencc: pip install 'uniaudio2\[evaluate\]'"):
        get_normalizer("seed_chinese")
    get_normalizer.cache_clear()
