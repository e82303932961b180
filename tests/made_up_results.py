"""Results of a comparison that nobody has run, with scores to order."""

import numpy as np
import pandas as pd

from sb3_ddpg_scratch.compare.results_file import Results, Run

MACHINE = {"processor": "Example", "cores": 8, "memory_gib": 32, "system": "Linux", "threads": 1}


def made_up_results(scores, random, baseline, evaluations=12, missing=(), failure_rate=None, **hyperparameters):
    """
    Runs whose score is exactly the one given: their last 10 evaluations lie about it, and what came before is far away.

    :param scores: scores by arm and environment, one for each seed; NaN for a run that diverges at the end
    :param random: scores of a random policy by environment
    :param baseline: name of the baseline
    :param evaluations: evaluations of a run
    :param missing: runs that are missing
    :param failure_rate: the share of failed episodes by arm; ``None`` where it is not known
    :param hyperparameters: for each arm what differs from the others
    """
    runs, rows, failure_rate = [], [], failure_rate or {}
    for number, (arm, by_env) in enumerate(scores.items()):
        for env, values in by_env.items():
            for seed, score in enumerate(values):
                settings = {"learning_rate": 0.001, "gamma": 0.99} | hyperparameters.get(arm, {})
                versions = {"python": "3.11", "torch": "2.13"}
                runs.append(Run(arm, env, seed, settings, versions, MACHINE, 20.0 + number, 4000))
                last = min(evaluations, 10)
                returns = np.full(evaluations, random[env])
                returns[-last:] = score + np.linspace(-1, 1, last)
                seconds = np.linspace(1, 20 + number, evaluations)
                for index, (value, at) in enumerate(zip(returns, seconds, strict=True)):
                    rows.append((arm, env, seed, 500 * (index + 1), at, value, 1.0, 10, failure_rate.get(arm)))
    columns = ["arm", "env", "seed", "step", "seconds", "mean_return", "std_return", "episodes", "failure_rate"]
    return Results(runs, pd.DataFrame(rows, columns=columns), random, baseline, list(missing), "sb3-ddpg-scratch compare …")
