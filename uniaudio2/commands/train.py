"""`uniaudio2 train`: start a model from a Llama, turn recordings into codes, run a stage of training."""

import argparse
import sys
from pathlib import Path

LANGUAGE_MODEL_STAGES = ("understanding-warmup", "generation-warmup", "pretraining", "mid-training")
CODEC_STAGES = ("scalar-codec", "reasoning-sft", "reasoning-grpo", "reconstruction")


def add_parser(commands) -> None:
    train = commands.add_parser("train", help="train: init, tokenize, and the stages of training")
    steps = train.add_subparsers(title="steps", required=True, metavar="STEP")

    init = steps.add_parser("init", help="a Llama becomes the start of a language model")
    init.add_argument("text_model", help="the Llama with its tokenizer: a folder or a Hub id")
    init.add_argument("output", type=Path, help="the model folder to write")
    init.add_argument("--codec", required=True, help="the codec: a folder or a Hub id")
    init.add_argument("--seed", type=int, default=0, help="of the new weights (default 0)")
    init.add_argument("values", nargs="*", metavar="KEY=VALUE", help="values of the configuration, before the options")
    init.set_defaults(command=_init)

    tokenize = steps.add_parser("tokenize", help="recordings to codes, once, in shards on the disk")
    tokenize.add_argument("manifest", help="JSONL, CSV or Parquet file, or a data set on the Hub")
    tokenize.add_argument("output", type=Path, help="the folder of the shards")
    tokenize.add_argument("--model", required=True, help="the model folder whose codec is used")
    tokenize.add_argument("--tasks", nargs="*", default=[], help="tasks whose fields every row must have")
    tokenize.add_argument("--rows-per-shard", type=int, default=1000)
    tokenize.add_argument("--batch-size", type=int, default=8, help="recordings encoded together (default 8)")
    tokenize.add_argument("--max-skipped", type=int, default=10, help="unreadable recordings per shard (default 10)")
    tokenize.add_argument("--semantic-features", action="store_true", help="for the understanding warm-up")
    tokenize.add_argument("--streaming", action="store_true", help="read the manifest without a local copy")
    tokenize.add_argument("--split", default="train", help="of a data set on the Hub (default train)")
    tokenize.set_defaults(command=_tokenize)

    for name in (*CODEC_STAGES, *LANGUAGE_MODEL_STAGES):
        model = "codec" if name in CODEC_STAGES else "language model"
        stage = steps.add_parser(name, help=f"the stage {name} of the {model}")
        stage.add_argument(
            "--config", nargs="+", required=True, metavar="RECIPE or SECTION.KEY=VALUE",
            help="files or names of shipped recipes, laid over each other in this order; then values of their own",
        )  # fmt: skip
        stage.add_argument("--dry-run", action="store_true", help="say what would be done, and stop")
        stage.set_defaults(command=_stage, stage=name)


def _init(args: argparse.Namespace) -> None:
    from ..training.recipe import load_recipe
    from ..training.start import start_from_text_model

    model = start_from_text_model(args.text_model, args.codec, args.output, args.seed, load_recipe([], args.values))
    print(f"{args.output}: {sum(p.numel() for p in model.parameters()):,} parameters", file=sys.stderr)


def _tokenize(args: argparse.Namespace) -> None:
    from accelerate import PartialState

    from .. import UniAudio2Processor
    from ..training.tokenization import tokenize

    processor = UniAudio2Processor.from_pretrained(args.model)
    processor.codec_device = PartialState().device
    tokenize(
        args.manifest, args.output, processor, args.tasks, args.rows_per_shard, args.batch_size, args.max_skipped,
        args.semantic_features, args.streaming, args.split,
    )  # fmt: skip


def _stage(args: argparse.Namespace) -> None:
    from ..training.recipe import load_recipe

    if args.stage in CODEC_STAGES:
        from ..training.codec_runs import CodecRun as Run
    else:
        from ..training.language_model_runs import LanguageModelRun as Run
    values = [entry for entry in args.config if "=" in entry]
    run = Run(args.stage, load_recipe([entry for entry in args.config if entry not in values], values))
    if args.dry_run:
        print(run.describe())
    else:
        print(f"{run.train()}: the model after {args.stage}", file=sys.stderr)
