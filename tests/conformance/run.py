"""`make conformance`: transformers' common model tests on the models of this project, and on Llama as the yardstick.

Exits with 1 if a test fails, if the language model passes fewer of the tests that Llama passes than `REQUIRED`, or if
a test that Llama passes is skipped without a reason in `skips.yaml`. `--write` renews `docs/conformance.md`.
"""

import argparse
import os
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

# Before torch is imported: the models are too small for more than one thread, and nothing is fetched from the Hub.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
BUILD = ROOT / "build" / "conformance"
REPORT = ROOT / "docs" / "conformance.md"
SUITES = {
    "llama": "LlamaForCausalLM",
    "language_model": "UniAudio2ForConditionalGeneration",
    "codec": "ReasoningCodecModel",
}
# Of the tests that Llama passes, the language model has to pass so many.
REQUIRED = 95

Results = dict[str, dict[str, tuple[str, str]]]


@dataclass
class Recorder:
    """A pytest plugin that keeps, per suite and test, the outcome and the reason."""

    results: Results = field(default_factory=lambda: defaultdict(dict))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        suite, test = Path(report.fspath).stem, report.nodeid.split("::")[-1]
        before = self.results[suite].get(test, ("passed", ""))[0]
        # The worst of set-up, call and subtests is what counts.
        if report.failed:
            self.results[suite][test] = ("failed", "")
        elif report.skipped and before != "failed":
            self.results[suite][test] = ("skipped", report.longrepr[-1].removeprefix("Skipped: "))
        else:
            self.results[suite].setdefault(test, ("passed", ""))


def with_outcome(results: Results, suite: str, outcome: str) -> set[str]:
    return {test for test, (found, _) in results[suite].items() if found == outcome}


def find_problems(results: Results, listed: dict[str, dict[str, str]]) -> list[str]:
    """What keeps the run from being a success, in words."""
    problems = [
        f"{name} fails {test}"
        for suite, name in SUITES.items()
        for test in sorted(with_outcome(results, suite, "failed"))
    ]
    yardstick = with_outcome(results, "llama", "passed")
    shared = yardstick & with_outcome(results, "language_model", "passed")
    if len(shared) < REQUIRED:
        problems.append(
            f"the language model passes {len(shared)} of Llama's {len(yardstick)} tests; {REQUIRED} are required"
        )
    for suite, reasons in listed.items():
        unexplained = yardstick & with_outcome(results, suite, "skipped") - reasons.keys()
        problems += [f"{SUITES[suite]} skips {test} without a reason in skips.yaml" for test in sorted(unexplained)]
    return problems


def counts(results: Results) -> str:
    """A Markdown table of the outcomes."""
    yardstick = with_outcome(results, "llama", "passed")
    lines = ["| model | passed | of those that Llama passes | skipped | failed |", "|---|---|---|---|---|"]
    for suite, name in SUITES.items():
        passed, skipped, failed = (with_outcome(results, suite, found) for found in ("passed", "skipped", "failed"))
        shared = f"{len(passed & yardstick)} of {len(yardstick)}"
        lines.append(f"| `{name}` | {len(passed)} | {shared} | {len(skipped)} | {len(failed)} |")
    return "\n".join(lines)


REPORT_INTRODUCTION = """\
# Conformance with transformers' common model tests

`make conformance` fetches the source distribution of the installed transformers (here {version}) and runs its
`tests/test_modeling_common.py` on both models and, in the same run, on Llama. A test counts as passed only if none of
its parts is skipped. This page is written by `python -m tests.conformance.run --write`."""


def render_report(results: Results, listed: dict[str, dict[str, str]]) -> str:
    yardstick = with_outcome(results, "llama", "passed")
    parts = [REPORT_INTRODUCTION.format(version=version("transformers")), counts(results)]
    for suite, reasons in listed.items():
        parts.append(f"## Skipped on `{SUITES[suite]}`")
        parts.append("Tests that do not fit the model (`tests/conformance/skips.yaml`):")
        rows = [f"| `{test}` | {'yes' if test in yardstick else 'no'} | {why} |" for test, why in reasons.items()]
        parts.append("\n".join(["| test | Llama passes it | reason |", "|---|---|---|", *sorted(rows)]))
        parts.append("Tests that skip themselves, and that Llama does not pass either, in their own words:")
        own = sorted(with_outcome(results, suite, "skipped") - reasons.keys())
        rows = [f"| `{test}` | {results[suite][test][1]} |" for test in own]
        parts.append("\n".join(["| test | reason |", "|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help=f"renew {REPORT.relative_to(ROOT)}")
    arguments = parser.parse_args()

    sys.path.insert(0, str(HERE))
    from skips import read_skips
    from source_distribution import fetch_transformers_tests

    sys.path.insert(0, str(fetch_transformers_tests(BUILD)))
    recorder = Recorder()
    options = ["-q", "-W", "ignore", "-o", "addopts=", "-p", "no:cacheprovider", "-r", "fE"]
    pytest.main([*options, *(str(HERE / f"{suite}.py") for suite in SUITES)], plugins=[recorder])

    listed = read_skips()
    print(counts(recorder.results))
    problems = find_problems(recorder.results, listed)
    for problem in problems:
        print(f"problem: {problem}", file=sys.stderr)
    if arguments.write and not problems:
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(render_report(recorder.results, listed), encoding="utf-8")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
