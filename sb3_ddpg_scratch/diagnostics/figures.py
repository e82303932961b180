"""The report's figures, as Plotly's own dicts of traces and layout. No numbers are made here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sb3_ddpg_scratch.diagnostics.reading import Recording
from sb3_ddpg_scratch.diagnostics.summary import WINDOW, moving_average
from sb3_ddpg_scratch.page import figure as page_figure
from sb3_ddpg_scratch.page.figure import RUN_COLORS, Trace, listed

MOST_POINTS = 3000
MOST_SNAPSHOTS = 60


@dataclass(frozen=True)
class Figure(page_figure.Figure):
    """
    A figure of a page, and what the slider does to it.

    :param steps: environment steps of the snapshots among which the slider chooses; empty where it does nothing
    :param frames: for each of them the traces that change, as pairs of a trace's index and its ``z``
    :param cursor: whether the layout's first shape stands at the chosen snapshot's step
    """

    steps: Sequence[int] = ()
    frames: Sequence[list[tuple[int, Any]]] = ()
    cursor: bool = False


class Run(NamedTuple):
    """
    :param label: its name in the report, the same in every figure
    :param recording: what it recorded
    :param number: its place among the runs, which gives it its colour
    """

    label: str
    recording: Recording
    number: int


def line(run: Run, x: np.ndarray, y: np.ndarray, name: str, style: str = "solid", **others: Any) -> Trace:
    """
    :param run: the run
    :param x: environment steps, shape ``(n,)``
    :param y: values, shape ``(n,)``
    :param name: what they are
    :param style: Plotly's dash
    :param others: further entries of the trace
    :return: a line; of long ones every so many points
    """
    stride = -(-len(x) // MOST_POINTS) or 1
    color = f"theme:run{run.number % RUN_COLORS}"
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(x) < 3 else "lines",
        "x": listed(x[::stride], 12),
        "y": listed(y[::stride]),
        "name": f"{run.label} · {name}",
        "line": {"color": color, "dash": style, "width": 2},
        "marker": {"color": color, "size": 5},
        "hovertemplate": "%{y:.4~g}",
    } | others


def _column_figure(
    runs: Sequence[Run], section: str, title: str, note: str, columns: dict[str, tuple[str, str]], axis: dict[str, Any]
) -> Figure:
    traces = []
    if axis.get("type") == "log":
        axis = axis | _ticks([run.recording.tables["update"][column] for run in runs for column in columns])
    for run in runs:
        table = run.recording.tables["update"]
        for column, (name, style) in columns.items():
            if np.isfinite(table[column]).any():
                traces.append(line(run, table["step"], table[column], name, style))
    return Figure(next(iter(columns)), section, title, note, traces, {"yaxis": axis})


def _ticks(columns: Sequence[np.ndarray]) -> dict[str, Any]:
    """Each decade of a logarithmic axis, or 1, 2 and 5 of each where there are few."""
    values = np.concatenate(columns)
    values = values[np.isfinite(values) & (values > 0)]
    many = len(values) == 0 or values.max() > 300 * values.min()
    return {"dtick": 1} if many else {"dtick": "D2", "tickformat": "~g"}


def learning_curve(runs: Sequence[Run]) -> Figure:
    """
    :param runs: the runs
    :return: episode returns and their moving average
    """
    traces = []
    for run in runs:
        episodes, evaluations = run.recording.tables["episode"], run.recording.tables["evaluation"]
        if len(episodes["step"]) == 0:
            continue
        faint = {"color": f"theme:faint{run.number % RUN_COLORS}", "size": 5}
        traces.append(
            line(run, episodes["step"], episodes["return"], "episode") | {"mode": "markers", "marker": faint},
        )
        average = moving_average(episodes["return"])
        traces.append(line(run, episodes["step"], average, f"mean of {WINDOW}") | {"mode": "lines"})
        shown = np.isfinite(evaluations["return_mean"])
        if shown.any():
            marker = {
                "color": f"theme:run{run.number % RUN_COLORS}",
                "symbol": "diamond-open",
                "size": 8,
                "line": {"width": 2},
            }
            points = line(run, evaluations["step"][shown], evaluations["return_mean"][shown], "noise-free")
            traces.append(points | {"mode": "markers", "marker": marker})
    note = f"Dots: training episodes. Line: mean of the last {WINDOW}. Diamonds: noise-free evaluations, where there were any."
    return Figure("return", "Learning", "Episode return", note, traces, {"yaxis": {"title": {"text": "return"}}}, wide=True)


def q_against_targets(runs: Sequence[Run]) -> Figure:
    """
    :param runs: the runs
    :return: mean Q and, over it, the mean TD target, which a healthy critic stays close to
    """
    traces = []
    for run in runs:
        table = run.recording.tables["update"]
        if np.isfinite(table["q_mean"]).any():
            faint = {"line": {"color": f"theme:faint{run.number % RUN_COLORS}", "width": 6}}
            traces.append(line(run, table["step"], table["q_mean"], "Q") | faint)
            traces.append(line(run, table["step"], table["target_mean"], "target", "dash"))
    note = "Means over a batch. Broad and pale: Q(s, a). Dashed: TD target."
    return Figure("q_mean", "Critic", "Q against its TD targets", note, traces, {"yaxis": {"title": {"text": "value"}}})


def overestimation(runs: Sequence[Run]) -> Figure:
    """
    :param runs: the runs
    :return: Q(s, mu(s)) and the discounted return that followed
    """
    traces, tails = [], []
    for run in runs:
        table = run.recording.tables["evaluation"]
        shown = np.isfinite(table["q"]) & np.isfinite(table["discounted_return"])
        if not shown.any():
            continue
        tails += [weight for weight in table["tail_weight"][shown] if weight > 0]
        steps, q, obtained = (table[name][shown] for name in ("step", "q", "discounted_return"))
        mode = {"mode": "lines+markers"}
        difference = {"customdata": listed(q - obtained), "hovertemplate": "%{y:.4~g} (over-estimation %{customdata:+.3~g})"}
        traces.append(line(run, steps, q, "Q promised") | mode | difference)
        traces.append(line(run, steps, obtained, "return obtained", "dot") | mode)
    note = "Solid: Q(s, μ(s)). Dotted: the discounted return obtained from there. Solid above dotted is over-estimation."
    if tails:
        note += f" Of returns that a time limit cut off, up to {max(tails):.0%} is the critic's own word."
    axis = {"title": {"text": "discounted return"}}
    return Figure("overestimation", "Critic", "Q against the return obtained", note, traces, {"yaxis": axis})


def time_figures(runs: Sequence[Run]) -> list[Figure]:
    """
    :param runs: the runs
    :return: every figure over environment steps
    """
    logarithmic = {"type": "log", "exponentformat": "power"}
    norms = "2-norms before clipping. Solid: critic. Dashed: actor."
    share = {"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "share of action components"}}
    return [
        learning_curve(runs),
        q_against_targets(runs),
        overestimation(runs),
        _column_figure(
            runs,
            "Critic",
            "TD error",
            "Mean of |Q − target|.",
            {"td_error": ("TD error", "solid")},
            _titled(logarithmic, "|Q − y|"),
        ),
        _column_figure(
            runs,
            "Critic",
            "Critic loss",
            "Squared TD error, summed over critics.",
            {"critic_loss": ("critic loss", "solid")},
            _titled(logarithmic, "loss"),
        ),
        _column_figure(
            runs,
            "Actor",
            "Actor loss",
            "−Q(s, μ(s)): it falls as the critic promises more.",
            {"actor_loss": ("actor loss", "solid")},
            {"title": {"text": "loss"}},
        ),
        _column_figure(
            runs,
            "Actor",
            "Gradient norms",
            norms,
            {"critic_grad_norm": ("critic", "solid"), "actor_grad_norm": ("actor", "dash")},
            _titled(logarithmic, "norm"),
        ),
        _column_figure(
            runs,
            "Actor",
            "Saturated actions",
            "Beyond 0.99 of the bound, without noise.",
            {"saturated": ("saturated", "solid")},
            share,
        ),
        _column_figure(
            runs,
            "Actor",
            "Action noise",
            "Sigma in normalised action units.",
            {"sigma": ("sigma", "solid")},
            {"rangemode": "tozero", "title": {"text": "sigma"}},
        ),
    ]


def _titled(axis: dict[str, Any], title: str) -> dict[str, Any]:
    return axis | {"title": {"text": title}}
