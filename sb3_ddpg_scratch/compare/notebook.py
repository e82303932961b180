"""The results of a comparison for a notebook: Plotly figures and pandas tables."""

from typing import Any

import pandas as pd

from sb3_ddpg_scratch.compare import report
from sb3_ddpg_scratch.compare.conclusions import summarize
from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import scores_of
from sb3_ddpg_scratch.report.figure import plotly_figures


def figures(results: Results, margin: float = 0.1) -> dict[str, Any]:
    """
    The report's figures, which Jupyter shows by themselves.

    :param results: what :func:`read_results` returns
    :param margin: what counts as equivalent, as a fraction of the baseline's score range over random
    :return: Plotly figures by title
    """
    return plotly_figures(report.all_figures(results, scores_of(results), summarize(results, margin)))


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
    :param margin: what counts as equivalent, as a fraction of the baseline's score range over random
    :return: a ``DataFrame`` with what ``summary.json`` holds of each comparison
    """
    return pd.DataFrame(summarize(results, margin)["comparisons"])
