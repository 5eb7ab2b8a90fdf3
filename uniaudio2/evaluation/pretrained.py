"""Pretrained models that metrics judge with: whether they are here, what a download would be, how to load them."""

from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from .metric import MetricUnavailableError

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
# `OSError` is what the offline switch raises; a failed connection is an error of the Hub's HTTP client, whose package
# has changed its name before.
UNREACHABLE = (OSError, *HfHubHTTPError.__bases__)


def check_pretrained(model: str, purpose: str) -> list[str]:
    """
    Whether a model is on this machine, or can be had.

    Args:
        model (`str`): A folder or a Hub id.
        purpose (`str`): What it is needed for, for the messages.

    Returns:
        `list[str]`: Empty if it is here, else one line on the download that is going to happen.

    Raises:
        MetricUnavailableError: if it is not here and the Hub cannot be asked, or does not give it to this user.
    """
    if Path(model).is_dir():
        return []
    if any(isinstance(try_to_load_from_cache(model, name), str) for name in WEIGHT_FILES):
        return []
    fetch = f"fetch it with `hf download {model}` on a machine with a network, or name a local folder"
    try:
        info = HfApi().model_info(model, files_metadata=True, timeout=10)
        if info.gated:
            # Anybody may look at it, but fetch it only with leave: better known now than after the answers.
            HfApi().auth_check(model)
    except UNREACHABLE as error:
        reason = str(error).splitlines()[0]
        raise MetricUnavailableError(
            f"{purpose} needs {model}, which is not on this machine ({reason}): {fetch}"
        ) from error
    weights = [file.size or 0 for file in info.siblings or [] if file.rfilename.endswith((".safetensors", ".bin"))]
    size = f"up to {sum(weights) / 1e9:.1f} GB" if weights else "of unknown size"
    return [f"{purpose} downloads {model}, {size}, before it starts; or {fetch}"]


def load_pretrained(model_class, processor_class, model: str, device: str | torch.device):
    """A model in evaluation mode on its device, and its processor; a `MetricUnavailableError` says how to fetch it."""
    check_pretrained(model, "this metric")
    return (
        model_class.from_pretrained(model).to(device).eval(),
        processor_class.from_pretrained(model),
    )
