"""Pictures of every tab, with a result on it, at a desk and on a phone, by day and by night: `make screenshots`."""

import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.hub_cards.space_server import serving
from uniaudio2.hub_cards.space.app import TABS
from uniaudio2.hub_cards.space.examples import RECORDINGS

WIDTHS = {"desktop": 1440, "phone": 390}
TEXTS = {"speak": "seven three nine", "converse": "one two"}


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as files, serving(Path(files, "gradio")) as server, sync_playwright() as play:
        browser = play.chromium.launch(
            executable_path=shutil.which("chromium") or shutil.which("google-chrome"),
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        for theme in ("light", "dark"):
            for name, width in WIDTHS.items():
                page = browser.new_page(viewport={"width": width, "height": 844})
                for tab in TABS:
                    with page.expect_response(lambda response: "/gradio_api/run/" in response.url):
                        page.goto(f"{server.url}?tab={tab}&__theme={theme}", wait_until="domcontentloaded")
                    fill_and_run(page, tab)
                    path = folder / f"{tab}-{name}{'-dark' if theme == 'dark' else ''}.png"
                    page.screenshot(path=path, full_page=True)
                    print(path)
                page.close()
        browser.close()


def fill_and_run(page: Page, tab: str) -> None:
    """Does the one thing that there is to do on a tab, where the shipped checkpoint can."""
    go = page.locator(f"#{tab}-go")
    go.wait_for()
    if tab in TEXTS:
        page.locator(f"#{tab}-text textarea").fill(TEXTS[tab])
    elif tab != "create":
        page.set_input_files(f"#{tab}-recording input[type=file]", RECORDINGS[0])
        page.locator(f"#{tab}-recording").get_by_label("Clear").wait_for()
    if go.is_enabled():
        go.click()
        page.locator(f'#{tab}-live [data-state="done"]').wait_for(state="attached", timeout=120_000)
    # Waveforms are drawn a moment later.
    page.mouse.move(0, 0)
    page.wait_for_timeout(1500)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
