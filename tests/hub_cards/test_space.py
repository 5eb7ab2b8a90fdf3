"""The demo, driven by `gradio_client` as other programs drive it: one server with the shipped checkpoint."""

import json
import pickle
import re
import sys
import time
import zipfile
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from urllib.parse import parse_qs, urlsplit

import gradio as gr
import httpx
import numpy as np
import pytest
import soundfile
import torch
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from safetensors import safe_open

from uniaudio2 import TINY
from uniaudio2.cli import main
from uniaudio2.commands.codes_file import load_codes
from uniaudio2.hub_cards.space import app, inference, links
from uniaudio2.hub_cards.space.answering import NEW_SEED, chosen_seed, told
from uniaudio2.hub_cards.space.app import LAUNCH_OPTIONS, TABS, build_demo
from uniaudio2.hub_cards.space.background import in_background
from uniaudio2.hub_cards.space.checkpoint import MODEL_VARIABLE, Checkpoint
from uniaudio2.hub_cards.space.examples import RECORDINGS
from uniaudio2.hub_cards.space.limits import MAX_ANSWER_SECONDS, MAX_CHARACTERS, MAX_RECORDING_SECONDS, check_recording
from uniaudio2.hub_cards.space.zero_gpu import on_gpu
from uniaudio2.processing import AudioCodes, read_provenance
from uniaudio2.processing.tasks import TASKS

pytestmark = pytest.mark.checkpoint

ENDPOINTS = ("/speak", "/listen", "/create", "/converse", "/add_example", "/new_conversation", "/codec")
RATE = 24_000


