"""One run: trains an algorithm in an environment with a seed, through RL Zoo's experiment code, and writes its files."""

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
from sb3_ddpg_scratch.checkpoint.callback import ResumableCheckpoint
from sb3_ddpg_scratch.checkpoint.replay_segments import why_not_saved
from sb3_ddpg_scratch.checkpoint.storage import Checkpoint, checkpoints_in
from sb3_ddpg_scratch.checkpoint.training import read_newest, restore_training
from sb3_ddpg_scratch.errors import CheckpointError
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.machine import describe_machine, versions
from sb3_ddpg_scratch.policies import ACTIVATIONS
from sb3_ddpg_scratch.zoo.evaluations import FailedEpisodes, keep_statistics
from sb3_ddpg_scratch.zoo.registry import SBX_ALGO, algorithm_class
from sb3_ddpg_scratch.zoo.yaml_settings import ALGO, CHECKPOINTS, replay_buffer_class

SCORED_EVALUATIONS = 10
"""How many of the last evaluations a run's score averages."""
CHECKPOINT_EVERY = 50_000
"""Environment steps between a run's checkpoints; writing them takes less than a hundredth of its time."""
EVALUATED_AT_ONCE = 10
"""Environments per evaluation: its episodes run side by side, with one call of the actor for all."""
SPEC_FILE = "spec.json"
PACKAGES = ("torch", "numpy", "stable-baselines3", "gymnasium", "rl-zoo3")


@dataclass(frozen=True)
class RunSpec:
    """
    The definition of a run, by which results of earlier versions are found. ``settings`` are the arm's for this environment,
    as in a YAML file. Evaluations are evenly spaced and noise-free. One run per arm and environment may have ``diagnostics``.
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
        return out / "runs" / self.arm / self._env_name / f"seed_{self.seed}.json"

    def agent_folder(self, out: Path) -> Path:
        """The run's log folder, as ``enjoy -f`` expects it."""
        return out / "agents" / self.arm / self._env_name / f"seed_{self.seed}"

    def diagnostics_folder(self, out: Path) -> Path:
        return out / "diagnostics" / self._env_name / self.arm

    def log_file(self, out: Path) -> Path:
        return self.agent_folder(out).with_suffix(".log")

    @property
    def _env_name(self) -> str:
        return self.env_id.replace("/", "-").replace(":", "-")


def finished_result(spec: RunSpec, out: Path) -> dict[str, Any] | None:
    """A run's result, if it was finished with the same settings."""
    result = _read_json(spec.result_file(out))
    return result if isinstance(result, dict) and result.get("spec") == asdict(spec) else None


def can_continue(spec: RunSpec) -> bool:
    """Whether a run can continue from a checkpoint to the same result, which is impossible with diagnostics."""
    return spec.algo == ALGO and not spec.diagnostics


def unfinished_run(spec: RunSpec, out: Path) -> Path | None:
    """The folder of an interrupted run with the same settings that has a checkpoint."""
    folder = spec.agent_folder(out)
    run = next(folder.glob(f"{spec.algo}/*_1"), None)
    if not can_continue(spec) or run is None or not checkpoints_in(run / CHECKPOINTS):
        return None
    return run if _read_json(folder / SPEC_FILE) == asdict(spec) else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


def _checkpoint_of(spec: RunSpec, out: Path) -> Checkpoint | None:
    run = unfinished_run(spec, out)
    try:
        return None if run is None else read_newest(run / CHECKPOINTS)
    except CheckpointError as error:
        print(f"The run begins again. {error}")
        return None


