"""The demo in a process of its own, with a folder of its own for its files."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A running demo."""

    url: str
    folder: Path
    process: subprocess.Popen

    def resident_megabytes(self) -> float:
        """Its memory, after a garbage collection."""
        self.process.send_signal(signal.SIGUSR1)
        assert self.process.stdout.readline() == "collected\n"
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="ascii")
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS:")) / 1024


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serves the shipped checkpoint until the end of the block."""
    environment = {
        **os.environ,
        "GRADIO_TEMP_DIR": str(folder),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
    }
    command = [sys.executable, __file__]
    log = folder.parent / f"{folder.name}.log"
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            url = process.stdout.readline().strip()
            assert url.startswith("http"), log.read_text(encoding="utf-8")
            yield Server(url, folder, process)
        finally:
            # It has nothing to save, and may take long to end by itself on a busy machine.
            process.kill()
            process.wait()


def _serve() -> None:
    from uniaudio2 import TINY
    from uniaudio2.hub_cards.space.app import LAUNCH_OPTIONS, build_demo

    def collect(*_) -> None:
        gc.collect()
        print("collected", flush=True)

    signal.signal(signal.SIGUSR1, collect)
    demo = build_demo(TINY)
    demo.engine.load()
    _, url, _ = demo.launch(prevent_thread_lock=True, quiet=True, **LAUNCH_OPTIONS)
    print(url, flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    _serve()
