"""One run: an algorithm trained on an environment with a seed, through RL Zoo's experiment code, and what it leaves."""

import argparse
import inspect
import json
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
import yaml
from rl_zoo3.exp_manager import ExperimentManager
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.utils import set_random_seed

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.machine import memory_gib, processor, usable_cores, versions
from sb3_ddpg_scratch.policies import ACTIVATIONS
from sb3_ddpg_scratch.zoo.files import ALGO
from sb3_ddpg_scratch.zoo.manager import replay_buffer_class
from sb3_ddpg_scratch.zoo.registry import SBX_ALGO, algorithm_class

SCORED_EVALUATIONS = 10
PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium", "rl-zoo3")


@dataclass(frozen=True)
class RunSpec:
    """
    What a run is made of.

    :param arm: name of the algorithm with its settings: a preset's, or that of a comparison's arm
    :param algo: the algorithm's name in RL Zoo
    :param env_id: the environment
    :param seed: seed of the training
    :param steps: environment steps
    :param evaluations: evaluations, evenly spaced
    :param eval_episodes: noise-free episodes in each
    :param device: device of the networks
    :param settings: of the algorithm and of the Zoo for this environment, as a YAML file would have them
    :param diagnostics: whether to record Q, targets, gradients and probe states; one run of an arm and environment at most
    """

    arm: str
    algo: str
    env_id: str
    seed: int
    steps: int
    evaluations: int
    eval_episodes: int
    device: str
    settings: dict[str, Any]
    diagnostics: bool = False

    def result_file(self, out: Path) -> Path:
        """
        :param out: folder of the whole batch
        :return: the file that a finished run leaves
        """
        return out / "runs" / self.arm / self._env_name / f"seed_{self.seed}.json"

    def agent_folder(self, out: Path) -> Path:
        """
        :param out: folder of the whole batch
        :return: the run's log folder, as ``enjoy -f`` wants it
        """
        return out / "agents" / self.arm / self._env_name / f"seed_{self.seed}"

    def diagnostics_folder(self, out: Path) -> Path:
        """
        :param out: folder of the whole batch
        :return: where a run with ``diagnostics`` records them
        """
        return out / "diagnostics" / self._env_name / self.arm

    def log_file(self, out: Path) -> Path:
        """
        :param out: folder of the whole batch
        :return: what the run printed
        """
        return self.agent_folder(out).with_suffix(".log")

    @property
    def _env_name(self) -> str:
        return self.env_id.replace("/", "-").replace(":", "-")


