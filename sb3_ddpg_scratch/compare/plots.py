"""The figures of a comparison's report, as Plotly traces and layouts. A trace's ``meta`` is the number of its arm."""

import html
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from sb3_ddpg_scratch.compare.conclusions import OVERALL
from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import Scores
from sb3_ddpg_scratch.compare.statistics import Strata, iqm_curve, performance_profile
from sb3_ddpg_scratch.report.figure import RUN_COLORS, Figure, Trace, listed, robust_range
from sb3_ddpg_scratch.report.formatting import span

LONGEST_LABEL = 28
PROFILE_POINTS = 121
OFF_SCALE = 5
"""An axis leaves out what would make it so many times as long."""
FEWEST_SCORES = 6


class Curve(NamedTuple):
    """An arm's curve over the evaluations that all runs have: IQM of returns and its 95% interval, ``(evaluations,)`` each."""

    arm: str
    number: int
    seeds: int
    steps: np.ndarray
    seconds: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves_of(results: Results, scores: Scores) -> dict[str, list[Curve]]:
    """For each environment, the curves of all arms with runs there; a return that is not finite counts as the worst."""
    curves: dict[str, list[Curve]] = {env: [] for env in scores.envs}
    for number, arm in enumerate(scores.arms):
        for env in scores.seeds[arm]:
            rows = _of_arm(results, scores, arm, env)
            returns = rows["mean_return"].where(np.isfinite(rows["mean_return"]), scores.worst[env])
            by_step = rows.assign(mean_return=returns).pivot(index="step", columns="seed", values=["mean_return", "seconds"])
            by_step = by_step.dropna()
            if by_step.empty:
                continue
            middle, low, high = iqm_curve(by_step["mean_return"].to_numpy(float))
            steps, seconds = by_step.index.to_numpy(), by_step["seconds"].to_numpy(float).mean(axis=1)
            curves[env].append(Curve(arm, number, len(scores.seeds[arm][env]), steps, seconds, middle, low, high))
    return curves


def _of_arm(results: Results, scores: Scores, arm: str, env: str) -> pd.DataFrame:
    table = results.evaluations
    return table[(table["arm"] == arm) & (table["env"] == env) & table["seed"].isin(scores.seeds[arm].get(env, []))]


def failures(results: Results, scores: Scores, env: str, number: int) -> Figure | None:
    """The share of an evaluation's episodes that failed, against steps; ``None`` if none ever did."""
    traces: list[Trace] = []
    highest = 0.0
    for place, arm in enumerate(scores.arms):
        rows = _of_arm(results, scores, arm, env)
        by_step = (
            rows.assign(rate=rows["failure_rate"].astype(float)).pivot(index="step", columns="seed", values="rate").dropna()
        )
        if not by_step.empty:
            rates = by_step.to_numpy()
            ends = (rates.mean(axis=1), rates.min(axis=1), rates.max(axis=1))
            traces += banded(arm, place, by_step.index.to_numpy(), ends, "%{y:.1%}")
            highest = max(highest, float(rates.max()))
    if highest == 0:
        return None
    layout = {"xaxis": {"title": {"text": "environment steps"}, "rangemode": "tozero"}, "hovermode": "x unified"}
    layout["yaxis"] = {"title": {"text": "share of episodes"}, "tickformat": ".0%", "rangemode": "tozero"}
    note = "Mean of the runs; the band reaches from the lowest to the highest."
    return Figure(f"failed-{number}", "Learning", f"Failed episodes · {env}", note, traces, layout, env=env)


def label(name: str) -> str:
    """An arm's or environment's name for a figure's axis, shortened and escaped."""
    return html.escape(name if len(name) <= LONGEST_LABEL else name[: LONGEST_LABEL - 1] + "…")


