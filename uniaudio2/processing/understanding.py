"""What the codec's text head is asked, and the form of a three-level analysis.

The paper names the tasks (transcription, captions, three-level analyses, question answering) and the levels, but does
not give the wording: it is ours.
"""

INSTRUCTIONS: dict[str, str] = {
    "transcription": "Write down the words that are spoken or sung.",
    "caption": "Describe this recording in a sentence.",
    "analysis": "Analyse this recording: its quality and who speaks, the prosody, and the content.",
    "question_answering": "Answer the question about this recording: {question}",
}

# The levels of an analysis, in their order (paper), each on a line of its own that begins with its name.
ANALYSIS_LEVELS = ("Quality and speaker", "Prosody", "Content")


def instruction(task: str, question: str | None = None) -> str:
    """
    The instruction of a task.

    Args:
        task (`str`): One of [`INSTRUCTIONS`].
        question (`str`, *optional*): For `"question_answering"`, and for no other task.

    Raises:
        ValueError: If there is no such task, or a question is missing or too much.
    """
    if task not in INSTRUCTIONS:
        raise ValueError(f"`task` must be one of {[*INSTRUCTIONS]}, got {task!r}.")
    template = INSTRUCTIONS[task]
    asks = "{question}" in template
    if asks != (question is not None):
        raise ValueError(f"The task {task!r} {'needs a' if asks else 'takes no'} `question`, got {question!r}.")
    return template.format(question=question) if asks else template


def format_analysis(levels: dict[str, str]) -> str:
    """
    The text of a three-level analysis.

    Args:
        levels (`dict[str, str]`): What is to be said at each of [`ANALYSIS_LEVELS`].

    Raises:
        ValueError: If a level is missing or unknown.
    """
    if set(levels) != set(ANALYSIS_LEVELS):
        raise ValueError(f"An analysis has the levels {ANALYSIS_LEVELS}, got {tuple(levels)}.")
    return "\n".join(f"{level}: {' '.join(levels[level].split())}" for level in ANALYSIS_LEVELS)


def parse_analysis(text: str) -> dict[str, str] | None:
    """The levels of a three-level analysis, or `None` if the text is not exactly one."""
    lines = text.strip().split("\n")
    if len(lines) != len(ANALYSIS_LEVELS):
        return None
    levels = {}
    for level, line in zip(ANALYSIS_LEVELS, lines, strict=True):
        name, colon, said = line.partition(":")
        if name != level or not colon or not said.strip():
            return None
        levels[level] = said.strip()
    return levels
