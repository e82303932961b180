"""The report's figures over environment steps, as Plotly traces and layouts."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from sb3_ddpg_scratch.diagnostics.recording_reader import Recording
from sb3_ddpg_scratch.diagnostics.run_summary import WINDOW, moving_average
from sb3_ddpg_scratch.report.figure import RUN_COLORS, Figure, Trace, listed, marked_at, outliers_at_edge

MOST_POINTS = 3000


class Run(NamedTuple):
    """A recording with its label in the report and its number, which determines its color."""

    label: str
    recording: Recording
    number: int

    def color(self, kind: str = "run") -> str:
        return f"theme:{kind}{self.number % RUN_COLORS}"

    def line(self, x: np.ndarray, y: np.ndarray, name: str, dash: str = "solid") -> Trace:
        """A line over environment steps; long ones are thinned out."""
        stride = -(-len(x) // MOST_POINTS) or 1
        return {
            "type": "scatter",
            "mode": "lines+markers" if len(x) < 3 else "lines",
            "x": listed(x[::stride], 12),
            "y": listed(y[::stride]),
            "name": f"{self.label} · {name}",
            "line": {"color": self.color(), "dash": dash, "width": 2},
            "marker": {"color": self.color(), "size": 5},
            "hovertemplate": "%{y:.4~g}",
        }


class Panel(NamedTuple):
    """A figure of measured columns, by line name: the first line is solid, the second dashed."""

    section: str
    title: str
    note: str
    columns: dict[str, str]
    axis_title: str
    axis: dict[str, Any]


STEPS = "environment steps"
_LOG = {"type": "log", "exponentformat": "power"}
_ZERO = {"rangemode": "tozero"}
_PERCENT = _ZERO | {"tickformat": ".0%"}
_NORMS = {"critic": "critic_grad_norm", "actor": "actor_grad_norm"}
_SHARE = "share of action components"
PANELS = (
    Panel("Critic", "TD error", "Mean of |Q − target|.", {"TD error": "td_error"}, "|Q − y|", _LOG),
    Panel("Critic", "Critic loss", "Squared TD error, summed over critics.", {"critic loss": "critic_loss"}, "loss", _LOG),
    Panel("Actor", "Actor loss", "−Q(s, μ(s)): it falls as Q rises.", {"actor loss": "actor_loss"}, "loss", {}),
    Panel("Actor", "Gradient norms", "2-norms before clipping. Solid: critic. Dashed: actor.", _NORMS, "norm", _LOG),
    Panel("Actor", "Saturated actions", "Beyond 0.99 of the bound, noise-free.", {"saturated": "saturated"}, _SHARE, _PERCENT),
    Panel("Actor", "Action noise", "Sigma in normalized action units.", {"sigma": "sigma"}, "sigma", _ZERO),
)


def training_curves(runs: Sequence[Run]) -> list[Figure]:
    panels = [_panel_figure(runs, panel) for panel in PANELS]
    return [learning_curve(runs), q_against_targets(runs), overestimation(runs), *panels]


def _panel_figure(runs: Sequence[Run], panel: Panel) -> Figure:
    traces = []
    for run in runs:
        table = run.recording.tables["update"]
        for dash, (name, column) in zip(("solid", "dash"), panel.columns.items(), strict=False):
            if np.isfinite(table[column]).any():
                traces.append(run.line(table["step"], table[column], name, dash))
    name, texts = next(iter(panel.columns.values())), (panel.section, panel.title, panel.note)
    if panel.axis is _LOG:
        return _log_figure(_figure(name, texts, traces, panel.axis_title, _LOG))
    figure = _figure(name, texts, traces, panel.axis_title, panel.axis)
    # Shares and sigmas are shown from 0.
    return figure if panel.axis else outliers_at_edge(figure, traces)


def _log_figure(figure: Figure) -> Figure:
    """Ticks at each decade of a logarithmic axis, or at its 1, 2 and 5 if there are few; zeros are marked at its lower end."""
    values = np.array([y for trace in figure.traces for y in trace["y"] if y], float)
    values = values[values > 0]
    many = len(values) == 0 or values.max() > 300 * values.min()
    # Plotly enlarges powers of ten by a quarter.
    ticks: dict[str, Any] = {"dtick": 1, "tickfont": {"size": 9.6}} if many else {"dtick": "D2", "tickformat": "~g"}
    figure.layout["yaxis"] |= ticks
    floor = float(values.min()) / 2 if len(values) else 1.0
    zeros = [mark for trace in figure.traces for mark in marked_at(trace, floor, "triangle-down", lambda y: y == 0)]
    note = f"{figure.note} Triangles: exactly 0." if zeros else figure.note
    lines = [trace | {"y": [y or None for y in trace["y"]]} for trace in figure.traces]
    return replace(figure, traces=lines + zeros, note=note)


def _figure(
    name: str, texts: tuple[str, str, str], traces: list[Trace], axis_title: str, axis: dict[str, Any] | None = None
) -> Figure:
    layout: dict[str, Any] = {"xaxis": {"title": {"text": STEPS}}, "hovermode": "x unified"}
    layout["yaxis"] = {"title": {"text": axis_title}} | (axis or {})
    return Figure(name, *texts, traces, layout, wide=name == "return")


def learning_curve(runs: Sequence[Run]) -> Figure:
    traces = []
    for run in runs:
        episodes, evaluations = run.recording.tables["episode"], run.recording.tables["evaluation"]
        if len(episodes["step"]) == 0:
            continue
        dot = {"mode": "markers", "marker": {"color": run.color("faint"), "size": 5}}
        traces.append(run.line(episodes["step"], episodes["return"], "episode") | dot)
        average = moving_average(episodes["return"])
        traces.append(run.line(episodes["step"], average, f"mean of {WINDOW}") | {"mode": "lines"})
        shown = np.isfinite(evaluations["return_mean"])
        if shown.any():
            diamond = {"color": run.color(), "symbol": "diamond-open", "size": 8, "line": {"width": 2}}
            points = run.line(evaluations["step"][shown], evaluations["return_mean"][shown], "noise-free")
            traces.append(points | {"mode": "markers", "marker": diamond})
    note = f"Dots: training episodes. Line: mean of the last {WINDOW}. Diamonds: noise-free evaluations, where there were any."
    dots = [trace for trace in traces if trace["mode"] == "markers"]
    return outliers_at_edge(_figure("return", ("Learning", "Episode return", note), traces, "return"), dots)


def q_against_targets(runs: Sequence[Run]) -> Figure:
    """Mean Q and, over it, the mean TD target, which a healthy critic follows closely."""
    traces = []
    for run in runs:
        table = run.recording.tables["update"]
        if np.isfinite(table["q_mean"]).any():
            traces.append(run.line(table["step"], table["q_mean"], "Q") | {"line": {"color": run.color("faint"), "width": 6}})
            traces.append(run.line(table["step"], table["target_mean"], "target", "dash"))
    note = "Means over a batch. Broad and pale: Q(s, a). Dashed: TD target."
    return outliers_at_edge(_figure("q_mean", ("Critic", "Q against its TD targets", note), traces, "value"), traces)


def overestimation(runs: Sequence[Run]) -> Figure:
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
        traces.append(run.line(steps, q, "Q promised") | mode | difference)
        traces.append(run.line(steps, obtained, "return obtained", "dot") | mode)
    note = "Solid: Q(s, μ(s)). Dotted: the discounted return obtained from there. Solid above dotted is over-estimation."
    if tails:
        note += f" Of returns that a time limit cut off, up to {max(tails):.0%} is the critic's own estimate."
    figure = _figure("overestimation", ("Critic", "Q against the return obtained", note), traces, "discounted return")
    return outliers_at_edge(figure, traces)
