"""The command line: `uniaudio2 run | tasks | reconstruct | info | convert | train | evaluate | demo | publish`.

What a command produces goes to stdout (a transcription) or to the file named by `--output`; progress and remarks go to
stderr. A mistake in the request ends with one line on stderr and exit status 2.
"""

import argparse
import sys

from .commands import convert, demo, evaluate, info, publish, reconstruct, run, tasks, train

COMMANDS = (run, tasks, reconstruct, info, convert, train, evaluate, demo, publish)


def main(argv: list[str] | None = None) -> int:
    """Runs one command. Returns the exit status: 0 done, 2 the request was wrong (one line on stderr says how)."""
    args = build_parser().parse_args(argv)
    try:
        args.command(args)
    except (ValueError, TypeError, OSError) as error:
        # Libraries wrap their messages over several lines; a shell user gets one.
        print(f"uniaudio2: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="uniaudio2", description="UniAudio 2.0: text, speech, sound and music in one model."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
