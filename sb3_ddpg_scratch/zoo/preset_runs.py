"""
One run of the presets' comparison: a preset trained on an environment with a seed, through RL Zoo's experiment code.

``python -m sb3_ddpg_scratch.zoo.preset_runs FOLDER SPEC`` performs it in a process of its own.
"""

import argparse
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.utils import set_random_seed

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.zoo.files import ALGO, plain_numbers, preset_file, read_settings, section_for
from sb3_ddpg_scratch.zoo.manager import ScratchExperimentManager

SCORED_EVALUATIONS = 10


@dataclass(frozen=True)
class RunSpec:
    """
    What a run is made of.

    :param preset: the preset's name
    :param env_id: the environment
    :param seed: seed of the training
    :param steps: environment steps
    :param evaluations: evaluations, evenly spaced
    :param eval_episodes: noise-free episodes in each
    :param device: device of the networks
    :param settings: digest of the preset's settings, so that a run is not taken for one with others
    """

    preset: str
    env_id: str
    seed: int
    steps: int
    evaluations: int
    eval_episodes: int
    device: str
    settings: str

    def result_file(self, out: Path) -> Path:
        """
        :param out: folder of the whole comparison
        :return: the file that a finished run leaves
        """
        return out / "runs" / self.preset / f"seed_{self.seed}.json"

    def agent_folder(self, out: Path) -> Path:
        """
        :param out: folder of the whole comparison
        :return: the run's log folder, as ``enjoy -f`` wants it
        """
        return out / "agents" / self.preset / f"seed_{self.seed}"


def preset_settings(preset: str, env_id: str) -> tuple[str, dict[str, Any]]:
    """
    :param preset: a preset's name
    :param env_id: the environment
    :return: the section of its file that applies (the environment's, or ``default``), and what it holds
    :raises ArgumentError: if there is no such preset, or it has nothing for that environment
    """
    path = preset_file(preset)
    content = read_settings(path)
    section = section_for(content, env_id, path)
    return section, plain_numbers(content[section])


def settings_digest(settings: dict[str, Any]) -> str:
    """
    :param settings: a preset's settings
    :return: a short text that differs for others
    """
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def finished_result(spec: RunSpec, out: Path) -> dict[str, Any] | None:
    """
    :param spec: a run
    :param out: folder of the whole comparison
    :return: its result, if it was finished with the same settings
    """
    try:
        result = json.loads(spec.result_file(out).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("spec") == asdict(spec) else None


def perform(spec: RunSpec, out: Path, tick: Callable[[int], None]) -> dict[str, Any]:
    """
    Train, evaluating on an environment of its own, and write the result and the agent.

    :param spec: what to run
    :param out: folder of the whole comparison
    :param tick: called with the number of environment steps made
    :return: the result: spec, ``timesteps`` and mean ``returns`` of each evaluation, ``score``, ``updates``, seconds
    :raises KeyboardInterrupt: if it was interrupted; nothing but an unfinished agent is left then
    """
    folder = spec.agent_folder(out)
    shutil.rmtree(folder, ignore_errors=True)
    set_random_seed(spec.seed)
    manager = ScratchExperimentManager(
        argparse.Namespace(algo=ALGO, env=spec.env_id, env_kwargs=None, preset=spec.preset, seed=spec.seed),
        ALGO,
        spec.env_id,
        str(folder),
        n_timesteps=spec.steps,
        eval_freq=max(spec.steps // spec.evaluations, 1),
        n_eval_episodes=spec.eval_episodes,
        seed=spec.seed,
        log_interval=-1,
        verbose=0,
        device=spec.device,
        config=str(preset_file(spec.preset)),
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    model: Any = experiment[0]
    clock = _EvaluationClock(manager.callbacks)
    manager.callbacks.append(_Ticks(tick))
    started = time.perf_counter()
    manager.learn(model)
    seconds = time.perf_counter() - started
    if model.num_timesteps < spec.steps:  # the Zoo's learn() returns as if done when it is interrupted
        raise KeyboardInterrupt
    manager.save_trained_model(model)

    evaluations = np.load(Path(manager.save_path) / "evaluations.npz")
    # Where training comes in whole episodes, it ends with one: beyond the budget nothing is scored.
    in_budget = evaluations["timesteps"] <= spec.steps
    returns = evaluations["results"].mean(axis=1)[in_budget]
    result = {
        "spec": asdict(spec),
        "timesteps": evaluations["timesteps"][in_budget].tolist(),
        "returns": returns.tolist(),
        "score": float(returns[-SCORED_EVALUATIONS:].mean()),
        "scored_evaluations": min(len(returns), SCORED_EVALUATIONS),
        "updates": int(model._n_updates),
        "training_seconds": seconds - clock.seconds,
        "evaluation_seconds": clock.seconds,
        "torch": th.__version__,
    }
    write_whole(spec.result_file(out), json.dumps(result, indent=2) + "\n")
    return result


class _Ticks(BaseCallback):
    def __init__(self, tick: Callable[[int], None]) -> None:
        super().__init__()
        self.tick = tick

    def _on_step(self) -> bool:
        self.tick(self.num_timesteps)
        return True


class _EvaluationClock:
    """Adds up the time that evaluations take, which is none of the training's."""

    def __init__(self, callbacks: list[BaseCallback]) -> None:
        self.seconds = 0.0
        for callback in callbacks:
            if isinstance(callback, EvalCallback):
                self._time(callback)

    def _time(self, callback: EvalCallback) -> None:
        evaluate = callback._on_step

        def timed() -> bool:
            started = time.perf_counter()
            go_on = evaluate()
            self.seconds += time.perf_counter() - started
            return go_on

        callback._on_step = timed  # type: ignore[method-assign]


def main() -> None:
    """Perform the run that the arguments describe; the number of steps made goes to standard output, line by line."""
    out, spec = Path(sys.argv[1]), RunSpec(**json.loads(sys.argv[2]))
    th.set_num_threads(1)
    every = max(spec.steps // 100, 1)
    progress = sys.stdout

    def tick(steps: int) -> None:
        if steps % every == 0:
            print(steps, file=progress, flush=True)

    with redirect_stdout(sys.stderr):  # what the Zoo prints
        perform(spec, out, tick)


if __name__ == "__main__":
    main()
