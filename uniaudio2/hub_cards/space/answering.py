"""What all tabs do with a request: check it, run it, show how far it is, and say in plain words what went wrong."""

import contextlib
import functools
import json
import secrets
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .inference import Answer, Engine, Progress, Request, Sound, Words
from .live import AT_REST, FAILED, STOPPED, STOPPING, WAITING, WORKING, Run, facts

# What a wrong request raises, or one that takes too long; the message is for the user. Everything else is a fault of
# ours, and logged.
REFUSALS = (ValueError, TimeoutError)
# The page is told how far the work is at most this often (seconds).
REPORT_INTERVAL = 0.2
LARGEST_SEED = 2**31 - 1
# Asks for a seed of our own.
NEW_SEED = -1
# The live player at rest, for the scripts of the page.
AT_REST_JS = json.dumps(AT_REST)
# What the page says where the server cannot: the queue is full, or nobody answers.
NOT_TAKEN = "Too many are waiting, or the connection is lost. Try again in a moment."
# All that runs the model stands in one queue.
MODEL_QUEUE = {"concurrency_id": "model", "concurrency_limit": 1}


@dataclass(frozen=True)
class Outputs:
    """Values for the outputs of an event after its live player; the last ones are the result."""

    values: tuple[Any, ...]
    are_last: bool = True


def chosen_seed(seed: int | None) -> int:
    """The seed that was asked for, or one of our own; so also if the field was emptied."""
    if seed is None or seed == NEW_SEED:
        return secrets.randbelow(LARGEST_SEED + 1)
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"The seed is {seed}, and has to lie between 0 and {LARGEST_SEED}, or be {NEW_SEED} for any.")
    return seed


def told(engine: Engine, num_outputs: int, work: Iterator[Any]) -> Iterator[tuple[Any, ...]]:
    """
    Runs a request and gives the outputs of its event, the first of which is the live player.

    Args:
        engine ([`Engine`]): The model.
        num_outputs (`int`): How many outputs the event has.
        work (`Iterator`): Gives [`Outputs`], and messages of the engine, which are shown in the live player.
    """
    run = Run(engine.sampling_rate)
    unchanged = tuple(gr.skip() for _ in range(num_outputs - 1))
    last_told = 0.0
    try:
        with contextlib.closing(work):
            for message in work:
                if isinstance(message, Outputs):
                    yield (run.done() if message.are_last else run.working(), *message.values)
                    continue
                if isinstance(message, Sound):
                    run.hear(message.samples)
                elif isinstance(message, Progress):
                    run.progress = message
                if isinstance(message, Sound) or time.monotonic() - last_told >= REPORT_INTERVAL:
                    last_told = time.monotonic()
                    yield (run.working(), *unchanged)
    except REFUSALS as error:
        yield (run.failed(str(error)), *unchanged)
        raise gr.Error(str(error), print_exception=False) from error
    except gr.Error as error:
        # From the lender of a GPU: it says what is left of the visitor's share.
        yield (run.failed(error.message), *unchanged)
        raise
    except Exception:
        yield (run.failed("Something went wrong on our side, and has been logged."), *unchanged)
        raise


def sound_of(engine: Engine, request: Request, task: str, link: str) -> Iterator[Any]:
    """Messages of a request that is answered in audio, and its outputs: audio, codes, facts."""
    for message in engine.answer(request):
        if isinstance(message, Answer):
            audio, stream = engine.files.save(engine.processor, message.samples, message.codes, task)
            seconds = len(message.samples) / engine.sampling_rate
            yield Outputs((audio, stream, facts(request.seed, link, seconds)))
        else:
            yield message


def words_of(engine: Engine, request: Request, link: str) -> Iterator[Any]:
    """Messages of a request that is answered in text, and its outputs: text, facts."""
    text = ""
    for message in engine.answer(request):
        if isinstance(message, Words):
            text += message.text
            yield Outputs((text, gr.skip()), are_last=False)
        elif isinstance(message, Answer):
            yield Outputs((message.text, facts(request.seed, link)))
        else:
            yield message


