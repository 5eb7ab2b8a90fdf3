"""`uniaudio2 evaluate`: run suites; `evaluate score`: metrics and report again; `evaluate compare`: two runs."""

import argparse
from pathlib import Path

from ..evaluation.run import BATCH_SIZE


def add_parser(commands) -> None:
    evaluate = commands.add_parser("evaluate", help="measure a model on suites, score answers again, compare two runs")
    evaluate.add_argument("--suite", nargs="+", metavar="NAME", help="suites of the package, or YAML files")
    evaluate.add_argument("--test", nargs="+", metavar="NAME", help="only these tests of the suites")
    evaluate.add_argument("--model", metavar="PATH_OR_ID", help="default: the shipped checkpoint")
    evaluate.add_argument("--data", metavar="PATH_OR_ID", help="a folder or Hub data set in place of the suite's own")
    evaluate.add_argument("--limit", type=int, metavar="N", help="take only the first N items of every test")
    evaluate.add_argument("--output", type=Path, default=Path("evaluation"), metavar="DIR", help="default: evaluation")
    evaluate.add_argument("--seed", type=int, default=0, help="of the answers and the bootstrap (default 0)")
    batch_help = f"items answered together (default {BATCH_SIZE})"
    evaluate.add_argument("--batch-size", type=int, default=BATCH_SIZE, metavar="N", help=batch_help)
    evaluate.add_argument("--device", default="auto", help="auto (an accelerator if there is one), cpu, cuda, ...")
    evaluate.add_argument("--list", action="store_true", help="list the suites and their tests")
    evaluate.set_defaults(command=_evaluate)

    actions = evaluate.add_subparsers(metavar="score | compare")
    score = actions.add_parser("score", help="compute the metrics of predictions that are there already")
    score.add_argument("folder", type=Path, help="what `--output` was, or a folder with predictions of your own")
    score.add_argument("--suite", nargs="+", metavar="NAME", dest="score_suites", help="default: those of the folder")
    score.add_argument("--device", default="cpu", help="of metrics with a model (default cpu)")
    score.set_defaults(command=_score)
    compare = actions.add_parser("compare", help="paired tests between two runs of the same tests")
    compare.add_argument("first", type=Path, metavar="A")
    compare.add_argument("second", type=Path, metavar="B")
    compare.add_argument("--seed", type=int, default=0)
    compare.set_defaults(command=_compare)


def _evaluate(args: argparse.Namespace) -> None:
    if args.list:
        _print_suites()
        return
    if not args.suite:
        from ..evaluation.suite import suite_names

        raise ValueError(f"name a suite with --suite; there is {', '.join(suite_names())}")
    from ..evaluation import evaluate
    from .options import choose_device

    summaries = _with_packages(
        lambda: evaluate(
            args.suite,
            model=args.model,
            data=args.data,
            limit=args.limit,
            output=args.output,
            tests=args.test,
            device=None if args.device == "auto" else choose_device(args.device),
            seed=args.seed,
            batch_size=args.batch_size,
        )
    )
    if summaries:
        print((args.output / "report.md").read_text(encoding="utf-8"))


def _score(args: argparse.Namespace) -> None:
    from ..evaluation.run import score_again

    _with_packages(lambda: score_again(args.folder, args.score_suites, args.device))
    print((args.folder / "report.md").read_text(encoding="utf-8"))


def _compare(args: argparse.Namespace) -> None:
    def table() -> str:
        from ..evaluation.compare import as_table, compare

        return as_table(compare(args.first, args.second, args.seed))

    print(_with_packages(table))


def _print_suites() -> None:
    from ..evaluation.suite import load_suite, suite_names

    for name in suite_names():
        for test in _with_packages(lambda name=name: load_suite(name)):
            print(f"{test.full_name}: {test.task} on {test.data.hub or test.data.folder}")


def _with_packages(work):
    # A missing extra is the user's to mend, like every mistake in a request.
    try:
        return work()
    except ImportError as error:
        raise ValueError(str(error)) from error