class Server:
    """A running demo: its address, its blocks, and the folder of its files."""

    def __init__(self, demo: gr.Blocks, url: str, folder: Path):
        self.demo, self.url, self.folder = demo, url, folder

    def files(self) -> set[Path]:
        return {path for path in self.folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        # Files live a few seconds, so that their end can be seen.
        patch.setattr(app, "FILE_CHECK_INTERVAL", 1)
        patch.setattr(app, "FILE_LIFETIME", 6)
        demo = build_demo(TINY)
        _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
        yield Server(demo, url, folder)
        demo.close()


@pytest.fixture(scope="module")
def client(server, tmp_path_factory):
    return Client(server.url, download_files=str(tmp_path_factory.mktemp("downloads")), verbose=False)


@pytest.fixture(scope="module")
def unlisted(model_folder):
    """A demo of a checkpoint that does not say what it was trained on, and so is asked for everything."""
    return build_demo(str(model_folder))


@pytest.fixture
def asked(unlisted, monkeypatch):
    """What its model is asked for; to all of it it says "calm"."""
    requests = []

    def answer(request):
        requests.append(request)
        yield inference.Answer(text="calm", samples=np.ones(RATE), codes=AudioCodes(*torch.zeros(2, 8, 3).long()))

    monkeypatch.setattr(unlisted.engine, "answer", answer)
    return requests


@pytest.fixture
def speech():
    return handle_file(str(RECORDINGS[0]))


def refusal(client, *args, **kwargs) -> str:
    """What the demo says to a request that it does not do."""
    with pytest.raises(AppError) as caught:
        client.predict(*args, **kwargs)
    return str(caught.value)


# Before there are weights


def test_a_demo_is_built_without_weights(monkeypatch):
    def no_weights(*_, **__):
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(inference.UniAudio2ForConditionalGeneration, "from_pretrained", no_weights)
    monkeypatch.setattr(inference.UniAudio2Processor, "from_pretrained", no_weights)
    demo = build_demo(TINY)
    assert isinstance(demo, gr.Blocks)
    names = {f"/{dependency.api_name}" for dependency in demo.fns.values() if dependency.api_visibility == "public"}
    assert names == set(ENDPOINTS)


def test_the_environment_names_the_model(monkeypatch, model_folder):
    assert Checkpoint.read().model_id == TINY
    monkeypatch.setenv(MODEL_VARIABLE, str(model_folder))
    assert Checkpoint.read().model_id == str(model_folder)
    assert Checkpoint.read(TINY).name == "tiny"


def test_what_the_card_does_not_list_is_off_and_says_why(unlisted):
    def texts(demo):
        return " ".join(str(block.value) for block in demo.blocks.values() if isinstance(block, gr.Markdown))

    def button(demo, name):
        return next(block for block in demo.blocks.values() if block.elem_id == f"{name}-go")

    tiny = build_demo(TINY)
    for task in ("InstructTTS", "prompt_instruct_tts", "audio_caption", "audio_understanding", "TTA", "LTS"):
        assert f"`{task}`" in texts(tiny)
    assert [button(tiny, name).interactive for name in TABS] == [True, True, False, True, True]
    # A checkpoint that does not say what it was trained on is taken at its word.
    assert "Switched off" not in texts(unlisted)
    assert all(button(unlisted, name).interactive for name in TABS)


def test_all_that_a_person_uses_has_a_label():
    named = (gr.Textbox, gr.Audio, gr.Radio, gr.Slider, gr.Number, gr.Checkbox, gr.Chatbot, gr.Accordion)
    demo = build_demo(TINY)
    found = [block for block in demo.blocks.values() if isinstance(block, named)]
    assert len(found) > 30 and all(block.label for block in found)


def test_the_page_asks_the_network_for_nothing():
    """Neither fonts nor styles."""
    assert not any(font.stylesheet()["url"] for font in LAUNCH_OPTIONS["theme"]._font if font)
    assert "http" not in LAUNCH_OPTIONS["css"] and not LAUNCH_OPTIONS["theme"]._stylesheets


def test_the_command_names_the_extra_that_it_needs(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["demo"]) == 2
    assert "pip install 'uniaudio2[demo]'" in capsys.readouterr().err


def test_the_command_serves_what_it_is_told_to(monkeypatch):
    launched = {}
    monkeypatch.setattr(inference.Engine, "load", lambda engine: launched.update(model=engine.checkpoint.model_id))
    monkeypatch.setattr(gr.Blocks, "launch", lambda demo, **options: launched.update(options))
    assert main(["demo", "--model", TINY, "--host", "0.0.0.0", "--port", "7999"]) == 0
    assert launched["model"] == TINY and not launched["share"]
    assert (launched["server_name"], launched["server_port"]) == ("0.0.0.0", 7999)
    assert launched["max_file_size"] == "50mb"


# The endpoints


def test_speak(client):
    audio, codes, facts = client.predict("seven three nine", seed=3, api_name="/speak")
    samples, rate = soundfile.read(audio)
    assert rate == RATE and np.abs(samples).max() > 0.05
    assert facts["seed"] == 3 and facts["seconds"] == pytest.approx(len(samples) / rate, abs=0.01)
    streams = load_codes(Path(codes))
    assert len(samples) == streams.reconstruction_codes.shape[1] * 1920
    assert streams.reasoning_codes.shape[1] > 0
    # Both files say what made them.
    assert read_provenance(audio)["model"] == "tiny" and read_provenance(audio)["task"] == "TTS"
    with safe_open(codes, "pt") as file:
        assert file.metadata()["digitalSourceType"] == read_provenance(audio)["digitalSourceType"]


def test_a_seed_repeats_and_another_varies(client):
    def spoken(seed):
        audio, _, facts = client.predict("one", seed=seed, temperature=1.0, max_seconds=1, api_name="/speak")
        assert facts["seed"] == seed
        return soundfile.read(audio)[0]

    first = spoken(1)
    assert np.array_equal(spoken(1), first)
    assert not np.array_equal(spoken(2), first)


def test_without_a_seed_one_is_chosen_and_told():
    assert len({chosen_seed(NEW_SEED) for _ in range(5)}) > 1
    assert chosen_seed(7) == 7 and chosen_seed(None) >= 0
    with pytest.raises(ValueError, match="between 0 and"):
        chosen_seed(-2)


def test_listen(client, speech):
    text, facts = client.predict(speech, api_name="/listen")
    assert text == "one zero four zero one"
    assert set(facts) == {"seed", "link"}


def test_codec(client, speech):
    audio, codes, _ = client.predict(speech, steps=4, seed=0, api_name="/codec")
    original, decoded = soundfile.info(RECORDINGS[0]), soundfile.read(audio)[0]
    assert len(decoded) / RATE == pytest.approx(original.duration, abs=0.01) and np.abs(decoded).max() > 0.05
    assert read_provenance(audio)["task"] == "reconstruct"
    streams = load_codes(Path(codes))
    assert streams.reasoning_codes.shape[0] == streams.reconstruction_codes.shape[0] == 8
    # Reasoning codes can be heard too, and change what is heard.
    both, _, _ = client.predict(speech, steps=4, seed=0, source="both", api_name="/codec")
    assert not np.array_equal(decoded, soundfile.read(both)[0])


def test_converse_takes_turns_in_text_and_in_sound(client, speech):
    text, sound, codes, facts = client.predict(kind="speak", text="one two", api_name="/converse")
    assert text == "" and soundfile.info(sound).duration == pytest.approx(facts["seconds"], abs=0.01)
    assert read_provenance(sound)["task"] == "TTS"
    assert load_codes(Path(codes)).reconstruction_codes.shape[1] * 1920 == soundfile.info(sound).frames
    text, sound, codes, facts = client.predict(kind="transcribe", audio=speech, api_name="/converse")
    assert text == "one zero four zero one" and sound is None and codes is None and "seconds" not in facts
    client.predict(api_name="/new_conversation")


def test_what_the_shipped_checkpoint_does_not_know_is_refused_with_the_reason(client, speech):
    """Not as a name that is unknown: the endpoint takes all that there is."""
    for request, reason in (
        ({"kind": "music", "text": "slow piano", "api_name": "/create"}, "`TTM`"),
        ({"audio": speech, "action": "ask", "question": "Who is it?", "api_name": "/listen"}, "`audio_understanding`"),
        ({"audio": speech, "kind": "reply_aloud", "api_name": "/converse"}, "`speech_s2s`"),
        ({"text": "one", "kind": "follow_in_audio", "api_name": "/converse"}, "learns nothing from examples"),
        ({"text": "one", "kind": "speak", "answer_audio": speech, "api_name": "/add_example"}, "learns nothing"),
    ):
        message = refusal(client, **request)
        assert "switched off" in message and reason in message
    assert "not in the list of choices" in refusal(client, speech, action="sing", api_name="/listen")


def function(demo, name):
    """What is behind an endpoint."""
    return next(fn.fn for fn in demo.fns.values() if fn.api_name == name)


def test_the_model_gets_the_turns_it_was_asked_for(unlisted, asked):
    """A checkpoint that follows examples is given all turns, in the order of the conversation."""
    path = str(RECORDINGS[0])
    turn = ("ask", "Which mood?", path)
    shown, history = function(unlisted, "add_example_on_page")([], [], *turn, "sad", None)
    *_, last = function(unlisted, "converse_on_page")(shown, history, *turn, 0, 0.0, 1.0, 5.0)
    (request,) = asked
    assert [message["role"] for message in request.messages] == ["user", "assistant", "user"]
    assert request.messages[0]["task"] == "audio_understanding"
    assert request.messages[1]["content"] == [{"type": "text", "text": "sad"}]
    said = [message["content"] for message in last[1]]
    assert said == ["Which mood?", {"path": path}, "sad", "Which mood?", {"path": path}, "calm"]


@pytest.mark.parametrize(
    ("style", "voice", "task"), [("", False, "TTS"), ("calm", False, "InstructTTS"), ("", True, "prompt_instruct_tts")]
)
def test_style_and_voice_choose_the_task(unlisted, asked, style, voice, task):
    voice = str(RECORDINGS[0]) if voice else None
    list(function(unlisted, "speak")("one", style, voice, True, 0, 0.0, 1.0, 2.0))
    (message,) = asked[0].messages
    assert message["task"] == task
    assert {part["field"] for part in message["content"]} == set(TASKS[task].condition_fields)


def test_a_voice_needs_consent(unlisted, asked):
    with pytest.raises(gr.Error, match="has agreed"):
        list(function(unlisted, "speak")("one", "", str(RECORDINGS[0]), False, 0, 0.0, 1.0, 2.0))
    assert asked == []


@pytest.mark.parametrize("kind", ["sound", "music", "song"])
def test_what_is_to_be_made_chooses_the_task(unlisted, asked, kind):
    list(function(unlisted, "create")(kind, "rain", 0, 0.0, 2.0, 99.0))
    assert asked[0].messages[0]["task"] == {"sound": "TTA", "music": "TTM", "song": "LTS"}[kind]
    # No answer is longer than the demo allows, whatever a client asks for.
    assert asked[0].max_seconds == MAX_ANSWER_SECONDS


def test_the_examples_of_the_documentation_run(server):
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"^```python\n(.*?)^```$", page, flags=re.DOTALL | re.MULTILINE)
    said = {}
    exec(compile(example.replace("http://127.0.0.1:7860", server.url), "docs/demo.md", "exec"), said)
    assert said["text"] == "one two"
    # Every endpoint is documented.
    assert all(f"`{endpoint}`" in page for endpoint in ENDPOINTS)


