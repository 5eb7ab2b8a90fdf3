"""Turns: which task is asked for, with which values. Calls, chats and training examples all become turns."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .rows import WRAPPERS
from .tasks import REASONING, RECONSTRUCTION, TEXT, Segment, TaskFormat, get_task

AUDIO_KEYS = ("audio", "path", "url", "bytes")
# What they hold; under "audio" it may be any recording.
KINDS_OF_KEYS = {"path": (str, os.PathLike), "url": str, "bytes": bytes}
CODE_KEYS = ("reasoning_codes", "reconstruction_codes")
# What a message may ask for in place of a task, and the streams that the model then writes.
ANSWERS = {"text": (TEXT,), "audio": (REASONING, RECONSTRUCTION)}


@dataclass
class Turn:
    """
    One task with its values, before anything is tokenized.

    Args:
        task (`TaskFormat`): What to do.
        prompt (`str`, *optional*): The instruction; `None` for tasks without one.
        values (`dict[str, Any]`): Per field a text, a recording or its codes.
        answered (`bool`, *optional*, defaults to `False`): Whether the values hold the answer too.
        answer_start (`str`, *optional*): The beginning of a text answer that the model has to continue.
        drop_condition (`bool`, *optional*, defaults to `False`): Whether to blank out what is given (guidance).
    """

    task: TaskFormat
    prompt: str | None
    values: dict[str, Any] = field(default_factory=dict)
    answered: bool = False
    answer_start: str | None = None
    drop_condition: bool = False

    def segments(self) -> list[dict[str, Any]]:
        """The parts of the turn as plain data, for the chat template."""
        parts = []
        if self.prompt is not None:
            parts.append({"kind": TEXT, "wrapper": None, "text": prompt_text(self.prompt), "complete": True})
        for segment in self.task.segments if self.answered else self.task.conditions:
            part = {"kind": segment.kind, "wrapper": segment.wrapper, "complete": True}
            if segment.kind == TEXT:
                part["text"] = self.values[segment.field]
            parts.append(part)
        if self.answer_start is not None:
            wrapper = self.task.targets[0].wrapper
            parts.append({"kind": TEXT, "wrapper": wrapper, "text": self.answer_start, "complete": False})
        return parts


def prompt_text(prompt: str) -> str:
    """The task prompt as it is tokenized (released code)."""
    return prompt.strip() + "\n\n"


def question(task: TaskFormat, given: Mapping[str, Any], prompt: str | None = None) -> Turn:
    """
    A turn that the model has to answer.

    Args:
        task (`TaskFormat`): What to do.
        given (`Mapping[str, Any]`): The values, of which those that are `None` are left out. `text` and `audio` may
            stand for the only text and the only recording of the task, whatever their fields are called.
        prompt (`str`, *optional*): An instruction in place of the task's own.

    Raises:
        ValueError: for a missing, a superfluous or an empty value.
        TypeError: for a text where a recording belongs or the other way round.
    """
    given = {name: value for name, value in given.items() if value is not None}
    if not task.conditions:
        return _continuation(task, given, prompt)
    given = _unaliased(task, given, task.condition_fields)
    superfluous = [name for name in given if name not in task.condition_fields]
    if superfluous:
        answers = [name for name in superfluous if name in task.fields]
        hint = f"{answers[0]!r} is what {task.name} answers: leave it out. " if answers else ""
        raise ValueError(
            f"{task.name} ({task.description}) takes {_listed(task.condition_fields)}, but got {_listed(superfluous)} "
            f"too. {hint}Another task may fit: pass `task`."
        )
    return Turn(task, _checked_prompt(task, prompt), _values(task, given, task.condition_fields))


def example(task: TaskFormat, given: Mapping[str, Any], prompt: str | None = None) -> Turn:
    """
    A turn with its answer, to learn from. `given` may hold further entries, as the rows of a data set do.

    Args and errors are those of [`question`].
    """
    given = {name: value for name, value in given.items() if value is not None}
    values = _values(task, _unaliased(task, given, task.fields), task.fields)
    return Turn(task, _checked_prompt(task, prompt), values, answered=True)


def check_conversation(conversation: Any) -> None:
    """A `ValueError` for what is neither a list of messages nor a list of such lists."""
    if not isinstance(conversation, (list, tuple)) or not conversation:
        raise ValueError(f"A conversation is a list with at least one message, but got {conversation!r}.")
    is_batch = isinstance(conversation[0], (list, tuple))
    for message in (message for messages in conversation for message in messages) if is_batch else conversation:
        if not isinstance(message, Mapping):
            raise ValueError(f"A message is {{'role': ..., 'content': ...}}, but got {message!r}.")


def conversation_turns(
    messages: Sequence[Mapping[str, Any]],
    default_task: str,
    task: str | None = None,
    continue_final_message: bool = False,
) -> list[Turn]:
    """
    The turns of a chat.

    A user message asks, the assistant message after it answers: an example for the turns that follow. A system message
    is the instruction of the turns after it, in place of the task's own. The task of a turn is the `"task"` entry of
    its user message, else `task`, else what [`default_task_of`] finds. The parts of a message fill the fields of the
    task in order, texts and recordings apart; a part with a `"field"` entry fills that field.

    A user message with an `"answer"` entry, `"text"` or `"audio"`, has no task: its parts, as many as there are, stand
    in the sequence in their own order. Its texts may name a `"wrapper"`, as the texts of most tasks have one.

    Args:
        messages (`Sequence[Mapping[str, Any]]`):
            `{"role", "content"}`, content being a text or a list of parts `{"type": "text", "text"}` and
            `{"type": "audio", "audio" | "path" | "url" | "bytes"}` (or with both kinds of codes).
        default_task (`str`): The task of messages of text alone.
        task (`str`, *optional*): The task of all messages that do not name one.
        continue_final_message (`bool`, *optional*, defaults to `False`):
            Whether the last message is the beginning of an answer.

    Raises:
        ValueError: for messages out of order, and as in [`question`].
    """
    turns, prompt, waiting = [], None, False
    for index, message in enumerate(messages):
        role, is_last = message.get("role"), index == len(messages) - 1
        parts = _parts(message)
        texts, recordings = _of_kind(parts, "text"), _of_kind(parts, "audio")
        if role == "system":
            if recordings or len(texts) != 1:
                raise ValueError("A system message holds the instruction: one text and nothing else.")
            prompt = texts[0][1]
        elif role == "user":
            if waiting:
                raise ValueError("Two user messages in a row: put an assistant message with the answer between them.")
            if message.get("answer") is not None:
                turns.append(_free_question(message, parts, prompt))
            else:
                name = message.get("task") or task or default_task_of(bool(texts), bool(recordings), default_task)
                format_ = get_task(name)
                given = _assigned(format_, format_.condition_fields, texts, recordings)
                turns.append(question(format_, given, prompt))
            waiting = True
        elif role == "assistant":
            if not waiting:
                raise ValueError("An assistant message must follow the user message that it answers.")
            turn, waiting = turns[-1], False
            answer_fields = tuple(name for name in turn.task.fields if name not in turn.task.condition_fields)
            answer = _assigned(turn.task, answer_fields, texts, recordings)
            if is_last and continue_final_message:
                if turn.task.output != "text":
                    raise ValueError(
                        f"{turn.task.name} answers with audio, which cannot be continued from a message. "
                        "End the conversation with the user message."
                    )
                (turn.answer_start,) = _values(turn.task, answer, answer_fields).values()
            else:
                values = _values(turn.task, {**turn.values, **answer}, turn.task.fields)
                if turn.answer_start is not None:  # the user's message and the assistant's are one text
                    values = {name: turn.answer_start + value for name, value in values.items()}
                turns[-1] = Turn(turn.task, turn.prompt, values, answered=True)
        else:
            raise ValueError(f"Unknown role {role!r}. The roles are 'system', 'user' and 'assistant'.")
    if not turns:
        raise ValueError("The conversation holds no user message.")
    if continue_final_message and turns[-1].answer_start is None:
        raise ValueError("`continue_final_message` needs a last message by the assistant.")
    return turns


def default_task_of(has_text: bool, has_audio: bool, default_task: str) -> str:
    """The task that is meant when none is named: speak a text, transcribe a recording, or answer a question on it."""
    if has_text and has_audio:
        return "audio_understanding"
    return "ASR" if has_audio else default_task


def _continuation(task: TaskFormat, given: Mapping[str, Any], prompt: str | None) -> Turn:
    """A task without conditions goes on from a text that is given, or makes audio from nothing."""
    if task.output == "audio":
        if given:
            raise ValueError(f"{task.name} ({task.description}) takes nothing, but got {_listed(given)}.")
        return Turn(task, _checked_prompt(task, prompt))
    (start,) = _values(task, _unaliased(task, given, task.fields), task.fields).values()
    return Turn(task, _checked_prompt(task, prompt), answer_start=start)


def _unaliased(task: TaskFormat, given: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """Let `text` and `audio` stand for the only field of their kind."""
    given = dict(given)
    for alias, is_text in (("text", True), ("audio", False)):
        names = [name for name in fields if task.is_text(name) == is_text]
        if len(names) == 1 and alias in given and names[0] not in given:
            given[names[0]] = given.pop(alias)
    return given


def _values(task: TaskFormat, given: Mapping[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    """The values of `fields`, checked."""
    missing = [name for name in fields if name not in given]
    if missing:
        raise ValueError(
            f"{task.name} ({task.description}) needs {_listed(fields)}, but {_listed(missing)} is missing"
            f"{f' (got {_listed(given)})' if given else ''}."
        )
    return {name: _checked(task, name, given[name]) for name in fields}


def _checked(task: TaskFormat, name: str, value: Any) -> Any:
    if task.is_text(name):
        if not isinstance(value, str):
            raise TypeError(
                f"{name!r} of {task.name} is a text, but got {type(value).__name__}. Audio goes in `audio`."
            )
        if not value.strip():
            raise ValueError(f"{name!r} of {task.name} is empty. Pass a text with at least one visible character.")
    return value


def _checked_prompt(task: TaskFormat, prompt: str | None) -> str | None:
    if not task.prompts:
        if prompt is not None:
            raise ValueError(f"{task.name} ({task.description}) has no instruction: leave `prompt` out.")
        return None
    return task.prompts[0] if prompt is None else _visible(prompt)


def _visible(prompt: str) -> str:
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"`prompt` must be a text that is not empty, but is {prompt!r}. Leave it out for the default."
        )
    return prompt


def _free_question(message: Mapping[str, Any], parts: list[dict[str, Any]], prompt: str | None) -> Turn:
    """A turn of a format of its own: the parts as they come, then the answer."""
    answer = message["answer"]
    if answer not in ANSWERS:
        raise ValueError(
            f"The 'answer' of a message is {answer!r}, but must be one of {', '.join(map(repr, ANSWERS))}."
        )
    if message.get("task") is not None:
        raise ValueError("A message has a 'task' or an 'answer', not both: a task knows what it answers with.")
    if not parts:
        raise ValueError("A message with an 'answer' needs at least one text or recording to answer.")
    segments, values = [], {}
    for number, part in enumerate(parts, start=1):
        name = f"part_{number}"
        values[name] = part["value"]
        wrapper = part["wrapper"]
        if wrapper is not None and (part["type"] != "text" or wrapper not in WRAPPERS):
            raise ValueError(
                f"The wrapper of a part is {wrapper!r}, but texts are wrapped as {', '.join(map(repr, WRAPPERS))}, "
                "and recordings are not."
            )
        kinds = ANSWERS[part["type"]]
        segments += [Segment(kind, name, wrapper=wrapper) for kind in kinds]
    segments += [Segment(kind, "answer", target=True) for kind in ANSWERS[answer]]
    task = TaskFormat("sequence", f"any parts to {answer}", tuple(segments))
    return Turn(task, None if prompt is None else _visible(prompt), _values(task, values, task.condition_fields))


def _parts(message: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parts of a message: the type of each, its value, and the field and the wrapper that it names, if any."""
    content = message.get("content")
    if isinstance(content, str):
        content = [{"type": "text", "text": content}]
    if not isinstance(content, Sequence) or not all(isinstance(part, Mapping) for part in content):
        raise ValueError(f"The content of a message is a text or a list of parts, but got {content!r}.")
    parts = []
    for part in content:
        if part.get("type") == "text" and "text" in part:
            value = part["text"]
        elif part.get("type") == "audio" and any(key in part for key in (*AUDIO_KEYS, *CODE_KEYS)):
            value = _recording(part)
        else:
            raise ValueError(
                "A part of a message is {'type': 'text', 'text': ...} or {'type': 'audio', 'audio' or 'path': ...}, "
                f"but got one of type {part.get('type')!r} with {_listed(part)}."
            )
        parts.append(
            {"type": part["type"], "value": value, "field": part.get("field"), "wrapper": part.get("wrapper")}
        )
    return parts


