"""UniAudio 2.0 in the browser: speak, listen, create, converse, and look into the codec.

`python app.py` serves the model that the environment variable UNIAUDIO2_MODEL names, a folder or a Hub id, and by
default the small checkpoint that is shipped with the package.
"""

import html
import os
from typing import Any

# Before gradio is imported, which would report home.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from uniaudio2.hub_cards.space import codec, converse, create, listen, speak
from uniaudio2.hub_cards.space.checkpoint import Checkpoint
from uniaudio2.hub_cards.space.files import ResultFiles
from uniaudio2.hub_cards.space.inference import Engine
from uniaudio2.hub_cards.space.limits import FILE_CHECK_INTERVAL, FILE_LIFETIME, MAX_UPLOAD, MAX_WAITING
from uniaudio2.hub_cards.space.links import TAB_PARAMETER, values_from
from uniaudio2.hub_cards.space.theme import CSS, THEME, header

TABS = {module.TAB: module for module in (speak, listen, create, converse, codec)}
# What `launch` has to be told, wherever the demo is served.
LAUNCH_OPTIONS: dict[str, Any] = {
    "theme": THEME,
    "css": CSS,
    "max_file_size": MAX_UPLOAD,
    "footer_links": ["api"],
    # Runs are nobody's business but the visitor's.
    "run_history": False,
    "ssr_mode": False,
}
FOOT = (
    "What comes out was made by a model and says so: every file names it in its metadata. Copy nobody's voice who has "
    "not agreed to it. Files are deleted after an hour."
)


def build_demo(model_id: str | None = None) -> gr.Blocks:
    """
    Builds the demo without loading weights; `demo.engine.load()` does, or the first request.

    Args:
        model_id (`str`, *optional*):
            Folder or Hub id of a model. By default what the environment variable UNIAUDIO2_MODEL says, else the
            checkpoint that is shipped with the package.

    Returns:
        `gr.Blocks`: To be launched with `LAUNCH_OPTIONS`.
    """
    engine = Engine(Checkpoint.read(model_id), ResultFiles())
    with gr.Blocks(
        title="UniAudio 2.0", analytics_enabled=False, delete_cache=(FILE_CHECK_INTERVAL, FILE_LIFETIME)
    ) as demo:
        gr.HTML(header(html.escape(engine.checkpoint.name), _abilities(engine.checkpoint)))
        fields = {}
        with gr.Tabs(elem_id="tabs", overflow_behavior="wrap") as tabs:
            for name, module in TABS.items():
                with gr.Tab(name.capitalize(), id=name, elem_id=f"tab-{name}"):
                    fields[name] = module.build(engine)
        gr.HTML(f'<p class="page-foot">{FOOT}</p>')

        def fill(request: gr.Request) -> list[Any]:
            """Opens the tab that a link names, and fills its form."""
            query = dict(request.query_params)
            chosen = query.get(TAB_PARAMETER)
            selected = gr.Tabs(selected=chosen) if chosen in TABS else gr.skip()
            updates = [values_from(query if name == chosen else {}, fields[name]) for name in TABS]
            return [selected, *(update for tab in updates for update in tab)]

        all_fields = [field for tab in fields.values() for field in tab.values()]
        demo.load(fill, None, [tabs, *all_fields], api_visibility="private", queue=False, show_progress="hidden")
    demo.engine = engine
    demo.temp_file_sets.append(engine.files.paths)
    return demo.queue(max_size=MAX_WAITING, api_open=False)


def _abilities(checkpoint: Checkpoint) -> str:
    if checkpoint.tasks is None:
        return "all tasks of the model"
    names = {"TTS": "speech from text", "ASR": "text from speech"}
    return "trained on " + " and ".join(html.escape(names.get(task, task)) for task in checkpoint.tasks)


if __name__ == "__main__":
    demo = build_demo()
    demo.engine.load()
    demo.launch(**LAUNCH_OPTIONS)
