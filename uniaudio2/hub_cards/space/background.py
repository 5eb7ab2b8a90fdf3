"""Work in a thread of its own, as an iterator that can be closed at any time."""

import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

# Seconds of silence after which a `None` is given, so that whoever listens can close the iterator.
TICK = 0.25


class CancelledError(Exception):
    """Raised inside the work, where it reports, once nobody listens any more."""


def in_background(work: Callable[[Callable[[Any], None]], None]) -> Iterator[Any]:
    """
    Does work in a thread and gives what it reports, as it comes.

    A generator that works itself cannot be closed before it gives something; this one can, within a tick, and then the
    work ends where it reports next. That is what makes a cancel button and a closed tab stop the model.

    Args:
        work (`Callable`): Takes a function with which it reports.

    Returns:
        An iterator of what is reported, and of `None` for every tick without a report. It raises what the work raises.
    """
    messages: queue.SimpleQueue = queue.SimpleQueue()
    is_closed = threading.Event()
    end = object()

    def report(message: Any) -> None:
        if is_closed.is_set():
            raise CancelledError
        messages.put((message, None))

    def run() -> None:
        error = None
        try:
            work(report)
        except CancelledError:
            pass
        except BaseException as caught:
            error = caught
        messages.put((end, error))

    threading.Thread(target=run, daemon=True, name="uniaudio2-demo").start()
    try:
        while True:
            try:
                message, error = messages.get(timeout=TICK)
            except queue.Empty:
                yield None
                continue
            if error is not None:
                raise error
            if message is end:
                return
            yield message
    finally:
        is_closed.set()
