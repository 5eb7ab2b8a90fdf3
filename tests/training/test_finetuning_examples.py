"""The examples of fine-tuning, as a reader would run them."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from uniaudio2 import UniAudio2ForConditionalGeneration

REPOSITORY = Path(__file__).parents[2]
RECORDINGS = REPOSITORY / "benchmarks" / "recordings"


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--lora"]])
def test_finetuning_with_the_plain_trainer(options, tmp_path):
    rows = (RECORDINGS / "manifest.jsonl").read_text().splitlines()[:6]
    for row in map(json.loads, rows):
        shutil.copy(RECORDINGS / row["file"], tmp_path)
    (tmp_path / "manifest.jsonl").write_text("\n".join(rows))
    program = [sys.executable, str(REPOSITORY / "examples" / "finetune.py"), str(tmp_path / "manifest.jsonl")]
    subprocess.run([*program, "--output", str(tmp_path / "out"), "--steps", "2", *options], check=True, timeout=600)
    UniAudio2ForConditionalGeneration.from_pretrained(tmp_path / "out")
    assert (tmp_path / "out" / "codec").is_dir()


@pytest.mark.slow
def test_the_notebook_lowers_the_word_error_rate(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(REPOSITORY / "examples" / "finetune.ipynb", as_version=4)
    notebook.cells.append(nbformat.v4.new_code_cell("print(json.dumps([wer_before, wer_after]))"))
    shutil.copytree(RECORDINGS, tmp_path / "benchmarks" / "recordings")
    (tmp_path / "examples").mkdir()
    client = NotebookClient(notebook, timeout=1200, resources={"metadata": {"path": str(tmp_path / "examples")}})
    client.execute()
    before, after = json.loads(notebook.cells[-1].outputs[0].text)
    assert after < before
