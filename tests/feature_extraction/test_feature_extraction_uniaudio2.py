"""Any kind of recording comes out as a padded mono waveform at 24 kHz, or with an error that says what to do."""

import functools
import http.server
import socket
import threading

import numpy as np
import pytest
import soundfile
import torch

from uniaudio2.feature_extraction.feature_extraction_uniaudio2 import UniAudio2FeatureExtractor

RATE = 24_000


def tone(seconds=0.1, rate=RATE, frequency=440.0):
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.fixture
def extractor():
    return UniAudio2FeatureExtractor()


def test_one_waveform_becomes_a_batch_of_one(extractor):
    audio = tone()
    inputs = extractor(audio, sampling_rate=RATE, return_tensors="pt")
    assert inputs["input_values"].dtype == torch.float32
    assert torch.equal(inputs["input_values"], torch.from_numpy(audio)[None, None])
    assert inputs["padding_mask"].shape == (1, audio.size) and inputs["padding_mask"].all()


@pytest.mark.parametrize(
    "same",
    [
        lambda audio: audio.astype(np.float64),
        lambda audio: audio.tolist(),
        torch.from_numpy,
        lambda audio: torch.from_numpy(audio).requires_grad_(),
        lambda audio: np.stack([audio, audio]),
        lambda audio: np.stack([audio, audio], axis=1),
        lambda audio: torch.from_numpy(audio)[None],
        lambda audio: {"array": audio, "sampling_rate": RATE},
        lambda audio: [audio],
    ],
)
def test_the_container_does_not_matter(extractor, same):
    audio = tone()
    values = extractor(same(audio), sampling_rate=RATE, return_tensors="np")["input_values"]
    np.testing.assert_allclose(values, audio[None, None], atol=1e-7)


