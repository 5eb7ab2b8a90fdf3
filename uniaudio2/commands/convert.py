"""`uniaudio2 convert`: the released checkpoints to a model folder, and the language model back."""

import argparse
import sys
import time
from pathlib import Path


def add_parser(commands) -> None:
    convert = commands.add_parser("convert", help="make a model folder of the released checkpoints")
    convert.add_argument("source", metavar="SOURCE", help="folder in the release's layout, or its Hub id")
    convert.add_argument("output", metavar="OUTPUT", type=Path, help="the folder to make; must not exist")
    convert.add_argument("--tokenizer", metavar="PATH_OR_ID", help="tokenizer of Llama 3.2, not part of the release")
    convert.add_argument(
        "--dtype",
        choices=("bfloat16", "float16", "float32"),
        help="of the language model's weights (default: as released); the codec keeps its own",
    )
    convert.add_argument("--max-shard-size", default="5GB", metavar="SIZE", help="largest file (default 5GB)")
    convert.add_argument(
        "--llm", default="llm_ep3.checkpoint", metavar="FILE", help="the language model (default llm_ep3.checkpoint)"
    )
    convert.add_argument("--codec", metavar="FILE", help="the codec (default ReasoningCodec.checkpoint)")
    convert.add_argument("--only", choices=("language-model", "codec"), help="convert one of the two models")
    convert.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="FIELD=VALUE",
        dest="settings",
        help="a field of a config, such as backbone.num_attention_heads=4 or codec.flow_config.norm_eps=1e-6; "
        "may be given several times",
    )
    convert.add_argument("--verify", action="store_true", help="read everything back and compare with the release")
    convert.add_argument("--push-to-hub", metavar="NAME", help="upload the folder to this repository")
    convert.add_argument(
        "--reverse",
        action="store_true",
        help="SOURCE is a model folder, OUTPUT a file: write its language model as the release does",
    )
    convert.set_defaults(command=_convert)


def _convert(args: argparse.Namespace) -> None:
    from ..conversion import convert_release, restore_release

    start = time.perf_counter()
    if args.reverse:
        others = {
            "--tokenizer": args.tokenizer,
            "--dtype": args.dtype,
            "--codec": args.codec,
            "--only": args.only,
            "--set": args.settings,
            "--verify": args.verify,
            "--push-to-hub": args.push_to_hub,
        }
        given = [option for option, value in others.items() if value]
        if given:
            raise ValueError(f"--reverse writes what the folder holds: leave out {', '.join(given)}.")
        made = restore_release(args.source, args.output)
        size = made.stat().st_size
    else:
        made = convert_release(
            args.source,
            args.output,
            tokenizer=args.tokenizer,
            dtype=args.dtype,
            max_shard_size=args.max_shard_size,
            llm=args.llm,
            codec=args.codec,
            only=args.only,
            settings=args.settings,
            verify=args.verify,
            push_to_hub=args.push_to_hub,
        )
        size = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
    verified = ", verified" if args.verify else ""
    print(f"{made}: {size / 1e9:.2f} GB in {time.perf_counter() - start:.0f} s{verified}", file=sys.stderr)
