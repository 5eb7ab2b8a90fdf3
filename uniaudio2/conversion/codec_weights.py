"""The tensors of the released codec, wherever in the release they are.

Whisper, WavLM and the music encoder are frozen parts of the codec. A checkpoint may contain them or leave them to the
encoders' own files. Those inside win: training may have moved their statistics (codec notes, "frozen encoders").
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ..modeling_uniaudio2.configuration_reasoning_codec import ReasoningCodecConfig
from ..modeling_uniaudio2.modeling_reconstruction_branch import FeatureDecoder
from .checkpoint_files import SafetensorsFile, TorchFile
from .codec import (
    MUSIC_PREFIX,
    WAVLM_PREFIX,
    WHISPER_PREFIX,
    codec_key_table,
    feature_decoder_key_table,
    released_name,
)
from .release_files import ReleaseFiles


@dataclass(frozen=True)
class EncoderFile:
    """
    The file of its own that an encoder has in the release.

    Args:
        prefix (`str`): Of its names inside the codec's file.
        names (`tuple[str, ...]`): Where the file may be.
        entry (`str`, *optional*): Under which key a pickle holds the tensors.
        own_prefixes (`tuple[str, ...]`): What may be in front of the same names in the file.
    """

    prefix: str
    names: tuple[str, ...]
    entry: str | None
    own_prefixes: tuple[str, ...]


ENCODER_FILES = (
    EncoderFile(
        WHISPER_PREFIX,
        ("whisper-medium/model.safetensors", "whisper-medium/pytorch_model.bin"),
        None,
        ("model.encoder.", "encoder."),
    ),
    EncoderFile(WAVLM_PREFIX, ("wavlm/model.safetensors", "wavlm/pytorch_model.bin"), None, ("wavlm.", "")),
    EncoderFile(MUSIC_PREFIX, ("music_ssl.pt",), "model", ("model.",)),
)

# Weights that do nothing when the codec encodes and decodes, and what they begin with where a release lacks them.
FILLED = {
    r".*\._codebook\.initted": "codebooks of a trained model are initialised",
    r".*\._codebook\.cluster_size": "statistics of training: one use of every code",
    r".*\._codebook\.embed_avg": "statistics of training: the codes themselves, used once",
    r".*\.num_batches_tracked": "a counter of training",
    r"pretrained_model\.model\.model\.conformer\.layer_norm\..*": "a norm after the last layer that is read",
    r"wavlm_encoder\.masked_spec_embed": "the mask of WavLM's own pre-training",
    r"(pronunciation|structure_semantic)_decoder\..*": "served an auxiliary loss of training alone: fresh weights",
}


@dataclass
class CodecWeights(Mapping):
    """
    The tensors of several files under the names of the key table, without their values in memory.

    Args:
        places (`dict`): Name to its file and the name there.
        shapes, dtypes (`dict`): Of every tensor.
        dropped (`dict[str, str]`): Names that were left in their files, with the reason.
        filled (`dict[str, torch.Tensor]`): Tensors that the release does not have.
        notes (`dict[str, str]`): Which file each encoder came from.
    """

    places: dict[str, tuple[TorchFile | SafetensorsFile, str]] = field(default_factory=dict)
    shapes: dict[str, torch.Size] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    dropped: dict[str, str] = field(default_factory=dict)
    filled: dict[str, torch.Tensor] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> torch.Tensor:
        if name in self.filled:
            return self.filled[name]
        file, key = self.places[name]
        return file[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def add(self, name: str, file: TorchFile | SafetensorsFile, key: str) -> None:
        self.places[name], self.shapes[name], self.dtypes[name] = (file, key), file.shapes[key], file.dtypes[key]

    def describe(self, name: str) -> dict[str, str]:
        """As [`TorchFile.describe`]."""
        if name in self.filled:
            return {"not in the release": name}
        file, key = self.places[name]
        return file.describe(key)

    def give_back_pages(self) -> None:
        """As [`TorchFile.give_back_pages`]."""
        for file in {id(file): file for file, _ in self.places.values()}.values():
            file.give_back_pages()


def open_codec_weights(files: ReleaseFiles, codec_file: str) -> CodecWeights:
    """
    Opens the codec's file, and those of the encoders that are not in it.

    Raises:
        FileNotFoundError: If an encoder is neither in the codec's file nor has one of its own.
        ValueError: If a file is damaged.
    """
    weights = CodecWeights()
    checkpoint = TorchFile(files.path(codec_file), "model")
    for key in checkpoint:
        weights.add(released_name(key), checkpoint, key)
    for encoder in ENCODER_FILES:
        if any(name.startswith(encoder.prefix) for name in weights):
            weights.notes[encoder.prefix] = f"inside {codec_file}, which wins over a file of its own"
        else:
            _add_encoder(weights, files, codec_file, encoder)
    return weights


def fill_missing(weights: CodecWeights, config: ReasoningCodecConfig) -> dict[str, str]:
    """
    Adds what a release may lack because only training needs it.

    Returns:
        `dict[str, str]`: The names that were added, with the reason.
    """
    reasons = {}
    for name in codec_key_table(config).keys() - weights.keys():
        reason = next((reason for pattern, reason in FILLED.items() if re.fullmatch(pattern, name)), None)
        if reason is not None:
            reasons[name] = reason
    fresh = _fresh_feature_decoders(config) if any("_decoder." in name for name in reasons) else {}
    for name in reasons:
        value = fresh[name] if name in fresh else _start_value(name, weights)
        weights.filled[name], weights.shapes[name], weights.dtypes[name] = value, value.shape, value.dtype
    return reasons


def _add_encoder(weights: CodecWeights, files: ReleaseFiles, codec_file: str, encoder: EncoderFile) -> None:
    found = next((name for name in encoder.names if files.find(name)), None)
    path = files.path(
        found or encoder.names[0], f"{codec_file} does not contain the encoder {encoder.prefix.rstrip('.')} either."
    )
    file = SafetensorsFile(path) if path.suffix == ".safetensors" else TorchFile(path, encoder.entry)
    weights.notes[encoder.prefix] = f"{found}, because {codec_file} does not contain it"
    own_prefix = next(prefix for prefix in (*encoder.own_prefixes, "") if any(key.startswith(prefix) for key in file))
    for key in file:
        if key.startswith(own_prefix):
            weights.add(released_name(encoder.prefix + key.removeprefix(own_prefix)), file, key)
        else:
            weights.dropped[f"{found}: {key}"] = "not part of the encoder"


def _start_value(name: str, weights: CodecWeights) -> torch.Tensor:
    stem, _, last = name.rpartition(".")
    if last == "initted":
        return torch.tensor(True)
    if last == "cluster_size":
        return torch.ones(weights.shapes[f"{stem}.embed"][:2])
    if last == "embed_avg":
        return weights[f"{stem}.embed"].float().clone()
    if last == "num_batches_tracked":
        return torch.tensor(0)
    if last == "masked_spec_embed":
        return torch.zeros(weights.shapes[f"{WAVLM_PREFIX}encoder.layer_norm.weight"])
    width = weights.shapes[f"{MUSIC_PREFIX}conv.linear.bias"]
    return torch.ones(width) if last == "weight" else torch.zeros(width)


def _fresh_feature_decoders(config: ReasoningCodecConfig) -> dict[str, torch.Tensor]:
    """Both decoders as a training would begin them, the same at every conversion."""
    fresh = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for prefix, width, strides in (
            ("pronunciation_decoder.", config.wavlm_config.hidden_size, (2, 2)),
            ("structure_semantic_decoder.", config.music_encoder_config.hidden_size, (1, 2)),
        ):
            values = FeatureDecoder(config.hidden_size, width, strides).state_dict()
            for released, ours in feature_decoder_key_table(strides).items():
                fresh[prefix + released] = values[ours]
    return fresh
