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
from stable_baselines3.common.callbacks import BaseCallback, CallbackList, EvalCallback
from stable_baselines3.common.utils import set_random_seed

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.machine import describe_machine, versions
from sb3_ddpg_scratch.policies import ACTIVATIONS
from sb3_ddpg_scratch.zoo.registry import SBX_ALGO, algorithm_class
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, replay_buffer_class

SCORED_EVALUATIONS = 10
"""A run's score is the mean of so many evaluations, its last ones."""
PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium", "rl-zoo3")


@dataclass(frozen=True)
class RunSpec:
    """
    What a run is made of. ``arm`` names an algorithm of RL Zoo with its settings, which are as a YAML file would have them for
    this environment. Evaluations are evenly spaced, of noise-free episodes. ``diagnostics`` is for one run of an arm and
    environment at most. Results of earlier versions are found by these fields.
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
        """The file that a finished run leaves in the folder of the whole batch."""
        return out / "runs" / self.arm / self._env_name / f"seed_{self.seed}.json"

    def agent_folder(self, out: Path) -> Path:
        """The run's log folder, as ``enjoy -f`` wants it."""
        return out / "agents" / self.arm / self._env_name / f"seed_{self.seed}"

    def diagnostics_folder(self, out: Path) -> Path:
        return out / "diagnostics" / self._env_name / self.arm

    def log_file(self, out: Path) -> Path:
        """What the run printed."""
        return self.agent_folder(out).with_suffix(".log")

    @property
    def _env_name(self) -> str:
        return self.env_id.replace("/", "-").replace(":", "-")


def finished_result(spec: RunSpec, out: Path) -> dict[str, Any] | None:
    """A run's result, if it was finished with the same settings."""
    try:
        result = json.loads(spec.result_file(out).read_text())
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("spec") == asdict(spec) else None


def prepare(spec: RunSpec, out: Path) -> tuple[ExperimentManager, Any]:
    """Set up the Zoo's experiment; returns it with the model that is to be trained."""
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
        hyperparams=_classes_named_in(spec),
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
    Train, evaluating on a separate environment, and write the agent and the result, which is returned; ``tick`` is called with
    the number of environment steps made. The result has for each evaluation ``timesteps``, mean ``returns``, ``return_stds``
    over its episodes and ``seconds`` of training until then. If interrupted, only an unfinished agent is left.
    """
    manager, model = prepare(spec, out)
    timed = _TimedEvaluations([callback for callback in manager.callbacks if isinstance(callback, EvalCallback)])
    others = [callback for callback in manager.callbacks if not isinstance(callback, EvalCallback)]
    manager.callbacks = [*others, timed, _Ticks(tick)]
    if spec.diagnostics:
        from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback

        manager.callbacks.append(DiagnosticsCallback(spec.diagnostics_folder(out)))
    timed.started = time.perf_counter()
    manager.learn(model)
    training_seconds = timed.training_seconds()
    if model.num_timesteps < spec.steps:  # the Zoo's learn() also returns when it is interrupted
        raise KeyboardInterrupt
    manager.save_trained_model(model)

    evaluations = np.load(Path(manager.save_path) / "evaluations.npz")
    # Training in whole episodes ends with one: what lies beyond the budget is not scored.
    in_budget = evaluations["timesteps"] <= spec.steps
    returns = evaluations["results"].mean(axis=1)[in_budget]
    result = {
        "spec": asdict(spec),
        "timesteps": evaluations["timesteps"][in_budget].tolist(),
        "returns": returns.tolist(),
        "return_stds": evaluations["results"].std(axis=1)[in_budget].tolist(),
        "seconds": np.array(timed.marks)[in_budget].tolist(),
        "score": float(returns[-SCORED_EVALUATIONS:].mean()),
        "scored_evaluations": min(len(returns), SCORED_EVALUATIONS),
        "updates": int(model._n_updates),
        "training_seconds": training_seconds,
        "evaluation_seconds": timed.seconds,
        "hyperparameters": hyperparameters(spec),
        "versions": _versions(spec.algo),
        "machine": describe_machine() | {"threads": th.get_num_threads()},
    }
    write_whole(spec.result_file(out), json.dumps(result, indent=2) + "\n")
    return result


def hyperparameters(spec: RunSpec) -> dict[str, Any]:
    """Every hyperparameter of a run, including those that its settings leave at the algorithm's default."""
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


def _classes_named_in(spec: RunSpec) -> dict[str, Any] | None:
    """What SB3's algorithms take as classes only, so that no text is left for the Zoo to evaluate."""
    if spec.algo in (ALGO, SBX_ALGO):
        return None
    classes: dict[str, Any] = {}
    policy_kwargs = spec.settings.get("policy_kwargs") or {}
    if isinstance(policy_kwargs.get("activation_fn"), str):
        classes["policy_kwargs"] = policy_kwargs | {"activation_fn": ACTIVATIONS[policy_kwargs["activation_fn"]]}
    if isinstance(spec.settings.get("replay_buffer_class"), str):
        classes["replay_buffer_class"] = replay_buffer_class(spec.settings["replay_buffer_class"])
    return classes


def _versions(algo: str) -> dict[str, str]:
    packages = [*PACKAGES, "sbx-rl", "jax"] if algo == SBX_ALGO else PACKAGES
    from sb3_ddpg_scratch import __version__

    return {"python": platform.python_version(), **versions(packages), "sb3_ddpg_scratch": __version__}


class _Ticks(BaseCallback):
    def __init__(self, tick: Callable[[int], None]) -> None:
        super().__init__()
        self.tick = tick

    def _on_step(self) -> bool:
        self.tick(self.num_timesteps)
        return True


class _TimedEvaluations(CallbackList):
    """Runs the Zoo's evaluations and separates their time from the training's; a mark is the training time until one."""

    def __init__(self, callbacks: list[BaseCallback]) -> None:
        super().__init__(callbacks)
        self.seconds = 0.0
        self.marks: list[float] = []
        self.started = 0.0

    def training_seconds(self) -> float:
        return time.perf_counter() - self.started - self.seconds

    def _on_step(self) -> bool:
        trained, begun = self.training_seconds(), time.perf_counter()
        go_on = super()._on_step()
        self.seconds += time.perf_counter() - begun
        if any(len(callback.evaluations_timesteps) > len(self.marks) for callback in self.callbacks):  # type: ignore[attr-defined]
            self.marks.append(trained)
        return go_on
