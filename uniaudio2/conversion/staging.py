"""Results appear whole or not at all: they are made aside and renamed into place."""

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout


@contextlib.contextmanager
def made_aside(output: Path) -> Iterator[Path]:
    """
    Gives the path of a file or folder to make; when the block ends without an error, it is renamed to `output`.

    What a killed run left behind is removed by the next one to the same place.

    Raises:
        FileExistsError: If `output` exists.
        ValueError: If another process is making it.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    aside = output.with_name(f".{output.name}.converting")
    # A lock of the operating system, which ends with the process that holds it.
    lock_file = output.with_name(f".{output.name}.converting.lock")
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise ValueError(f"Another process is writing {output}. Wait for it, or choose another output.") from error
    try:
        if output.exists() or output.is_symlink():
            raise FileExistsError(f"{output} exists already. Choose another output, or remove it first.")
        _remove(aside)
        yield aside
        aside.rename(output)
    finally:
        _remove(aside)
        lock_file.unlink(missing_ok=True)
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
