"""Learning curves of arms: what their runs scored in the middle, at each evaluation."""

from typing import NamedTuple

import numpy as np

from sb3_ddpg_scratch.compare.results import Results
from sb3_ddpg_scratch.compare.scores import Scores
from sb3_ddpg_scratch.compare.statistics import iqm_curve


class Curve(NamedTuple):
    """
    The runs of an arm in an environment, at the evaluations that all of them have. Shape ``(evaluations,)`` each.

    :param arm: the arm
    :param number: its place among the arms, which gives it its colour
    :param seeds: number of runs
    :param steps: environment steps
    :param seconds: of training up to there, the mean of the runs
    :param middle: interquartile mean of the runs' mean returns
    :param low: lower end of its 95% interval
    :param high: upper end
    """

    arm: str
    number: int
    seeds: int
    steps: np.ndarray
    seconds: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves_of(results: Results, scores: Scores) -> dict[str, list[Curve]]:
    """
    :param results: what the runs have left
    :param scores: the scores of the same runs; a return that is no number counts as the worst of them
    :return: for each environment the curve of every arm that has finished runs there
    """
    curves: dict[str, list[Curve]] = {env: [] for env in scores.envs}
    evaluations = results.evaluations
    for number, arm in enumerate(scores.arms):
        for env, seeds in scores.seeds[arm].items():
            rows = evaluations[(evaluations["arm"] == arm) & (evaluations["env"] == env) & evaluations["seed"].isin(seeds)]
            returns = rows["mean_return"].where(np.isfinite(rows["mean_return"]), scores.worst[env])
            by_step = rows.assign(mean_return=returns).pivot(index="step", columns="seed", values=["mean_return", "seconds"])
            by_step = by_step.dropna()
            if by_step.empty:
                continue
            middle, low, high = iqm_curve(by_step["mean_return"].to_numpy(float))
            steps, seconds = by_step.index.to_numpy(), by_step["seconds"].to_numpy(float).mean(axis=1)
            curves[env].append(Curve(arm, number, len(seeds), steps, seconds, middle, low, high))
    return curves
