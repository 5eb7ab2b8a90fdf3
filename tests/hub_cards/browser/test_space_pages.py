"""The demo as people meet it: headless Chromium on every tab, at a desk, on a phone, in the dark."""

import io
import re
import shutil
import zipfile
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import numpy as np
import pytest
import soundfile
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright
from space_server import serving

from uniaudio2.commands.codes_file import load_codes
from uniaudio2.hub_cards.space.app import TABS
from uniaudio2.hub_cards.space.examples import RECORDINGS
from uniaudio2.processing import read_provenance

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: apt install chromium)"),
]

DESK, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
# Everything here is done within seconds; a busy machine takes longer.
PATIENCE = 60_000
LONG_TEXT = " ".join(["nine eight seven six five four three two one zero"] * 8)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gradio")) as server:
        yield server


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    # What the microphone hears.
    spoken = tmp_path_factory.mktemp("microphone") / "spoken.wav"
    samples, rate = soundfile.read(RECORDINGS[0])
    soundfile.write(spoken, samples, rate)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={spoken}",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(server, browser):
    """Opens the demo; in the end no visit has seen an error or asked another machine for anything."""
    pages, troubles = [], []

    def open_page(query="", viewport=DESK):
        page = browser.new_page(viewport=viewport)
        page.set_default_timeout(PATIENCE)
        expect.set_options(timeout=PATIENCE)
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        page.on(
            "request",
            lambda request: (
                None if _is_own(request.url, server.url) else troubles.append(f"asks for {request.url[:100]}")
            ),
        )
        # The form is filled by an event of its own after the page has come up.
        with page.expect_response(lambda response: "/gradio_api/run/" in response.url):
            page.goto(f"{server.url}{query}", wait_until="domcontentloaded")
        expect(page.get_by_role("tab", name=_tab(query), selected=True)).to_be_visible()
        pages.append(page)
        return page

    yield open_page
    for page in pages:
        if not page.is_closed():
            page.close()
    assert troubles == []


def _tab(query):
    """The name of the tab that a link opens."""
    return parse_qs(query.lstrip("?")).get("tab", ["speak"])[0].capitalize()


def _is_own(url, own):
    return urlsplit(url).scheme in ("data", "blob") or urlsplit(url).netloc == urlsplit(own).netloc


def wait_for(page, tab, state):
    page.locator(f'#{tab}-live [data-state="{state}"]').wait_for(state="attached")


def heard(page, tab):
    """Seconds of sound that the page has played, or is going to, while it was made."""
    return page.evaluate(f"Number(document.querySelector('#{tab}-live [data-heard]')?.dataset.heard ?? 0)")


def sound(page, tab):
    """What the player of a tab holds: samples and rate."""
    link = page.locator(f"#{tab}-audio a[download]")
    link.wait_for(state="attached")
    data = page.request.get(link.get_attribute("href")).body()
    return soundfile.read(io.BytesIO(data)), data


def upload(page, tab, path):
    page.set_input_files(f"#{tab}-recording input[type=file]", path)
    page.locator(f"#{tab}-recording").get_by_label("Clear").wait_for()


def test_speak(visit, tmp_path):
    page = visit()
    page.locator("#speak-text textarea").fill("seven three nine")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "done")
    (samples, rate), data = sound(page, "speak")
    facts = page.locator("#speak-facts").inner_text()
    seconds = float(re.search(r"([\d.]+) s of sound", facts)[1])
    # Non-silent, as long as it is said to be, and heard while it was made.
    assert np.abs(samples).max() > 0.05 and 0.5 < seconds < 5
    assert len(samples) / rate == pytest.approx(seconds, abs=0.01)
    assert heard(page, "speak") == pytest.approx(seconds, abs=0.01)
    path = tmp_path / "downloaded.wav"
    path.write_bytes(data)
    assert read_provenance(path)["model"] == "tiny"
    with page.expect_download() as download:
        page.get_by_role("button", name="Download its codes").click()
    assert Path(download.value.path()).stat().st_size > 0


