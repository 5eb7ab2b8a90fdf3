"""The task formats of UniAudio 2.0, as data.

A task is an ordered list of segments. Segments that are given come first, segments that the model writes (`target`)
come last; training computes its loss on the targets, generation starts where the first target would. `rows.py` turns
a format and its values into rows of ids. The order of the segments, their wrappers and the tasks whose condition is
dropped in training are those of the released code (`tests/parity/test_formats.py` compares them row for row); the
prompts are ours.
"""

from dataclasses import dataclass
from typing import Literal

TEXT, REASONING, RECONSTRUCTION, AUDIO_PROMPT = "text", "reasoning", "reconstruction", "audio_prompt"


@dataclass(frozen=True)
class Segment:
    """
    One part of a sequence.

    Args:
        kind (`str`):
            `"text"`, `"reasoning"` (reasoning codes of a recording), `"reconstruction"` (its reconstruction codes) or
            `"audio_prompt"` (reconstruction codes of a voice or sound to follow, with bos and eos rows of their own).
        field (`str`):
            The name under which the user gives the value. The two streams of one recording share a field.
        target (`bool`, *optional*, defaults to `False`):
            Whether the model writes this segment.
        wrapper (`str`, *optional*):
            For text: the name of the special tokens around it, `"caption"` for `<caption>` and `</caption>`.
        max_frames (`int`, *optional*):
            For audio: the largest number of frames that is used.
    """

    kind: Literal["text", "reasoning", "reconstruction", "audio_prompt"]
    field: str
    target: bool = False
    wrapper: str | None = None
    max_frames: int | None = None