def finished_result(spec: RunSpec, out: Path) -> dict[str, Any] | None:
    """
    :param spec: a run
    :param out: folder of the whole batch
    :return: its result, if it was finished with the same settings
    """
    try:
        result = json.loads(spec.result_file(out).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("spec") == asdict(spec) else None


def prepare(spec: RunSpec, out: Path) -> tuple[ExperimentManager, Any]:
    """
    Set the Zoo's experiment up, as far as the model that is to be trained.

    :param spec: what to run
    :param out: folder of the whole batch
    :return: the experiment and its model
    """
    algorithm_class(spec.algo)  # registers it
    folder = spec.agent_folder(out)
    for made_before in (folder, spec.diagnostics_folder(out)) if spec.diagnostics else (folder,):
        shutil.rmtree(made_before, ignore_errors=True)
    config = folder / "settings.yml"
    write_whole(config, yaml.safe_dump({spec.env_id: spec.settings}))
    set_random_seed(spec.seed)
    manager = ExperimentManager(
        argparse.Namespace(algo=spec.algo, env=spec.env_id, env_kwargs=None, arm=spec.arm, seed=spec.seed),
        spec.algo,
        spec.env_id,
        str(folder),
        n_timesteps=spec.steps,
        eval_freq=max(spec.steps // spec.evaluations, 1),
        n_eval_episodes=spec.eval_episodes,
        hyperparams=_objects(spec),
        seed=spec.seed,
        log_interval=-1,
        verbose=0,
        device=spec.device,
        config=str(config),
    )
    experiment = manager.setup_experiment()
    assert experiment is not None
    return manager, experiment[0]


def perform(spec: RunSpec, out: Path, tick: Callable[[int], None]) -> dict[str, Any]:
    """
    Train, evaluating on an environment of its own, and write the result and the agent.

    :param spec: what to run
    :param out: folder of the whole batch
    :param tick: called with the number of environment steps made
    :return: the result: spec; of each evaluation ``timesteps``, mean ``returns``, ``return_stds`` over its episodes and
        ``seconds`` of training until then; ``score``, ``updates``, seconds in all, hyperparameters, versions, machine
    :raises KeyboardInterrupt: if it was interrupted; nothing but an unfinished agent is left then
    """
    manager, model = prepare(spec, out)
    clock = _Clock(manager.callbacks)
    manager.callbacks.append(_Ticks(tick))
    if spec.diagnostics:
        from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback

        manager.callbacks.append(DiagnosticsCallback(spec.diagnostics_folder(out)))
    clock.start()
    manager.learn(model)
    training_seconds = clock.training_seconds()
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
        "return_stds": evaluations["results"].std(axis=1)[in_budget].tolist(),
        "seconds": np.array(clock.marks)[in_budget].tolist(),
        "score": float(returns[-SCORED_EVALUATIONS:].mean()),
        "scored_evaluations": min(len(returns), SCORED_EVALUATIONS),
        "updates": int(model._n_updates),
        "training_seconds": training_seconds,
        "evaluation_seconds": clock.evaluation_seconds,
        "hyperparameters": hyperparameters(spec),
        "versions": _versions(spec.algo),
        "machine": _machine(),
    }
    write_whole(spec.result_file(out), json.dumps(result, indent=2) + "\n")
    return result


def hyperparameters(spec: RunSpec) -> dict[str, Any]:
    """
    :param spec: a run
    :return: every hyperparameter that it has, those that its settings leave to the algorithm included
    """
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(algorithm_class(spec.algo).__init__).parameters.items()
        if isinstance(parameter.default, (bool, int, float, str, tuple, type(None))) and not name.startswith("_")
    }
    for name in ("seed", "verbose", "device", "tensorboard_log", "stats_window_size"):
        defaults.pop(name, None)
    if spec.settings.get("noise_type") is not None:
        defaults.pop("action_noise", None)
    merged = defaults | spec.settings | {"n_timesteps": spec.steps}
    content: dict[str, Any] = json.loads(json.dumps(merged, sort_keys=True))
    return content


def _objects(spec: RunSpec) -> dict[str, Any] | None:
    """What the settings name and SB3's algorithms take as classes only, so that no text is left for the Zoo to evaluate."""
    if spec.algo in (ALGO, SBX_ALGO):
        return None
    objects: dict[str, Any] = {}
    policy_kwargs = spec.settings.get("policy_kwargs") or {}
    if isinstance(policy_kwargs.get("activation_fn"), str):
        objects["policy_kwargs"] = policy_kwargs | {"activation_fn": ACTIVATIONS[policy_kwargs["activation_fn"]]}
    if isinstance(spec.settings.get("replay_buffer_class"), str):
        objects["replay_buffer_class"] = replay_buffer_class(spec.settings["replay_buffer_class"])
    return objects


def _versions(algo: str) -> dict[str, str]:
    packages = [*PACKAGES, "sbx-rl", "jax"] if algo == SBX_ALGO else PACKAGES
    from sb3_ddpg_scratch import __version__

    return {"python": platform.python_version(), **versions(packages), "sb3_ddpg_scratch": __version__}


def _machine() -> dict[str, Any]:
    return {
        "processor": processor(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "system": platform.system(),
        "threads": th.get_num_threads(),
    }


class _Ticks(BaseCallback):
    def __init__(self, tick: Callable[[int], None]) -> None:
        super().__init__()
        self.tick = tick

    def _on_step(self) -> bool:
        self.tick(self.num_timesteps)
        return True


class _Clock:
    """Tells the time that training takes from the time that evaluations take."""

    def __init__(self, callbacks: list[BaseCallback]) -> None:
        self.evaluation_seconds = 0.0
        self.marks: list[float] = []
        self._started = 0.0
        for callback in callbacks:
            if isinstance(callback, EvalCallback):
                self._time(callback)

    def start(self) -> None:
        self._started = time.perf_counter()

    def training_seconds(self) -> float:
        return time.perf_counter() - self._started - self.evaluation_seconds

    def _time(self, callback: EvalCallback) -> None:
        evaluate = callback._on_step

        def timed() -> bool:
            trained, begun = self.training_seconds(), time.perf_counter()
            go_on = evaluate()
            self.evaluation_seconds += time.perf_counter() - begun
            if len(callback.evaluations_timesteps) > len(self.marks):
                self.marks.append(trained)
            return go_on

        callback._on_step = timed  # type: ignore[method-assign]