def test_a_seed_is_kept_and_shared(visit):
    page = visit()
    page.locator("#speak-text textarea").fill("one two")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "done")
    (first, _), _ = sound(page, "speak")
    seed = page.locator("#speak-facts b").inner_text()
    page.get_by_role("button", name="Keep this seed").locator("visible=true").click()
    page.get_by_role("button", name="Settings").locator("visible=true").click()
    expect(page.locator("#speak-seed input")).to_have_value(seed)

    page = visit(page.get_by_role("link", name="Link to this result").locator("visible=true").get_attribute("href"))
    expect(page.locator("#speak-text textarea")).to_have_value("one two")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "done")
    (again, _), _ = sound(page, "speak")
    assert np.array_equal(first, again)


def test_the_keyboard_is_enough(visit):
    page = visit()
    page.get_by_role("tab", name="Speak").focus()
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#speak-text') !== null"):
            break
    page.keyboard.type("one")
    page.keyboard.press("Shift+Enter")
    wait_for(page, "speak", "done")


def test_listen_to_a_file(visit):
    page = visit("?tab=listen")
    upload(page, "listen", RECORDINGS[0])
    page.get_by_role("button", name="Listen", exact=True).click()
    expect(page.locator("#listen-text textarea")).to_have_value("one zero four zero one")
    expect(page.locator("#listen-action")).not_to_contain_text("Describe")
    expect(page.locator("#tab-listen")).to_contain_text("audio_caption")


def test_listen_to_the_microphone(visit):
    page = visit("?tab=listen")
    recorder = page.locator("#listen-recording")
    recorder.get_by_label("Record audio").click()
    recorder.get_by_role("button", name="Record", exact=True).click()
    page.wait_for_timeout(3000)
    # It can be played here before the server has it.
    with page.expect_response(lambda response: "/upload" in response.url):
        recorder.locator("button.stop-button").click()
    recorder.get_by_label("Play", exact=True).wait_for()
    page.wait_for_timeout(1000)
    page.get_by_role("button", name="Listen", exact=True).click()
    wait_for(page, "listen", "done")
    assert set(page.locator("#listen-text textarea").input_value().split()) & {"one", "zero", "four"}


def test_create_says_why_it_is_off(visit):
    page = visit("?tab=create")
    expect(page.get_by_role("button", name="Create", exact=True)).to_be_disabled()
    expect(page.locator("#tab-create")).to_contain_text("TTM")


def test_converse(visit):
    page = visit("?tab=converse")
    page.get_by_label("Your text").fill("one two")
    page.get_by_role("button", name="Send").click()
    wait_for(page, "converse", "done")
    chat = page.locator("#converse-chat")
    expect(chat).to_contain_text("one two")
    expect(page.get_by_label("Your text")).to_have_value("")
    assert heard(page, "converse") > 0.5
    codes = page.get_by_role("button", name="Download its codes").locator("visible=true")
    with page.expect_download() as download:
        codes.click()
    spoken = load_codes(Path(download.value.path())).reconstruction_codes
    assert spoken.shape[1] / 12.5 == pytest.approx(heard(page, "converse"), abs=0.01)
    page.get_by_label("Write down what I say").check()
    upload(page, "converse", RECORDINGS[0])
    page.get_by_role("button", name="Send").click()
    expect(chat).to_contain_text("one zero four zero one")
    # A text has none.
    expect(codes).to_have_count(0)
    facts = page.locator("#converse-facts")
    expect(facts).to_contain_text("Seed")
    page.get_by_role("button", name="New conversation").click()
    expect(chat).not_to_contain_text("one zero four zero one")
    expect(facts).not_to_contain_text("Seed")


def test_codec(visit):
    page = visit("?tab=codec&steps=4")
    upload(page, "codec", RECORDINGS[0])
    page.get_by_role("button", name="Encode and decode").click()
    wait_for(page, "codec", "done")
    (samples, rate), _ = sound(page, "codec")
    assert np.abs(samples).max() > 0.05
    assert len(samples) / rate == pytest.approx(soundfile.info(RECORDINGS[0]).duration, abs=0.01)
    pictures = page.locator("#tab-codec .pictures img")
    expect(pictures).to_have_count(4)
    described = [picture.get_attribute("alt") for picture in pictures.all()]
    assert len(set(described)) == 4 and all(described)
    assert all(page.evaluate("[...document.querySelectorAll('#tab-codec .pictures img')].map(i => i.naturalWidth)"))


