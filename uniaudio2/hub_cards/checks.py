"""What must not be published: secrets, and traces of the machine that a folder was made on."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from .model_files import PLAIN_LISTS, read_json

SECRETS = {
    "a token of Hugging Face": rb"(hf|api_org)_[A-Za-z0-9]{30,}",
    "a token of GitHub": rb"(gh[opsur]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{50,})",
    "a key of a language model's service": rb"\bsk-[A-Za-z0-9_-]{32,}",
    "a key of Amazon": rb"(AKIA|ASIA)[A-Z0-9]{16}\b",
    "a key of Google": rb"AIza[A-Za-z0-9_-]{35}",
    "a key of Weights & Biases": rb"(WANDB|wandb)\w*(KEY|key)\W{1,5}[0-9a-f]{40}\b",
    "a private key": rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----",
    "a password in an address": rb"https?://[^\s/:@\"']+:[^\s/:@\"']+@",
}
ABSOLUTE_PATH = re.compile(r"(/[^/\s]+){2,}/?|[A-Za-z]:[\\/].+|\\\\.+|file://.+|~/.+")
# Weights are numbers; everything else is searched.
NOT_TEXT = (".safetensors",)


def check_contents(folder: Path) -> None:
    """
    Look through what is about to be published.

    Raises:
        ValueError: If a file holds a secret, or a path of this machine. It says which file, and never the secret.
    """
    token = get_token()
    home = str(Path.home())
    for file in sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix not in NOT_TEXT):
        content, name = file.read_bytes(), file.relative_to(folder).as_posix()
        found = [kind for kind, pattern in SECRETS.items() if re.search(pattern, content)]
        if token is not None and token.encode() in content:
            found.append("your own token")
        if found:
            raise ValueError(
                f"{name} holds {found[0]}. Take it out of the model folder, and revoke it if it was shown."
            )
        # A home of one part, such as /root, stands in code for other reasons.
        if home.count("/") > 1 and home.encode() in content:
            raise ValueError(f"{name} names your home folder. Take the path out of the model folder.")
        if file.suffix == ".json" and file.name not in PLAIN_LISTS:
            for place, value in _strings(read_json(file)):
                if ABSOLUTE_PATH.fullmatch(value):
                    raise ValueError(
                        f"{name} holds the path {value!r} in {place!r}, which means nothing elsewhere. Change it in "
                        "the model folder."
                    )


def without_folders(content: Any) -> Any:
    """The same records with absolute paths cut to their last part: what a file was called counts, not where it lay."""
    if isinstance(content, dict):
        return {key: without_folders(value) for key, value in content.items()}
    if isinstance(content, list):
        return [without_folders(value) for value in content]
    if isinstance(content, str) and ABSOLUTE_PATH.fullmatch(content):
        return re.split(r"[\\/]", content.rstrip("\\/"))[-1]
    return content


def _strings(content: Any, place: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(content, str):
        yield place, content
    elif isinstance(content, dict):
        for key, value in content.items():
            yield from _strings(value, f"{place}.{key}".lstrip("."))
    elif isinstance(content, list):
        for value in content:
            yield from _strings(value, place)