# Links


def test_a_link_says_what_led_to_a_result(client):
    _, _, facts = client.predict("one two", seed=5, max_seconds=4, api_name="/speak")
    query = parse_qs(urlsplit(facts["link"]).query)
    assert query["tab"] == ["speak"] and query["text"] == ["one two"] and query["seed"] == ["5"]


def test_a_link_fills_the_form_and_nothing_else():
    with gr.Blocks():
        fields = {
            "text": gr.Textbox(),
            "steps": gr.Slider(1, 50),
            "source": gr.Radio([("Both", "both")]),
            "seed": gr.Number(),
        }
    given = {"text": "x" * 9999, "steps": "12", "source": "both", "seed": "4", "other": "ignored"}
    text, steps, source, seed = links.values_from(given, fields)
    assert (len(text), steps, source, seed) == (MAX_CHARACTERS, 12.0, "both", 4.0)
    nothing = links.values_from({"steps": "999", "source": "<script>", "seed": "soon"}, fields)
    assert nothing == [gr.skip()] * 4


# What goes wrong


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "empty"), ("  \n", "empty"), ("x" * 10_000, "10,000 characters")],
    ids=["empty", "blank", "10,000 characters"],
)
def test_texts_that_are_refused(client, text, says):
    assert re.search(says, refusal(client, text, api_name="/speak"))


