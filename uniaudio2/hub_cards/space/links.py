"""Links that fill the form: a result is shared as the question that led to it."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import gradio as gr

from .limits import MAX_CHARACTERS

TAB_PARAMETER = "tab"


def link_to(tab: str, **values: Any) -> str:
    """The query of a link that opens a tab with these values; those that are empty are left out."""
    given = {name: value for name, value in values.items() if value is not None and value != ""}
    return "?" + urlencode({TAB_PARAMETER: tab, **given})


def values_from(query: Mapping[str, str], fields: Mapping[str, gr.components.Component]) -> list[Any]:
    """What a link says about each field, as updates; nothing for what it leaves out or the field does not take."""
    return [_value(query.get(name), field) for name, field in fields.items()]


def _value(given: str | None, field: gr.components.Component) -> Any:
    if given is None:
        return gr.skip()
    if isinstance(field, gr.Radio):
        allowed = [value for _, value in field.choices]
        return given if given in allowed else gr.skip()
    if isinstance(field, (gr.Slider, gr.Number)):
        try:
            number = float(given)
        except ValueError:
            return gr.skip()
        if field.minimum is not None and not field.minimum <= number <= field.maximum:
            return gr.skip()
        return number
    return given[:MAX_CHARACTERS]
