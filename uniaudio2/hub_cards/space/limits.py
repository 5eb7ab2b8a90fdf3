"""What the demo accepts, and what it says to those who ask for more."""

from pathlib import Path

import soundfile

MAX_CHARACTERS = 500
# With 17.5 rows for a second, a recording and an answer as long as the model makes fit into the 2048 rows it was
# trained on.
MAX_RECORDING_SECONDS = 60.0
# A minute in two channels of the highest rate that is common. A small file can unpack to far more.
MAX_SAMPLES = 60 * 2 * 192_000
MAX_ANSWER_SECONDS = 30.0
MAX_TURNS = 12
MAX_UPLOAD = "50mb"
# Requests that may wait, and how long one of them may take.
MAX_WAITING = 32
MAX_WORK_SECONDS = 120
# Files are looked through this often, and deleted when they are this old (seconds).
FILE_CHECK_INTERVAL, FILE_LIFETIME = 300, 3600


def check_text(text: str | None, name: str) -> str:
    """The text without white space around it. A `ValueError`, for people to read, if it is empty or too long."""
    text = (text or "").strip()
    if not text:
        raise ValueError(f"{name} is empty: write something first.")
    return check_length(text, name)


def check_length(text: str | None, name: str) -> str:
    """As [`check_text`], for a text that may be left out."""
    text = (text or "").strip()
    if len(text) > MAX_CHARACTERS:
        raise ValueError(
            f"{name} has {len(text):,} characters, and this demo takes {MAX_CHARACTERS} at a time: shorten it, or run "
            "the model on your own machine, where there is no limit."
        )
    return text


def check_recording(path: str | None, name: str = "The recording") -> str:
    """The path of a recording. A `ValueError`, for people to read, if it is missing, no audio, or too long."""
    if not path:
        raise ValueError(f"{name} is missing: record one or upload a file first.")
    if not Path(path).is_file():
        raise ValueError(f"{name} is not here any more, because files are deleted after a while: upload it again.")
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"{name} cannot be read as audio, whatever its name says: upload a WAV, FLAC, OGG, OPUS or MP3 file."
        ) from error
    seconds = info.duration
    if seconds > MAX_RECORDING_SECONDS:
        raise ValueError(
            f"{name} is {_spoken(seconds)} long, and this demo takes {_spoken(MAX_RECORDING_SECONDS)} at a time: cut "
            "it, or run the model on your own machine, where there is no limit."
        )
    if info.frames * info.channels > MAX_SAMPLES:
        raise ValueError(
            f"{name} has {info.channels} channels of {info.samplerate:,} samples a second, which is more than this "
            "demo takes: save it in one channel at 48,000."
        )
    return path


def _spoken(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    minutes = round(seconds / 60)
    return f"{minutes} minutes" if minutes < 120 else f"{minutes / 60:.1f} hours"
