"""Audio files say what made them, in every format that can."""

import json
from datetime import datetime, timezone

import numpy as np
import pytest
import soundfile
import torch

from uniaudio2.processing import UniAudio2Processor, read_provenance

IPTC = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "opus", "mp3", "aiff", "aif", "caf", "rf64"])
def test_a_file_says_what_made_it(processor, tone, tmp_path, suffix):
    path = tmp_path / f"out.{suffix}"
    before = datetime.now(timezone.utc).replace(microsecond=0)
    processor.save_audio(tone(), path, task="TTS")
    facts = read_provenance(path)
    assert before <= datetime.fromisoformat(facts.pop("date")) <= datetime.now(timezone.utc)
    assert facts == {"task": "TTS", "software": "uniaudio2", "digitalSourceType": IPTC}
    with soundfile.SoundFile(path) as file:  # any program that shows comments shows it
        assert json.loads(file.comment)["digitalSourceType"] == IPTC
    assert np.abs(soundfile.read(path)[0]).max() > 0.2


def test_the_model_is_its_hub_id_or_the_name_of_its_folder(processor, tone, tmp_path):
    folder = tmp_path / "private" / "my-model"
    processor.save_pretrained(folder)
    loaded = UniAudio2Processor.from_pretrained(folder)
    loaded.save_audio(tone(), tmp_path / "out.wav")
    assert read_provenance(tmp_path / "out.wav")["model"] == "my-model"
    assert b"private" not in (tmp_path / "out.wav").read_bytes()


@pytest.mark.parametrize("suffix", ["au", "w64"])
def test_formats_without_texts_are_written_with_a_warning(processor, tone, tmp_path, caplog, suffix):
    processor.save_audio(tone(), tmp_path / f"out.{suffix}")
    assert "does not say what made it" in caplog.text and "provenance=False" in caplog.text
    assert soundfile.info(tmp_path / f"out.{suffix}").frames == len(tone())
    assert read_provenance(tmp_path / f"out.{suffix}") is None
    caplog.clear()
    processor.save_audio(tone(), tmp_path / f"out.{suffix}", provenance=False)
    assert not caplog.text


def test_nothing_is_noted_if_told_so(processor, tone, tmp_path):
    processor.save_audio(tone(), tmp_path / "out.wav", provenance=False)
    assert read_provenance(tmp_path / "out.wav") is None
    assert b"trainedAlgorithmicMedia" not in (tmp_path / "out.wav").read_bytes()


@pytest.mark.parametrize("comment", ["recorded in my kitchen", "[1, 2]", '{"take": 3}'])
def test_comments_of_others_are_no_provenance(tmp_path, tone, comment):
    with soundfile.SoundFile(tmp_path / "mine.wav", "w", 24_000, 1) as file:
        file.comment = comment
        file.write(tone())
    assert read_provenance(tmp_path / "mine.wav") is None


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"missing\.wav"):
        read_provenance(tmp_path / "missing.wav")
    (tmp_path / "text.wav").write_text("not audio")
    with pytest.raises(ValueError, match=r"text\.wav' cannot be read as audio"):
        read_provenance(tmp_path / "text.wav")


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_a_watermark_is_put_in_before_writing(processor, tone, tmp_path, kind):
    heard = []

    def watermark(waveform, sampling_rate):
        heard.append((waveform.copy(), sampling_rate))
        return kind(waveform + 0.25)

    processor.save_audio(
        [kind(tone()), kind(tone(0.2))], [tmp_path / "a.wav", tmp_path / "b.wav"], watermark=watermark
    )
    assert [rate for _, rate in heard] == [24_000, 24_000]
    np.testing.assert_array_equal(heard[0][0], tone())
    np.testing.assert_allclose(soundfile.read(tmp_path / "a.wav")[0], tone() + 0.25, atol=1e-4)
    np.testing.assert_allclose(soundfile.read(tmp_path / "b.wav")[0], tone(0.2) + 0.25, atol=1e-4)


def test_a_watermark_keeps_the_shape(processor, tone, tmp_path):
    with pytest.raises(ValueError, match=r"must keep the shape of a waveform, but made \(10,\) of \(9600,\)"):
        processor.save_audio(tone(), tmp_path / "a.wav", watermark=lambda waveform, rate: waveform[:10])
    assert not list(tmp_path.iterdir())
