"""The tokenizer of Llama 3.2 with the slots renamed that UniAudio 2.0 uses. It is not part of the release."""

import json
from pathlib import Path

from huggingface_hub import hf_hub_download
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

BOS_TOKEN, EOS_TOKEN, PAD_TOKEN = "<|begin_of_text|>", "<|end_of_text|>", "<text_pad_token>"

# The slots from BOS on: Llama's name, and the one UniAudio 2.0 gives it where it does (released code).
SLOTS = (
    (BOS_TOKEN, BOS_TOKEN),
    (EOS_TOKEN, EOS_TOKEN),
    ("<|reserved_special_token_0|>", "<think>"),
    ("<|reserved_special_token_1|>", "</think>"),
    ("<|finetune_right_pad_id|>", "<|finetune_right_pad_id|>"),
    ("<|reserved_special_token_2|>", "</answer>"),
    ("<|start_header_id|>", "<|start_header_id|>"),
    ("<|end_header_id|>", "<|end_header_id|>"),
    ("<|eom_id|>", "<|eom_id|>"),
    ("<|eot_id|>", "<|eot_id|>"),
    ("<|python_tag|>", "<|python_tag|>"),
    *(
        (f"<|reserved_special_token_{3 + index}|>", name)
        for index, name in enumerate(
            (
                "<transcription>",
                "</transcription>",
                "<lyric>",
                "</lyric>",
                "<caption>",
                "</caption>",
                "<answer>",
                "<reason_token>",
                "<semantic_token>",
                PAD_TOKEN,
            )
        )
    ),
)
PAD_SLOT = [name for _, name in SLOTS].index(PAD_TOKEN)

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
    if bos is None or bos != required or bos + len(SLOTS) > vocab_size:
        raise ValueError(
            f"{path_or_id} is not the tokenizer of this model, whose text embedding has {vocab_size} rows: "
            f"{BOS_TOKEN} should be {LLAMA_BOS if vocab_size == LLAMA_VOCAB_SIZE else 'among them'}, but is {bos}. "
            "Pass the tokenizer of Llama 3.2 with --tokenizer."
        )
    for slot, (old, new) in enumerate(SLOTS):
        if names.get(bos + slot) not in (old, new):
            raise ValueError(
                f"{path_or_id} is not the tokenizer of Llama 3.2: {bos + slot} should be {old}"
                f"{f' or {new}' if new != old else ''}, but is {names.get(bos + slot)}. Pass it with --tokenizer."
            )
    allowed = range(bos + 2, bos + len(SLOTS)) if bos == LLAMA_BOS else [bos + PAD_SLOT]
    if text_pad_token_id not in allowed:
        raise ValueError(
            f"The yaml says text_pad_token={text_pad_token_id}, which {path_or_id} does not keep for it: expected "
            f"{bos + PAD_SLOT} ({PAD_TOKEN}). Pass the tokenizer the model was trained with."
        )

    renamed = {bos + slot: new for slot, (_, new) in enumerate(SLOTS) if names[bos + slot] != new}
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
        pad_token=PAD_TOKEN,
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
