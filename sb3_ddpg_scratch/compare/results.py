"""What a comparison's runs leave: the runs that are finished, their evaluations, and what is missing."""

from dataclasses import dataclass
from typing import Any

import pandas as pd


@dataclass(frozen=True)
class Run:
    """
    One finished run.

    :param arm: name of its arm
    :param env: id of its environment
    :param seed: its seed
    :param hyperparameters: as the Zoo resolved them, made of what JSON knows
    :param versions: of Python and the packages, by name
    :param machine: processor, cores, memory_gib, system, threads
    :param training_seconds: duration of the training, evaluations not counted
    :param updates: gradient steps made
    """

    arm: str
    env: str
    seed: int
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    training_seconds: float
    updates: int


@dataclass(frozen=True)
class Results:
    """
    All that a comparison has found so far.

    :param runs: the finished runs
    :param evaluations: a row for each evaluation, with the columns arm, env, seed, step, seconds (of training so far,
        evaluations not counted), mean_return, std_return, episodes
    :param random_scores: for each environment the mean return of a uniformly random policy
    :param baseline: name of the arm that the others are compared with
    :param missing: arm, environment, seed and reason of each run that failed or is not yet made
    :param command: the command line that makes these results
    """

    runs: list[Run]
    evaluations: pd.DataFrame
    random_scores: dict[str, float]
    baseline: str
    missing: list[tuple[str, str, int, str]]
    command: str
