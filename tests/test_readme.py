"""Every example of the README runs, in the order of the page, as a reader would try them."""

import configparser
import re
import shlex
from pathlib import Path

import pytest

from uniaudio2.cli import main

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```(python|bash)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)


def test_there_are_five_examples():
    assert len(EXAMPLES) == 5


def test_links_and_pictures_lead_somewhere():
    targets = re.findall(r"\]\((?!https?://)([^)#]+)", README)
    assert any(target.endswith(".png") for target in targets)
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_badges_say_what_the_package_says():
    badges = dict(re.findall(r"img\.shields\.io/badge/(\w+)-(.+)-\w+\)", README))
    package = configparser.ConfigParser()
    package.read(ROOT / "setup.cfg", encoding="utf-8")
    needed = dict(line.split(">=") for line in package["options"]["install_requires"].split())
    assert badges == {
        "arXiv": "2602.04683",
        "python": package["options"]["python_requires"].removeprefix(">=") + "%2B",
        "transformers": needed["transformers"] + "%2B",
        "licence": package["metadata"]["license"].replace("-", "--"),
    }


@pytest.mark.checkpoint
def test_the_examples_run(tmp_path, monkeypatch, capsys):
    # One test, because the examples build on each other: one listens to what another has spoken.
    monkeypatch.chdir(tmp_path)
    for language, source in EXAMPLES:
        if language == "python":
            exec(compile(source, "README.md", "exec"), {})
            continue
        for line in source.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "uniaudio2"
            assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"
    assert {path.name for path in tmp_path.iterdir()} == {"spoken.wav", "out.wav", "again.wav"}
