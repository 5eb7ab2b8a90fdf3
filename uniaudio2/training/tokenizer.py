"""A byte-level BPE tokenizer with the special tokens of the released model, trained without a network.

The released model uses the Llama 3.2 tokenizer with some reserved slots renamed. A small model cannot afford its
128,000 rows, so it trains its own vocabulary; the special tokens keep their names and their order.
"""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from ..processing.special_tokens import BOS_TOKEN, EOS_TOKEN, SPECIAL_TOKENS, TEXT_PAD_TOKEN


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 512, model_max_length: int = 2048
) -> PreTrainedTokenizerFast:
    """
    Train a byte-level BPE tokenizer.

    Every byte is in the vocabulary, so any text in any language can be encoded. As in Llama 3.2, calling the tokenizer
    puts a BOS in front and no EOS behind. The special tokens take the last ids.

    Args:
        texts (`Iterable[str]`):
            The texts the merges are learnt from.
        vocab_size (`int`, *optional*, defaults to 512):
            The largest number of tokens, bytes and special tokens included. Fewer come out (`len(tokenizer)`) when the
            texts do not have as many pairs to merge.
        model_max_length (`int`, *optional*, defaults to 2048):
            The number of positions the model was trained on.

    Returns:
        `PreTrainedTokenizerFast`: padding on the left, with `<text_pad_token>` (the token that also fills the text
        stream of padding rows).

    Raises:
        ValueError: if `vocab_size` is too small for the 256 bytes and the special tokens.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    smallest = len(alphabet) + len(SPECIAL_TOKENS)
    if vocab_size < smallest:
        raise ValueError(
            f"`vocab_size` is {vocab_size}, but the {len(alphabet)} bytes and {len(SPECIAL_TOKENS)} special tokens "
            f"alone are {smallest}. Pass at least {smallest}."
        )

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS), initial_alphabet=sorted(alphabet), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS_TOKEN} $A",
        pair=f"{BOS_TOKEN} $A {BOS_TOKEN} $B",
        special_tokens=[(BOS_TOKEN, tokenizer.token_to_id(BOS_TOKEN))],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=TEXT_PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=model_max_length,
    )
