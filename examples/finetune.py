"""Fine-tune a checkpoint on your own recordings, with the plain `Trainer`.

    python examples/finetune.py MANIFEST [--lora]

The manifest is a JSONL file with a line {"file": "a.flac", "text": "what is said"} for each recording.
"""

import argparse
from pathlib import Path

from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from uniaudio2 import TINY, UniAudio2DataCollator, UniAudio2ForConditionalGeneration, UniAudio2Processor

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("manifest", type=Path)
parser.add_argument("--model", default=TINY)
parser.add_argument("--output", default="finetuned")
parser.add_argument("--lora", action="store_true", help="train adapters instead of all weights")
parser.add_argument("--steps", type=int, default=100)
args = parser.parse_args()

processor = UniAudio2Processor.from_pretrained(args.model)
model = UniAudio2ForConditionalGeneration.from_pretrained(args.model)
rows = load_dataset("json", data_files=str(args.manifest), split="train")
# Codes are computed once; `uniaudio2 train tokenize` does it for more data than fits into memory.
codes = [processor.encode_audio(str(args.manifest.parent / name))[0] for name in rows["file"]]
examples = [{"task": "ASR", "audio": audio, "text": text} for audio, text in zip(codes, rows["text"], strict=True)]
if args.lora:
    model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
arguments = TrainingArguments(
    args.output, max_steps=args.steps, per_device_train_batch_size=8, learning_rate=1e-3 if args.lora else 2e-4,
    lr_scheduler_type="cosine", warmup_steps=10, logging_steps=10, remove_unused_columns=False, save_strategy="no",
)  # fmt: skip
trainer = Trainer(model, arguments, train_dataset=examples, data_collator=UniAudio2DataCollator(processor))
trainer.train()
model = model.merge_and_unload() if args.lora else model
model.save_pretrained(args.output)
processor.save_pretrained(args.output, save_codec=True)
