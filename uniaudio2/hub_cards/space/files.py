"""Files of results. Each says in its metadata what made it."""

from pathlib import Path

import numpy as np

from ...commands.codes_file import CODES_SUFFIX, save_codes
from ...processing import AudioCodes, read_provenance
from ...processing.processing_uniaudio2 import UniAudio2Processor


def save_result(
    processor: UniAudio2Processor, samples: np.ndarray, codes: AudioCodes, folder: str, task: str
) -> tuple[str, str]:
    """
    Writes the sound and its codes.

    Args:
        processor ([`UniAudio2Processor`]): Notes what made them.
        samples (`np.ndarray` of shape `(samples,)`): The sound.
        codes (`AudioCodes`): Its codes.
        folder (`str`): Where to.
        task (`str`): What they answer.

    Returns:
        `tuple[str, str]`: The paths.
    """
    audio, stream = Path(folder, f"{task}.wav"), Path(folder, f"{task}{CODES_SUFFIX}")
    processor.save_audio(samples, audio, task=task)
    save_codes(codes, stream, metadata=read_provenance(audio))
    return str(audio), str(stream)
