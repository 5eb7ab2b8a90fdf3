"""The special tokens of the text vocabulary, in their order."""

BOS_TOKEN, EOS_TOKEN, TEXT_PAD_TOKEN = "<|begin_of_text|>", "<|end_of_text|>", "<text_pad_token>"

# In the released tokenizer these are 128000 to 128020. Names in `<| |>` are Llama 3's own; the others stand in its
# reserved slots, in the order of their numbers (released code).
SPECIAL_TOKENS = (
    BOS_TOKEN,
    EOS_TOKEN,
    "<think>",
    "</think>",
    "<|finetune_right_pad_id|>",
    "</answer>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eom_id|>",
    "<|eot_id|>",
    "<|python_tag|>",
    "<transcription>",
    "</transcription>",
    "<lyric>",
    "</lyric>",
    "<caption>",
    "</caption>",
    "<answer>",
    "<reason_token>",
    "<semantic_token>",
    TEXT_PAD_TOKEN,
)
