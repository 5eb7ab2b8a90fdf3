"""Many clients at once: every answer arrives, at the one who asked, and memory stays what it was."""

import random
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import parse_qs, urlsplit

import pytest
import soundfile
from gradio_client import Client, handle_file
from space_server import serving

from uniaudio2.hub_cards.space.examples import RECORDINGS

pytestmark = pytest.mark.slow

NUM_CLIENTS, NUM_REQUESTS = 10, 50
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("gradio")) as server:
        yield server


def questions():
    """Speaking, and now and then listening; no two texts to speak are the same."""
    for number in range(NUM_REQUESTS):
        if number % 5 == 4:
            yield "/listen", {"audio": handle_file(str(RECORDINGS[number % len(RECORDINGS)])), "seed": number}
        else:
            text = f"{DIGITS[number % 10]} {DIGITS[number // 10]}"
            yield "/speak", {"text": text, "seed": number, "temperature": 1.0, "max_seconds": 1.0}


def asked(client, question):
    """The answer in a form that can be compared, and what it says of the question."""
    endpoint, given = question
    answer = client.predict(**given, api_name=endpoint)
    told = parse_qs(urlsplit(answer[-1]["link"]).query)
    content = answer[0] if endpoint == "/listen" else soundfile.read(answer[0])[0].tobytes()
    return content, told.get("text"), told["seed"]


def test_fifty_requests_of_ten_clients(server, tmp_path):
    clients = [Client(server.url, download_files=str(tmp_path), verbose=False) for _ in range(NUM_CLIENTS)]
    asks = list(questions())
    # Some of them one after the other, which also warms up.
    alone = {place: asked(clients[0], asks[place]) for place in range(0, NUM_REQUESTS, 4)}

    def session(number):
        own = list(range(number, NUM_REQUESTS, NUM_CLIENTS))
        random.Random(number).shuffle(own)
        return {place: asked(clients[number], asks[place]) for place in own}

    before = server.resident_megabytes()
    answers = {}
    with ThreadPoolExecutor(NUM_CLIENTS) as pool:
        for session_answers in pool.map(session, range(NUM_CLIENTS)):
            answers |= session_answers
    after = server.resident_megabytes()

    assert sorted(answers) == list(range(NUM_REQUESTS))
    for place, (_, given) in enumerate(asks):
        assert answers[place][1:] == ([given["text"]] if "text" in given else None, [str(given["seed"])])
    assert {place: answers[place] for place in alone} == alone
    sounds = [answers[place][0] for place, (endpoint, _) in enumerate(asks) if endpoint == "/speak"]
    assert len(set(sounds)) == len(sounds)
    print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after {NUM_REQUESTS} requests")
    assert after < 1.1 * before
