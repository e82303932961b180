"""A page's figures as one static picture for papers and documentation, by Matplotlib, which needs no browser."""

import html
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.report.figure import Figure, light_color

MOST_COLUMNS = 3
DOTS_PER_INCH = 200
_MAPS = {"theme:diverging": "RdBu_r", "theme:sequential": "magma"}
_DASHES = {"solid": "-", "dash": "--", "dot": ":"}


def write_picture(figures: Sequence[Figure], path: Path) -> None:
    """Write a PNG with a panel per figure over environment steps, and a legend of all named traces and shapes."""
    from matplotlib import ticker
    from matplotlib.figure import Figure as Canvas

    columns = min(len(figures), MOST_COLUMNS)
    rows = -(-len(figures) // columns)
    canvas = Canvas(figsize=(max(4.6, 3.6 * columns), 0.7 + 2.7 * rows), layout="constrained")
    grid = canvas.subplots(rows, columns, squeeze=False)
    handles: dict[str, Any] = {}
    for figure, axes in zip(figures, grid.flat, strict=False):
        handles |= _draw(figure, axes)
        axes.set_title(_literal(figure.env or figure.title), fontsize=10)
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(4))
        axes.xaxis.set_major_formatter(ticker.EngFormatter(sep=""))
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in grid.flat[len(figures) :]:
        axes.set_visible(False)
    canvas.supxlabel("environment steps", fontsize=10)
    canvas.supylabel("return", fontsize=10)
    if handles:
        names = [_literal(name) for name in handles]
        canvas.legend(list(handles.values()), names, loc="outside upper center", ncols=4, frameon=False)
    with whole_file(path) as file:
        canvas.savefig(file, format="png", dpi=DOTS_PER_INCH)


def static_picture(figure: Figure) -> bytes:
    """One figure as a PNG, for where a notebook's output is shown without scripts."""
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(7, 3.2), layout="constrained")
    axes = canvas.add_subplot()
    axes.set_title(_literal(figure.title), fontsize=10)
    _draw(figure, axes)
    for row in figure.layout.get("annotations", ()):
        axes.text(0.01, row["y"], _literal(html.unescape(row["text"])), transform=axes.get_yaxis_transform(), fontsize=8)
    for name in ("x", "y"):
        given = figure.layout.get(f"{name}axis", {})
        set_axis = {"label": given.get("title", {}).get("text", "")}
        set_axis |= {"scale": "log"} if given.get("type") == "log" else {}
        set_axis |= {"lim": given["range"]} if "range" in given else {}
        axes.set(**{name + key: value for key, value in set_axis.items()})
    content = BytesIO()
    canvas.savefig(content, format="png", dpi=DOTS_PER_INCH / 2)
    return content.getvalue()


def _draw(figure: Figure, axes: Any) -> dict[str, Any]:
    """Draw a figure, the left panel if it has two; returns the legend's entries by name."""
    named = {}
    for trace in figure.traces:
        if trace.get("xaxis", "x") != "x":
            continue
        if trace["type"] == "heatmap":
            values = np.array(trace["z"], float)
            scale = figure.layout[trace["coloraxis"]]
            limits = {"vmin": scale["cmin"], "vmax": scale["cmax"], "cmap": _MAPS[scale["colorscale"]]}
            edges = np.array(trace["x"], float), np.array(trace.get("y", range(len(values))), float)
            mesh = axes.pcolormesh(*edges, values, shading="nearest", **limits)
            axes.figure.colorbar(mesh, label=scale["colorbar"]["title"]["text"])
            continue
        x, y = np.array(trace["x"], float), np.array(trace["y"], float)
        if trace.get("fill") == "toself":
            axes.fill(x, y, **_color(trace["fillcolor"]), linewidth=0)
        elif trace["mode"] == "markers":
            color = _color(trace["marker"]["color"])
            axes.scatter(x, y, 14, **color)
            if error := trace.get("error_x"):
                axes.errorbar(x, y, xerr=[error["arrayminus"], error["array"]], **color, capsize=3)
        else:
            line, marker = trace["line"], "o" if "markers" in trace["mode"] else None
            style = {"linewidth": 0.8 * line["width"], "linestyle": _DASHES[line.get("dash", "solid")], "marker": marker}
            (named[trace["name"]],) = axes.plot(x, y, **_color(line["color"]), **style)
    for shape in figure.layout.get("shapes", ()):
        if "name" in shape:
            named[shape["name"]] = axes.axhline(shape["y0"], **_color(shape["line"]["color"]), linestyle=":", linewidth=1)
    named.pop("", None)
    return named


def _color(name: str) -> dict[str, Any]:
    color, opacity = light_color(name)
    return {"color": color, "alpha": opacity}


def _literal(text: str) -> str:
    # Matplotlib would typeset text between dollar signs as mathematics.
    return text.replace("$", r"\$")
