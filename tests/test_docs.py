"""Every example in `docs/` runs, in the order of its page, as a reader would try it."""

import functools
import re
import shlex
from pathlib import Path

import pytest
import torch

from uniaudio2 import UniAudio2ForConditionalGeneration, UniAudio2Processor
from uniaudio2.cli import main

DOCS = Path(__file__).parents[1] / "docs"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(DOCS.glob("*.md"))}
EXAMPLES = {
    name: re.findall(r"^```(python|bash)\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    for name, page in PAGES.items()
}
# One per thing that people want to do, and the index.
GUIDES = (
    "README",
    "speak",
    "transcribe",
    "describe",
    "make-music",
    "convert-a-voice",
    "ask-about-audio",
    "few-shot",
    "stream",
    "publish",
)


@pytest.fixture(scope="module", autouse=True)
def loaded_once():
    """The shipped checkpoint is the same for every example; loading it dozens of times would take minutes."""
    with pytest.MonkeyPatch.context() as patch:
        for kind in (UniAudio2ForConditionalGeneration, UniAudio2Processor):
            load = functools.cache(kind.from_pretrained)
            patch.setattr(kind, "from_pretrained", lambda path, *_, load=load, **__: load(str(path)))
        yield


@pytest.mark.checkpoint
@pytest.mark.parametrize("name", GUIDES)
def test_the_examples_of_a_page_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    page = {}
    for language, source in EXAMPLES[name]:
        if language == "python":
            exec(compile(source, f"docs/{name}.md", "exec"), page)
            continue
        for line in source.splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "uniaudio2"
            assert main(arguments) == 0, f"{line}\n{capsys.readouterr().err}"


def test_every_guide_has_examples_and_a_place_in_the_index():
    for name in GUIDES:
        assert EXAMPLES[name], name
    assert {f"{name}.md" for name in GUIDES[1:]} <= set(re.findall(r"\]\(([\w-]+\.md)\)", PAGES["README"]))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name):
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", PAGES[name]):
        assert (DOCS / target).exists(), target
