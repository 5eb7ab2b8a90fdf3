"""How a processor finds the codec it names: inside its own folder or repository, or somewhere else."""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoModel, PreTrainedModel

HUB_OPTIONS = ("token", "cache_dir", "local_files_only", "proxies")


@dataclass(frozen=True)
class Origin:
    """
    Where a processor was loaded from.

    Args:
        path (`str`): A local folder or a Hub id.
        subfolder (`str`, *optional*): The folder inside it.
        revision (`str`, *optional*): The revision on the Hub.
        trust_remote_code (`bool`, *optional*): What the user decided, to be forwarded.
        hub_options (`dict`, *optional*): How the user reached the Hub.
    """

    path: str
    subfolder: str = ""
    revision: str | None = None
    trust_remote_code: bool | None = None
    hub_options: dict[str, Any] = field(default_factory=dict)


def load_codec(reference: str, origin: Origin | None, device: torch.device | str) -> PreTrainedModel:
    """
    Load the codec that a processor names.

    Args:
        reference (`str`):
            `"codec"` or `"./any/folder"`: a folder inside the processor's own folder or repository. An absolute path,
            or a relative one that exists: a local folder. `"org/name"`, `"org/name/folder"`, each with an optional
            `"@revision"`: a repository on the Hub, or a folder in it.
        origin (`Origin`, *optional*): Where the processor comes from; `None` if it was made in memory.
        device (`torch.device` or `str`): Where the codec goes.

    Raises:
        ValueError: if the reference is relative to a processor that was not loaded from anywhere.
        FileNotFoundError: if there is no such folder.
    """
    options = dict(origin.hub_options) if origin else {}
    model_options = {"dtype": torch.float32}
    if origin is not None and origin.trust_remote_code is not None:
        model_options["trust_remote_code"] = origin.trust_remote_code

    local = _local_folder(reference, origin)
    if local is None:
        repository, folder, revision = _on_the_hub(reference, origin)
        if folder:
            # Remote code of a subfolder lies in that subfolder, where only a local load looks for it.
            snapshot = snapshot_download(repository, revision=revision, allow_patterns=[f"{folder}/*"], **options)
            local = Path(snapshot, folder)
        else:
            codec = AutoModel.from_pretrained(repository, revision=revision or "main", **options, **model_options)
            return codec.to(device).eval()
    if not local.is_dir():
        raise FileNotFoundError(
            f"The codec {reference!r} of this processor should be in {str(local)!r}, which does not exist. Save it "
            "there with `processor.save_pretrained(..., save_codec=True)`, or name another in `codec_name_or_path`."
        )
    return AutoModel.from_pretrained(local, **model_options).to(device).eval()


def reference_from(reference: str, origin: Origin | None, save_directory: str | os.PathLike) -> str:
    """The reference to write into `save_directory`, so that it finds the same codec from there."""
    if _is_inside(reference, origin) and (Path(save_directory, reference).is_dir() or origin is None):
        return reference
    local = _local_folder(reference, origin)
    if local is not None:
        return str(local.resolve())
    repository, folder, revision = _on_the_hub(reference, origin)
    return "/".join(filter(None, (repository, folder))) + (f"@{revision}" if revision not in (None, "main") else "")


def _is_inside(reference: str, origin: Origin | None) -> bool:
    """Whether a reference is relative to the processor."""
    if os.path.isabs(reference):
        return False
    if origin is not None and Path(origin.path, origin.subfolder, reference).is_dir():
        return True
    return reference.startswith(".") or "/" not in reference


def _local_folder(reference: str, origin: Origin | None) -> Path | None:
    """The folder a reference means, which need not exist; `None` if it lies on the Hub."""
    if _is_inside(reference, origin):
        if origin is not None:
            inside = Path(origin.path, origin.subfolder)
            return inside / reference if inside.is_dir() else None
        if not Path(reference).is_dir():
            raise ValueError(
                f"The codec {reference!r} is relative to the folder of the processor, but this processor was not "
                "loaded from one. Set `processor.codec` to a model, or `codec_name_or_path` to a path or a Hub id."
            )
    return Path(reference) if Path(reference).is_dir() or os.path.isabs(reference) else None


def _on_the_hub(reference: str, origin: Origin | None) -> tuple[str, str, str | None]:
    """Repository, folder in it, and revision."""
    if _is_inside(reference, origin):
        folder = os.path.normpath(os.path.join(origin.subfolder, reference)).replace(os.sep, "/")
        return origin.path, folder, origin.revision
    name, _, revision = reference.partition("@")
    organisation, repository, *folder = name.split("/")
    return f"{organisation}/{repository}", "/".join(folder), revision or None
