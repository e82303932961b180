"""Figures as Plotly's own objects, for a notebook."""

from base64 import b64encode
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any

from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.report.figure import Figure, light_color
from sb3_ddpg_scratch.report.picture import static_picture

# Plotly's closest equivalents of the pages' scales.
_SCALES = {"diverging": "RdBu_r", "sequential": "Magma"}


def plotly_figures(figures: Sequence[Figure]) -> dict[str, Any]:
    """By title, extended where several figures share one."""
    named: dict[str, Any] = {}
    for figure in figures:
        name = figure.title if figure.title not in named else f"{figure.title} ({figure.name})"
        named[name] = _made(figure)
    return named


@cache
def _figure_with_picture() -> Any:
    """Plotly's figure with a static picture beside its data, for viewers that run no script, where Matplotlib is installed."""
    from plotly import graph_objects as go

    class FigureWithPicture(go.Figure):  # type: ignore[misc]  # Plotly has no types
        def _repr_mimebundle_(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
            bundle = super()._repr_mimebundle_(*args, **kwargs)
            if find_spec("matplotlib") is None:
                return bundle
            return bundle | {"image/png": b64encode(static_picture(self._drawn_from)).decode()}

    return FigureWithPicture


def _made(figure: Figure) -> Any:
    require("A figure", "report", "plotly")
    from plotly import graph_objects as go

    data = figure.script_data()
    made = _figure_with_picture()({"data": _resolved(data["traces"]), "layout": _resolved(data["layout"])}, skip_invalid=True)
    made._drawn_from = figure
    # A legend beside the lines would leave them no width on a phone.
    made.update_layout(title=figure.title, template="plotly_white", legend={"orientation": "h", "y": -0.2})
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
