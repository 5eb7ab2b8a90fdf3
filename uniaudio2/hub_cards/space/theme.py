"""How the demo looks: colours, type and the few rules that gradio has no words for."""

import gradio as gr

# Nothing comes from the network, fonts included.
_TEXT = [gr.themes.Font(name) for name in ("Inter", "ui-sans-serif", "system-ui", "Segoe UI", "Helvetica Neue")]
_CODE = [gr.themes.Font(name) for name in ("ui-monospace", "SF Mono", "Menlo", "Consolas", "monospace")]

THEME = gr.themes.Base(
    primary_hue=gr.themes.colors.teal,
    secondary_hue=gr.themes.colors.teal,
    neutral_hue=gr.themes.colors.slate,
    radius_size=gr.themes.sizes.radius_lg,
    spacing_size=gr.themes.sizes.spacing_md,
    text_size=gr.themes.sizes.text_md,
    font=[*_TEXT, gr.themes.Font("sans-serif")],
    font_mono=_CODE,
).set(
    body_background_fill="#f4f6f8",
    body_background_fill_dark="#0b1220",
    body_text_color="#0f172a",
    body_text_color_dark="#e6edf5",
    body_text_color_subdued="#475569",
    body_text_color_subdued_dark="#a9b8ca",
    background_fill_primary="#ffffff",
    background_fill_primary_dark="#131c2c",
    background_fill_secondary="#f8fafc",
    background_fill_secondary_dark="#0f1726",
    block_background_fill="#ffffff",
    block_background_fill_dark="#131c2c",
    block_border_color="#e2e8f0",
    block_border_color_dark="#253246",
    border_color_primary="#d5dde7",
    border_color_primary_dark="#2c3b52",
    block_border_width="1px",
    block_shadow="0 1px 2px rgba(15, 23, 42, 0.04)",
    block_shadow_dark="none",
    block_label_background_fill="transparent",
    block_label_background_fill_dark="transparent",
    block_label_border_width="0px",
    block_label_text_color="#334155",
    block_label_text_color_dark="#c3cfdd",
    block_label_text_weight="600",
    block_title_text_color="#1e293b",
    block_title_text_color_dark="#e6edf5",
    block_title_text_weight="600",
    block_info_text_color="#52627a",
    block_info_text_color_dark="#a9b8ca",
    input_background_fill="#f8fafc",
    input_background_fill_dark="#0f1726",
    input_border_width="1px",
    # Lines that show where to write or choose stand out from what is behind them, three to one.
    input_border_color="#8493a8",
    input_border_color_dark="#5f7190",
    checkbox_border_color="#64748b",
    checkbox_border_color_dark="#8fa0b6",
    input_placeholder_color="#5b6b82",
    input_placeholder_color_dark="#8fa0b6",
    button_primary_background_fill="#0f766e",
    button_primary_background_fill_hover="#115e59",
    button_primary_background_fill_dark="#0f766e",
    button_primary_background_fill_hover_dark="#0d9488",
    button_primary_text_color="#ffffff",
    button_primary_text_color_dark="#ffffff",
    button_secondary_background_fill="#ffffff",
    button_secondary_background_fill_hover="#f1f5f9",
    button_secondary_background_fill_dark="#1a2536",
    button_secondary_background_fill_hover_dark="#223047",
    button_border_width="1px",
    button_secondary_border_color="#cbd5e1",
    button_secondary_border_color_dark="#33435c",
    button_cancel_background_fill="#ffffff",
    button_cancel_background_fill_hover="#fef2f2",
    button_cancel_background_fill_dark="#1a2536",
    button_cancel_background_fill_hover_dark="#3b1d24",
    button_cancel_text_color="#b91c1c",
    button_cancel_text_color_dark="#fca5a5",
    button_cancel_border_color="#f3b4b4",
    button_cancel_border_color_dark="#7f3b45",
    slider_color="#0f766e",
    slider_color_dark="#2dd4bf",
    color_accent="#0f766e",
    checkbox_background_color_selected="#0f766e",
    checkbox_background_color_selected_dark="#0f766e",
    link_text_color="#0f766e",
    link_text_color_dark="#5eead4",
)

