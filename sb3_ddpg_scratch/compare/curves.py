"""Learning curves of arms: the middle of their runs at each evaluation."""

from typing import NamedTuple

import numpy as np

from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.scores import Scores
from sb3_ddpg_scratch.compare.statistics import iqm_curve


class Curve(NamedTuple):
    """An arm's runs at the evaluations that all have: IQM of returns and its 95% interval, shape ``(evaluations,)`` each."""

    arm: str
    number: int
    seeds: int
    steps: np.ndarray
    seconds: np.ndarray
    middle: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curves_of(results: Results, scores: Scores) -> dict[str, list[Curve]]:
    """For each environment the curve of every arm with runs there; a return that is not finite counts as the worst."""
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
