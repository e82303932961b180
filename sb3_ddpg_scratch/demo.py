"""The demonstration: ScratchDDPG solves Pendulum-v1 while one watches."""

from pathlib import Path

import numpy as np
from rich.console import Console
from stable_baselines3.common.callbacks import EvalCallback, StopTrainingOnRewardThreshold
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback
from sb3_ddpg_scratch.errors import ArgumentError

ENV_ID = "Pendulum-v1"
SOLVED_RETURN = -200.0
EPISODES = 20
CHUNK_STEPS = 20_000
MAX_STEPS = 100_000


def random_return(env: VecEnv, episodes: int, seed: int) -> float:
    """
    :param env: one environment
    :param episodes: how many episodes to play
    :param seed: seed of environment and actions
    :return: mean return of uniformly random actions
    """
    env.seed(seed)
    env.action_space.seed(seed)
    env.reset()
    returns: list[float] = []
    while len(returns) < episodes:
        _, _, _, infos = env.step(np.array([env.action_space.sample()]))
        returns += [infos[0]["episode"]["r"]] if "episode" in infos[0] else []
    return float(np.mean(returns))


def draw_report(folder: Path, console: Console) -> None:
    """
    Leave ``report.html`` in a run's folder and say where it is.

    :param folder: the folder, with a recording
    :param console: where to print
    """
    from sb3_ddpg_scratch.diagnostics.report import write_report

    try:
        result = write_report([folder], folder / "report.html")
    except ArgumentError as error:
        console.print(f"No report: {error}", markup=False)
    else:
        console.print(f"What happened is in {result.path}, a page to open in a browser")


def run_demo(out: Path, seed: int, console: Console) -> float:
    """
    Train until 20 noise-free episodes return more than -200 in the mean, then save the model and draw a report.

    :param out: folder for the model and the report
    :param seed: seed of the training
    :param console: where to print
    :return: mean return of 20 noise-free episodes of the model that was saved
    :raises RuntimeError: if the environment is not solved within 100,000 steps
    """
    model = ScratchDDPG(
        "MlpPolicy",
        ENV_ID,
        learning_rate=1e-3,
        batch_size=128,
        gamma=0.98,
        action_noise={"type": "ou", "sigma": 0.1},
        policy_kwargs={"net_arch": [64, 64]},
        seed=seed,
        device="cpu",
    )
    console.print(f"Training ScratchDDPG on {ENV_ID} until {EPISODES} noise-free episodes return more than {SOLVED_RETURN:g}.")
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
        # Other episodes than those that stopped the training: a score that chose its moment flatters.
        score = float(np.mean(evaluate_policy(model, make_vec_env(ENV_ID, seed=seed + 2000), EPISODES)[0]))
    random_score = random_return(make_vec_env(ENV_ID), EPISODES, seed + 2000)
    out.mkdir(parents=True, exist_ok=True)
    path = out / "scratch_ddpg_pendulum.zip"
    model.save(path)
    console.print(f"Mean return of {EPISODES} noise-free episodes after {model.num_timesteps} steps: {score:.1f}")
    console.print(f"Mean return of a random policy: {random_score:.1f}")
    console.print(f"Saved the model to {path}")
    draw_report(out, console)
    if score <= SOLVED_RETURN:
        raise RuntimeError(f"{ENV_ID} was not solved in {MAX_STEPS} steps with seed {seed}: try another --seed")
    return score