def test_a_zip_that_is_called_wav_is_refused(client, tmp_path):
    path = tmp_path / "song.wav"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("song.txt", "la la la" * 1000)
    for endpoint in ("/listen", "/codec"):
        assert "cannot be read as audio" in refusal(client, handle_file(str(path)), api_name=endpoint)


def test_three_hours_are_refused_before_they_are_read(client, tmp_path, monkeypatch):
    def reads(*_, **__):
        raise AssertionError("it is read")

    monkeypatch.setattr(inference.UniAudio2Processor, "encode_audio", reads)
    monkeypatch.setattr(inference.Engine, "_code_and_decode", reads)
    path = tmp_path / "long.flac"
    with soundfile.SoundFile(path, "w", 8000, 1) as file:
        for _ in range(180):
            file.write(np.zeros(8000 * 60, dtype=np.int16))
    assert "3.0 hours long" in refusal(client, handle_file(str(path)), api_name="/listen")
    assert f"{MAX_RECORDING_SECONDS:.0f} seconds" in refusal(client, handle_file(str(path)), api_name="/codec")


def test_small_files_of_very_many_samples_are_refused(tmp_path):
    path = tmp_path / "wide.flac"
    with soundfile.SoundFile(path, "w", 96_000, 8) as file:
        for _ in range(40):
            file.write(np.zeros((96_000, 8), dtype=np.int16))
    with pytest.raises(ValueError, match="8 channels of 96,000 samples a second"):
        check_recording(str(path))


def test_files_that_are_too_large_are_not_taken(client, tmp_path):
    path = tmp_path / "large.wav"
    with open(path, "wb") as file:
        file.truncate(60_000_000)
    with pytest.raises(Exception, match=r"413|Maximum|exceed"):
        client.predict(handle_file(str(path)), api_name="/listen")
    assert client.predict("one", max_seconds=1, api_name="/speak")[2]["seconds"] > 0


def test_other_files_of_the_machine_are_not_read(server):
    secret = server.folder.parent / "secret.wav"
    soundfile.write(secret, np.zeros(RATE), RATE)
    # Without the client, which would upload it.
    call = f"{server.url}gradio_api/call/listen"
    given = {"path": str(secret), "meta": {"_type": "gradio.FileData"}}
    event = httpx.post(call, json={"data": [given, "transcribe", "", 0, 0]}).json()["event_id"]
    assert "event: error" in httpx.get(f"{call}/{event}").text


def test_faults_of_ours_are_not_explained_to_strangers(client, server, monkeypatch):
    def broken(request):
        raise RuntimeError("the weights are upside down")
        yield

    monkeypatch.setattr(server.demo.engine, "answer", broken)
    assert "upside down" not in refusal(client, "one", api_name="/speak")


def test_files_are_deleted_after_a_while(client, server, speech):
    client.predict(speech, steps=1, api_name="/codec")
    deadline = time.monotonic() + 20
    while server.files() and time.monotonic() < deadline:
        time.sleep(0.2)
    assert server.files() == set()


# Running and stopping


