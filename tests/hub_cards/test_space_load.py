"""Many clients at once: every answer arrives, at the one who asked, and memory stays what it was."""

import random
from concurrent.futures import ThreadPoolExecutor

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
    """Speaking and listening in turns; no two questions have the same answer, but for those about a recording."""
    for number in range(NUM_REQUESTS):
        if number % 5 == 4:
            yield "/listen", {"audio": handle_file(str(RECORDINGS[number % len(RECORDINGS)])), "seed": number}
        else:
            text = f"{DIGITS[number % 10]} {DIGITS[number // 10]}"
            yield "/speak", {"text": text, "seed": number, "temperature": 1.0, "max_seconds": 1.0}


def asked(client, question):
    """The answer in a form that can be compared."""
    endpoint, given = question
    answer = client.predict(**given, api_name=endpoint)
    facts = answer[-1]
    return (answer[0] if endpoint == "/listen" else soundfile.read(answer[0])[0].tobytes()), facts["seed"]


def test_fifty_requests_of_ten_clients(server, tmp_path):
    clients = [Client(server.url, download_files=str(tmp_path), verbose=False) for _ in range(NUM_CLIENTS)]
    asks = list(questions())
    # One after the other, which also warms up.
    expected = [asked(clients[0], question) for question in asks]
    assert len(set(expected)) == NUM_REQUESTS

    def session(number):
        own = list(range(number, NUM_REQUESTS, NUM_CLIENTS))
        random.Random(number).shuffle(own)
        return {place: asked(clients[number], asks[place]) for place in own}

    def all_at_once():
        with ThreadPoolExecutor(NUM_CLIENTS) as pool:
            answers = {}
            for session_answers in pool.map(session, range(NUM_CLIENTS)):
                answers |= session_answers
        return [answers[place] for place in range(NUM_REQUESTS)]

    before = server.resident_megabytes()
    assert all_at_once() == expected
    after = server.resident_megabytes()
    print(f"resident memory: {before:.0f} MB before, {after:.0f} MB after {NUM_REQUESTS} requests")
    assert after < 1.1 * before