@dataclass(frozen=True)
class TaskFormat:
    """
    The format of one task.

    Args:
        name (`str`): The released name of the task.
        description (`str`): What the task does, in a few words.
        segments (`tuple[Segment, ...]`): The parts after the task prompt, in order.
        prompts (`tuple[str, ...]`, *optional*):
            Instructions that say what to do; the first is the default. Empty for the tasks that start without one.
        condition_dropout (`bool`, *optional*, defaults to `False`):
            Whether training may drop the condition, so that classifier-free guidance works (released code).
    """

    name: str
    description: str
    segments: tuple[Segment, ...]
    prompts: tuple[str, ...] = ()
    condition_dropout: bool = False

    @property
    def conditions(self) -> tuple[Segment, ...]:
        """The segments a prompt holds: those before the first target."""
        first_target = next(index for index, segment in enumerate(self.segments) if segment.target)
        return self.segments[:first_target]

    @property
    def targets(self) -> tuple[Segment, ...]:
        """The segments the model writes."""
        return tuple(segment for segment in self.segments if segment.target)

    @property
    def condition_fields(self) -> tuple[str, ...]:
        """The names of the values a prompt needs, in order."""
        return tuple(dict.fromkeys(segment.field for segment in self.conditions))

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of all values a training example needs, in order."""
        return tuple(dict.fromkeys(segment.field for segment in self.segments))

    @property
    def output(self) -> Literal["text", "audio"]:
        """What the model answers with."""
        return "text" if self.targets[0].kind == TEXT else "audio"

    @property
    def num_recordings(self) -> int:
        """The recordings that the answer can be heard as; 0 for a text and for reasoning codes alone."""
        return sum(segment.kind == RECONSTRUCTION for segment in self.targets)

    def is_text(self, field: str) -> bool:
        """Whether the value called `field` is a text (otherwise it is a recording)."""
        return any(segment.kind == TEXT for segment in self.segments if segment.field == field)


def _text(field: str, wrapper: str | None = None, target: bool = False) -> tuple[Segment, ...]:
    return (Segment(TEXT, field, target=target, wrapper=wrapper),)


def _audio(field: str = "audio", target: bool = False) -> tuple[Segment, ...]:
    """The two streams of a recording: always reasoning first, except in the two translation tasks below."""
    return (Segment(REASONING, field, target=target), Segment(RECONSTRUCTION, field, target=target))


_SOURCE = _audio()
_ANSWER = _audio(target=True)
_TARGET_AUDIO = _audio("target_audio", target=True)
_SEPARATED = _audio("target_audio_1", target=True) + _audio("target_audio_2", target=True)
_TRANSCRIPTION = _text("text", wrapper="transcription")
_CAPTION = _text("caption", wrapper="caption")
# The released code crops the voice prompt to three seconds: 37 frames at 12.5 Hz.
_VOICE = (Segment(AUDIO_PROMPT, "audio_prompt", max_frames=37),)

_FORMATS = (
    # Audio in, text out.
    TaskFormat(
        "ASR",
        "speech to its transcript",
        _SOURCE + _text("text", wrapper="transcription", target=True),
        (
            "Transcribe the speech.",
            "Write down what is said.",
            "Turn this recording into text.",
            "What does the speaker say?",
        ),
    ),
    TaskFormat(
        "Yue_ASR",
        "Cantonese speech to its transcript",
        _SOURCE + _text("text", wrapper="transcription", target=True),
        ("Transcribe the Cantonese speech.", "Write down what is said in Cantonese."),
    ),
    TaskFormat(
        "D_ASR",
        # The release names the task only; the paper reports dysarthric recognition.
        "dysarthric speech to its transcript",
        _SOURCE + _text("text", wrapper="transcription", target=True),
        ("Transcribe the dysarthric speech.", "Write down what the speaker with dysarthria says."),
    ),
    TaskFormat(
        "lyric_recognition",
        "singing to its lyrics",
        _SOURCE + _text("lyric", wrapper="lyric", target=True),
        ("Write down the lyrics of this song.", "Which words are sung?", "Transcribe the singing."),
    ),
    TaskFormat(
        "audio_caption",
        "a sound to a description",
        _SOURCE + _text("caption", wrapper="caption", target=True),
        ("Describe the sound.", "What can be heard in this recording?", "Write a caption for this audio clip."),
    ),
    TaskFormat(
        "music_caption",
        "music to a description",
        _SOURCE + _text("caption", wrapper="caption", target=True),
        ("Describe the music.", "Write a caption for this piece of music.", "What kind of music is this?"),
    ),
    TaskFormat(
        "audio_understanding",
        "a question about a recording to its answer",
        _text("question") + _SOURCE + _text("answer", target=True),
        ("Listen to the audio and answer the question.", "Answer the question with the help of the recording."),
    ),
    TaskFormat(
        "speech_s2t",
        "a spoken question to a written answer",
        _SOURCE + _text("text", target=True),
        ("Listen to the speaker and reply in writing.", "Answer the spoken question with text."),
    ),
    # Text in, audio out.
    TaskFormat(
        "TTS",
        "text to speech",
        _TRANSCRIPTION + _ANSWER,
        ("Read the text aloud.", "Say the following text.", "Turn this text into speech.", "Speak these words."),
        condition_dropout=True,
    ),
    TaskFormat(
        "Yue_TTS",
        "text to Cantonese speech",
        _TRANSCRIPTION + _ANSWER,
        ("Read the text aloud in Cantonese.", "Say the following text in Cantonese."),
        condition_dropout=True,
    ),
    TaskFormat(
        "TTA",
        "a description to a sound",
        _CAPTION + _ANSWER,
        ("Make the sound that is described.", "Produce audio for this description.", "Let me hear this scene."),
        condition_dropout=True,
    ),
    TaskFormat(
        "TTM",
        "a description to music",
        _CAPTION + _ANSWER,
        ("Compose music for this description.", "Play the music that is described.", "Write music like this."),
        condition_dropout=True,
    ),
    TaskFormat(
        "LTS",
        "lyrics to a song",
        _text("lyric", wrapper="lyric") + _ANSWER,
        ("Sing these lyrics.", "Make a song out of these words.", "Perform the following lyrics."),
        condition_dropout=True,
    ),
    TaskFormat(
        "InstructTTS",
        "text to speech in a described voice",
        _CAPTION + _TRANSCRIPTION + _ANSWER,
        (
            "Read the text aloud in the voice that is described.",
            "Speak the words in the given style.",
            "Follow the voice description and say the text.",
        ),
        condition_dropout=True,
    ),
    TaskFormat(
        "prompt_instruct_tts",
        "text to speech in a voice given by a recording and a description",
        _VOICE + _CAPTION + _TRANSCRIPTION + _ANSWER,
        ("Read the text aloud with the recorded voice, in the style that is described.",),
    ),
    # Audio in, audio out.
    TaskFormat(
        "speech_s2s",
        "a spoken question to a spoken answer",
        _SOURCE + _TARGET_AUDIO,
        ("Listen to the speaker and reply with your voice.", "Answer the spoken question aloud."),
    ),
    TaskFormat(
        "speech_denoise",
        "noisy speech to clean speech",
        _SOURCE + _TARGET_AUDIO,
        ("Remove the noise from the speech.", "Clean up this recording."),
    ),
    TaskFormat(
        "speech_edit",
        "speech and an instruction to edited speech",
        _text("text") + _SOURCE + _TARGET_AUDIO,
        ("Edit the speech as the text says.", "Change the recording to match the text."),
    ),
    TaskFormat(
        "speech_ss",
        "a mixture to its two speakers",
        _SOURCE + _SEPARATED,
        ("Separate the two speakers.", "Split this mixture into its voices."),
    ),
    TaskFormat(
        "music_ss",
        "a song to its two parts",
        _SOURCE + _SEPARATED,
        ("Separate the parts of the music.", "Split the song into singing and accompaniment."),
    ),
    # Pre-training.
    TaskFormat("audio_only", "audio by itself", _ANSWER),
    TaskFormat("text_only", "text by itself", _text("text", target=True)),
    TaskFormat(
        "reason_to_semantic",
        "reasoning codes to reconstruction codes",
        (Segment(REASONING, "audio"), Segment(RECONSTRUCTION, "audio", target=True)),
        ("Turn the reasoning codes into reconstruction codes.",),
    ),
    TaskFormat(
        "semantic_to_reason",
        "reconstruction codes to reasoning codes",
        (Segment(RECONSTRUCTION, "audio"), Segment(REASONING, "audio", target=True)),
        ("Turn the reconstruction codes into reasoning codes.",),
    ),
    TaskFormat(
        "semantic_copy",
        "a copy of the reconstruction codes",
        (*_SOURCE, Segment(RECONSTRUCTION, "audio", target=True)),
        ("Repeat the reconstruction codes.",),
    ),
    TaskFormat(
        "reason_copy",
        "a copy of the reasoning codes",
        (*_SOURCE, Segment(REASONING, "audio", target=True)),
        ("Repeat the reasoning codes.",),
    ),
)

TASKS: dict[str, TaskFormat] = {task.name: task for task in _FORMATS}


def get_task(name: str) -> TaskFormat:
    """
    Look a task up.

    Raises:
        ValueError: if there is no such task; the message lists those there are.
    """
    if not isinstance(name, str) or name not in TASKS:
        raise ValueError(f"Unknown task {name!r}. The tasks are: {', '.join(TASKS)}.")
    return TASKS[name]
