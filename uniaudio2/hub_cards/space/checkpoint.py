"""What a checkpoint is and can do, read from its configuration without its weights."""

import os
from dataclasses import dataclass
from pathlib import Path

from transformers import GenerationConfig

from ... import TINY, UniAudio2Config
from ...processing.tasks import get_task

MODEL_VARIABLE = "UNIAUDIO2_MODEL"


@dataclass(frozen=True)
class Checkpoint:
    """
    A checkpoint as the demo shows it.

    Args:
        model_id (`str`): Its folder or its Hub id.
        tasks (`tuple[str, ...]`, *optional*): The tasks that it was trained on; `None` if it does not say.
        temperature (`float`): At which it samples unless it is told otherwise; 0 takes the likeliest codes.
    """

    model_id: str
    tasks: tuple[str, ...] | None
    temperature: float

    @classmethod
    def read(cls, model_id: str | None = None) -> "Checkpoint":
        """Of this model; by default of the one that the environment names, else of the one that is shipped."""
        model_id = model_id or os.environ.get(MODEL_VARIABLE) or TINY
        config = UniAudio2Config.from_pretrained(model_id)
        generation = GenerationConfig.from_pretrained(model_id)
        temperature = generation.temperature if generation.do_sample else None
        if generation.do_sample and temperature is None:
            temperature = 1.0
        return cls(model_id, tuple(config.tasks) if config.tasks else None, temperature or 0.0)

    @property
    def name(self) -> str:
        """For people: a Hub id as it is, of a folder its name."""
        return Path(self.model_id).resolve().name if Path(self.model_id).is_dir() else self.model_id

    def knows(self, task: str) -> bool:
        """Whether it was trained on a task, as far as it says."""
        return self.tasks is None or task in self.tasks

    @property
    def follows_turns(self) -> bool:
        """
        Whether earlier turns help it. Lists of tasks name no turns; models that answer free questions about
        recordings are those that were shown several segments together.
        """
        return self.knows("audio_understanding")

    def reason_against(self, *tasks: str) -> str:
        """Why tasks are switched off, for people."""
        missing = ", ".join(f"{get_task(task).description} (`{task}`)" for task in tasks if not self.knows(task))
        return f"the card of `{self.name}` lists {' and '.join(self.tasks or ())}, and not {missing}"

    @property
    def reason_against_turns(self) -> str:
        """Why examples are switched off, for people."""
        return (
            f"`{self.name}` was trained on single turns and learns nothing from examples, so each turn is answered by "
            "itself"
        )

    def require_turns(self) -> None:
        """A `ValueError` if earlier turns do not help it."""
        if not self.follows_turns:
            raise ValueError(f"This is switched off here: {self.reason_against_turns}.")

    def require(self, task: str) -> None:
        """A `ValueError` if it was not trained on a task."""
        if not self.knows(task):
            raise ValueError(f"This is switched off here: {self.reason_against(task)}.")