def learning_curves(
    curves: Sequence[Curve], env: str, number: int, random: float, over: Literal["steps", "seconds"]
) -> Figure:
    """Returns of all arms and the random policy in one environment, against steps or training time."""
    traces: list[Trace] = []
    for curve in curves:
        x = curve.steps if over == "steps" else curve.seconds
        traces += banded(curve.arm, curve.number, x, (curve.middle, curve.low, curve.high), "%{y:.4~g}")
    if over == "steps":
        title, axis, hover = "Return over environment steps", "environment steps", "x unified"
        note = f"Interquartile mean of {span([curve.seeds for curve in curves])} runs an arm, with its 95% interval."
        note += " Dotted: a random policy." if np.isfinite(random) else ""
    else:
        title, axis, hover = "Return over training time", "seconds of training", "closest"
        note = "The same against time spent training (mean of the runs), evaluations not counted."
    layout: dict[str, Any] = {"yaxis": {"title": {"text": "return"}}, "hovermode": hover}
    layout["xaxis"] = {"title": {"text": axis}, "rangemode": "tozero"}
    if shown := _without_outliers(curves):
        layout["yaxis"]["range"] = shown
        note += " A band that leaves the figure reaches an outlier."
    if np.isfinite(random):
        line = {"color": "theme:muted", "width": 1.5, "dash": "dot"}
        ends = {"x0": 0, "x1": 1, "xref": "x domain", "y0": random, "y1": random}
        layout["shapes"] = [{"type": "line", "name": "random policy", "line": line, "layer": "below"} | ends]
    return Figure(f"{over}-{number}", "Learning", f"{title} · {env}", note, traces, layout, env=env)


def _without_outliers(curves: Sequence[Curve]) -> list[float] | None:
    """The range of the middle curves and as much around it, if a band, down to an outlier, would flatten them."""
    if not curves:
        return None
    middle = np.concatenate([curve.middle for curve in curves])
    bands = np.concatenate([ends for curve in curves for ends in (curve.low, curve.high)])
    span = float(np.ptp(middle))
    return [float(middle.min()) - span, float(middle.max()) + span] if np.ptp(bands) > OFF_SCALE * span > 0 else None


def banded(arm: str, number: int, x: np.ndarray, ends: tuple[np.ndarray, np.ndarray, np.ndarray], hover: str) -> list[Trace]:
    """A band and a line, from middle, low and high; ``hover`` is Plotly's template for hover text."""
    middle, low, high = ends
    place, common = number % RUN_COLORS, {"type": "scatter", "meta": number, "name": arm}
    outline = {"x": listed(np.concatenate([x, x[::-1]]), 12), "y": listed(np.concatenate([high, low[::-1]]))}
    band = {"mode": "lines", "fill": "toself", "fillcolor": f"theme:wash{place}", "line": {"width": 0}, "hoverinfo": "skip"}
    line = {"mode": "lines" if len(x) > 1 else "markers", "line": {"color": f"theme:run{place}", "width": 2}}
    dots = {"marker": {"color": f"theme:run{place}", "size": 7}, "hovertemplate": hover}
    return [common | outline | band, common | {"x": listed(x, 12), "y": listed(middle)} | line | dots]


