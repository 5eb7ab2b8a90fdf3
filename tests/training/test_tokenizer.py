"""The small model's own tokenizer."""

import pytest
from transformers import AutoTokenizer

from uniaudio2.processing.special_tokens import SPECIAL_TOKENS
from uniaudio2.training.tokenizer import train_tokenizer

TEXTS = ["seven three nine", "one two three four", "zero eight six five"] * 20


@pytest.mark.parametrize("text", ["seven three nine", " two  spaces\n", "你好世界", "naïve café 🎵", "</caption>"])
def test_any_text_survives_the_way_there_and_back(text):
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    ids = tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert not set(ids) & set(tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS)))


def test_merges_are_learnt_and_the_size_is_kept():
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    assert len(tokenizer) <= 320
    assert len(tokenizer("seven three nine", add_special_tokens=False)["input_ids"]) < len("seven three nine")


def test_special_tokens_have_the_released_names_and_order_and_survive_saving(tmp_path):
    tokenizer = train_tokenizer(TEXTS, vocab_size=320)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.convert_tokens_to_ids(list(SPECIAL_TOKENS))
    assert ids == list(range(len(tokenizer) - len(SPECIAL_TOKENS), len(tokenizer)))
    # The offsets of the released tokenizer: BOS 128000, <transcription> 128011, <text_pad_token> 128020.
    assert tokenizer.convert_tokens_to_ids("<transcription>") - tokenizer.bos_token_id == 11
    assert tokenizer.pad_token_id - tokenizer.bos_token_id == 20
    assert tokenizer.decode(ids, skip_special_tokens=True) == ""


def test_a_vocabulary_without_room_for_the_bytes_is_refused():
    with pytest.raises(ValueError, match="at least 277"):
        train_tokenizer(TEXTS, vocab_size=100)
