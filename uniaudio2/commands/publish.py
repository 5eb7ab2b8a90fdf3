"""`uniaudio2 publish stage`: the repositories of a model as folders; `publish push`: the folders to the Hub."""

import argparse
from pathlib import Path


def add_parser(commands) -> None:
    publish = commands.add_parser("publish", help="make Hub repositories of a model folder, and upload them")
    actions = publish.add_subparsers(title="actions", required=True, metavar="stage | push")

    stage = actions.add_parser("stage", help="make the folders that will be uploaded: language model, codec, Space")
    stage.add_argument("model_dir", metavar="MODEL_DIR", type=Path, help="the model folder")
    stage.add_argument("output", metavar="OUTPUT", type=Path, help="the folder to make; an earlier one is replaced")
    stage.add_argument("--name", help="of the language model's repository (default: after the folder)")
    stage.add_argument("--namespace", metavar="NAME", help="user or organisation, if it is known already")
    stage.add_argument(
        "--evaluation", type=Path, metavar="DIR", help="what `uniaudio2 evaluate --output DIR` has measured of it"
    )
    stage.set_defaults(command=_stage)

    push = actions.add_parser("push", help="upload what has changed, in one commit per repository")
    push.add_argument("output", metavar="OUTPUT", type=Path, help="what `publish stage` has made")
    push.add_argument("--namespace", metavar="NAME", required=True, help="user or organisation on the Hub")
    push.add_argument("--private", action="store_true", help="repositories that have to be created are private")
    push.add_argument("--create-pr", action="store_true", help="open pull requests instead of committing to main")
    push.add_argument("--dry-run", action="store_true", help="say what would change, and change nothing")
    push.set_defaults(command=_push)


def _stage(args: argparse.Namespace) -> None:
    from ..hub_cards.stage import stage
    from ..hub_cards.staging import table

    print(
        table(stage(args.model_dir, args.output, name=args.name, namespace=args.namespace, evaluation=args.evaluation))
    )


def _push(args: argparse.Namespace) -> None:
    from ..hub_cards.push import push

    push(
        args.output,
        args.namespace,
        private=args.private,
        create_pr=args.create_pr,
        dry_run=args.dry_run,
    )