def test_work_ends_when_nobody_listens():
    ended = []

    def work(report):
        try:
            while True:
                report("tick")
                time.sleep(0.01)
        finally:
            ended.append(True)

    reports = in_background(work)
    assert next(reports) == "tick"
    reports.close()
    deadline = time.monotonic() + 5
    while not ended and time.monotonic() < deadline:
        time.sleep(0.01)
    assert ended


def test_what_the_work_raises_is_raised_where_it_is_listened_to():
    def work(report):
        report(1)
        raise ValueError("no")

    reports = in_background(work)
    assert next(reports) == 1
    with pytest.raises(ValueError, match="no"):
        next(reports)


def test_sound_is_given_before_the_answer_is_complete(server):
    engine = server.demo.engine
    message = {"role": "user", "task": "TTS", "content": [{"type": "text", "text": "nine eight seven six five four"}]}
    request = inference.Request([message], answers_in_audio=True, seed=0)
    kinds = [type(report).__name__ for report in engine.answer(request) if report is not None]
    assert kinds.count("Sound") > 1 and kinds[-1] == "Answer"
    assert "Progress" in kinds[kinds.index("Sound") :]


def test_the_chunks_are_the_answer(server):
    engine = server.demo.engine
    message = {"role": "user", "task": "TTS", "content": [{"type": "text", "text": "one two"}]}
    reports = list(engine.answer(inference.Request([message], answers_in_audio=True, seed=4)))
    chunks = [report.samples for report in reports if isinstance(report, inference.Sound)]
    assert np.array_equal(np.concatenate(chunks), reports[-1].samples)


def test_what_is_said_on_a_lent_gpu_arrives(monkeypatch):
    """A lent GPU is in another process: values come back pickled, errors as the names of their classes."""

    def lend(duration):
        def decorated(function):
            def lent(*args):
                try:
                    for value in function(*args):
                        yield pickle.loads(pickle.dumps(value))
                except Exception as error:
                    raise RuntimeError(type(error).__name__) from None

            return lent

        return decorated

    spaces = ModuleType("spaces")
    spaces.GPU, spaces.__spec__ = lend, ModuleSpec("spaces", None)
    monkeypatch.setitem(sys.modules, "spaces", spaces)
    closed = []

    def work(text):
        try:
            yield inference.Words(text)
            raise ValueError("Too long: shorten it.")
        finally:
            closed.append(text)

    lent = on_gpu(work)
    messages = lent("one")
    assert next(messages) == inference.Words("one")
    with pytest.raises(ValueError, match="shorten it"):
        next(messages)
    stopped = lent("two")
    next(stopped)
    stopped.close()
    assert closed == ["one", "two"]


def test_too_much_time_is_refused(server, monkeypatch):
    monkeypatch.setattr(inference, "MAX_WORK_SECONDS", 0)
    message = {"role": "user", "task": "TTS", "content": [{"type": "text", "text": "one two"}]}
    reports = server.demo.engine.answer(inference.Request([message], answers_in_audio=True, seed=4))
    with pytest.raises(TimeoutError, match="longer than"):
        list(reports)


def test_one_request_at_a_time(server):
    """The second begins when the first has ended, even one that is given up."""
    engine, order = server.demo.engine, []

    def message(text):
        return {"role": "user", "task": "TTS", "content": [{"type": "text", "text": text}]}

    first = engine.answer(inference.Request([message("nine eight seven six")], answers_in_audio=True, seed=0))
    order.append(type(next(first)).__name__)
    second = engine.answer(inference.Request([message("one")], answers_in_audio=True, seed=0, max_seconds=1))
    assert next(second) is None
    first.close()
    assert any(isinstance(report, inference.Answer) for report in second)


def test_progress_and_sound_reach_the_page():
    class Quick:
        sampling_rate = RATE

    def work():
        yield inference.Progress(0.5, "Reasoning")
        yield inference.Sound(np.ones(2400, dtype=np.float32) / 2)
        raise ValueError("the <end>")

    values = []
    with pytest.raises(gr.Error, match="the <end>"):
        for outputs in told(Quick(), 2, work()):
            values.append(outputs[0])
    states = [value["state"] for value in values]
    assert states == ["working", "working", "failed"]
    assert values[0]["fraction"] == 0.5 and len(values[1]["chunks"]) == 1 and "0.1 s" in values[1]["text"]
    assert values[2]["text"] == "the &lt;end&gt;"
    json.dumps(values)
