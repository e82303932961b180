"""The figure of a page: Plotly traces and layout in a frame with a heading."""

import html
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sb3_ddpg_scratch.json_values import plain

RUN_COLORS = 16

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """
    Colors are names like ``theme:run0``, which the page resolves for light and dark mode; a trace's ``meta`` is its arm.

    A slider selects one of ``steps``: ``frames`` has for each the new ``z`` of traces, by index; with ``cursor``, the layout's
    first shape marks it. A figure with an ``env`` is shown when that environment is selected.
    """

    name: str
    section: str
    title: str
    note: str
    traces: list[Trace]
    layout: dict[str, Any]
    wide: bool = False
    height: int = 0
    env: str = ""
    steps: Sequence[int] = ()
    frames: Sequence[list[tuple[int, Any]]] = ()
    cursor: bool = False

    def script_data(self) -> dict[str, Any]:
        """What the page's script draws. Trace names are escaped, since Plotly renders a few HTML tags in its texts."""
        traces = [trace | {"name": html.escape(str(trace.get("name", "")))} for trace in self.traces]
        used = ("name", "layout", "env", "steps", "frames", "cursor")
        return plain({name: getattr(self, name) for name in used} | {"traces": traces})


def listed(values: np.ndarray, digits: int = 5) -> list[Any]:
    """The numbers in nested lists, rounded to so many significant digits; ``None`` for those that are not finite."""
    if values.ndim > 1:
        return [listed(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def color_style(number: int) -> str:
    """The style that gives an element the color of a run or an arm, by its place on the page."""
    return f"--color: var(--run{number % RUN_COLORS})"