@pytest.mark.parametrize("dtype", [np.int16, np.int32])
def test_integers_are_scaled_to_one(extractor, dtype):
    audio = np.array([np.iinfo(dtype).min, 0, np.iinfo(dtype).max // 2 + 1], dtype=dtype)
    for samples in (audio, torch.from_numpy(audio)):
        assert extractor(samples, sampling_rate=RATE)["input_values"][0].tolist() == [[-1.0, 0.0, 0.5]]


def test_bfloat16_tensors_are_read(extractor):
    audio = torch.tensor([0.5, -0.25], dtype=torch.bfloat16)
    assert extractor(audio, sampling_rate=RATE)["input_values"][0].tolist() == [[0.5, -0.25]]


def test_stereo_is_mixed_down(extractor):
    left, right = tone(frequency=300), tone(frequency=500)
    values = extractor(np.stack([left, right]), sampling_rate=RATE)["input_values"][0]
    np.testing.assert_allclose(values[0], (left + right) / 2, atol=1e-7)


def test_a_batch_is_padded_on_the_right_and_masked(extractor):
    short, long = tone(0.05), tone(0.1)
    inputs = extractor([short, long], sampling_rate=RATE, return_tensors="pt")
    assert inputs["input_values"].shape == (2, 1, long.size)
    assert inputs["padding_mask"].sum(-1).tolist() == [short.size, long.size]
    assert inputs["padding_mask"][0, : short.size].all()
    assert (inputs["input_values"][0, 0, short.size :] == 0).all()


def test_padding_to_a_multiple_and_not_at_all(extractor):
    inputs = extractor([tone(0.05), tone(0.1)], sampling_rate=RATE, pad_to_multiple_of=1000, return_tensors="pt")
    assert inputs["input_values"].shape == (2, 1, 3000) and inputs["padding_mask"].sum(-1).tolist() == [1200, 2400]
    inputs = extractor([tone(0.05), tone(0.1)], sampling_rate=RATE, padding=False)
    assert [values.shape for values in inputs["input_values"]] == [(1, 1200), (1, 2400)]
    inputs = extractor(tone(0.1), sampling_rate=RATE, max_length=1200, truncation=True, return_tensors="pt")
    assert inputs["input_values"].shape == (1, 1, 1200) and inputs["padding_mask"].shape == (1, 1200)


def test_rows_may_be_padded_on_the_other_side(extractor, tmp_path):
    """A pipeline refuses batches if the padding sides of tokenizer and feature extractor differ."""
    assert not hasattr(extractor, "padding_side")
    with pytest.raises(ValueError, match="on the right"):
        UniAudio2FeatureExtractor(padding_side="left")


def test_padding_to_a_length(extractor):
    inputs = extractor(tone(0.05), sampling_rate=RATE, padding="max_length", max_length=2400, return_tensors="pt")
    assert inputs["input_values"].shape == (1, 1, 2400)
    assert inputs["padding_mask"].sum() == 1200


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
def test_other_rates_are_resampled(extractor, rate):
    values = extractor(tone(0.5, rate), sampling_rate=rate)["input_values"][0][0]
    assert abs(values.size - RATE // 2) <= 1
    inside = slice(2_000, 10_000)  # away from the ends, where the filter has half its samples
    np.testing.assert_allclose(values[inside], tone(0.5)[inside], atol=2e-3)


@pytest.mark.parametrize(
    "name, options", [("a.wav", {}), ("a.flac", {}), ("a.ogg", {}), ("a.mp3", {}), ("a.opus", {"format": "OGG"})]
)
def test_files_bring_their_own_rate(extractor, tmp_path, name, options):
    path = tmp_path / name
    subtype = {"subtype": "OPUS"} if name.endswith("opus") else {}
    soundfile.write(path, np.stack([tone(0.5, 48_000)] * 2, axis=1), 48_000, **options, **subtype)
    values = extractor(path)["input_values"][0]
    assert values.shape[0] == 1 and abs(values.shape[1] - RATE // 2) <= RATE // 20
    level = np.sqrt(np.mean(np.square(values[0, 2_000:10_000])))
    assert level == pytest.approx(0.5 / np.sqrt(2), rel=0.1)


def test_files_waveforms_and_dictionaries_mix_in_a_batch(extractor, tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, tone(0.2, 16_000), 16_000)
    recordings = [str(path), tone(0.1), {"path": str(path)}, {"bytes": path.read_bytes(), "path": None}]
    recordings.append(path.read_bytes())
    inputs = extractor(recordings, sampling_rate=RATE, return_tensors="pt")
    assert inputs["padding_mask"].sum(-1).tolist() == [4800, 2400, 4800, 4800, 4800]


@pytest.fixture
def address(tmp_path):
    """Of a server on this machine for the files in `tmp_path`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=tmp_path)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_addresses_are_downloaded(extractor, tmp_path, address):
    soundfile.write(tmp_path / "speech.wav", tone(0.2, 16_000), 16_000)
    expected = extractor(tmp_path / "speech.wav")["input_values"][0]
    for recording in (f"{address}/speech.wav", extractor.fetch_audio(f"{address}/speech.wav")):
        np.testing.assert_array_equal(extractor(recording)["input_values"][0], expected)


def test_what_cannot_be_downloaded_is_one_clear_error(extractor, address):
    with pytest.raises(OSError, match=r"nothing\.wav' cannot be downloaded \(.*404.*pass its path"):
        extractor(f"{address}/nothing.wav")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens here
        port = free.getsockname()[1]
        with pytest.raises(OSError, match=r"cannot be downloaded \(.*refused.*Check the address and the network"):
            extractor(f"http://127.0.0.1:{port}/speech.wav")


def test_pipelines_read_files_without_losing_their_rate(extractor, tmp_path):
    path = tmp_path / "speech.wav"
    soundfile.write(path, tone(0.2, 16_000), 16_000)
    fetched = extractor.fetch_audio([str(path)])
    assert extractor(fetched)["input_values"][0].shape == (1, 4800)
    array = tone()
    assert extractor.fetch_audio(array) is array


def test_it_survives_saving(extractor, tmp_path):
    extractor.save_pretrained(tmp_path)
    again = UniAudio2FeatureExtractor.from_pretrained(tmp_path)
    assert again.to_dict() == extractor.to_dict()


@pytest.mark.parametrize(
    "audio, message",
    [
        (np.array([0.1, np.nan]), "1 samples that are NaN"),
        (np.array([0.1, np.inf], dtype=np.float32), "NaN or infinite"),
        (np.array([], dtype=np.float32), "empty"),
        ([], "empty"),
        ([tone(), []], "empty"),
        (np.zeros((1, 1, 100), dtype=np.float32), r"\(1, 1, 100\) is no recording"),
        (np.array(0.5, dtype=np.float32), "no recording"),
        (np.zeros((6, 100), dtype=np.float32), "a batch is a list"),
        (np.zeros((2, 2), dtype=np.float32), "ambiguous"),
        ({"samples": tone()}, "'array'"),
    ],
)
def test_what_is_no_recording_is_refused(extractor, audio, message):
    with pytest.raises(ValueError, match=message):
        extractor(audio, sampling_rate=RATE)


@pytest.mark.parametrize("audio", [[1, 2, 3], np.array([1, 2], dtype=np.uint8), np.array([True]), None, 3, ["a", 1.0]])
def test_values_without_a_scale_are_refused(extractor, audio):
    with pytest.raises((TypeError, FileNotFoundError), match=r"Pass|no audio file"):
        extractor(audio, sampling_rate=RATE)


@pytest.mark.parametrize(
    "rate, message",
    [
        (None, "unknown. Pass it, for example `sampling_rate=16000`"),
        (0, "outside"),
        (-16_000, "outside"),
        (16, "16000, not 16"),
        (16_000.5, "whole number"),
        (float("nan"), "whole number"),
        ("16000", "whole number"),
        (True, "whole number"),
    ],
)
def test_unknown_and_impossible_rates_are_refused(extractor, rate, message):
    with pytest.raises(ValueError, match=message):
        extractor(tone(), sampling_rate=rate)


def test_files_that_are_missing_or_no_audio_are_refused(extractor, tmp_path):
    with pytest.raises(FileNotFoundError, match="Texts go in `text`"):
        extractor("seven three nine")
    (tmp_path / "notes.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"notes\.wav.* cannot be read as audio"):
        extractor(tmp_path / "notes.wav")
    with pytest.raises(ValueError, match=r"The data cannot be read as audio \(Format not recognised\.\)"):
        extractor(b"not audio")


def test_a_recording_too_short_to_resample_is_refused(extractor):
    with pytest.raises(ValueError, match="longer recording"):
        extractor(np.array([0.1], dtype=np.float32), sampling_rate=768_000)
