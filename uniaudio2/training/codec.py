"""Training the codec around its frozen front ends: reasoning branch, reconstruction branch, flow decoder.

The stages are those of the paper, made small. The reasoning branch learns to be text-aligned: the paper puts a
language model behind its codes, here a linear head spells the transcript from them (CTC). Then it is frozen, and the
reconstruction branch learns together with the flow decoder. At last the codes stay as they are, and the flow decoder
learns alone. What the front ends hear is computed once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import Trainer

from ..modeling_uniaudio2.modeling_codec_front_ends import ReasoningCodecFeatures
from ..modeling_uniaudio2.modeling_reasoning_branch import ReasoningBranch
from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from .front_ends import LetterLabels
from .waveforms import PaddedWaveforms, WaveformDataset


class FeatureBatches(Dataset):
    """What the front ends hear in a corpus, in ready batches of recordings that fill the same number of 0.4 s units.

    Encoders hear padding, so recordings of different lengths must not meet in a batch here any more than in
    `codec.encode`. Train with a batch size of 1 and [`only_item`] as collator.

    Args:
        codec ([`ReasoningCodecModel`]): Its front ends are used.
        dataset ([`WaveformDataset`]): The recordings.
        labels ([`LetterLabels`]): Spells the texts.
        batch_size (`int`): Most recordings in an item.
    """

    def __init__(self, codec: ReasoningCodecModel, dataset: WaveformDataset, labels: LetterLabels, batch_size: int):
        self.unit, self.hop = codec.config.frame_unit, codec.config.latent_hop_length
        by_length = defaultdict(list)
        for index in torch.randperm(len(dataset)).tolist():
            by_length[-(-dataset.rows[index]["num_samples"] // self.unit)].append(index)
        self.groups = [
            indices[start : start + batch_size]
            for indices in by_length.values()
            for start in range(0, len(indices), batch_size)
        ]
        self.items = []
        for waveform, num_samples, texts in self._batches(dataset, "front ends"):
            with torch.no_grad():
                features = codec.front_ends(waveform.to(codec.device))
            frames = torch.arange(waveform.shape[1] // self.hop)
            letters = [labels.encode(text) for text in texts]
            self.items.append(
                {
                    # Half precision is enough for the features of small models.
                    "features": {name: value.half().cpu() for name, value in features.items()}
                    | {"latent_mask": frames * self.hop < num_samples[:, None]},
                    "labels": nn.utils.rnn.pad_sequence(letters, batch_first=True),
                    "label_lengths": torch.tensor([len(sequence) for sequence in letters]),
                }
            )

    @torch.no_grad()
    def add_targets(self, codec: ReasoningCodecModel, dataset: WaveformDataset) -> None:
        """Put beside the features what the reconstruction stage takes from frozen parts: the quantised reasoning, and
        the scalar codec's latents, which the flow decoder learns to paint."""
        codec.eval()
        for index, (waveform, _, _) in enumerate(self._batches(dataset, "latents")):
            given = self[index]["features"]
            latents = codec.scalar_codec.encode(waveform[:, None].to(codec.device)).transpose(1, 2)
            reasoning = codec.reasoning_branch(
                given["whisper"].to(codec.device), given["music_semantic"].to(codec.device)
            ).quantized
            self.items[index]["features"] |= {"latents": latents.half().cpu(), "reasoning": reasoning.half().cpu()}

    def _batches(self, dataset: WaveformDataset, what: str) -> Iterator[tuple[torch.Tensor, torch.Tensor, list[str]]]:
        collate = PaddedWaveforms(self.unit)
        for group in tqdm(self.groups, desc=what):
            items = [dataset[index] for index in group]
            batch = collate(items)
            yield batch["waveform"], batch["num_samples"], [item["text"] for item in items]

    def save(self, path: Path) -> None:
        """Write what `load` reads: numbers and tensors alone."""
        torch.save(vars(self), path)

    @classmethod
    def load(cls, path: Path) -> "FeatureBatches":
        batches = cls.__new__(cls)
        vars(batches).update(torch.load(path, weights_only=True))
        return batches

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> dict:
        item = self.items[index]
        features = {k: v.float() if v.is_floating_point() else v for k, v in item["features"].items()}
        return {"features": features, "labels": item["labels"], "label_lengths": item["label_lengths"]}