def prepare(spec: RunSpec, out: Path) -> tuple[ExperimentManager, Any]:
    """Set up the Zoo's experiment; returns it with the model to train, restored from a checkpoint if there is one."""
    algorithm_class(spec.algo)  # registers it
    folder = spec.agent_folder(out)
    checkpoint = _checkpoint_of(spec, out)
    config = folder / "settings.yml"
    if checkpoint is None:
        for made_before in (folder, spec.diagnostics_folder(out)) if spec.diagnostics else (folder,):
            shutil.rmtree(made_before, ignore_errors=True)
        read_by_the_zoo = {key: value for key, value in spec.settings.items() if key != "failure_key"}
        write_whole(config, yaml.safe_dump({spec.env_id: read_by_the_zoo}))
        write_json(folder / SPEC_FILE, asdict(spec))
    set_random_seed(spec.seed)
    manager = ExperimentManager(
        argparse.Namespace(algo=spec.algo, env=spec.env_id, env_kwargs=None, arm=spec.arm, seed=spec.seed),
        spec.algo,
        spec.env_id,
        str(folder),
        n_timesteps=spec.steps,
        eval_freq=max(spec.steps // spec.evaluations, 1),
        n_eval_episodes=spec.eval_episodes,
        n_eval_envs=min(spec.eval_episodes, EVALUATED_AT_ONCE),
        hyperparams=_classes_named_in(spec),
        seed=spec.seed,
        log_interval=-1,
        verbose=0,
        device=spec.device,
        config=str(config),
    )
    if checkpoint is not None:
        run = checkpoint.folder.parent.parent
        manager.save_path, manager.params_path = str(run), str(run / manager.env_name)
    experiment = manager.setup_experiment()
    assert experiment is not None
    model: Any = experiment[0]
    if checkpoint is not None:
        restore_training(model, checkpoint)
        print(f"Continuing from {checkpoint.folder}, at step {checkpoint.step}")
    return manager, model


def perform(spec: RunSpec, out: Path, tick: Callable[[int], None], checkpoint_every: int | None = None) -> dict[str, Any]:
    """
    Train with evaluations in a separate environment; write the agent and the result, and return the result. ``tick`` gets the
    number of environment steps made. For each evaluation, the result has ``timesteps``, mean ``returns``, ``return_stds`` over
    its episodes, ``seconds`` of training until then, and ``success_rates`` if infos report success. An interrupted run leaves
    an unfinished agent; with ``checkpoint_every``, the next call continues from its last checkpoint.
    """
    manager, model = prepare(spec, out)
    (evaluation,) = (callback for callback in manager.callbacks if isinstance(callback, EvalCallback))
    others = [callback for callback in manager.callbacks if callback is not evaluation]
    keep_statistics(manager)  # the Zoo's own managers do not
    failed = FailedEpisodes(evaluation, spec.settings.get("failure_key"))
    checkpoints = Path(manager.save_path) / CHECKPOINTS
    aside: list[BaseCallback] = [evaluation]
    if checkpoint_every is not None and can_continue(spec) and why_not_saved(model.replay_buffer) is None:
        aside.append(ResumableCheckpoint(checkpoints, checkpoint_every))
    timed = _Aside(aside)
    manager.callbacks = [*others, timed, _ticking(tick)]
    if spec.diagnostics:
        from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback

        manager.callbacks.append(DiagnosticsCallback(spec.diagnostics_folder(out)))
    timed.started = time.perf_counter()
    manager.learn(model)
    training_seconds = timed.training_seconds()
    if model.num_timesteps < spec.steps:  # the Zoo's learn() also returns when it is interrupted
        raise KeyboardInterrupt
    manager.save_trained_model(model)

    timesteps, episodes = np.array(evaluation.evaluations_timesteps), np.array(evaluation.evaluations_results)
    # Training in whole episodes may exceed the budget: evaluations beyond it are not scored.
    in_budget = timesteps <= spec.steps
    returns = episodes.mean(axis=1)[in_budget]
    result = {
        "spec": asdict(spec),
        "timesteps": timesteps[in_budget].tolist(),
        "returns": returns.tolist(),
        "return_stds": episodes.std(axis=1)[in_budget].tolist(),
        "seconds": np.array(timed.marks)[in_budget].tolist(),
        "success_rates": _success_rates(evaluation, in_budget),
        "failure_rates": failed.rates()[in_budget].tolist(),
        "score": float(returns[-SCORED_EVALUATIONS:].mean()),
        "scored_evaluations": min(len(returns), SCORED_EVALUATIONS),
        "updates": int(model._n_updates),
        "training_seconds": training_seconds,
        "evaluation_seconds": timed.evaluation_seconds,
        "hyperparameters": hyperparameters(spec),
        "versions": _versions(spec.algo),
        "machine": describe_machine() | {"threads": th.get_num_threads()},
    }
    write_json(spec.result_file(out), result)
    shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _success_rates(evaluation: EvalCallback, in_budget: np.ndarray) -> list[float]:
    """For each evaluation; empty if infos have no ``is_success``."""
    successes = evaluation.evaluations_successes
    return np.mean(successes, axis=1)[in_budget].tolist() if len(successes) == len(in_budget) else []


def hyperparameters(spec: RunSpec) -> dict[str, Any]:
    """All hyperparameters of a run, including the algorithm's defaults."""
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
    """Classes for settings that SB3's algorithms take only as classes, so that no text is left for the Zoo to evaluate."""
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


def _ticking(tick: Callable[[int], None]) -> BaseCallback:
    # Defined here: after a callback that holds a function of unknown origin, the networks are inspected in every step.
    class Ticks(BaseCallback):
        def _on_step(self) -> bool:
            tick(self.num_timesteps)
            return True

    return Ticks()


class _Aside(CallbackList):
    """Runs evaluations and checkpoints, whose time is not the training's; marks are the training times at evaluations."""

    def __init__(self, callbacks: list[BaseCallback]) -> None:
        super().__init__(callbacks)
        self.evaluation = callbacks[0]
        self.evaluation_seconds = self.checkpoint_seconds = 0.0
        self.marks: list[float] = []
        self.started = 0.0

    def training_seconds(self) -> float:
        return time.perf_counter() - self.started - self.evaluation_seconds - self.checkpoint_seconds

    def get_training_state(self) -> dict[str, Any]:
        return {"evaluation": self.evaluation_seconds, "training": self.training_seconds(), "marks": self.marks}

    def set_training_state(self, state: dict[str, Any]) -> None:
        self.evaluation_seconds, self.marks = state["evaluation"], list(state["marks"])
        self.started = time.perf_counter() - state["training"] - state["evaluation"]

    def _on_rollout_start(self) -> None:
        begun = time.perf_counter()
        super()._on_rollout_start()
        self.checkpoint_seconds += time.perf_counter() - begun

    def _on_step(self) -> bool:
        trained, begun = self.training_seconds(), time.perf_counter()
        go_on = super()._on_step()
        self.evaluation_seconds += time.perf_counter() - begun
        if len(self.evaluation.evaluations_timesteps) > len(self.marks):  # type: ignore[attr-defined]
            self.marks.append(trained)
        return go_on
