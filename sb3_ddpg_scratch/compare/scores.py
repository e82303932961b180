"""Scores from evaluations: one number per run, and notes about them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from sb3_ddpg_scratch.compare.results_file import Results
from sb3_ddpg_scratch.compare.statistics import Strata
from sb3_ddpg_scratch.report.formatting import span
from sb3_ddpg_scratch.runs.training_run import SCORED_EVALUATIONS

Table = dict[str, dict[str, np.ndarray]]


@dataclass(frozen=True)
class Scores:
    """Scores by arm and environment; for a diverged run, ``measured`` has NaN and ``counted`` has ``worst``."""

    measured: Table
    counted: Table
    seeds: Table
    random: dict[str, float]
    worst: dict[str, float]
    baseline: str
    arms: list[str]
    envs: list[str]
    score: str
    notes: list[str]

    def of(self, arm: str, env: str) -> np.ndarray:
        """The scores that count; empty if the arm has no finished run."""
        return self.counted[arm].get(env, np.empty(0))

    def score_range(self, env: str) -> float:
        """The distance between the baseline's and the random policy's mean; NaN if either is unknown."""
        scores = self.of(self.baseline, env)
        return abs(float(scores.mean()) - self.random[env]) if len(scores) else np.nan

    def stands_out(self, env: str) -> bool:
        """Whether the baseline's range can serve as a unit: more than twice the standard error of its mean."""
        scores = self.of(self.baseline, env)
        return len(scores) >= 2 and self.score_range(env) > 2 * float(scores.std(ddof=1)) / len(scores) ** 0.5

    def normalized(self, arm: str, envs: list[str]) -> Strata:
        """The scores in each environment in units of the baseline's range, where the random policy has 0."""
        return [(self.of(arm, env) - self.random[env]) / self.score_range(env) for env in envs]


def scores_of(results: Results) -> Scores:
    """Count a diverged run as the worst score of any run or the random policy: leaving it out would flatter its arm."""
    present = [(run.arm, run.env) for run in results.runs]
    planned = present + [(arm, env) for arm, env, _, _ in results.missing]
    arms = list(dict.fromkeys([*(arm for arm, _ in planned), results.baseline]))
    known_envs = {env for _, env in planned}
    envs = list(dict.fromkeys([env for env in [*results.random_scores, *(env for _, env in planned)] if env in known_envs]))
    random = {env: results.random_scores.get(env, np.nan) for env in envs}
    measured: Table = {arm: {} for arm in arms}
    counted: Table = {arm: {} for arm in arms}
    seeds: Table = {arm: {} for arm in arms}
    last = last_evaluations(results.evaluations)
    found = last.groupby(["arm", "env", "seed"])["mean_return"].mean()
    for arm, env in dict.fromkeys(present):
        own = sorted(run.seed for run in results.runs if (run.arm, run.env) == (arm, env))
        seeds[arm][env] = np.array(own)
        own_scores = np.array([found.get((arm, env, seed), np.nan) for seed in own], float)
        measured[arm][env] = np.where(np.isfinite(own_scores), own_scores, np.nan)
    worst: dict[str, float] = {}
    score, notes = _what_a_score_is(last)
    for env in envs:
        columns = [measured[arm][env] for arm in arms if env in measured[arm]]
        known = np.concatenate([*columns, [random[env]]])
        known = known[np.isfinite(known)]
        worst[env] = float(known.min()) if len(known) else 0.0
        for arm in arms:
            if env in measured[arm]:
                values = measured[arm][env]
                counted[arm][env] = np.where(np.isfinite(values), values, worst[env])
                notes += _diverged(arm, env, values)
    return Scores(measured, counted, seeds, random, worst, results.baseline, arms, envs, score, notes)


def last_evaluations(evaluations: pd.DataFrame) -> pd.DataFrame:
    ordered = evaluations.sort_values("step", kind="stable")
    return ordered.groupby(["arm", "env", "seed"], sort=False).tail(SCORED_EVALUATIONS)


def _what_a_score_is(last: pd.DataFrame) -> tuple[str, list[str]]:
    """What a score averages over, and a note if that is less than it should be."""
    counts = last.groupby(["arm", "env", "seed"]).size()
    if counts.empty or counts.min() >= SCORED_EVALUATIONS:
        return f"mean of a run's last {SCORED_EVALUATIONS} evaluations", []
    note = f"A quick look: runs with fewer than {SCORED_EVALUATIONS} evaluations are scored by all of them, from the first on."
    return f"mean of a run's {span(counts)} evaluations", [note]


def _diverged(arm: str, env: str, values: np.ndarray) -> list[str]:
    count = int((~np.isfinite(values)).sum())
    if count == 0:
        return []
    return [f"{count} of {len(values)} runs of {arm} on {env} ended without a score and count as the worst seen there."]
