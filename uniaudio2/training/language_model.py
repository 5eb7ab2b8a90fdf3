"""Training the language model on codes that were computed once."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from tqdm import tqdm
from transformers import Trainer
from transformers.trainer_pt_utils import LengthGroupedSampler

from ..modeling_uniaudio2.modeling_reasoning_codec import ReasoningCodecModel
from ..processing.rows import AudioCodes
from .waveforms import PaddedWaveforms, WaveformDataset


def encode_corpus(codec: ReasoningCodecModel, dataset: WaveformDataset, batch_size: int, path: Path) -> None:
    """Write the codes of a split: dicts with `reasoning_codes` and `reconstruction_codes` (int16), and `text`."""
    collate = PaddedWaveforms(1)
    codes = []
    for start in tqdm(range(0, len(dataset), batch_size), desc="codes"):
        items = [dataset[index] for index in range(start, min(start + batch_size, len(dataset)))]
        batch = collate(items)
        mask = torch.arange(batch["waveform"].shape[1]) < batch["num_samples"][:, None]
        encoded = codec.encode(batch["waveform"].to(codec.device), mask.to(codec.device))
        for index, item in enumerate(items):
            codes.append(
                {
                    "reasoning_codes": encoded.reasoning_codes[index][:, encoded.reasoning_mask[index]].cpu().short(),
                    "reconstruction_codes": encoded.reconstruction_codes[index][:, encoded.reconstruction_mask[index]]
                    .cpu()
                    .short(),
                    "text": item["text"],
                }
            )
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(codes, path)


class TaskExamples(Dataset):
    """Every recording once per task, as examples for [`~uniaudio2.processing.data_collator.UniAudio2DataCollator`].

    Args:
        recordings (`Sequence[dict]`): As [`encode_corpus`] writes them.
        tasks (`Iterable[str]`): Tasks that need a `text` and an `audio`, or one of them.
    """

    def __init__(self, recordings: Sequence[dict], tasks: Iterable[str]):
        self.recordings = recordings
        self.tasks = tuple(tasks)

    def __len__(self) -> int:
        return len(self.recordings) * len(self.tasks)

    def __getitem__(self, index: int) -> dict:
        recording = self.recordings[index // len(self.tasks)]
        audio = AudioCodes(recording["reasoning_codes"].long(), recording["reconstruction_codes"].long())
        return {"task": self.tasks[index % len(self.tasks)], "audio": audio, "text": recording["text"]}

    def lengths(self) -> list[int]:
        """Reconstruction frames of each example, by which batches are put together."""
        frames = [recording["reconstruction_codes"].shape[1] for recording in self.recordings]
        return [length for length in frames for _ in self.tasks]


class LanguageModelTrainer(Trainer):
    """[`~transformers.Trainer`] on [`TaskExamples`], in batches of similar lengths; logs both parts of the loss."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.parts: dict[str, list[float]] = {}

    def _get_train_sampler(self, train_dataset: TaskExamples | None = None) -> LengthGroupedSampler:
        # transformers' own choice of this sampler reads lengths from `input_ids`, which are not made yet.
        dataset = self.train_dataset if train_dataset is None else train_dataset
        return LengthGroupedSampler(self.args.train_batch_size, lengths=dataset.lengths())

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        outputs = model(**inputs)
        for name in ("text_loss", "audio_loss"):
            self.parts.setdefault(name, []).append(outputs[name].item())
        return (outputs.loss, outputs) if return_outputs else outputs.loss

    def log(self, logs: dict[str, float], *args, **kwargs) -> None:
        if "loss" in logs:
            logs |= {name: sum(values) / len(values) for name, values in self.parts.items()}
            self.parts.clear()
        super().log(logs, *args, **kwargs)