def score_distribution(scores: Scores, summary: Mapping[str, Any], env: str, number: int) -> Figure:
    """A point per run's score, and the interquartile means with their intervals."""
    traces: list[Trace] = []
    shown = [arm for arm in scores.arms if env in scores.counted[arm]]
    ends = robust_range([value for arm in shown for value in scores.counted[arm][env]], FEWEST_SCORES)
    for row, arm in enumerate(shown):
        place, values = scores.arms.index(arm), scores.counted[arm][env]
        seeds, finite = scores.seeds[arm][env], np.isfinite(scores.measured[arm][env])
        texts = [f"seed {seed}" if good else f"seed {seed}, diverged" for seed, good in zip(seeds, finite, strict=True)]
        spread = 0.07 * ((np.arange(len(values)) % 5) - 2)
        symbols = ["circle" if good else "x" for good in finite]
        points = {"type": "scatter", "mode": "markers", "meta": place, "name": arm, "text": texts}
        points |= {"x": listed(values), "y": listed(-row + spread)}
        if ends is not None:
            # The text has the score of a point that is moved to the edge.
            points["text"] = [f"{text}: {value:.4g}" for text, value in zip(texts, values, strict=True)]
            points |= {"x": np.clip(values, *ends).tolist(), "cliponaxis": False}
            symbols = [_symbol(value, ends, symbol) for value, symbol in zip(values, symbols, strict=True)]
        points["marker"] = {"color": f"theme:faint{place % RUN_COLORS}", "size": 9, "symbol": symbols}
        traces.append(points | {"hovertemplate": "%{x:.4~g}<br>%{text}<extra></extra>"})
        middle, interval = summary["arms"][arm]["iqm"][env], summary["arms"][arm]["ci"][env]
        low, high = interval or (middle, middle)
        hover = f"IQM %{{x:.4~g}}<br>95% interval {low:.4g} to {high:.4g}<extra></extra>"
        traces.append(_interval(f"{arm}, IQM", place, -row - 0.26, (low, middle, high), hover))
    layout = {"xaxis": {"title": {"text": "score"}, "zeroline": False}} | _rows([label(arm) for arm in shown])
    note = "A dot for each run. Diamond: interquartile mean (IQM) with its 95% interval."
    if any(not np.isfinite(scores.measured[arm][env]).all() for arm in shown):
        note += " Crosses: diverged runs, at the worst score."
    if ends is not None:
        layout["xaxis"]["range"] = list(ends)
        note += " Triangles at the edge: outliers."
    title, height = f"Score of every run · {env}", _height(len(shown))
    return Figure(f"scores-{number}", "Scores", title, note, traces, layout, env=env, height=height)


def _symbol(value: float, ends: Sequence[float], symbol: str) -> str:
    return "triangle-left" if value < ends[0] else "triangle-right" if value > ends[1] else symbol


def profiles(strata: Mapping[str, Strata], arms: Sequence[str], normalized: bool) -> Figure:
    """The share of an arm's runs above a score, against that score."""
    traces: list[Trace] = []
    pooled = np.concatenate([values for arm in strata.values() for values in arm] or [np.zeros(0)])
    if len(pooled):
        low, high = robust_range(pooled.tolist(), FEWEST_SCORES) or (pooled.min(), pooled.max())
        reach = 0.05 * (high - low) or 0.5
        thresholds = np.linspace(low - reach, high + reach, PROFILE_POINTS)
        for arm, scores in strata.items():
            hover = "%{y:.0%} of runs score above %{x:.4~g}"
            traces += banded(arm, arms.index(arm), thresholds, performance_profile(scores, thresholds), hover)
    layout = {
        "xaxis": {"title": {"text": "normalized score" if normalized else "score"}, "zeroline": False},
        "yaxis": {"title": {"text": "share of runs above"}, "tickformat": ".0%", "range": [-0.02, 1.04]},
        "hovermode": "closest",
    }
    note = "The share of an arm's runs that score above a value, with its 95% interval: higher is better everywhere."
    note += " All environments together: 0 is a random policy, 1 the baseline's mean." if normalized else ""
    return Figure("profile", "Scores", "Performance profile", note, traces, layout)


