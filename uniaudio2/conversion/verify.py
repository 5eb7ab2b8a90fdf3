"""Checks of a converted folder against the release it was made from."""

import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from .checkpoint_files import SafetensorsFile
from .release_parts import ReleasePart

# What a transformed weight may differ by from its source.
TOLERANCE = 1e-6
SWEEP_SECONDS, SWEEP_LOWEST, SWEEP_HIGHEST = 2.0, 50.0, 8000.0
SWEEP_FLOW_STEPS = 2


def verify_part(part: ReleasePart, folder: Path) -> dict[str, Any]:
    """
    Reads a model's folder back: the loaded model must lack nothing, and every tensor must be that of the release.

    Returns:
        `dict[str, Any]`: What was found, for the record.

    Raises:
        ValueError: If anything differs.
    """
    written = SafetensorsFile(*sorted(folder.glob("*.safetensors")))
    names = part.model.state_dict().keys()
    if written.keys() != names:
        raise ValueError(
            f"Verification: {folder} holds other weights than its model: {sorted(written.keys() ^ names)}."
        )
    _check_untransformed(part, written)
    largest = _check_transformed(part, written)

    model, info = type(part.model).from_pretrained(folder, output_loading_info=True)
    faults = {kind: sorted(map(str, found)) for kind, found in info.items() if found and kind != "error_msgs"}
    if faults or info.get("error_msgs"):
        raise ValueError(f"Verification: {folder} does not load cleanly: {faults or info['error_msgs']}.")
    transformed = sum(origin.transform is not None for _, origin in part.origins.values())
    filled = len(part.record.get("not in the release", {}))
    result = {
        "weights equal to their source bit for bit": len(names) - transformed - filled,
        "weights recomputed from their source": transformed,
        "largest difference of those": largest,
        "missing, unexpected or mismatched keys": 0,
    }
    if isinstance(model, ReasoningCodecModel):
        result["sine sweep"] = _check_sweep(model)
    return result


def _check_untransformed(part: ReleasePart, written: SafetensorsFile) -> None:
    for name in tqdm(written, desc="comparing", unit=" weights", leave=False):
        source, origin = part.origins[name]
        if origin.transform is None:
            found, expected = written[name], source[origin.key].to(part.layout[name].dtype)
            # As bytes: a NaN equals itself.
            if found.dtype != expected.dtype or not torch.equal(_as_bytes(found), _as_bytes(expected)):
                raise ValueError(f"Verification: {name} differs from {origin.key} of the release.")
        written.give_back_pages()
        source.give_back_pages()


def _check_transformed(part: ReleasePart, written: SafetensorsFile) -> float:
    """Puts the parts of each split tensor together again, the other way than it was split."""
    parts = defaultdict(list)
    for name, (source, origin) in part.origins.items():
        if origin.transform is not None:
            parts[origin.key].append((name, source))
    largest = 0.0
    for key, members in parts.items():
        source = members[0][1]
        queries, keys, values = (written[name] for name, _ in sorted(members, key=lambda member: _order(member[0])))
        if "attn.attn" in key:
            # The older layout: each group has its query heads, its key and its value.
            stack = part.model.config.depth_decoder_config if "decoder." in members[0][0] else part.model.config
            groups = stack.num_key_value_heads
            by_group = [weight.unflatten(0, (groups, -1)) for weight in (queries, keys, values)]
            joined = torch.cat(by_group, dim=1).flatten(0, 1)
        else:
            joined = torch.cat([queries, keys, values])
        expected = source[key].to(joined.dtype)
        difference = (joined.float() - expected.float()).abs().max().item()
        if not difference <= TOLERANCE:
            raise ValueError(f"Verification: the parts of {key} differ from it by {difference:g}.")
        largest = max(largest, difference)
        written.give_back_pages()
        source.give_back_pages()
    return largest


def _order(name: str) -> int:
    return ("q_proj", "k_proj", "v_proj").index(name.split(".")[-2])


@torch.no_grad()
def _check_sweep(codec: ReasoningCodecModel) -> dict[str, Any]:
    """A rising tone goes in and comes out, with codes in range and finite samples."""
    codec = codec.float().eval()
    rate = codec.config.sampling_rate
    time = torch.arange(round(SWEEP_SECONDS * rate), dtype=torch.float64) / rate
    growth = math.log(SWEEP_HIGHEST / SWEEP_LOWEST) / SWEEP_SECONDS
    phase = 2 * math.pi * SWEEP_LOWEST * torch.expm1(growth * time) / growth
    codes = codec.encode((0.5 * phase.sin()).float()[None], encode_mode="exact")
    for name in ("reasoning", "reconstruction"):
        found, size = codes[f"{name}_codes"], getattr(codec.config, f"{name}_codebook_size")
        if found.min() < 0 or found.max() >= size:
            raise ValueError(f"Verification: {name} codes of a sine sweep lie outside 0..{size - 1}.")
    audio = codec.decode(
        codes.reconstruction_codes,
        num_inference_steps=SWEEP_FLOW_STEPS,
        decode_mode="exact",
        generator=torch.Generator().manual_seed(0),
    ).audio_values
    if not torch.isfinite(audio).all():
        raise ValueError("Verification: the decoded sine sweep has samples that are not finite.")
    return {
        "reasoning codes": list(codes.reasoning_codes.shape),
        "reconstruction codes": list(codes.reconstruction_codes.shape),
        "samples": audio.shape[-1],
    }


def _as_bytes(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)
