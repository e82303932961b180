"""The report's heat maps: policy and Q on the probe states, snapshot by snapshot, and the policy over a plane."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sb3_ddpg_scratch.diagnostics.figures import MOST_SNAPSHOTS, Figure, Run
from sb3_ddpg_scratch.diagnostics.reading import Snapshot
from sb3_ddpg_scratch.page.figure import listed

OWN_SCALE_FACTOR = 10
"""Runs whose Q span ranges that differ by more than this have a colour scale each: on one, the narrower would be flat."""


def thinned(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """
    :param snapshots: all snapshots
    :return: at most 60 of them, evenly chosen, the first and the last among them
    """
    chosen = np.unique(np.linspace(0, len(snapshots) - 1, min(len(snapshots), MOST_SNAPSHOTS)).round().astype(int))
    return [snapshots[index] for index in chosen]


def q_ranges(runs: Sequence[Run]) -> dict[int, tuple[float, float]]:
    """
    :param runs: the runs
    :return: for each run's number the range of the colours of Q, the same for all unless they differ too much
    """
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


def probe_figures(runs: Sequence[Run]) -> list[Figure]:
    """
    :param runs: the runs
    :return: for each run that has snapshots: policy and Q on the probe states, and the policy over a plane where recorded
    """
    ranges = q_ranges(runs)
    shown = [run for run in runs if run.recording.snapshots]
    figures = [policy_figure(run) for run in shown]
    figures += [q_figure(run, ranges.get(run.number, (0.0, 1.0))) for run in shown]
    planes = [plane_figure(run, alone=len(runs) == 1) for run in shown]
    return figures + [figure for figure in planes if figure is not None]


def policy_figure(run: Run) -> Figure:
    """
    :param run: the run
    :return: the action (its norm, if it has several dimensions) on each probe state over snapshots, and beside it each
        dimension at the chosen snapshot
    """
    snapshots = thinned(run.recording.snapshots)
    order = _order(snapshots)
    actions = np.stack([snapshot.actions[order] for snapshot in snapshots])
    dimensions = actions.shape[2]
    single = dimensions == 1
    history = actions[:, :, 0] if single else np.linalg.norm(actions, axis=2)
    what = "action" if single else "norm of the action"
    note = f"{what.capitalize()} without noise, normalised, over the training; at the right at the slider's snapshot"
    note += "." if single else ", each dimension by itself."
    layout = _layout(snapshots, what)
    layout["coloraxis"] = _scale(-1, 1, "theme:diverging") if single else _scale(0, np.sqrt(dimensions), "theme:sequential")
    if not single:
        layout["coloraxis2"] = _scale(-1, 1, "theme:diverging") | {"showscale": False}
    frames = [listed(step_actions, 3) for step_actions in actions]
    names = [f"a{dimension}" for dimension in range(dimensions)]
    traces = [
        _history(snapshots, history, what),
        _chosen(run, order, names, frames[-1], "coloraxis" if single else "coloraxis2"),
    ]
    return Figure(
        f"policy-{run.number}",
        "Probe states",
        f"Policy · {run.label}",
        note,
        traces,
        layout,
        steps=[snapshot.step for snapshot in snapshots],
        frames=[[(1, frame)] for frame in frames],
        cursor=True,
    )


def q_figure(run: Run, scale: tuple[float, float]) -> Figure:
    """
    :param run: the run
    :param scale: lowest and highest Q of the colours
    :return: Q(s, mu(s)) on each probe state over snapshots, and beside it at the chosen one
    """
    snapshots = thinned(run.recording.snapshots)
    order = _order(snapshots)
    q_values = np.stack([snapshot.q_values[order] for snapshot in snapshots])
    layout = _layout(snapshots, "Q")
    layout["coloraxis"] = _scale(*scale, "theme:sequential")
    frames = [listed(step_values[:, None]) for step_values in q_values]
    traces = [_history(snapshots, q_values, "Q"), _chosen(run, order, ["Q"], frames[-1], "coloraxis")]
    return Figure(
        f"q-{run.number}",
        "Probe states",
        f"Q(s, μ(s)) · {run.label}",
        "Rows are the same states as in the policy's figure, the best at the top by the last snapshot.",
        traces,
        layout,
        steps=[snapshot.step for snapshot in snapshots],
        frames=[[(1, frame)] for frame in frames],
        cursor=True,
    )


def plane_figure(run: Run, alone: bool) -> Figure | None:
    """
    :param run: the run
    :param alone: whether it is the only one
    :return: the policy as a function of the two observation dimensions that vary most, at the chosen snapshot
    """
    snapshots = [snapshot for snapshot in thinned(run.recording.snapshots) if snapshot.plane is not None]
    plane = run.recording.probes.get("plane")
    if not snapshots or not plane:
        return None
    planes = [snapshot.plane for snapshot in snapshots if snapshot.plane is not None]
    first, second = plane["dimensions"]
    traces: list[dict[str, Any]] = []
    layout: dict[str, Any] = {"coloraxis": _scale(-1, 1, "theme:diverging"), "annotations": []}
    count = len(planes[0])
    for dimension in range(count):
        suffix = "" if dimension == 0 else str(dimension + 1)
        width = 1.0 if count == 1 else 0.46
        left = 0.0 if dimension == 0 else 1 - width
        layout[f"xaxis{suffix}"] = {
            "title": {"text": f"observation[{first}]"},
            "domain": [left, left + width],
            "zeroline": False,
        }
        layout[f"yaxis{suffix}"] = {"anchor": f"x{suffix}", "zeroline": False}
        if count > 1:
            title = {"text": f"a{dimension}", "x": left + width / 2, "y": 1.0, "xref": "paper", "yref": "paper"}
            layout["annotations"].append(title | {"showarrow": False, "yanchor": "bottom", "xanchor": "center"})
        traces.append(
            {
                "type": "heatmap",
                "x": listed(plane["x"]),
                "y": listed(plane["y"]),
                "z": listed(planes[-1][dimension], 3),
                "coloraxis": "coloraxis",
                "zsmooth": "best",
                "name": f"a{dimension}",
                "xaxis": f"x{suffix}",
                "yaxis": f"y{suffix}",
                "hovertemplate": f"[{first}] %{{x:.3~g}}<br>[{second}] %{{y:.3~g}}<br>a{dimension} %{{z:.3f}}<extra></extra>",
            }
        )
    layout["yaxis"]["title"] = {"text": f"observation[{second}]"}
    traces += _probe_dots(run, first, second, count)
    frames = [[(dimension, listed(values[dimension], 3)) for dimension in range(count)] for values in planes]
    return Figure(
        f"plane-{run.number}",
        "Probe states",
        f"Policy over two observation dimensions · {run.label}",
        "At the slider's snapshot; the two that vary most, the others at their median. Dots: the probe states.",
        traces,
        layout,
        wide=alone,
        steps=[snapshot.step for snapshot in snapshots],
        frames=frames,
    )


def _probe_dots(run: Run, first: int, second: int, count: int) -> list[dict[str, Any]]:
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
    axes = ["" if dimension == 0 else str(dimension + 1) for dimension in range(count)]
    return [dots | {"xaxis": f"x{axis}", "yaxis": f"y{axis}"} for axis in axes]


def _order(snapshots: Sequence[Snapshot]) -> np.ndarray:
    return np.argsort(snapshots[-1].q_values, kind="stable")


def _scale(low: float, high: float, colors: str) -> dict[str, Any]:
    bar = {"thickness": 10, "outlinewidth": 0, "len": 1.0}
    return {"cmin": float(low), "cmax": float(high), "colorscale": colors, "colorbar": bar}


def _layout(snapshots: Sequence[Snapshot], what: str) -> dict[str, Any]:
    last = snapshots[-1].step
    cursor = {
        "type": "line",
        "x0": last,
        "x1": last,
        "y0": 0,
        "y1": 1,
        "yref": "y domain",
        "line": {"color": "theme:text", "width": 2},
    }
    return {
        "xaxis": {"domain": [0, 0.8], "showgrid": False, "zeroline": False},
        "xaxis2": {"domain": [0.86, 1], "showgrid": False, "fixedrange": True, "type": "category"},
        "yaxis": {
            "title": {"text": "probe state"},
            "showticklabels": False,
            "ticks": "",
            "showgrid": False,
            "zeroline": False,
        },
        "shapes": [cursor],
    }


def _history(snapshots: Sequence[Snapshot], values: np.ndarray, what: str) -> dict[str, Any]:
    return {
        "type": "heatmap",
        "x": [snapshot.step for snapshot in snapshots],
        "z": listed(values.T, 4),
        "coloraxis": "coloraxis",
        "name": what,
        "hovertemplate": f"step %{{x:,}}<br>{what} %{{z:.4~g}}<extra></extra>",
    }


def _chosen(run: Run, order: np.ndarray, names: list[str], z: list[Any], coloraxis: str) -> dict[str, Any]:
    states = run.recording.probes.get("states")
    texts = ["state" for _ in order]
    if states is not None and len(states) == len(order):
        texts = [", ".join(f"{value:.3g}" for value in states[index][:8]) for index in order]
        texts = [f"state ({text}{', …' if states.shape[1] > 8 else ''})" for text in texts]
    return {
        "type": "heatmap",
        "x": names,
        "z": z,
        "text": [[text] * len(names) for text in texts],
        "coloraxis": coloraxis,
        "xaxis": "x2",
        "yaxis": "y",
        "name": "at the slider",
        "hovertemplate": "%{text}<br>%{x} %{z:.4~g}<extra></extra>",
    }