def only_item(items: Sequence[dict]) -> dict:
    """Collator for datasets whose items are batches already."""
    (item,) = items
    return item


class ReasoningBranchForTraining(nn.Module):
    """The reasoning branch with a head that spells the transcript from its quantised queries.

    Five frames per second are too few for CTC, so the head says several letters per frame. It is thrown away.

    Args:
        branch ([`ReasoningBranch`]): Trained in place.
        hidden_size (`int`): Its width.
        num_classes (`int`): Letters and the CTC blank.
        letters_per_frame (`int`): At 5 frames per second, 8 are 40 per second.
        commitment_weight (`float`): Weight of the quantizer's commitment loss.
    """

    def __init__(
        self,
        branch: ReasoningBranch,
        hidden_size: int,
        num_classes: int,
        letters_per_frame: int,
        commitment_weight: float,
    ):
        super().__init__()
        self.branch = branch
        self.letters_per_frame = letters_per_frame
        self.commitment_weight = commitment_weight
        self.head = nn.Linear(hidden_size, letters_per_frame * num_classes)

    def forward(
        self, features: dict[str, torch.Tensor], labels: torch.Tensor, label_lengths: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One item of [`FeatureBatches`] -> `loss`, CTC `logits (batch, steps, classes)` and the `codes`."""
        frame_mask = features["latent_mask"][:, :: self.branch.interval]
        output = self.branch(
            features["whisper"], features["music_semantic"], frame_mask=frame_mask, update_codebooks=self.training
        )
        logits = self.head(output.quantized).unflatten(-1, (self.letters_per_frame, -1)).flatten(1, 2)
        lengths = self.letters_per_frame * frame_mask.sum(dim=1)
        ctc_loss = F.ctc_loss(
            logits.log_softmax(dim=-1).transpose(0, 1), labels, lengths, label_lengths, zero_infinity=True
        )
        loss = ctc_loss + self.commitment_weight * output.commitment_loss.mean()
        return {"loss": loss, "logits": logits.detach(), "codes": output.codes}


class FlowForTraining(nn.Module):
    """A codec whose codes stay as they are while the flow decoder and its conditioner learn."""

    def __init__(self, codec: ReasoningCodecModel):
        super().__init__()
        self.codec = codec
        codec.requires_grad_(False)
        codec.flow_conditioner.requires_grad_(True)
        codec.flow_decoder.requires_grad_(True)

    def train(self, mode: bool = True) -> "FlowForTraining":
        super().train(mode)
        # In evaluation mode codebooks do not follow the batches, and the modulation is never dropped.
        self.codec.reconstruction_branch.eval()
        return self

    def forward(self, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        # The other losses are constants here.
        return {"loss": self.codec(features=ReasoningCodecFeatures(**features)).loss}


class CodecTrainer(Trainer):
    """[`~transformers.Trainer`] for the stages of the codec, on [`FeatureBatches`]."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if isinstance(model, ReasoningBranchForTraining):
            outputs = model(**inputs)
        elif isinstance(model, FlowForTraining):
            outputs = model(inputs["features"])
        else:
            outputs = model(features=ReasoningCodecFeatures(**inputs["features"]))
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]


def code_usage(codes: torch.Tensor, codebook_size: int) -> list[float]:
    """Perplexity of each codebook's codes over `codebook_size`: 1 when all are used equally often.

    Args:
        codes (`torch.LongTensor` of shape `(..., num_codebooks)`): -1 is padding.
    """
    usage = []
    for book in codes.flatten(0, -2).T:
        counts = torch.bincount(book[book >= 0], minlength=codebook_size).float()
        probabilities = counts / counts.sum()
        usage.append((torch.special.entr(probabilities).sum().exp() / codebook_size).item())
    return usage
