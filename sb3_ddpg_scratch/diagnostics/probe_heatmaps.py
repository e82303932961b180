"""The report's heat maps: policy and Q on the probe states, snapshot by snapshot, and the policy over a plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_ddpg_scratch.diagnostics.recording_reader import Snapshot
from sb3_ddpg_scratch.diagnostics.training_curves import Run
from sb3_ddpg_scratch.report.figure import Figure, Trace, listed

MOST_SNAPSHOTS = 60
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
    """For each run with snapshots: policy and Q on the probe states, and the policy over a plane if recorded."""
    ranges = q_ranges(runs)
    shown = [run for run in runs if run.recording.snapshots]
    figures = [policy_heatmap(run) for run in shown]
    figures += [q_heatmap(run, ranges.get(run.number, (0.0, 1.0))) for run in shown]
    planes = [plane_heatmap(run, alone=len(runs) == 1) for run in shown]
    return figures + [figure for figure in planes if figure is not None]


def policy_heatmap(run: Run) -> Figure:
    """The action (its norm, if it has several dimensions) over snapshots, and each dimension at the selected one."""
    snapshots, order = _ordered(run)
    actions = np.stack([snapshot.actions[order] for snapshot in snapshots])
    dimensions = actions.shape[2]
    single = dimensions == 1
    what = "action" if single else "norm of the action"
    note = f"{what.capitalize()} without noise, normalized, over the training; on the right at the slider's snapshot"
    note += "." if single else ", each dimension by itself."
    scales = {"coloraxis": _scale(-1, 1, "theme:diverging")}
    if not single:
        scales["coloraxis2"] = scales["coloraxis"] | {"showscale": False}
        scales["coloraxis"] = _scale(0, np.sqrt(dimensions), "theme:sequential")
    history = _history(snapshots, actions[:, :, 0] if single else np.linalg.norm(actions, axis=2), what)
    frames = [listed(step_actions, 3) for step_actions in actions]
    names = [f"a{dimension}" for dimension in range(dimensions)]
    chosen = _chosen(run, order, names) | {"coloraxis": list(scales)[-1]}
    return _states_figure(("policy", "Policy", note), run, [history, chosen], frames, scales)


def q_heatmap(run: Run, scale: tuple[float, float]) -> Figure:
    """Q(s, mu(s)) on each probe state over snapshots, and at the selected one."""
    snapshots, order = _ordered(run)
    q_values = np.stack([snapshot.q_values[order] for snapshot in snapshots])
    note = "Rows are the same states as in the policy's figure, the best at the top by the last snapshot."
    frames = [listed(step_values[:, None]) for step_values in q_values]
    traces = [_history(snapshots, q_values, "Q"), _chosen(run, order, ["Q"]) | {"coloraxis": "coloraxis"}]
    return _states_figure(("q", "Q(s, μ(s))", note), run, traces, frames, {"coloraxis": _scale(*scale, "theme:sequential")})


def _ordered(run: Run) -> tuple[list[Snapshot], np.ndarray]:
    """The snapshots, and the order of the states by Q in the last one."""
    snapshots = thinned(run.recording.snapshots)
    return snapshots, np.argsort(snapshots[-1].q_values, kind="stable")


def _states_figure(
    texts: tuple[str, str, str], run: Run, traces: list[Trace], frames: list[Any], scales: dict[str, Any]
) -> Figure:
    """The history of the probe states with a cursor, beside the selected snapshot, whose ``z`` are the frames."""
    name, title, note = texts
    steps = [snapshot.step for snapshot in thinned(run.recording.snapshots)]
    plain_axis = {"showgrid": False, "zeroline": False}
    cursor = {"type": "line", "x0": steps[-1], "x1": steps[-1], "y0": 0, "y1": 1, "yref": "y domain"}
    layout = scales | {
        "xaxis": {"domain": [0, 0.8]} | plain_axis,
        "xaxis2": {"domain": [0.86, 1], "showgrid": False, "fixedrange": True, "type": "category"},
        "yaxis": {"title": {"text": "probe state"}, "showticklabels": False, "ticks": ""} | plain_axis,
        "shapes": [cursor | {"line": {"color": "theme:text", "width": 2}}],
        "hovermode": "closest",
    }
    traces[1]["z"] = frames[-1]
    return Figure(
        f"{name}-{run.number}",
        "Probe states",
        f"{title} · {run.label}",
        note,
        traces,
        layout,
        steps=steps,
        frames=[[(1, frame)] for frame in frames],
        cursor=True,
    )


def _history(snapshots: Sequence[Snapshot], values: np.ndarray, what: str) -> Trace:
    steps = [snapshot.step for snapshot in snapshots]
    hover = {"hovertemplate": f"step %{{x:,}}<br>{what} %{{z:.4~g}}<extra></extra>"}
    return {"type": "heatmap", "name": what, "x": steps, "z": listed(values.T, 4), "coloraxis": "coloraxis"} | hover


def _chosen(run: Run, order: np.ndarray, names: list[str]) -> Trace:
    states = run.recording.probes.get("states")
    texts = ["state" for _ in order]
    if states is not None and len(states) == len(order):
        texts = [", ".join(f"{value:.3g}" for value in states[index][:8]) for index in order]
        texts = [f"state ({text}{', …' if states.shape[1] > 8 else ''})" for text in texts]
    hover = {"text": [[text] * len(names) for text in texts], "hovertemplate": "%{text}<br>%{x} %{z:.4~g}<extra></extra>"}
    return {"type": "heatmap", "name": "at the slider", "x": names, "xaxis": "x2", "yaxis": "y"} | hover


def plane_heatmap(run: Run, alone: bool) -> Figure | None:
    """The policy as a function of the two observation dimensions that vary most, at the selected snapshot."""
    snapshots = [snapshot for snapshot in thinned(run.recording.snapshots) if snapshot.plane is not None]
    plane = run.recording.probes.get("plane")
    if not snapshots or not plane:
        return None
    planes = [snapshot.plane for snapshot in snapshots if snapshot.plane is not None]
    first, second = plane["dimensions"]
    count = len(planes[0])
    axes = ["" if dimension == 0 else str(dimension + 1) for dimension in range(count)]
    ground = {"type": "heatmap", "x": listed(plane["x"]), "y": listed(plane["y"]), "zsmooth": "best", "coloraxis": "coloraxis"}
    traces = [
        ground
        | {
            "z": listed(planes[-1][dimension], 3),
            "name": f"a{dimension}",
            "xaxis": f"x{axis}",
            "yaxis": f"y{axis}",
            "hovertemplate": f"[{first}] %{{x:.3~g}}<br>[{second}] %{{y:.3~g}}<br>a{dimension} %{{z:.3f}}<extra></extra>",
        }
        for dimension, axis in enumerate(axes)
    ]
    return Figure(
        f"plane-{run.number}",
        "Probe states",
        f"Policy over two observation dimensions · {run.label}",
        "At the slider's snapshot; the two that vary most, the others at their median. Dots: the probe states.",
        traces + _probe_dots(run, first, second, axes),
        _plane_layout(first, second, axes),
        wide=alone,
        steps=[snapshot.step for snapshot in snapshots],
        frames=[[(dimension, listed(values[dimension], 3)) for dimension in range(count)] for values in planes],
    )


def _plane_layout(first: int, second: int, axes: Sequence[str]) -> dict[str, Any]:
    """A panel per action dimension, side by side."""
    layout: dict[str, Any] = {"coloraxis": _scale(-1, 1, "theme:diverging"), "annotations": []}
    width = 1.0 if len(axes) == 1 else 0.46
    title = {"y": 1.0, "xref": "paper", "yref": "paper", "showarrow": False, "yanchor": "bottom", "xanchor": "center"}
    for dimension, axis in enumerate(axes):
        left = 0.0 if dimension == 0 else 1 - width
        horizontal = {"title": {"text": f"observation[{first}]"}, "domain": [left, left + width]}
        layout[f"xaxis{axis}"] = horizontal | {"zeroline": False}
        layout[f"yaxis{axis}"] = {"anchor": f"x{axis}", "zeroline": False}
        if len(axes) > 1:
            layout["annotations"].append(title | {"text": f"a{dimension}", "x": left + width / 2})
    layout["yaxis"]["title"] = {"text": f"observation[{second}]"}
    return layout


def _probe_dots(run: Run, first: int, second: int, axes: Sequence[str]) -> list[Trace]:
    states = run.recording.probes.get("states")
    if states is None or states.shape[1] <= max(first, second):
        return []
    dots = {
        "type": "scatter",
        "mode": "markers",
        "x": listed(states[:, first]),
        "y": listed(states[:, second]),
        "marker": {"color": "theme:background", "size": 6, "line": {"color": "theme:text", "width": 1.5}},
        "hovertemplate": "probe state %{pointNumber}<extra></extra>",
        "name": "probe states",
    }
    return [dots | {"xaxis": f"x{axis}", "yaxis": f"y{axis}"} for axis in axes]


def _scale(low: float, high: float, colors: str) -> dict[str, Any]:
    bar = {"thickness": 10, "outlinewidth": 0, "len": 1.0}
    return {"cmin": float(low), "cmax": float(high), "colorscale": colors, "colorbar": bar}
