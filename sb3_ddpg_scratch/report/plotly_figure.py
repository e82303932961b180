"""The figures of a page as Plotly's own objects, which a notebook shows by itself."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.report.figure import Figure

_SCALES = {"diverging": "RdBu_r", "sequential": "Magma"}
_PACKAGE = Path(__file__).resolve().parent.parent
# The pages' colors in light mode, by name.
_COLORS: dict[str, str] = {
    name: color
    for style in ("report/base.css", "compare/page.css")
    for name, color in re.findall(r"--([a-z]+\d?): (#[0-9a-f]{6})", (_PACKAGE / style).read_text().partition("@media")[0])
}


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
    name = value.removeprefix("theme:")
    # As in theme.js: paler than a run's own color.
    for kind, alpha in (("faint", "66"), ("wash", "2b")):
        if name.startswith(kind):
            return _rgba(_COLORS[name.replace(kind, "run")] + alpha)
    return _SCALES.get(name) or _COLORS[name]


def _rgba(color: str) -> str:
    red, green, blue, alpha = (int(color[place : place + 2], 16) for place in (1, 3, 5, 7))
    return f"rgba({red}, {green}, {blue}, {alpha / 255:.3f})"
