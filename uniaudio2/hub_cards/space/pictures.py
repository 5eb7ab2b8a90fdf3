"""Pictures of recordings and of their codes, as HTML without anything from the network."""

import base64
import html
import io

import matplotlib
import numpy as np
import torch
from matplotlib.image import imsave

from ...processing import AudioCodes

matplotlib.use("Agg")

# A spectrogram as people draw it: 25 ms, 128 mel bands of 80 dB.
WINDOW_SECONDS, HOP_SECONDS, NUM_BANDS, DYNAMIC_RANGE = 0.025, 0.01, 128, 80.0


def spectrogram(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """The level of each band in decibels under the loudest, `(bands, frames)`, low bands first."""
    window = round(WINDOW_SECONDS * sampling_rate)
    size = 2 ** (window - 1).bit_length()
    waveform = torch.nn.functional.pad(torch.from_numpy(np.asarray(samples, np.float32)), (0, window))
    spectrum = torch.stft(
        waveform,
        n_fft=size,
        hop_length=round(HOP_SECONDS * sampling_rate),
        win_length=window,
        window=torch.hann_window(window),
        return_complex=True,
    ).abs()
    bands = torch.from_numpy(_mel_filters(size, sampling_rate)).to(spectrum.dtype) @ spectrum.square()
    level = 10 * torch.log10(bands.clamp(min=1e-10))
    return (level - level.max()).clamp(min=-DYNAMIC_RANGE).numpy()


def compared(original: np.ndarray, decoded: np.ndarray, sampling_rate: int) -> str:
    """Two spectrograms side by side."""
    seconds = len(original) / sampling_rate
    pictures = "".join(
        _figure(
            title,
            _picture(spectrogram(samples, sampling_rate)[::-1], -DYNAMIC_RANGE, 0.0, "magma"),
            f"Spectrogram of the {title.lower()}, 0 to {sampling_rate // 2000} kHz, {seconds:.1f} seconds",
            f"0 to {sampling_rate // 2000} kHz",
            seconds,
        )
        for title, samples in (("Recording", original), ("Reconstruction", decoded))
    )
    return f'<div class="pictures side-by-side">{pictures}</div>'


def streams(codes: AudioCodes, reasoning_size: int, reconstruction_size: int, seconds: float) -> str:
    """Both token streams as heat maps, a row for each codebook."""
    pictures = "".join(
        _figure(
            f"{name} codes, {rate:g} per second",
            _picture(stream.numpy(), 0, size - 1, "viridis", "pixelated"),
            f"Heat map of the {name.lower()} codes: {stream.shape[0]} codebooks by {stream.shape[1]} frames",
            f"{stream.shape[0]} codebooks of {size}",
            seconds,
            meaning,
        )
        for name, rate, stream, size, meaning in (
            ("Reasoning", 5, codes.reasoning_codes, reasoning_size, "what is in the recording"),
            ("Reconstruction", 12.5, codes.reconstruction_codes, reconstruction_size, "how it sounds"),
        )
    )
    return f'<div class="pictures">{pictures}</div>'


def _figure(title: str, picture: str, description: str, height: str, seconds: float, meaning: str = "") -> str:
    meaning = f" <span>{html.escape(meaning)}</span>" if meaning else ""
    return (
        f"<figure><figcaption><b>{html.escape(title)}</b>{meaning}</figcaption>"
        f"{picture.replace('<img', f'<img alt={html.escape(description)!r}')}"
        f'<div class="axis"><span>0 s</span><span>{html.escape(height)}</span><span>{seconds:.1f} s</span></div>'
        "</figure>"
    )


def _picture(values: np.ndarray, lowest: float, highest: float, colours: str, rendering: str = "auto") -> str:
    data = io.BytesIO()
    imsave(data, values, vmin=lowest, vmax=highest, cmap=colours, format="png")
    encoded = base64.b64encode(data.getvalue()).decode("ascii")
    return f'<img src="data:image/png;base64,{encoded}" style="image-rendering:{rendering}">'


def _mel_filters(size: int, sampling_rate: int) -> np.ndarray:
    """Triangles between points that are equally far apart on the mel scale, `(bands, frequencies)`."""
    highest = 2595 * np.log10(1 + sampling_rate / 2 / 700)
    points = 700 * (10 ** (np.linspace(0, highest, NUM_BANDS + 2) / 2595) - 1)
    frequencies = np.linspace(0, sampling_rate / 2, size // 2 + 1)
    low, centre, high = points[:-2, None], points[1:-1, None], points[2:, None]
    return np.clip(np.minimum((frequencies - low) / (centre - low), (high - frequencies) / (high - centre)), 0, None)
