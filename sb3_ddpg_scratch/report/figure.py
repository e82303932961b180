"""A figure: Plotly traces and layout with a heading, for a page or, as Plotly's own object, for a notebook."""

import html
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ddpg_scratch.json_values import plain

RUN_COLORS = 16
# The pages' colors in light mode, for drawing without a browser; ``theme.js`` has both modes.
_PACKAGE = Path(__file__).resolve().parent.parent
_COLORS: dict[str, str] = {
    name: color
    for style in ("report/base.css", "compare/page.css")
    for name, color in re.findall(r"--([a-z]+\d*): (#[0-9a-f]{6})", (_PACKAGE / style).read_text().partition("@media")[0])
}
# As in theme.js: paler than a run's own color.
_OPACITIES = {"faint": 0.4, "wash": 0.17}

Trace = dict[str, Any]


@dataclass(frozen=True)
class Figure:
    """
    Colors are names like ``theme:run0``, which the page resolves for light and dark mode; a trace's ``meta`` is its arm. A
    slider selects one of ``steps``; ``frames`` has the traces' ``z`` for each, by index, and with ``cursor`` the layout's
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
        """What the page's script draws. Trace names are escaped, since Plotly renders a few HTML tags."""
        traces = [trace | {"name": html.escape(str(trace.get("name", "")))} for trace in self.traces]
        used = ("name", "layout", "env", "steps", "frames", "cursor")
        return plain({name: getattr(self, name) for name in used} | {"traces": traces})


def listed(values: np.ndarray, digits: int = 5) -> list[Any]:
    """Nested lists of numbers rounded to significant digits; ``None`` for those that are not finite."""
    if values.ndim > 1:
        return [listed(row, digits) for row in values]
    return [float(f"{value:.{digits}g}") if np.isfinite(value) else None for value in values]


def robust_range(values: Sequence[Any], fewest: int = 10) -> tuple[float, float] | None:
    """The range without the most extreme fiftieth (at least one value), if the others take less than a fifth of the whole."""
    kept = np.sort([value for value in values if value is not None and np.isfinite(value)])
    count, most = len(kept), max(1, len(kept) // 50)
    if count < fewest:
        return None
    left = int(np.argmin(kept[count - 1 - most :] - kept[: most + 1]))
    low, high = kept[left], kept[count - 1 - most + left]
    if kept[-1] - kept[0] <= 5 * (high - low) or kept[-1] == kept[0]:
        return None
    reach = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    return float(low - reach), float(high + reach)


def outliers_at_edge(figure: Figure, measured: Sequence[Trace]) -> Figure:
    """The figure with a y-axis that shows what is not an outlier of these traces; triangles at the edge are the outliers."""
    found = [robust_range(trace["y"]) for trace in measured]
    if not any(found):
        return figure
    pairs = zip(measured, found, strict=True)
    shown = np.array([y for trace, ends in pairs for y in ends or trace["y"] if y is not None])
    low, high = float(shown.min()), float(shown.max())
    marks = [mark for trace in measured for mark in marked_at(trace, high, "triangle-up", lambda y: y > high)]
    marks += [mark for trace in measured for mark in marked_at(trace, low, "triangle-down", lambda y: y < low)]
    axis = {key: value for key, value in figure.layout["yaxis"].items() if key != "rangemode"} | {"range": [low, high]}
    note = f"{figure.note} Triangles: outliers beyond the axis; double-click shows them."
    return replace(figure, traces=[*figure.traces, *marks], note=note, layout=figure.layout | {"yaxis": axis})


def marked_at(trace: Trace, edge: float, symbol: str, chosen: Callable[[float], bool]) -> list[Trace]:
    """A trace of symbols at an edge, for those of a trace's values that are chosen; none for none."""
    points = [(x, y) for x, y in zip(trace["x"], trace["y"], strict=True) if y is not None and chosen(y)]
    if not points:
        return []
    color = trace["marker"]["color"] if trace["mode"] == "markers" else trace["line"]["color"]
    values = {"x": [x for x, _ in points], "y": [edge] * len(points), "customdata": [y for _, y in points]}
    marker = {"mode": "markers", "marker": {"color": color, "symbol": symbol, "size": 9}, "cliponaxis": False}
    return [trace | values | marker | {"hovertemplate": "%{customdata:.4~g}"}]


def color_style(number: int) -> str:
    """The style that gives an element a run's or arm's color, by its number on the page."""
    return f"--color: var(--run{number % RUN_COLORS})"


def light_color(name: str) -> tuple[str, float]:
    """The color (``#rrggbb``) and the opacity of a name like ``theme:run0``."""
    name = name.removeprefix("theme:")
    kind = name.rstrip("0123456789")
    opacity = _OPACITIES.get(kind)
    return (_COLORS[name], 1.0) if opacity is None else (_COLORS[name.replace(kind, "run")], opacity)
