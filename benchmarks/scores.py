"""Whether the fast updaters learn what the reference learns: ``python benchmarks/scores.py``."""

import tempfile
import time
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch.bench.workload import installed
from sb3_ddpg_scratch.cli.demo import pendulum_model

UPDATERS = ("autograd", "analytic", "compiled")
EVALUATIONS = 20
SCORED = 10


def score(updater: str, seed: int, steps: int) -> tuple[float, float]:
    """Mean return of the last 10 of 20 noise-free evaluations of 10 Pendulum-v1 episodes each, and seconds."""
    model = pendulum_model(seed, updater=updater)
    with tempfile.TemporaryDirectory() as folder:
        callback = EvalCallback(
            make_vec_env("Pendulum-v1", n_envs=10, seed=seed + 1000),
            eval_freq=steps // EVALUATIONS,
            n_eval_episodes=10,
            log_path=folder,
            verbose=0,
        )
        start = time.perf_counter()
        model.learn(steps, callback=callback)
        seconds = time.perf_counter() - start
        results = np.load(Path(folder) / "evaluations.npz")["results"]
    return float(results[-SCORED:].mean()), seconds


def main(
    seeds: Annotated[int, typer.Option(min=2)] = 5,
    steps: Annotated[int, typer.Option(min=EVALUATIONS * 100)] = 10_000,
) -> None:
    """Train on Pendulum-v1 with each updater and the same seeds, and compare the scores."""
    table = Table("updater", "score, mean ± std over seeds", "each seed", "seconds a run")
    for updater in filter(installed, UPDATERS):
        runs = [score(updater, seed, steps) for seed in track(range(seeds), updater, transient=True)]
        scores, seconds = (np.array(column) for column in zip(*runs, strict=True))
        each = ", ".join(f"{value:.0f}" for value in scores)
        table.add_row(updater, f"{scores.mean():.1f} ± {scores.std(ddof=1):.1f}", each, f"{np.median(seconds):.0f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    typer.run(main)
