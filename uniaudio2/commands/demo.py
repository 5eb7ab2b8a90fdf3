"""`uniaudio2 demo`: the demo in the browser."""

import argparse
import importlib.util
import sys


def add_parser(commands) -> None:
    demo = commands.add_parser(
        "demo", help="a page in the browser: speak, listen, create, converse, look into the codec"
    )
    demo.add_argument("--model", metavar="PATH_OR_ID", help="default: UNIAUDIO2_MODEL, else the shipped checkpoint")
    demo.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other machines in (default 127.0.0.1)")
    demo.add_argument("--port", type=int, help="default: the first free one from 7860")
    demo.add_argument("--share", action="store_true", help="also through a public address of gradio.live, for a week")
    demo.set_defaults(command=_demo)


def _demo(args: argparse.Namespace) -> None:
    if importlib.util.find_spec("gradio") is None:
        raise ValueError("the demo needs gradio: pip install 'uniaudio2[demo]'")
    # Here, because it is slow and an extra.
    from ..hub_cards.space.app import LAUNCH_OPTIONS, build_demo

    demo = build_demo(args.model)
    print("uniaudio2: loading the model", file=sys.stderr)
    demo.engine.load()
    demo.launch(server_name=args.host, server_port=args.port, share=args.share, **LAUNCH_OPTIONS)
