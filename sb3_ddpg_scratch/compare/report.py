"""The report of a comparison: an HTML page, a picture, and figures and tables for a notebook."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from sb3_ddpg_scratch.compare.conclusions import OVERALL, comparable, failed_share, p_value, summarize
from sb3_ddpg_scratch.compare.plots import (
    curves_of,
    differences,
    failures,
    learning_curves,
    profiles,
    score_distribution,
)
from sb3_ddpg_scratch.compare.results_file import Results, Run
from sb3_ddpg_scratch.compare.scores import Scores, scores_of
from sb3_ddpg_scratch.report.figure import Figure
from sb3_ddpg_scratch.report.formatting import duration, number, span
from sb3_ddpg_scratch.report.notebook import plotly_figures
from sb3_ddpg_scratch.report.page import write_page
from sb3_ddpg_scratch.report.picture import write_picture

HEADLINES = {
    "equivalent": "{} is equivalent to {}",
    "better": "{} is better than {}",
    "worse": "{} is worse than {}",
    "undecided": "Whether {} is as good as {} is undecided",
}
LINES_SHOWN = 12
"""Maximum number of missing runs to list; the rest are counted."""


def write_report(results: Results, summary: Mapping[str, Any], out: Path, one_file: bool = False) -> Path:
    """Write ``report.html``, Plotly inside or beside it, and ``learning_curves.png`` for papers; returns the page's path."""
    scores = scores_of(results)
    figures = all_figures(results, scores, summary)
    path = out / "report.html"
    _write_page(path, results, figures, summary, one_file)
    over_steps = figures[: 2 * len(scores.envs) : 2]
    write_picture(over_steps, out / "learning_curves.png")
    return path


def all_figures(results: Results, scores: Scores, summary: Mapping[str, Any]) -> list[Figure]:
    """Learning curves over steps and over time for each environment, failed episodes where there are any, then the scores."""
    by_env = enumerate(curves_of(results, scores).items())
    learning = [
        learning_curves(curves, env, place, scores.random[env], over)
        for place, (env, curves) in by_env
        for over in ("steps", "seconds")
    ]
    learning += filter(None, (failures(results, scores, env, place) for place, env in enumerate(scores.envs)))
    several = len(scores.envs) > 1
    if several:
        strata = {arm: scores.normalized(arm, envs) for arm in scores.arms if (envs := comparable(scores, arm))}
    else:
        strata = {arm: list(own.values()) for arm, own in scores.counted.items() if own}
    distributions = [score_distribution(scores, summary, env, place) for place, env in enumerate(scores.envs)]
    verdicts = [differences(summary, scores)] if len(scores.arms) > 1 else []
    return [*learning, *distributions, profiles(strata, scores.arms, several), *verdicts]


def _write_page(path: Path, results: Results, figures: list[Figure], summary: Mapping[str, Any], one_file: bool) -> None:
    scores = scores_of(results)
    others = [arm for arm in scores.arms if arm != scores.baseline]
    heading = f"{', '.join(others)} against {scores.baseline}" if others else scores.baseline
    count = span([len(values) for arm in scores.seeds.values() for values in arm.values()])
    missing = [f"{run['arm']} on {run['env']}, seed {run['seed']}: {run['why']}" for run in summary["missing"]]
    if len(missing) > LINES_SHOWN:
        missing[LINES_SHOWN:] = [f"and {len(missing) - LINES_SHOWN} more."]
    finished = [arm for arm in scores.arms if scores.seeds[arm]]
    write_page(
        path,
        "compare",
        figures,
        one_file,
        title=f"{heading} · comparison",
        heading=heading,
        subheading=f"{', '.join(scores.envs)}. {count} seeds an arm; a score is the {summary['score']}.",
        scores=scores,
        summary=summary,
        overall=OVERALL,
        cards=cards(summary, scores),
        headlines=HEADLINES,
        missing=missing,
        p_value=p_value,
        failed_share=failed_share,
        finished=finished,
        settings=settings_rows(results.runs, finished),
        times=time_rows(results.runs, finished),
        surroundings=surroundings_rows(results.runs, finished),
        command=results.command,
        footer="Made by sb3-ddpg-scratch. Drag over a figure to zoom; double-click to return.",
    )


