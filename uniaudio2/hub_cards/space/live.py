"""Two small components: one plays sound while it is made and says how far it is, one says what came out."""

import base64
import html
import time
import uuid
from typing import Any

import gradio as gr
import numpy as np

from .inference import Progress

# The states of a run. The style sheet shows the stop button while one is going on.
IDLE, WAITING, WORKING, DONE, FAILED = "idle", "waiting", "working", "done", "failed"
STOPPING, STOPPED = "stopping", "stopped"
AT_REST = {"run": "", "state": IDLE, "text": "What comes out appears here.", "fraction": 0, "chunks": []}

_TEMPLATE = """
<div class="live" data-state="${value.state}">
  <p class="live-text" role="status" aria-live="polite">${value.text}</p>
  <progress max="1" value="${value.fraction}" aria-label="Progress"></progress>
</div>
"""

# Chunks are 16-bit samples. They are put one behind the other on the clock of the audio context. The list of chunks
# only grows during a run, so none is lost where the page draws several updates at once.
_SCRIPT = """
const player = {run: '', stopped: null, played: 0, context: null, until: 0};
const silence = () => {
  if (player.context) { player.context.close(); player.context = null; }
};
const play = (chunk, rate) => {
  const bytes = Uint8Array.from(atob(chunk), (letter) => letter.charCodeAt(0));
  const samples = Float32Array.from(new Int16Array(bytes.buffer), (sample) => sample / 32768);
  if (!player.context) { player.context = new AudioContext({sampleRate: rate}); player.until = 0; }
  const buffer = player.context.createBuffer(1, samples.length, rate);
  buffer.copyToChannel(samples, 0);
  const source = player.context.createBufferSource();
  source.buffer = buffer;
  source.connect(player.context.destination);
  const start = Math.max(player.until, player.context.currentTime + 0.05);
  source.start(start);
  player.until = start + buffer.duration;
  element.dataset.heard = (Number(element.dataset.heard || 0) + buffer.duration).toFixed(3);
};
watch('value', () => {
  const value = props.value;
  if (!value || !value.chunks) { return; }
  if (value.run !== player.run) {
    silence();
    player.run = value.run;
    player.played = 0;
    element.dataset.heard = 0;
  }
  // What is still on its way when a run is stopped is not played.
  if (value.state === 'stopping') { player.stopped = value.run || null; }
  if (['stopping', 'stopped', 'failed'].includes(value.state) || value.run === player.stopped) { silence(); return; }
  for (const chunk of value.chunks.slice(player.played)) { play(chunk, value.rate); }
  player.played = value.chunks.length;
});
"""


def live_player(elem_id: str) -> gr.HTML:
    """Plays the chunks of a [`Run`] as they come, with a line about the run and a bar."""
    return gr.HTML(
        AT_REST,
        html_template=_TEMPLATE,
        js_on_load=_SCRIPT,
        elem_id=elem_id,
        elem_classes="live-player",
        label="Progress",
    )


class Run:
    """
    The values of a [`live_player`] during one request.

    Args:
        sampling_rate (`int`): Of the sound, in hertz.
    """

    def __init__(self, sampling_rate: int):
        self.name = uuid.uuid4().hex
        self.sampling_rate = sampling_rate
        self.started = time.monotonic()
        self.chunks: list[str] = []
        self.seconds_heard = 0.0
        self.progress = Progress(0.0, "Reading")

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return time.monotonic() - self.started

    def hear(self, samples: np.ndarray) -> None:
        """Adds sound to be played."""
        loudest = max(1.0, float(np.abs(samples).max(initial=0.0)))
        self.chunks.append(base64.b64encode((samples / loudest * 32767).astype("<i2").tobytes()).decode("ascii"))
        self.seconds_heard += len(samples) / self.sampling_rate

    def working(self) -> dict[str, Any]:
        heard = f" · {self.seconds_heard:.1f} s to hear" if self.chunks else ""
        return self._value(WORKING, f"{self.progress.text}{heard} · {self.elapsed:.0f} s", self.progress.fraction)

    def done(self) -> dict[str, Any]:
        return self._value(DONE, f"Done in {self.elapsed:.1f} s", 1.0)

    def failed(self, message: str) -> dict[str, Any]:
        return self._value(FAILED, message, 0.0)

    def _value(self, state: str, text: str, fraction: float) -> dict[str, Any]:
        return {
            "run": self.name,
            "state": state,
            "text": html.escape(text),
            "fraction": fraction,
            "chunks": list(self.chunks),
            "rate": self.sampling_rate,
        }


_FACTS_TEMPLATE = """
<div class="facts" role="group" aria-label="About this result">
  ${value && value.seed !== undefined ? `<span>Seed <b>${value.seed}</b></span>` : ''}
  ${value && value.seconds ? `<span>${value.seconds} s of sound</span>` : ''}
  ${value && value.link ? `<a href="${value.link}">Link to this result</a>
  <button type="button" class="copy-link">Copy link</button>` : ''}
</div>
"""

_FACTS_SCRIPT = """
element.addEventListener('click', async (event) => {
  const button = event.target.closest('.copy-link');
  if (!button) { return; }
  await navigator.clipboard.writeText(new URL(props.value.link, window.location.href).href);
  button.textContent = 'Copied';
});
"""


def facts_line(elem_id: str) -> gr.HTML:
    """Shows the [`facts`] of a result."""
    return gr.HTML(html_template=_FACTS_TEMPLATE, js_on_load=_FACTS_SCRIPT, elem_id=elem_id, label="About this result")


def facts(seed: int, link: str, seconds: float | None = None) -> dict[str, Any]:
    """What came out: `{"seed", "link", "seconds"}`, of which a text has no seconds."""
    found = {"seed": seed, "link": link}
    return found if seconds is None else {**found, "seconds": round(seconds, 2)}
