"""The report's heat maps: policy and Q on the probe states, snapshot by snapshot, and the policy over a plane."""

import html
from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_ddpg_scratch.diagnostics.recording_reader import Snapshot
from sb3_ddpg_scratch.diagnostics.training_curves import STEPS, Run
from sb3_ddpg_scratch.report.figure import Figure, Trace, listed

MOST_SNAPSHOTS = 60
MOST_ACTIONS = 8
OWN_SCALE_FACTOR = 10
"""Runs whose ranges of Q differ by more than this factor get a color scale each: on one, the narrower would be flat."""


def thinned(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """At most 60 evenly chosen snapshots, including the first and last."""
    chosen = np.unique(np.linspace(0, len(snapshots) - 1, min(len(snapshots), MOST_SNAPSHOTS)).round().astype(int))
    return [snapshots[index] for index in chosen]


def q_ranges(runs: Sequence[Run]) -> dict[int, tuple[float, float]]:
    """The color range of Q by run number, the same for all runs unless they differ too much."""
    ranges = {}
    for run in runs:
        values = np.concatenate([snapshot.q_values for snapshot in run.recording.snapshots] or [np.array([])])
        values = values[np.isfinite(values)]
        if len(values):
            ranges[run.number] = (float(values.min()), float(values.max()))
    widths = [high - low for low, high in ranges.values()]
    if ranges and max(widths) <= OWN_SCALE_FACTOR * max(min(widths), 1e-12):
        common = (min(low for low, _ in ranges.values()), max(high for _, high in ranges.values()))
        return dict.fromkeys(ranges, common)
    return ranges


def probe_heatmaps(runs: Sequence[Run]) -> list[Figure]:
    """For each run with snapshots: each action and Q on the probe states, and the policy over a plane if recorded."""
    ranges = q_ranges(runs)
    shown = [run for run in runs if run.recording.snapshots]
    figures = [figure for run in shown for figure in policy_heatmaps(run)]
    figures += [q_heatmap(run, ranges.get(run.number, (0.0, 1.0))) for run in shown]
    return figures + [figure for run in shown for figure in plane_heatmaps(run)]


def policy_heatmaps(run: Run) -> list[Figure]:
    """For each action, its value on each probe state over snapshots, and at the selected one."""
    snapshots, order = _ordered(run)
    actions = np.stack([snapshot.actions[order] for snapshot in snapshots])
    names = run.recording.names("action", actions.shape[2])
    note = "Without noise, normalized to [−1, 1], over the training; on the right at the slider's snapshot."
    if actions.shape[2] > MOST_ACTIONS:
        note += f" The first {MOST_ACTIONS} of {actions.shape[2]} actions."
    figures = []
    for dimension, name in enumerate(names[:MOST_ACTIONS]):
        own = actions[:, :, dimension]
        title = "Policy" if len(names) == 1 else f"Policy: {name}"
        traces = [_history(snapshots, own, "action"), _chosen(run, order)]
        scale = _scale(-1, 1, "theme:diverging", "action")
        figures.append(_states_figure((_numbered("policy", run, dimension), title, note), run, traces, own, scale))
    return figures


def _numbered(name: str, run: Run, dimension: int) -> str:
    return f"{name}-{run.number}" + (f"-{dimension}" if dimension else "")


def q_heatmap(run: Run, scale: tuple[float, float]) -> Figure:
    """Q(s, mu(s)) on each probe state over snapshots, and at the selected one."""
    snapshots, order = _ordered(run)
    q_values = np.stack([snapshot.q_values[order] for snapshot in snapshots])
    note = "Rows are the same states as in the policy's figure, the best at the top by the last snapshot."
    traces = [_history(snapshots, q_values, "Q"), _chosen(run, order)]
    texts = (f"q-{run.number}", "Q(s, μ(s))", note)
    return _states_figure(texts, run, traces, q_values, _scale(*scale, "theme:sequential", "Q"))


def _ordered(run: Run) -> tuple[list[Snapshot], np.ndarray]:
    """The snapshots, and the order of the states by Q in the last one."""
    snapshots = thinned(run.recording.snapshots)
    return snapshots, np.argsort(snapshots[-1].q_values, kind="stable")


def _states_figure(
    texts: tuple[str, str, str], run: Run, traces: list[Trace], values: np.ndarray, scale: dict[str, Any]
) -> Figure:
    """The history of the probe states with a cursor, beside the selected snapshot; values are of shape (snapshots, states)."""
    name, title, note = texts
    steps = [snapshot.step for snapshot in thinned(run.recording.snapshots)]
    # Its own snapshots alone: of a shorter run, or one with late probe states, half would be blank.
    ends = [steps[0] - _half(steps[:2]), steps[-1] + _half(steps[-2:])]
    frames = [listed(column[:, None]) for column in values]
    plain_axis = {"showgrid": False, "zeroline": False}
    cursor = {"type": "line", "x0": steps[-1], "x1": steps[-1], "y0": 0, "y1": 1, "yref": "y domain"}
    layout = {
        "coloraxis": scale,
        "xaxis": {"domain": [0, 0.84], "title": {"text": STEPS}, "range": ends} | plain_axis,
        "xaxis2": {"domain": [0.9, 1], "showgrid": False, "fixedrange": True, "type": "category", "showticklabels": False},
        "yaxis": {"title": {"text": "probe state"}, "showticklabels": False, "ticks": ""} | plain_axis,
        "shapes": [cursor | {"line": {"color": "theme:text", "width": 2}}],
        "hovermode": "closest",
    }
    traces[1]["z"] = frames[-1]
    shown = [[(1, frame)] for frame in frames]
    return Figure(name, "Probe states", f"{title} · {run.label}", note, traces, layout, steps=steps, frames=shown, cursor=True)


def _half(steps: Sequence[int]) -> float:
    return (steps[-1] - steps[0]) / 2 or 1.0


def _history(snapshots: Sequence[Snapshot], values: np.ndarray, what: str) -> Trace:
    steps = [snapshot.step for snapshot in snapshots]
    hover = {"hovertemplate": f"step %{{x:,}}<br>{what} %{{z:.4~g}}<extra></extra>"}
    return {"type": "heatmap", "name": what, "x": steps, "z": listed(values.T, 4), "coloraxis": "coloraxis"} | hover


def _chosen(run: Run, order: np.ndarray) -> Trace:
    states = run.recording.probes.get("states")
    texts = ["state" for _ in order]
    if states is not None and len(states) == len(order):
        names = run.recording.names("observation", states.shape[1])
        texts = ["<br>".join(f"{html.escape(n)} {v:.3g}" for n, v in zip(names[:8], states[i], strict=False)) for i in order]
    hover = {"text": [[text] for text in texts], "hovertemplate": "%{text}<br>%{z:.4~g}<extra></extra>"}
    place = {"x": ["at slider"], "xaxis": "x2", "yaxis": "y", "coloraxis": "coloraxis"}
    return {"type": "heatmap", "name": "at the slider"} | place | hover


def plane_heatmaps(run: Run) -> list[Figure]:
    """Each action as a function of the two observation dimensions that change the policy most, at the selected snapshot."""
    snapshots = thinned([snapshot for snapshot in run.recording.snapshots if snapshot.plane is not None])
    plane = run.recording.probes.get("plane")
    if not snapshots or not plane:
        return []
    planes = np.stack([snapshot.plane for snapshot in snapshots if snapshot.plane is not None])
    states = run.recording.probes.get("states")
    dimensions = plane["dimensions"]
    width = max(*(dimension + 1 for dimension in dimensions), 0 if states is None else states.shape[1])
    observed = run.recording.names("observation", width)
    first, second = (html.escape(observed[dimension]) for dimension in dimensions)
    note = (
        "At the slider's snapshot, over the two numbers of the observation that change the actions most, the others at their "
    )
    note += "median. Dots: the probe states."
    layout = {"coloraxis": _scale(-1, 1, "theme:diverging", "action")}
    layout |= {"xaxis": {"title": {"text": first}, "zeroline": False}, "yaxis": {"title": {"text": second}, "zeroline": False}}
    ground = {"type": "heatmap", "x": listed(plane["x"]), "y": listed(plane["y"]), "zsmooth": "best", "coloraxis": "coloraxis"}
    ground["hovertemplate"] = f"{first} %{{x:.3~g}}<br>{second} %{{y:.3~g}}<br>action %{{z:.3f}}<extra></extra>"
    figures = []
    for dimension, name in enumerate(run.recording.names("action", planes.shape[1])):
        frames = [listed(one, 3) for one in planes[:, dimension]]
        title = f"Policy over two numbers of the observation{'' if planes.shape[1] == 1 else f': {name}'} · {run.label}"
        traces = [ground | {"name": name, "z": frames[-1]}, *_probe_dots(states, *dimensions)]
        steps, shown = [snapshot.step for snapshot in snapshots], [[(0, frame)] for frame in frames]
        own = _numbered("plane", run, dimension)
        figures.append(Figure(own, "Probe states", title, note, traces, layout, steps=steps, frames=shown))
    return figures


def _probe_dots(states: np.ndarray | None, first: int, second: int) -> list[Trace]:
    if states is None or states.shape[1] <= max(first, second):
        return []
    dots: Trace = {
        "type": "scatter",
        "mode": "markers",
        "x": listed(states[:, first]),
        "y": listed(states[:, second]),
        "marker": {"color": "theme:background", "size": 6, "line": {"color": "theme:text", "width": 1.5}},
        "hovertemplate": "probe state %{pointNumber}<extra></extra>",
        "name": "probe states",
    }
    return [dots]


def _scale(low: float, high: float, colors: str, title: str) -> dict[str, Any]:
    bar = {"thickness": 10, "outlinewidth": 0, "len": 1.0, "title": {"text": title, "side": "right"}}
    return {"cmin": float(low), "cmax": float(high), "colorscale": colors, "colorbar": bar}
