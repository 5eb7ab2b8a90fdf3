"""The tokenizer of Llama 3.2 with the slots renamed that UniAudio 2.0 uses. It is not part of the release."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..processing.special_tokens import BOS_TOKEN, EOS_TOKEN, SPECIAL_TOKENS, TEXT_PAD_TOKEN

PAD_SLOT = SPECIAL_TOKENS.index(TEXT_PAD_TOKEN)
_RENAMED = [name for name in SPECIAL_TOKENS if not name.startswith("<|")]
# From BOS on, the name of each slot in Llama 3.2 before it was renamed.
LLAMA_NAMES = [
    f"<|reserved_special_token_{_RENAMED.index(name)}|>" if name in _RENAMED else name for name in SPECIAL_TOKENS
]

# BOS of Llama 3, a literal of the released code, and the rows of its embedding table.
LLAMA_BOS, LLAMA_VOCAB_SIZE = 128000, 128256


def load_text_tokenizer(path_or_id: str, vocab_size: int, text_pad_token_id: int, model_max_length: int):
    """
    The renamed tokenizer.

    With Llama's vocabulary, BOS must be 128000. Another vocabulary (of a smaller model with the released layout) has
    its slots elsewhere: then the padding id of the yaml must be the slot that carries its name.

    Args:
        path_or_id (`str`): A folder, its `tokenizer.json`, or a Hub id. Slots may have their new names already.
        vocab_size (`int`): Rows of the model's text embedding.
        text_pad_token_id (`int`): Of the release's yaml.
        model_max_length (`int`): Rows that the model was trained on.

    Returns:
        `tuple[PreTrainedTokenizerFast, dict]`: The tokenizer, and the slots that were renamed, by id.

    Raises:
        ValueError: If the tokenizer is not the one of the model.
    """
    path = _tokenizer_file(path_or_id)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        vocabulary = content["model"]["vocab"]
        names = {token["id"]: token["content"] for token in content["added_tokens"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no tokenizer.json: {error}.") from error
    ids = {name: index for index, name in names.items()}

    bos = ids.get(BOS_TOKEN)
    required = LLAMA_BOS if vocab_size == LLAMA_VOCAB_SIZE else bos
    largest = max((*names, *vocabulary.values()))
    if largest >= vocab_size:
        raise ValueError(
            f"{path_or_id} is not the tokenizer of this model: it has ids up to {largest}, but the text embedding has "
            f"{vocab_size} rows. Pass the tokenizer of Llama 3.2 with --tokenizer."
        )
    if bos is None or bos != required or bos + len(SPECIAL_TOKENS) > vocab_size:
        raise ValueError(
            f"{path_or_id} is not the tokenizer of this model, whose text embedding has {vocab_size} rows: "
            f"{BOS_TOKEN} should be {LLAMA_BOS if vocab_size == LLAMA_VOCAB_SIZE else 'among them'}, but is {bos}. "
            "Pass the tokenizer of Llama 3.2 with --tokenizer."
        )
    for slot, (old, new) in enumerate(zip(LLAMA_NAMES, SPECIAL_TOKENS, strict=True)):
        if names.get(bos + slot) not in (old, new):
            raise ValueError(
                f"{path_or_id} is not the tokenizer of Llama 3.2: {bos + slot} should be {old}"
                f"{f' or {new}' if new != old else ''}, but is {names.get(bos + slot)}. Pass it with --tokenizer."
            )
    allowed = range(bos + 2, bos + len(SPECIAL_TOKENS)) if bos == LLAMA_BOS else [bos + PAD_SLOT]
    if text_pad_token_id not in allowed:
        raise ValueError(
            f"The yaml says text_pad_token={text_pad_token_id}, which {path_or_id} does not keep for it: expected "
            f"{bos + PAD_SLOT} ({TEXT_PAD_TOKEN}). Pass the tokenizer the model was trained with."
        )

    renamed = {bos + slot: new for slot, new in enumerate(SPECIAL_TOKENS) if names[bos + slot] != new}
    for token in content["added_tokens"]:
        token["content"] = renamed.get(token["id"], token["content"])
    # A few tokenizers list the added tokens in the vocabulary too.
    for index, new in renamed.items():
        if vocabulary.get(names[index]) == index:
            vocabulary[new] = vocabulary.pop(names[index])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)),
        bos_token=BOS_TOKEN,
        eos_token=EOS_TOKEN,
        pad_token=TEXT_PAD_TOKEN,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=model_max_length,
    )
    return tokenizer, {str(index): f"{names[index]} -> {new}" for index, new in renamed.items()}


def _tokenizer_file(path_or_id: str) -> Path:
    path = Path(path_or_id)
    if path.is_file():
        return path
    if path.is_dir():
        if not (path / "tokenizer.json").is_file():
            raise FileNotFoundError(f"{path} has no tokenizer.json. Pass the folder of a Llama 3.2 model.")
        return path / "tokenizer.json"
    return Path(hf_hub_download(path_or_id, "tokenizer.json"))