def test_stop(visit):
    page = visit(f"?tab=speak&text={quote(LONG_TEXT)}&max_seconds=30&temperature=1.2")
    held = []
    page.route("**/cancel", lambda route: held.append(route))
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "working")
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    # It is not said before it is true: until the server has been told, the work goes on.
    page.wait_for_timeout(1000)
    assert len(held) == 1 and page.locator('#speak-live [data-state="stopped"]').count() == 0
    held[0].continue_()
    wait_for(page, "speak", "stopped")
    # Nothing comes after, and the model is free for the next.
    page.locator("#speak-text textarea").fill("one")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "done")
    seconds = float(re.search(r"([\d.]+) s of sound", page.locator("#speak-facts").inner_text())[1])
    assert 0.3 < seconds < 5


def test_stop_in_the_queue(visit):
    """Who waits for others can go, and come back."""
    first = visit(f"?tab=speak&text={quote(LONG_TEXT)}&max_seconds=30")
    first.get_by_role("button", name="Speak", exact=True).click()
    wait_for(first, "speak", "working")
    page = visit("?tab=speak&text=one")
    page.get_by_role("button", name="Speak", exact=True).click()
    page.get_by_role("button", name="Stop").locator("visible=true").click()
    wait_for(page, "speak", "stopped")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "waiting")
    first.get_by_role("button", name="Stop").locator("visible=true").click()
    wait_for(page, "speak", "done")


def test_a_closed_tab_stops_the_model(visit, server):
    page = visit(f"?tab=speak&text={quote(LONG_TEXT)}&max_seconds=30&temperature=1.2")
    page.get_by_role("button", name="Speak", exact=True).click()
    page.wait_for_function("Number(document.querySelector('#speak-live [data-heard]')?.dataset.heard ?? 0) > 0")
    page.close()
    page = visit("?tab=listen")
    upload(page, "listen", RECORDINGS[0])
    files = {path for path in server.folder.rglob("*") if path.is_file()}
    page.get_by_role("button", name="Listen", exact=True).click()
    expect(page.locator("#listen-text textarea")).to_have_value("one zero four zero one")
    # What was begun left no file behind.
    assert set(server.folder.rglob("*.wav")) <= files


def test_a_full_queue_is_explained(visit):
    page = visit("?tab=speak&text=one")
    full = {"detail": "Queue is full. Max size is 32 and size is 32."}
    page.route("**/queue/join*", lambda route: route.fulfill(status=503, json=full))
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "failed")
    expect(page.locator("#speak-live")).to_contain_text("Too many are waiting")
    page.unroute("**/queue/join*")
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "done")


@pytest.mark.parametrize("tab", ["listen", "codec"])
def test_a_bad_file_is_explained(visit, tab, tmp_path):
    path = tmp_path / "song.wav"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("song.txt", "la la la" * 1000)
    page = visit(f"?tab={tab}")
    upload(page, tab, path)
    page.locator(f"#{tab}-go").click()
    wait_for(page, tab, "failed")
    expect(page.locator(f"#{tab}-live")).to_contain_text("cannot be read as audio")


def test_a_text_that_is_too_long_is_explained(visit):
    page = visit()
    page.locator("#speak-text textarea").fill("x" * 10_000)
    page.get_by_role("button", name="Speak", exact=True).click()
    wait_for(page, "speak", "failed")
    expect(page.locator("#speak-live")).to_contain_text("10,000 characters")


@pytest.mark.parametrize(("viewport", "theme"), [(DESK, "light"), (PHONE, "light"), (DESK, "dark"), (PHONE, "dark")])
def test_everybody_can_use_it(visit, viewport, theme):
    """No serious violation of accessibility, and nothing wider than the screen."""
    page = visit(f"?__theme={theme}", viewport)
    for tab in TABS:
        page.get_by_role("tab", name=tab.capitalize()).click()
        folded = page.locator(f"#tab-{tab} button.label-wrap:not(.open)")
        while folded.count() > 0:
            folded.first.click()
        page.wait_for_timeout(300)
        violations = [
            f"{tab}: {violation['id']} ({violation['impact']}): {violation['nodes'][0]['html'][:200]}"
            for violation in Axe().run(page).response["violations"]
            if violation["impact"] in ("serious", "critical")
        ]
        assert violations == []
        assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
