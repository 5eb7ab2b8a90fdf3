"""The files of a release: a local folder, or a repository on the Hub of which only the needed ones are fetched."""

import hashlib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from tqdm import tqdm

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
BLOCK = 16 * 1024**2


class ReleaseFiles:
    """
    Args:
        source (`str`): A folder in the layout of the release, or a Hub id.

    Raises:
        ValueError: If it is neither.
    """

    def __init__(self, source: str):
        self.source = source
        self.revision: str | None = None
        self._used: dict[str, Path] = {}
        self._folder = Path(source) if Path(source).is_dir() else None
        self._is_local = self._folder is not None
        if not self._is_local and (Path(source).exists() or not HUB_ID.fullmatch(source)):
            raise ValueError(f"{source} is neither a folder nor the id of a repository on the Hub (org/name).")

    def find(self, name: str) -> Path | None:
        """The file, fetched if it is on the Hub; `None` if the release does not have it."""
        if not self._is_local and name not in self._used:
            # Later files come from the same revision as the first.
            self._folder = Path(snapshot_download(self.source, revision=self.revision, allow_patterns=[name]))
            self.revision = self._folder.name
        path = self._folder / name
        if not path.is_file():
            return None
        self._used[name] = path
        return path

    def path(self, name: str, hint: str = "") -> Path:
        """
        The file.

        Raises:
            FileNotFoundError: If the release does not have it; `hint` says what else could be done.
        """
        path = self.find(name)
        if path is None:
            raise FileNotFoundError(f"{self.source} has no file {name}, which the conversion needs. {hint}".strip())
        return path

    def record(self) -> dict[str, dict[str, Any]]:
        """Size and SHA-256 of every file that was used."""
        sizes = {name: path.stat().st_size for name, path in sorted(self._used.items())}
        with tqdm(total=sum(sizes.values()), desc="checksums", unit="B", unit_scale=True, leave=False) as bar:
            return {name: {"bytes": size, "sha256": _sha256(self._used[name], bar)} for name, size in sizes.items()}


def _sha256(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()
