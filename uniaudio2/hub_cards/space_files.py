"""The files of the Space: the demo with the package it is part of, so that it needs nothing that is not on PyPI."""

import shutil
from pathlib import Path

from .cards import app, space_card
from .facts import REQUIRED, Facts, requirements
from .model_files import remove_local_entries

PACKAGE = Path(__file__).parents[1]
# The demo answers; it neither converts, trains nor evaluates, and publishes nothing.
LEFT_OUT = ("conversion", "training", "evaluation", "hub_cards")
# Made when modules are imported, the second by gradio.
NOT_COPIED = ("__pycache__", "*.pyi")
DEMO = Path("hub_cards", "space")
# The Space itself brings gradio, in the version that its card names.
REQUIRED_BY_SPACE = (*REQUIRED, "huggingface_hub", "jinja2", "tqdm", "safetensors", "matplotlib")


def write_space(facts: Facts, folder: Path, language_model: str, codec: str) -> None:
    """
    Write the repository of the Space.

    Args:
        facts (`Facts`): Of the model folder.
        folder (`Path`): Where to.
        language_model, codec (`str`): The repositories that it shows, as `NAMESPACE/NAME`.
    """
    package = folder / PACKAGE.name
    ignored = shutil.ignore_patterns(*NOT_COPIED)
    # Links are followed: the code in the shipped checkpoint is linked to that of the package.
    for entry in sorted(PACKAGE.iterdir()):
        if entry.is_dir() and entry.name not in (*LEFT_OUT, *NOT_COPIED):
            shutil.copytree(entry, package / entry.name, ignore=ignored)
        elif entry.is_file():
            package.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(entry, package / entry.name)
    shutil.copytree(PACKAGE / DEMO, package / DEMO, ignore=ignored)
    shutil.copyfile(PACKAGE / DEMO.parent / "__init__.py", package / DEMO.parent / "__init__.py")
    remove_local_entries(folder)
    (folder / "README.md").write_text(space_card(facts, language_model, codec), encoding="utf-8")
    (folder / "app.py").write_text(app(facts, language_model), encoding="utf-8")
    (folder / "requirements.txt").write_text("\n".join(requirements(REQUIRED_BY_SPACE)) + "\n", encoding="utf-8")
