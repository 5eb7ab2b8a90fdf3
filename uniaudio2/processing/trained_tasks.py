"""Which tasks a checkpoint was trained on, and a word to those who ask it for others."""

import json
from pathlib import Path

from transformers.utils import cached_file, logging

from .codec_reference import Origin
from .tasks import TASKS

logger = logging.get_logger(__name__)


class TrainedTasks:
    """
    The tasks of the model beside a processor, read from its `config.json` when they are first asked for.

    Args:
        origin (`Origin`, *optional*): Where the processor was loaded from; `None` if it was made in memory.
    """

    def __init__(self, origin: Origin | None):
        self.origin = origin
        self._names: tuple[str, ...] | None = None
        self._is_read = False
        self._named: set[str] = set()

    @property
    def names(self) -> tuple[str, ...] | None:
        """The names of the tasks; `None` if nobody has written them down."""
        if not self._is_read:
            self._names, self._is_read = self._read(), True
        return self._names

    def warn(self, name: str) -> None:
        """Warns of a task that the checkpoint was not trained on, the first time that it is asked for."""
        if name not in TASKS or name in self._named or self.names is None or name in self.names:
            return
        self._named.add(name)
        logger.warning(
            f"This checkpoint was not trained on {name} ({TASKS[name].description}) but on {', '.join(self.names)}: "
            "expect nothing of its answer."
        )

    def _read(self) -> tuple[str, ...] | None:
        if self.origin is None:
            return None
        file = cached_file(
            self.origin.path,
            "config.json",
            subfolder=self.origin.subfolder,
            revision=self.origin.revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            **self.origin.hub_options,
        )
        tasks = json.loads(Path(file).read_text(encoding="utf-8")).get("tasks") if file else None
        return tuple(tasks) if tasks else None
