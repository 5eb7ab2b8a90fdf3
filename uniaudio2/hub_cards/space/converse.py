"""The tab Converse: a chat of text and audio, in which earlier turns are examples for later ones."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from .answering import NEW_SEED, Outputs, chosen_seed, offers, starts, told
from .examples import recordings_to_try
from .inference import Answer, Engine, Heard, Request, codes_part
from .layout import audio_settings, buttons, choice_of_clients, follow_ups, heading, note, recording
from .limits import MAX_ANSWER_SECONDS, MAX_TURNS, check_recording, check_text
from .links import link_to
from .live import DONE, facts, facts_line, live_player

TAB = "converse"


@dataclass(frozen=True)
class TurnKind:
    """What a message asks for: a task, or with `task=None` an answer that follows the examples."""

    label: str
    task: str | None
    takes_text: bool
    takes_audio: bool
    answer: str

    @property
    def request(self) -> dict[str, str]:
        """The entry of a message."""
        return {"answer": self.answer} if self.task is None else {"task": self.task}


# Under the names that the API has for them.
KINDS = {
    "speak": TurnKind("Read my text aloud", "TTS", True, False, "audio"),
    "transcribe": TurnKind("Write down what I say", "ASR", False, True, "text"),
    "ask": TurnKind("Answer my question about a recording", "audio_understanding", True, True, "text"),
    "reply": TurnKind("Reply to me in writing", "speech_s2t", False, True, "text"),
    "reply_aloud": TurnKind("Reply to me aloud", "speech_s2s", False, True, "audio"),
    "follow_in_text": TurnKind("Follow the examples, in writing", None, True, True, "text"),
    "follow_in_audio": TurnKind("Follow the examples, in sound", None, True, True, "audio"),
}


def build(engine: Engine) -> dict[str, gr.components.Component]:
    """Builds the tab. Returns the fields that a link can fill."""
    checkpoint = engine.checkpoint
    known = {
        name: kind
        for name, kind in KINDS.items()
        if (checkpoint.follows_turns if kind.task is None else checkpoint.knows(kind.task))
    }
    missing = [kind.task for kind in KINDS.values() if kind.task is not None and not checkpoint.knows(kind.task)]
    taught = " What was said before is an example of what you want next." if checkpoint.follows_turns else ""
    heading("Converse", f"Take turns in text and sound.{taught}")
    conversation = gr.State([], time_to_live=3600)
    with gr.Row(equal_height=False, elem_classes="chat-row"):
        with gr.Column(scale=5, min_width=320):
            kind = gr.Radio(
                [(turn.label, name) for name, turn in known.items()],
                value=next(iter(known), None),
                label="This turn",
                elem_id="converse-kind",
            )
            text = gr.Textbox(value="", label="Your text", lines=2, placeholder="one two", elem_id="converse-text")
            audio = recording("Your recording", "converse-recording")
            go, stop = buttons(TAB, "Send", interactive=bool(known))
            recordings_to_try(TAB, audio)
            clear = gr.Button("New conversation", size="sm", elem_id="converse-clear")
            if missing:
                note(checkpoint.reason_against(*missing))
            with gr.Accordion("Teach by example", open=checkpoint.follows_turns, elem_id="converse-teach"):
                if not checkpoint.follows_turns:
                    note(checkpoint.reason_against_turns)
                else:
                    gr.Markdown("Fill in the turn above, and here the answer that you would like to such a turn.")
                answer_text = gr.Textbox(
                    value="",
                    label="The right answer, in writing",
                    interactive=checkpoint.follows_turns,
                    elem_id="converse-answer-text",
                )
                answer_audio = recording("The right answer, in sound", "converse-answer", checkpoint.follows_turns)
                add = gr.Button("Add as an example", interactive=checkpoint.follows_turns, elem_id="converse-add")
            settings = audio_settings(TAB, checkpoint)
        with gr.Column(scale=6, min_width=320):
            chat = gr.Chatbot(
                value=[],
                label="Conversation",
                height=460,
                elem_id="converse-chat",
                buttons=[],
                feedback_options=None,
                render_markdown=False,
                placeholder="Say something: in text, or with a recording.",
            )
            live = live_player("converse-live")
            result_facts = facts_line("converse-facts")
            codes = follow_ups(TAB, result_facts, settings.seed)

    def taken(
        history: list[dict[str, Any]],
        kind: str,
        text: str,
        audio: str | None,
        seed: int,
        temperature: float,
        guidance_scale: float,
        max_seconds: float,
    ) -> Iterator[Any]:
        """Messages of a turn; its outputs are the answer in text, in sound, its codes, the facts, the history."""
        turn, used = KINDS[kind], chosen_seed(seed)
        asked = _question(engine, history, turn, text, audio)
        link = link_to(
            TAB,
            kind=kind,
            text=text.strip(),
            seed=used,
            temperature=temperature,
            guidance_scale=guidance_scale,
            max_seconds=max_seconds,
        )
        request = Request(
            [*(history if engine.checkpoint.follows_turns else []), asked],
            turn.answer == "audio",
            used,
            temperature,
            guidance_scale,
            min(max_seconds, MAX_ANSWER_SECONDS),
        )
        for message in engine.answer(request):
            if isinstance(message, Heard):
                asked = _with_codes(asked, message)
            elif not isinstance(message, Answer):
                yield message
            elif message.text is not None:
                reply = {"role": "assistant", "content": [{"type": "text", "text": message.text}]}
                yield Outputs((message.text, None, None, facts(used, link), [*history, asked, reply]))
            else:
                name = turn.task or "sequence"
                path, stream = engine.files.save(engine.processor, message.samples, message.codes, name)
                reply = {"role": "assistant", "content": [codes_part(message.codes)]}
                seconds = len(message.samples) / engine.sampling_rate
                yield Outputs(("", path, stream, facts(used, link, seconds), [*history, asked, reply]))

    def converse(
        history: list[dict[str, Any]],
        kind: str,
        text: str = "",
        audio: str | None = None,
        seed: int = NEW_SEED,
        temperature: float = 0.0,
        guidance_scale: float = 1.0,
        max_seconds: float = 10.0,
    ) -> Iterator[tuple[Any, ...]]:
        """Takes a turn; the session remembers those before. `kind` is one of speak, transcribe, ask, reply,
        reply_aloud, follow_in_text, follow_in_audio. Returns the answer in text, or as an audio file with its codes,
        and the facts: seed, seconds, link."""
        work = taken(history, kind, text, audio, seed, temperature, guidance_scale, max_seconds)
        # The state of the session goes before the facts.
        for live_value, answer, sound, stream, told_facts, remembered in told(engine, 6, work):
            yield live_value, answer, sound, stream, remembered, told_facts

    def converse_on_page(
        shown: list[dict[str, Any]], history: list[dict[str, Any]], kind: str, text: str, audio: str | None, *settings
    ) -> Iterator[tuple[Any, ...]]:
        """As `converse`, into the chat."""

        def work() -> Iterator[Any]:
            so_far = [*shown, *_shown(KINDS[kind], text, audio)]
            is_shown = False
            for message in taken(history, kind, text, audio, *settings):
                if not is_shown:
                    # Now that the turn has been found right.
                    is_shown = True
                    yield Outputs((so_far, gr.skip(), gr.skip(), gr.skip()), are_last=False)
                if isinstance(message, Outputs):
                    answer, sound, stream, told_facts, remembered = message.values
                    reply = {"role": "assistant", "content": answer if sound is None else {"path": sound}}
                    # A text has no codes.
                    download = gr.update(value=stream, visible=stream is not None)
                    yield Outputs(([*so_far, reply], remembered, download, told_facts))
                else:
                    yield message

        yield from told(engine, 5, work())

    def add_example(
        history: list[dict[str, Any]],
        kind: str,
        text: str = "",
        audio: str | None = None,
        answer_text: str = "",
        answer_audio: str | None = None,
    ) -> list[dict[str, Any]]:
        """Adds a turn with the answer that it should have had, as an example for the turns that follow."""
        try:
            turn = KINDS[kind]
            engine.checkpoint.require_turns()
            asked = _question(engine, history, turn, text, audio)
            if turn.answer == "audio":
                part = {"type": "audio", "path": check_recording(answer_audio, "The right answer")}
            else:
                part = {"type": "text", "text": check_text(answer_text, "The right answer")}
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [*history, asked, {"role": "assistant", "content": [part]}]

    def add_example_on_page(
        shown: list[dict[str, Any]], history: list[dict[str, Any]], kind: str, text: str, audio: str | None, *answer
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """As `add_example`, into the chat."""
        remembered = add_example(history, kind, text, audio, *answer)
        (part,) = remembered[-1]["content"]
        reply = {"role": "assistant", "content": part["text"] if "text" in part else {"path": part["path"]}}
        return [*shown, *_shown(KINDS[kind], text, audio), reply], remembered

    inputs = [conversation, kind, text, audio, *settings.inputs]
    outputs = [chat, conversation, codes, result_facts]
    event = starts([go.click, text.submit], stop, live, converse_on_page, [chat, *inputs], outputs, TAB)
    # What was sent goes out of the form; what was stopped or went wrong stays there, and goes out of the chat.
    event.success(
        None,
        js=f"(live) => live.state === '{DONE}' ? ['', null] : undefined",
        inputs=live,
        outputs=[text, audio],
        api_visibility="private",
        queue=False,
    )
    for over in (event.success, event.failure):
        over(
            None,
            js=f"(live, shown) => live.state === '{DONE}' ? undefined "
            ": [shown.slice(0, 1 + shown.findLastIndex((message) => message.role === 'assistant'))]",
            inputs=[live, chat],
            outputs=chat,
            api_visibility="private",
            queue=False,
        )
    answers = [
        gr.Textbox(label="answer", visible=False),
        gr.Audio(label="sound", type="filepath", interactive=False, visible=False),
        gr.DownloadButton("codes", visible=False),
    ]
    kind_of_clients = choice_of_clients(kind, KINDS)
    offers(converse, [conversation, kind_of_clients, *inputs[2:]], [*answers, conversation], TAB)

    example = [conversation, kind, text, audio, answer_text, answer_audio]
    added = add.click(
        add_example_on_page,
        [chat, *example],
        [chat, conversation],
        api_name="add_example_on_page",
        api_visibility="private",
    )
    added.success(
        None,
        js="() => ['', null, '', null]",
        outputs=[text, audio, answer_text, answer_audio],
        api_visibility="private",
        queue=False,
    )
    gr.Button(visible=False).click(
        add_example, [conversation, kind_of_clients, *example[2:]], conversation, api_name="add_example"
    )

    def new_conversation() -> list[dict[str, Any]]:
        """Forgets the turns of the session."""
        return []

    gr.on(
        [clear.click, chat.clear],
        lambda: ([], [], gr.update(value=None, visible=False), {}),
        None,
        [chat, conversation, codes, result_facts],
        api_name="new_conversation_on_page",
        api_visibility="private",
        queue=False,
    )
    gr.Button(visible=False).click(new_conversation, None, conversation, api_name="new_conversation")
    return {
        "kind": kind,
        "text": text,
        "seed": settings.seed,
        "temperature": settings.temperature,
        "guidance_scale": settings.guidance_scale,
        "max_seconds": settings.max_seconds,
    }


def _question(
    engine: Engine, history: list[dict[str, Any]], turn: TurnKind, text: str, audio: str | None
) -> dict[str, Any]:
    """The message of a turn."""
    if turn.task is None:
        engine.checkpoint.require_turns()
    else:
        engine.checkpoint.require(turn.task)
    if len(history) >= 2 * MAX_TURNS:
        raise ValueError(f"This conversation has {MAX_TURNS} turns, which is as many as fit: begin a new one.")
    parts = []
    # What follows the examples takes what there is.
    if turn.takes_text and (turn.task is not None or text.strip() or not audio):
        parts.append({"type": "text", "text": check_text(text, "Your text")})
    if turn.takes_audio and (turn.task is not None or audio):
        parts.append({"type": "audio", "path": check_recording(audio, "Your recording")})
    return {"role": "user", **turn.request, "content": parts}


def _shown(turn: TurnKind, text: str, audio: str | None) -> list[dict[str, Any]]:
    """What a turn says, for the chat."""
    said = [text.strip()] if turn.takes_text and text.strip() else []
    heard = [{"path": audio}] if turn.takes_audio and audio else []
    return [{"role": "user", "content": content} for content in (*said, *heard)]


def _with_codes(asked: dict[str, Any], heard: Heard) -> dict[str, Any]:
    """The message with codes in the place of paths: files are deleted after a while, and need encoding only once."""
    asked, codes = copy.copy(asked), iter(heard.codes)
    asked["content"] = [codes_part(next(codes)) if "path" in part else part for part in asked["content"]]
    return asked
