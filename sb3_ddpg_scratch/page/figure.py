"""
A figure of a page: Plotly's own dicts of traces and layout, in a frame with a heading.

Colours are names like ``theme:run0`` which the page resolves, so that a figure follows the reader's light or dark mode.
"""

import html
from typing import Any

import numpy as np

RUN_COLORS = 8

Trace = dict[str, Any]


def listed(values: np.ndarray, digits: int = 5) -> list[Any]:
    """
    :param values: numbers
    :param digits: significant digits to keep
    :return: them in nested lists, ``None`` for those that are not finite
    """
    if values.ndim > 1:
        return [listed(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def named(traces: list[Trace]) -> list[Trace]:
    """
    :param traces: Plotly's traces
    :return: them, their names escaped: Plotly reads a few HTML tags in its texts
    """
    return [trace | {"name": html.escape(str(trace.get("name", "")))} for trace in traces]


def color_style(number: int) -> str:
    """
    :param number: place of a run or an arm among those on the page
    :return: the style that gives an element its colour
    """
    return f"--color: var(--run{number % RUN_COLORS})"


def framed(name: str, title: str, note: str, drawn: bool, attributes: str = "", height: int = 0) -> str:
    """
    :param name: the figure's id in the page
    :param title: its heading
    :param note: what is drawn
    :param drawn: whether there is anything to draw
    :param attributes: further HTML attributes of the element
    :param height: of the plot in pixels; 0 for the style's own
    :return: the element in which the page's script draws the figure
    """
    style = f' style="height: {height}px"' if height else ""
    plot = f'<div class="plot" id="plot-{name}"{style}></div>' if drawn else '<p class="empty">Nothing recorded.</p>'
    return (
        f'<figure{attributes} aria-labelledby="title-{name}"><h3 id="title-{name}">{html.escape(title)}</h3>'
        f'<p class="note">{html.escape(note)}</p>{plot}</figure>'
    )
