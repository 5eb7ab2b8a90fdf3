"""`pipeline(model=folder)`, with this package and from the saved folder alone with `trust_remote_code=True`."""

import os
import subprocess
import sys

import numpy as np
import pytest
from transformers import pipeline

# A process of its own in which this package cannot be imported: the folder must hold all the code there is.
FOLDER_ALONE = """
import sys
sys.modules["uniaudio2"] = None

import numpy as np
import torch
from transformers import AutoModel, AutoModelForAudioTokenization, AutoProcessor, pipeline

folder = sys.argv[1]
torch.manual_seed(0)
speak = pipeline("text-to-audio", model=folder, trust_remote_code=True)
assert type(speak.model).__module__.startswith("transformers_modules")
assert speak.sampling_rate == 24000
for given in ("seven three", ["seven", "three nine"]):
    said = speak(given, generate_kwargs={"max_new_tokens": 8})
    for item in said if isinstance(said, list) else [said]:
        assert np.isfinite(item["audio"]).all()

answer = pipeline("any-to-any", model=folder, trust_remote_code=True)
chat = [{"role": "user", "content": [{"type": "audio", "audio": np.zeros(9600, dtype=np.float32)}]}]
heard = answer(chat, return_full_text=False, generation_mode="text", generate_kwargs={"max_new_tokens": 2})
assert isinstance(heard[0]["generated_text"], str), heard

codec = AutoModelForAudioTokenization.from_pretrained(folder + "/codec", trust_remote_code=True)
assert codec.encode(torch.zeros(1, 9600)).reconstruction_codes.shape == (1, 8, 5)
assert AutoModel.from_pretrained(folder, trust_remote_code=True).config.model_type == "uniaudio2"
assert type(AutoProcessor.from_pretrained(folder, trust_remote_code=True).codec) is type(codec)
"""


@pytest.fixture(scope="module")
def speak(model_folder):
    return pipeline("text-to-audio", model=str(model_folder), device="cpu")


# A random model may stop before it has made a frame of sound, and then there is nothing to decode; it does not within
# these few frames.
SHORT = {"generate_kwargs": {"max_new_tokens": 8}}


@pytest.mark.parametrize("batch_size", [1, 2])
def test_text_to_audio_speaks_strings_lists_and_batches(speak, batch_size):
    one = speak("seven three nine", **SHORT)
    many = speak(["seven three nine", "one"], batch_size=batch_size, **SHORT)
    assert one["sampling_rate"] == 24000 and len(many) == 2
    for item in (one, *many):
        assert item["audio"].ndim == 1 and np.isfinite(item["audio"]).all()


def test_text_to_audio_takes_chats(speak):
    chat = [{"role": "user", "content": "seven three nine"}]
    assert speak(chat, **SHORT)["audio"].ndim == 1
    assert len(speak([chat, chat], **SHORT)) == 2


def test_text_to_audio_forwards_other_tasks(speak):
    said = speak("soft rain", preprocess_params={"task": "TTA"}, **SHORT)
    assert said["audio"].ndim == 1


@pytest.mark.checkpoint
def test_the_saved_folder_works_where_this_package_cannot_be_imported(model_folder, tmp_path):
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", FOLDER_ALONE, str(model_folder)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr[-3000:]
