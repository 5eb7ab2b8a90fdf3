"""transformers' own model tests, out of the source distribution of the installed version."""

import shutil
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

# `test_modeling_common` imports two classes from folders that the source distribution leaves out. They hold the tests
# of `generate` and of export, which are not asked for here; empty classes of these names let the module be imported.
LEFT_OUT = {
    "exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
}
PACKAGE = "transformers_tests"


def fetch_transformers_tests(folder: Path) -> Path:
    """Downloads and unpacks the tests, once per version.

    Returns:
        `Path`: A folder to put on the module path; the package in it is `transformers_tests`.

    Raises:
        RuntimeError: If the source distribution cannot be downloaded, or has no common model tests.
    """
    installed = version("transformers")
    root = folder / f"transformers-{installed}-tests"
    if root.is_dir():
        return root
    folder.mkdir(parents=True, exist_ok=True)
    archive = _download(folder, installed)
    unfinished = root.with_name(root.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    package = unfinished / PACKAGE
    prefix = f"transformers-{installed}/tests/"
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isfile() and member.name.startswith(prefix) and member.name.endswith(".py"):
                target = package / member.name.removeprefix(prefix)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(tar.extractfile(member).read())
    if not (package / "test_modeling_common.py").exists():
        raise RuntimeError(f"{archive.name} holds no tests/test_modeling_common.py.")
    for name, source in LEFT_OUT.items():
        module = package / name
        if not module.exists():
            module.parent.mkdir(parents=True, exist_ok=True)
            module.write_text(source, encoding="utf-8")
    unfinished.rename(root)
    return root


def _download(folder: Path, installed: str) -> Path:
    archive = folder / f"transformers-{installed}.tar.gz"
    if archive.exists():
        return archive
    # pip asks the build backend for metadata even for a mere download; the one installed here serves.
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-build-isolation"]
    command += ["--no-binary", "transformers", "--dest", str(folder), f"transformers=={installed}"]
    completed = subprocess.run(command, capture_output=True, text=True, check=False)
    if completed.returncode or not archive.exists():
        raise RuntimeError(f"No source distribution of transformers {installed}: {completed.stderr.strip()}")
    return archive
