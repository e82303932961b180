"""
A figure of a page: Plotly's own dicts of traces and layout, in a frame with a heading.

Colours are names like ``theme:run0`` which the page resolves, so that a figure follows the reader's light or dark mode.
"""

import html
from dataclasses import dataclass
from typing import Any

import numpy as np

RUN_COLORS = 8

Trace = dict[str, Any]
_EMPTY = '<p class="empty">Nothing recorded.</p>'


@dataclass(frozen=True)
class Figure:
    """
    :param name: its id in the page
    :param section: the section that it belongs to
    :param title: its heading
    :param note: what is drawn
    :param traces: Plotly's traces
    :param layout: Plotly's layout, where it differs from the page's
    :param wide: whether it takes the page's whole width
    :param height: of its plot in pixels; 0 for the style's own
    """

    name: str
    section: str
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any]
    wide: bool = False
    height: int = 0


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


def framed(figure: Figure, attributes: str = "") -> str:
    """
    :param figure: a figure
    :param attributes: further HTML attributes of its element
    :return: the element in which the page's script draws it
    """
    wide = ' class="wide"' if figure.wide else ""
    height = f' style="height: {figure.height}px"' if figure.height else ""
    plot = f'<div class="plot" id="plot-{figure.name}"{height}></div>' if figure.traces else _EMPTY
    return (
        f'<figure{wide}{attributes} aria-labelledby="title-{figure.name}"><h3 id="title-{figure.name}">'
        f'{html.escape(figure.title)}</h3><p class="note">{html.escape(figure.note)}</p>{plot}</figure>'
    )
