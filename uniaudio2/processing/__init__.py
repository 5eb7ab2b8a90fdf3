"""Task formats, the processor and the data collator."""

from .audio_file import read_provenance
from .data_collator import UniAudio2DataCollator
from .processing_uniaudio2 import AUDIO_ID_NAMES, UniAudio2Processor
from .rows import AudioCodes
from .tasks import TASKS, TaskFormat

__all__ = [
    "UniAudio2Processor",
    "UniAudio2DataCollator",
    "AudioCodes",
    "TASKS",
    "TaskFormat",
    "AUDIO_ID_NAMES",
    "read_provenance",
]
