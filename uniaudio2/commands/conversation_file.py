"""A conversation in a JSON file, for `uniaudio2 run --conversation`."""

import base64
import binascii
import json
from pathlib import Path
from typing import Any

from .codes_file import STREAMS, recording

# The entries of a part that name a file.
FILE_KEYS = ("audio", "path")


def read_conversation(path: Path) -> list[dict[str, Any]]:
    """
    Reads a list of messages, as `UniAudio2Processor.apply_chat_template` takes them.

    Files that it names are sought beside it, so that a conversation and its recordings can be moved together. A file
    of codes is read here, because the processor reads audio only. JSON has no bytes: those of a file are in base64.

    Raises:
        OSError: if the file cannot be opened.
        ValueError: if it is no list of messages, or holds bytes that are not base64.
    """
    try:
        messages = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as JSON ({error})") from error
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise ValueError(
            f"{str(path)!r} must hold a list of messages, as "
            '[{"role": "user", "content": [{"type": "audio", "path": "in.wav"}]}]'
        )
    for message in messages:
        content = message.get("content")
        if isinstance(content, list):
            message["content"] = [_located(part, path.parent) for part in content]
    return messages


def _located(part: Any, folder: Path) -> Any:
    """A part of a message, its file found or decoded."""
    if not isinstance(part, dict):
        return part
    part = dict(part)
    if isinstance(part.get("bytes"), str):
        try:
            part["bytes"] = base64.b64decode(part["bytes"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"The 'bytes' of a part must be those of a file in base64 ({error})") from error
    for key in FILE_KEYS:
        if isinstance(part.get(key), str) and not part[key].startswith(("http://", "https://")):
            found = recording(str(folder / part[key]))
            if isinstance(found, str):
                part[key] = found
            else:
                del part[key]
                part |= {name: getattr(found, name) for name in STREAMS if getattr(found, name) is not None}
    return part