# The two streams of the model: few tall bars that say what, many that say how.
_MARK = (
    '<svg class="mark" viewBox="0 0 64 40" width="64" height="40" role="img" aria-label="UniAudio 2.0">'
    + "".join(
        f'<rect x="{2 + 12.4 * place}" y="{12 - height / 2}" width="9" height="{height}" rx="2.5" class="reasoning"/>'
        for place, height in enumerate((10, 18, 24, 14, 8))
    )
    + "".join(
        f'<rect x="{2 + 5 * place}" y="{32 - height / 2}" width="3" height="{height}" rx="1" class="reconstruction"/>'
        for place, height in enumerate((5, 9, 13, 8, 12, 15, 10, 6, 11, 14, 9, 5))
    )
    + "</svg>"
)


def header(model: str, facts: str) -> str:
    """The head of the page: the mark, the name, and which model answers."""
    return (
        f'<header class="page-head">{_MARK}<div><h1>UniAudio 2.0</h1>'
        "<p>One model that reads and writes text, speech, sound and music.</p></div>"
        f'<p class="model"><b>{model}</b><span>{facts}</span></p></header>'
    )


CSS = """
.gradio-container { max-width: 1180px !important; margin: 0 auto !important; }
/* A flex item is as wide as its content wants by default, which on a phone is wider than the screen. */
.gradio-container, .gradio-container > .main { min-width: 0; width: 100%; }
.block.hide-container .html-container { padding: 0; }
.page-head { display: flex; align-items: center; gap: 18px; padding: 10px 2px 4px; flex-wrap: wrap; }
.page-head h1 { font-size: 1.7rem; font-weight: 750; letter-spacing: -0.02em; margin: 0; line-height: 1.15; }
.page-head p { margin: 2px 0 0; color: var(--body-text-color-subdued); }
.page-head .model { margin-left: auto; text-align: right; font-size: 0.85rem; max-width: 380px; }
.page-head .model b { display: block; color: var(--body-text-color); }
.page-head .model span { color: var(--body-text-color-subdued); }
.mark .reasoning { fill: #0f766e; } .mark .reconstruction { fill: #d97706; }
.dark .mark .reasoning { fill: #2dd4bf; } .dark .mark .reconstruction { fill: #fbbf24; }

.tab-heading h2 { font-size: 1.25rem; font-weight: 700; margin: 6px 0 2px; }
.tab-heading .lead { color: var(--body-text-color-subdued); margin: 0 0 6px; max-width: 70ch; }
button[role="tab"] { font-weight: 600; }
.dark button[role="tab"][aria-selected="true"] { color: #5eead4; border-color: #5eead4; }

.actions { gap: 10px; }
.actions .stop { display: none; }
/* Shown while the live player of the same tab says that something is going on. */
.tabitem:has([data-state="waiting"]) .actions .stop,
.tabitem:has([data-state="working"]) .actions .stop { display: inline-flex; }
/* A request can be cancelled once the server has it. */
.tabitem:has([data-state="waiting"]) .actions .stop { animation: comes 0s 0.6s backwards; }
@keyframes comes { from { visibility: hidden; } }
.follow-ups, .follow-up { display: none !important; }
.tabitem:has(.facts span) .follow-ups, .tabitem:has(.facts span) .follow-up { display: flex !important; }
.follow-ups button, .follow-up
  { flex: 0 1 auto !important; width: auto; min-width: 0 !important; align-self: flex-start; }

.live { border-radius: 10px; }
.live-text { min-height: 1.4em; margin: 0 0 6px; font-variant-numeric: tabular-nums; }
.live progress { width: 100%; height: 6px; display: block; accent-color: #0f766e; }
.live[data-state="idle"] { border: 1px dashed var(--border-color-primary); border-radius: 12px; padding: 40px 16px; }
.live[data-state="idle"] .live-text { text-align: center; color: var(--body-text-color-subdued); margin: 0; }
#listen-live .live[data-state="idle"], #converse-live .live[data-state="idle"] { display: none; }
/* An empty player says nothing. */
.tabitem:not(:has(.facts span)) .answer-audio { display: none; }
.live[data-state="idle"] progress, .live[data-state="done"] progress,
.live[data-state="failed"] progress, .live[data-state="stopped"] progress
  { display: none; }
.live[data-state="failed"] .live-text { color: #b91c1c; font-weight: 600; }
.dark .live[data-state="failed"] .live-text { color: #fca5a5; }

.facts { display: flex; flex-wrap: wrap; align-items: center; gap: 6px 16px; font-size: 0.9rem; }
.facts b { font-variant-numeric: tabular-nums; }
.facts a, .facts .copy-link { color: var(--link-text-color); text-decoration: underline; padding: 4px 0; }
.facts .copy-link { background: none; border: 0; cursor: pointer; font: inherit; }

.prose.switched-off { border-left: 3px solid #d97706; padding: 2px 0 2px 12px; }
.switched-off p { color: var(--body-text-color-subdued); font-size: 0.9rem; margin: 0; }

.pictures { display: grid; gap: 14px; }
.side-by-side { grid-template-columns: repeat(auto-fit, minmax(230px, 1fr)); }
.pictures figure { margin: 0; }
.pictures figcaption { font-size: 0.85rem; margin-bottom: 4px; }
.pictures figcaption span { color: var(--body-text-color-subdued); }
.pictures img { display: block; width: 100%; height: 120px; border-radius: 6px; margin: 0; }
.pictures .axis { display: flex; justify-content: space-between; font-size: 0.75rem; margin-top: 2px;
  color: var(--body-text-color-subdued); }

.controls button, .waveform-container + .timestamps time { color: var(--body-text-color-subdued); }
/* A recording in the chat is one line, not a box; a place for files is no larger than it needs. */
#converse-chat .minimal-audio-player { max-height: 60px; }
#converse-chat .message.component { height: auto; }
/* Results are shared by links; gradio would send the sound to another machine. */
#converse-chat button[aria-label="Share"] { display: none; }
/* It divides from settings, which are not offered. */
footer .divider { display: none; }
.tabitem .upload-container { min-height: 150px !important; max-height: 150px; }
/* These know one colour for day and night: the track of a slider, and the chosen source of a recording. */
.dark input[type="range"] { --neutral-200: #3d4f6b; }
.dark .source-selection .selected { color: #5eead4; }
/* White on white otherwise. */
input[type="range"]::-webkit-slider-thumb { background: var(--slider-color) !important; }
input[type="range"]::-moz-range-thumb { background: var(--slider-color) !important; }
/* Nothing can be written here. */
.tabitem textarea:disabled { border-color: var(--block-border-color); }

.page-foot { color: var(--body-text-color-subdued); font-size: 0.85rem; padding: 4px 2px; }
*:focus-visible { outline: 2px solid #0f766e; outline-offset: 2px; }
.dark *:focus-visible { outline-color: #5eead4; }
@media (max-width: 640px) {
  .gradio-container > .main { padding: 12px 14px !important; }
  /* All five in one row. */
  .tab-container { gap: 0 !important; }
  button[role="tab"] { padding: 0 6px !important; font-size: 0.85rem !important; }
  .page-head > div { flex: 1; }
  /* The chat before what is sent to it. */
  .chat-row { flex-direction: column-reverse; }
  .page-head { gap: 12px; }
  .page-head h1 { font-size: 1.35rem; }
  .page-head .model { margin-left: 0; text-align: left; }
}
@media (prefers-reduced-motion: reduce) { * { animation: none !important; transition: none !important; } }
"""
