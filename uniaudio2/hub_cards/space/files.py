"""Files of results: each says in its metadata what made it, and none stays."""

import uuid
from pathlib import Path

import numpy as np
from gradio.utils import get_upload_folder

from ...commands.codes_file import CODES_SUFFIX, save_codes
from ...processing import AudioCodes, read_provenance
from ...processing.processing_uniaudio2 import UniAudio2Processor


class ResultFiles:
    """
    Writes results where gradio serves files from, and remembers them for gradio to delete.

    Gradio deletes what it has copied by itself, but loses sight of the copies of components that were updated in a
    session, as those of a generator are (6.31). So nothing is left for it to copy.
    """

    def __init__(self):
        self.folder = Path(get_upload_folder())
        # One of the `temp_file_sets` of the demo.
        self.paths: set[str] = set()

    def save(
        self, processor: UniAudio2Processor, samples: np.ndarray, codes: AudioCodes, task: str
    ) -> tuple[str, str]:
        """
        Writes a sound and its codes.

        Args:
            processor ([`UniAudio2Processor`]): Notes what made them.
            samples (`np.ndarray` of shape `(samples,)`): The sound.
            codes (`AudioCodes`): Its codes.
            task (`str`): What they answer.

        Returns:
            `tuple[str, str]`: The paths.
        """
        folder = self.folder / uuid.uuid4().hex
        folder.mkdir(parents=True)
        audio, stream = folder / f"{task}.wav", folder / f"{task}{CODES_SUFFIX}"
        self.paths |= {str(audio), str(stream)}
        processor.save_audio(samples, audio, task=task)
        save_codes(codes, stream, metadata=read_provenance(audio))
        return str(audio), str(stream)
