"""The notebooks in `examples/`, as a reader would run them; in the repository they have no outputs.

`finetune.ipynb` is run by `tests/training/test_finetuning_examples.py`.
"""

import json
import shutil
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
NOTEBOOKS = sorted((REPOSITORY / "examples").glob("*.ipynb"))
# Something that each has to say, how many sounds there are to play, and how many pictures to see.
EXPECTED = {
    "quickstart": ("'seven three nine'", 1, 1),
    "tasks_tour": ("ASR 'seven three nine'", 2, 1),
    "codec_tour": ("reconstruction_codes: (1, 8, 27), 12.5 frames", 3, 3),
    "few_shot": ("'the second voice'", 2, 1),
    "evaluation": ("| tiny/speaking | wer (word_error_rate) |", 1, 1),
}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_outputs(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells if "outputs" in cell)
    assert f"examples/{path.name}" in (REPOSITORY / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_notebooks_run(name, tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "examples" / f"{name}.ipynb", as_version=4)
    shutil.copytree(REPOSITORY / "benchmarks" / "recordings", tmp_path / "benchmarks" / "recordings")
    (tmp_path / "examples").mkdir()
    resources = {"metadata": {"path": str(tmp_path / "examples")}}
    NotebookClient(notebook, timeout=300, resources=resources).execute()

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    contents = [output.get("data", {}) for output in outputs]
    texts = [output.get("text", "") for output in outputs]
    texts += [content.get("text/markdown", content.get("text/plain", "")) for content in contents]
    text, num_sounds, num_pictures = EXPECTED[name]
    assert text in "\n".join(texts)
    assert sum("<audio" in content.get("text/html", "") for content in contents) == num_sounds
    assert sum("image/png" in content for content in contents) == num_pictures
