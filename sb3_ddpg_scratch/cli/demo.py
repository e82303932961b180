"""The subcommand ``demo``: ScratchDDPG solves Pendulum-v1 while you watch."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy

from sb3_ddpg_scratch.cli.options import MAX_SEED
from sb3_ddpg_scratch.compare.random_policy import random_score
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback
from sb3_ddpg_scratch.errors import MissingPackageError
from sb3_ddpg_scratch.folder_lock import hold_folder
from sb3_ddpg_scratch.terminal import say

ENV_ID = "Pendulum-v1"
SOLVED_RETURN = -200.0
EPISODES = 20
CHUNK_STEPS = 20_000
MAX_STEPS = 100_000


def demo(
    out: Annotated[Path, typer.Option(help="Folder for the trained model.")] = Path("runs/demo"),
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED)] = 0,
) -> None:
    """Train on Pendulum-v1 until it is solved, print the score beside a random policy's, save the model, draw a report."""
    with hold_folder(out, "--out"):
        run_demo(out, seed, Console())


def run_demo(out: Path, seed: int, console: Console) -> float:
    """Train until 20 noise-free episodes return more than -200; returns the saved model's mean return in 20 others."""
    model = pendulum_model(seed)
    say(console, f"Training ScratchDDPG on {ENV_ID} until {EPISODES} noise-free episodes return more than {SOLVED_RETURN:g}.")
    diagnostics = DiagnosticsCallback(out, every=200, snapshot_every=1000, eval_env=ENV_ID, eval_every=1000)
    score = -np.inf
    while score <= SOLVED_RETURN and model.num_timesteps < MAX_STEPS:
        watch = EvalCallback(
            make_vec_env(ENV_ID, n_envs=EPISODES // 2, seed=seed + 1000),
            callback_on_new_best=StopTrainingOnRewardThreshold(SOLVED_RETURN),
            eval_freq=1000,
            n_eval_episodes=EPISODES,
            verbose=0,
        )
        callbacks = [diagnostics, watch]
        model.learn(CHUNK_STEPS, callback=callbacks, progress_bar=True, reset_num_timesteps=model.num_timesteps == 0)
        # New episodes: the score of those that stopped the training is biased upwards.
        score = float(np.mean(evaluate_policy(model, make_vec_env(ENV_ID, seed=seed + 2000), EPISODES)[0]))
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scratch_ddpg_pendulum.zip"
    model.save(path)
    say(console, f"Mean return of {EPISODES} noise-free episodes after {model.num_timesteps} steps: {score:.1f}")
    say(console, f"Mean return of a random policy: {random_score(ENV_ID, EPISODES, seed + 2000):.1f}")
    say(console, f"Saved the model to {path}")
    _draw_report(out, console)
    if score <= SOLVED_RETURN:
        raise RuntimeError(f"{ENV_ID} was not solved in {MAX_STEPS} steps with seed {seed}: try another --seed")
    return score


def pendulum_model(seed: int, **arguments: Any) -> ScratchDDPG:
    """A small ScratchDDPG that learns Pendulum-v1 in a few thousand steps."""
    noise, policy = {"type": "ou", "sigma": 0.1}, {"net_arch": [64, 64]}
    arguments |= {"batch_size": 128, "gamma": 0.98, "action_noise": noise, "policy_kwargs": policy}
    return ScratchDDPG("MlpPolicy", ENV_ID, seed=seed, device="cpu", **arguments)


def _draw_report(folder: Path, console: Console) -> None:
    from sb3_ddpg_scratch.diagnostics.report import write_report

    try:
        result = write_report([folder], folder / "report.html")
    except MissingPackageError as error:
        say(console, f"No report: {error}")
    else:
        say(console, f"What happened is in {result.path}, a page to open in a browser")
