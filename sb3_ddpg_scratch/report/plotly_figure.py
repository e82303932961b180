"""The figures of a page as Plotly's own objects, which a notebook shows by itself."""

from collections.abc import Sequence
from typing import Any

from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.report.figure import Figure
from sb3_ddpg_scratch.report.light_colors import light_color

_SCALES = {"diverging": "RdBu_r", "sequential": "Magma"}


def plotly_figures(figures: Sequence[Figure]) -> dict[str, Any]:
    """By their titles, with what tells several of one title apart."""
    named: dict[str, Any] = {}
    for figure in figures:
        name = figure.title if figure.title not in named else f"{figure.title} ({figure.name})"
        named[name] = _made(figure)
    return named


def _made(figure: Figure) -> Any:
    require("A figure", "report", "plotly")
    from plotly import graph_objects as go

    data = figure.script_data()
    made = go.Figure({"data": _resolved(data["traces"]), "layout": _resolved(data["layout"])}, skip_invalid=True)
    made.update_layout(title=figure.title, template="plotly_white")
    if not figure.frames:
        return made
    changes = list(zip(figure.steps, figure.frames, strict=True))
    for step, traces in changes:
        changed = [{"type": figure.traces[number]["type"], "z": z} for number, z in traces]
        made.frames += (go.Frame(name=str(step), data=changed, traces=[number for number, _ in traces]),)
    buttons = [
        {"label": f"{step:,}", "method": "animate", "args": [[str(step)], {"mode": "immediate"}]} for step, _ in changes
    ]
    return made.update_layout(sliders=[{"steps": buttons, "currentvalue": {"prefix": "step "}}])


def _resolved(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _resolved(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_resolved(entry) for entry in value]
    if not isinstance(value, str) or not value.startswith("theme:"):
        return value
    scale = _SCALES.get(value.removeprefix("theme:"))
    if scale is not None:
        return scale
    color, opacity = light_color(value)
    red, green, blue = (int(color[place : place + 2], 16) for place in (1, 3, 5))
    return color if opacity == 1 else f"rgba({red}, {green}, {blue}, {opacity})"