def starts(
    triggers: list[Any],
    stop: gr.Button,
    live: gr.HTML,
    function: Callable[..., Iterator[tuple[Any, ...]]],
    inputs: list[gr.components.Component],
    outputs: list[gr.components.Component],
    name: str,
) -> Any:
    """
    Lets events of the page start a request, and a button stop it.

    Args:
        triggers (`list`): Methods of components that set up events, such as `button.click`.
        stop (`gr.Button`): The button that stops it.
        live (`gr.HTML`): The live player.
        function (`Callable`): Takes the inputs. Gives what [`told`] does, for the live player and the outputs.
        inputs, outputs (`list`): Components.
        name (`str`): Of the tab.

    Returns:
        The event.
    """
    # In the page itself, because the request may have to wait in the queue.
    gr.on(
        triggers,
        None,
        js=f"() => ({{...{AT_REST_JS}, {_says(WAITING, 'Waiting for the model')}}})",
        outputs=live,
        api_visibility="private",
        queue=False,
    )
    event = gr.on(
        triggers,
        function,
        inputs,
        [live, *outputs],
        # A name of its own, lest it takes that of the endpoint.
        api_name=f"{name}_on_page",
        api_visibility="private",
        show_progress="hidden",
        scroll_to_output=True,
        **MODEL_QUEUE,
    )
    # The page takes a new request when the run and its cancelling are both over, in whatever order. Said earlier,
    # "Stopped" would be overwritten by what is still on its way, and the next request be dropped.
    stop.click(
        None,
        js=f"(live) => {{ (window.stopping ??= {{}}).{name} ||= 2; "
        f"return {{...live, {_says(STOPPING, 'Stopping')}}}; }}",
        inputs=live,
        outputs=live,
        cancels=[event],
        api_visibility="private",
        queue=False,
    )
    stopped = (
        f"if (window.stopping?.{name}) {{ return --window.stopping.{name} > 0 ? undefined "
        f": {{...{AT_REST_JS}, run: 'stopped', {_says(STOPPED, 'Stopped')}}}; }}"
    )
    # A run that fails says why; these have not come so far.
    failed = (
        f"if (['{WAITING}', '{WORKING}'].includes(live.state)) {{ return {{...live, {_says(FAILED, NOT_TAKEN)}}}; }}"
    )
    for over, script in ((event.success, stopped), (event.failure, stopped + failed)):
        over(
            None,
            js=f"(live) => {{ {script} }}",
            inputs=live,
            outputs=live,
            api_visibility="private",
            queue=False,
        )
    return event


def _says(state: str, text: str) -> str:
    """What the live player says, as a part of an object of a script."""
    return f"state: '{state}', text: '{text}'"


def offers(
    function: Callable[..., Iterator[tuple[Any, ...]]],
    inputs: list[gr.components.Component],
    outputs: list[gr.components.Component],
    name: str,
) -> None:
    """
    An endpoint for clients.

    They have no use for what plays and draws on the page, so theirs is an event of its own, which nothing on the page
    starts. The facts are its last output.

    Args:
        function (`Callable`): As for [`starts`]; what it gives after the outputs and the facts is left out.
        inputs, outputs (`list`): Components, whose values are only what the client gives and gets.
        name (`str`): Of the endpoint.
    """

    @functools.wraps(function)
    def for_clients(*values: Any) -> Iterator[tuple[Any, ...]]:
        for told_outputs in function(*values):
            yield told_outputs[1 : len(outputs) + 2]

    facts_given = gr.JSON(label="facts", visible=False)
    gr.Button(visible=False).click(
        for_clients, inputs, [*outputs, facts_given], api_name=name, show_progress="hidden", **MODEL_QUEUE
    )