def cards(summary: Mapping[str, Any], scores: Scores) -> list[list[Mapping[str, Any]]]:
    """Each arm's main comparison, overall or in its first environment; three and more of one verdict share a card."""
    mains: dict[str, Mapping[str, Any]] = {}
    for row in summary["comparisons"]:
        if row["a"] not in mains or row["env"] == OVERALL:
            mains[row["a"]] = row
    rows = [mains[arm] for arm in scores.arms if arm in mains]
    groups = [[row for row in rows if row["verdict"] == verdict] for verdict in dict.fromkeys(row["verdict"] for row in rows)]
    made = [[group] if len(group) > 2 else [[row] for row in group] for group in groups]
    return sorted((card for group in made for card in group), key=lambda card: rows.index(card[0]))


class Row(NamedTuple):
    name: str
    cells: list[str]
    differs: bool = False


def settings_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    return _rows(runs, arms, lambda run: run.hyperparameters)


def surroundings_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    return _rows(runs, arms, lambda run: run.versions | {"machine": _machine(run.machine)})


def time_rows(runs: Sequence[Run], arms: Sequence[str]) -> list[Row]:
    seconds = [float(np.mean([run.training_seconds for run in runs if run.arm == arm])) for arm in arms]
    updates = [float(np.mean([run.updates for run in runs if run.arm == arm])) for arm in arms]
    rates = [number(made / taken) if taken > 0 else "–" for made, taken in zip(updates, seconds, strict=True)]
    return [Row("training of a run, mean", list(map(duration, seconds))), Row("updates a second", rates)]


def _machine(machine: dict[str, Any]) -> str:
    units = {"cores": "{} cores", "memory_gib": "{} GiB", "threads": "{} thread(s) a run"}
    return ", ".join(units.get(name, "{}").format(value) for name, value in machine.items() if value not in (None, ""))


def _rows(runs: Sequence[Run], arms: Sequence[str], values: Callable[[Run], dict[str, Any]]) -> list[Row]:
    found: dict[str, dict[str, dict[str, dict[str, None]]]] = {}  # by name, arm, value and environment
    for run in runs:
        for name, value in values(run).items():
            text = "–" if value is None else str(value)
            found.setdefault(name, {}).setdefault(run.arm, {}).setdefault(text, {})[run.env] = None
    table = {name: [_cell(own.get(arm, {})) for arm in arms] for name, own in found.items()}
    rows = [Row(name, cells, len(set(cells)) > 1) for name, cells in table.items()]
    return sorted(rows, key=lambda row: not row.differs)


def _cell(found: dict[str, dict[str, None]]) -> str:
    """The value, or each value with its environments."""
    if len(found) <= 1:
        return next(iter(found), "–")
    return "; ".join(f"{value} ({', '.join(envs)})" for value, envs in found.items())


def figures(results: Results, margin: float = 0.1) -> dict[str, Any]:
    """
    The report's figures, which Jupyter displays directly.

    :param results: what :func:`read_results` returns
    :param margin: largest difference that counts as equivalent, as a fraction of the baseline's score range over random
    :return: Plotly figures by title
    """
    return plotly_figures(all_figures(results, scores_of(results), summarize(results, margin)))


def score_table(results: Results) -> pd.DataFrame:
    """
    The score of every run; every evaluation is in ``results.evaluations``.

    :param results: what :func:`read_results` returns
    :return: a ``DataFrame`` with the columns arm, env, seed and score; NaN for a run that diverged
    """
    scores = scores_of(results)
    rows = [
        (arm, env, seed, score)
        for arm, envs in scores.measured.items()
        for env, values in envs.items()
        for seed, score in zip(scores.seeds[arm][env].tolist(), values.tolist(), strict=True)
    ]
    return pd.DataFrame(rows, columns=["arm", "env", "seed", "score"])


def verdict_table(results: Results, margin: float = 0.1) -> pd.DataFrame:
    """
    The verdicts, one row for each comparison with the baseline.

    :param results: what :func:`read_results` returns
    :param margin: largest difference that counts as equivalent, as a fraction of the baseline's score range over random
    :return: a ``DataFrame`` with the contents of ``summary.json`` for each comparison
    """
    return pd.DataFrame(summarize(results, margin)["comparisons"])