def _of_kind(parts: list[dict[str, Any]], kind: str) -> list[tuple[str | None, Any]]:
    """The values of the parts of a type, each with the field it names."""
    return [(part["field"], part["value"]) for part in parts if part["type"] == kind]


def _recording(part: Mapping[str, Any]) -> Any:
    codes = {key: part[key] for key in CODE_KEYS if key in part}
    if codes:
        return codes
    key = next(key for key in AUDIO_KEYS if key in part)
    audio, kinds = part[key], KINDS_OF_KEYS.get(key, object)
    if not isinstance(audio, kinds):
        wanted = "the bytes of a file" if key == "bytes" else "a text"
        raise TypeError(f"The {key!r} of a part is {wanted}, but got {type(audio).__name__}. Waveforms go in 'audio'.")
    return {"array": audio, "sampling_rate": part["sampling_rate"]} if "sampling_rate" in part else audio


def _assigned(
    task: TaskFormat,
    fields: Sequence[str],
    texts: list[tuple[str | None, str]],
    recordings: list[tuple[str | None, Any]],
) -> dict[str, Any]:
    """Distribute the parts of a message over fields."""
    assigned = {}
    for parts, is_text in ((texts, True), (recordings, False)):
        free = [name for name in fields if task.is_text(name) == is_text]
        # A task without conditions continues what the user says.
        free = free or [target.field for target in task.targets if not task.conditions and is_text]
        for name, _ in parts:
            if name is not None and name not in free:
                raise ValueError(
                    f"{task.name} has no {'text' if is_text else 'recording'} called {name!r} here; it has "
                    f"{_listed(free) or 'none'}."
                )
        named = {name for name, _ in parts if name is not None}
        unnamed = [name for name in free if name not in named]
        for name, value in parts:
            if name is None and not unnamed:
                raise ValueError(
                    f"The message has more {'texts' if is_text else 'recordings'} than {task.name} takes "
                    f"({task.description}): {_listed(free) or 'none'}. For parts in any number and order give the "
                    "message an 'answer', 'text' or 'audio', in place of a task."
                )
            assigned[name or unnamed.pop(0)] = value
    return assigned


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return " and ".join(repr(name) for name in names)