def differences(summary: Mapping[str, Any], scores: Scores) -> Figure:
    """Each arm's difference from the baseline, in units of its range where usable, against the margin."""
    measured = {OVERALL, *(env for env in scores.envs if scores.stands_out(env))}
    shown = [row for row in summary["comparisons"] if row["difference_ci90"] and row["env"] in measured]
    several = len({row["a"] for row in shown}) > 1
    labels, traces = [], []
    for position, row in enumerate(shown):
        unit, place = row["margin"] / summary["margin"], scores.arms.index(row["a"])
        middle, (low, high) = row["difference"] / unit, (end / unit for end in row["difference_ci90"])
        hover = f"{row['verdict']}: %{{x:+.1%}}<br>90% interval {low:+.1%} to {high:+.1%}<extra></extra>"
        traces.append(_interval(row["a"], place, -position, (low, middle, high), hover))
        labels.append(f"{label(row['env'])} · {label(row['a'])}" if several else label(row["env"]))
    margin = summary["margin"]
    zone = {"type": "rect", "x0": -margin, "x1": margin, "y0": 0, "y1": 1, "yref": "y domain", "layer": "below"}
    middle_line = {"type": "line", "x0": 0, "x1": 0, "y0": 0, "y1": 1, "yref": "y domain", "layer": "below"}
    layout = {
        "xaxis": {"title": {"text": "difference, of the range over random"}, "tickformat": ".0%", "zeroline": False},
    } | _rows(labels)
    note = (
        f"Mean scores with 90% intervals, in units of {summary['baseline']}'s range over a random policy. An interval "
        f"entirely within the shaded margin of ±{margin:.0%} is equivalent; one that crosses its edge is not."
    )
    sizes = np.array([abs(trace["x"][0]) for trace in traces])
    usual = max(10 * margin, 1.5 * float(np.median(sizes))) if traces else np.inf
    if sizes.max(initial=0) > OFF_SCALE * usual:
        layout["xaxis"] |= {"range": [-usual, usual]}
        note += " A triangle at the edge is a difference beyond it."
        for trace in traces:
            (middle,) = trace["x"]
            trace["marker"]["symbol"] = _symbol(middle, (-usual, usual), "diamond")
            trace |= {"x": [float(np.clip(middle, -usual, usual))], "customdata": [middle], "cliponaxis": False}
            trace["hovertemplate"] = trace["hovertemplate"].replace("%{x:", "%{customdata:")
    layout["shapes"] += [
        zone | {"fillcolor": "theme:zone", "line": {"width": 0}},
        middle_line | {"line": {"color": "theme:muted", "width": 1}},
    ]
    title = "Difference from the baseline"
    return Figure("differences", "Verdicts", title, note, traces, layout, wide=True, height=_height(len(shown)))


def _interval(name: str, number: int, y: float, ends: tuple[float, float, float], hover: str) -> Trace:
    """An interval with a diamond at its middle; ``ends`` are low, middle and high."""
    low, middle, high = ends
    color = f"theme:run{number % RUN_COLORS}"
    error = {"symmetric": False, "array": [high - middle], "arrayminus": [middle - low], "color": color, "thickness": 2.5}
    point = {"type": "scatter", "mode": "markers", "meta": number, "name": name, "x": [middle], "y": [y]}
    marker = {"color": color, "size": 11, "symbol": "diamond"}
    return point | {"error_x": error | {"width": 7}, "marker": marker, "hovertemplate": hover}


def _rows(labels: Sequence[str]) -> dict[str, Any]:
    """A layout with a row per label, from the top; labels are above their rows to fit a phone's width."""
    left = {"x": 0, "xref": "x domain", "xanchor": "left", "yanchor": "middle", "showarrow": False}
    ground = {"bgcolor": "theme:panel", "font": {"color": "theme:text"}}
    texts = [left | ground | {"y": 0.36 - row, "text": text} for row, text in enumerate(labels)]
    axis = {"range": [-len(labels) + 0.55, 0.5], "zeroline": False, "showgrid": False, "showticklabels": False}
    rule = {
        "type": "line",
        "x0": 0,
        "x1": 1,
        "xref": "x domain",
        "layer": "below",
        "line": {"color": "theme:edge", "width": 1},
    }
    rules = [rule | {"y0": 0.5 - row, "y1": 0.5 - row} for row in range(1, len(labels))]
    return {"yaxis": axis, "annotations": texts, "shapes": rules, "margin": {"l": 14, "r": 14, "t": 8, "b": 34}}


def _height(rows: int) -> int:
    return max(270, 60 + 62 * rows)
