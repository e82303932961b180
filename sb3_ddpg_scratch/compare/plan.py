"""The runs of a comparison: the settings of every arm in every environment, checked before any run starts."""

import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium as gym
import rl_zoo3

from sb3_ddpg_scratch.compare.experiment import Arm, Experiment
from sb3_ddpg_scratch.compare.results_file import Results, read_results
from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic
from sb3_ddpg_scratch.errors import ArgumentError, near
from sb3_ddpg_scratch.runs.training_run import RunSpec, prepare
from sb3_ddpg_scratch.validation import check_action_space, check_whole_number
from sb3_ddpg_scratch.zoo.registry import SBX_ALGO, algorithm_class, check_env
from sb3_ddpg_scratch.zoo.yaml_settings import (
    ALGO,
    as_data,
    check_settings,
    default_file,
    preset_file,
    settings_for,
)


class Protocol(NamedTuple):
    steps: int
    evaluations: int = 20
    eval_episodes: int = 10


@dataclass(frozen=True)
class Plan:
    """A comparison's runs, ordered by seed so that every arm has its first runs early, and a stored baseline's results."""

    experiment: Experiment
    specs: list[RunSpec]
    baseline: str
    stored: Results | None


def plan_comparison(experiment: Experiment) -> Plan:
    """The runs of a comparison; rejects an algorithm, key, environment or baseline that does not exist or fit."""
    found = [check_env(env_id, experiment.gym_packages) for env_id in experiment.envs]
    packages = [*experiment.gym_packages, *chain.from_iterable(env.packages for env in found)]
    experiment = replace(
        experiment,
        envs={env.env_id: own for env, own in zip(found, experiment.envs.values(), strict=True)},
        gym_packages=tuple(dict.fromkeys(packages)),
    )
    for env_id in experiment.envs:
        env = gym.make(env_id)
        check_action_space(env.action_space)
        env.close()
    baseline, stored = _baseline(experiment)
    settings = {(arm.name, env_id): arm_settings(arm, env_id) for env_id in experiment.envs for arm in experiment.arms}
    specs = []
    for env_id in experiment.envs:
        first = baseline if stored is None else experiment.arms[0].name
        protocol = _protocol(experiment, env_id, stored, int(settings[first, env_id]["n_timesteps"]))
        for arm in experiment.arms:
            own = settings[arm.name, env_id] | {"n_timesteps": protocol.steps}
            spec = RunSpec(arm.name, arm.algo, env_id, 0, *protocol, experiment.device, own)
            check_budget(spec, f"Give more, or {spec.arm} a smaller learning_starts.")
            specs.append(spec)
    seeds = max(experiment.of(env_id, "seeds") for env_id in experiment.envs)
    runs = seeded(specs, seeds, experiment.diagnostics)
    return Plan(experiment, [run for run in runs if run.seed < experiment.of(run.env_id, "seeds")], baseline, stored)


def seeded(specs: Sequence[RunSpec], seeds: int, diagnostics: bool = False) -> list[RunSpec]:
    """The runs for each seed from 0; only the first seed records diagnostics, if any."""
    return [replace(spec, seed=seed, diagnostics=diagnostics and seed == 0) for seed in range(seeds) for spec in specs]


def arm_settings(arm: Arm, env_id: str) -> dict[str, Any]:
    """An arm's checked settings for an environment, without text that would be evaluated."""
    try:
        algorithm = algorithm_class(arm.algo)
    except ArgumentError as error:
        raise ArgumentError(f"arm {arm.name}: algorithm", error.value, error.allowed, error.advice) from error
    where = f"arm {arm.name}"
    if "n_timesteps" in arm.overrides:
        value = arm.overrides["n_timesteps"]
        raise ArgumentError(f"{where}: n_timesteps", value, problem="cannot differ between arms: give --steps for all of them")
    path = _settings_file(arm)
    section, settings = settings_for(path, env_id)
    settings = as_data(deepcopy(settings), f"{path}: {section}")
    for key, value in arm.overrides.items():
        _override(settings, key, value, where)
    settings = as_data(settings, where)
    check_settings(settings, where, algorithm)
    return settings


def _settings_file(arm: Arm) -> Path:
    zoo = Path(rl_zoo3.__file__).parent / "hyperparams"
    if arm.preset is not None:
        return preset_file(arm.preset)
    if arm.yaml is not None:
        of_the_zoo = zoo / f"{arm.yaml}.yml"
        return of_the_zoo if of_the_zoo.is_file() else Path(arm.yaml)
    if arm.algo == ALGO:
        return default_file()
    return zoo / f"{'ddpg' if arm.algo == SBX_ALGO else arm.algo}.yml"


def _override(settings: dict[str, Any], key: str, value: Any, where: str) -> None:
    *groups, last = key.split(".")
    for group in groups:
        settings = settings.setdefault(group, {})
        if not isinstance(settings, dict):
            raise ArgumentError(f"{where}: key", key, f"an entry of a mapping, which {group!r} is not")
    settings[last] = value


def _baseline(experiment: Experiment) -> tuple[str, Results | None]:
    names = [arm.name for arm in experiment.arms]
    if experiment.baseline is None:
        return next((arm.name for arm in experiment.arms if arm.algo != ALGO), names[0]), None
    if experiment.baseline in names:
        return experiment.baseline, None
    path = Path(experiment.baseline)
    if not path.exists():
        allowed = f"one of the arms ({', '.join(names)}), or a stored result (results.json, or its folder)"
        raise ArgumentError("--baseline", experiment.baseline, allowed, near(experiment.baseline, names))
    stored = read_results(path)
    for env_id in experiment.envs:
        if env_id not in stored.protocol:
            advice = "Compare on those, or make a baseline on this one."
            raise ArgumentError("--env", env_id, f"one that the baseline {path} has: {', '.join(stored.protocol)}", advice)
    stored = stored.only_baseline(tuple(experiment.envs), taken=names)
    return stored.baseline, stored


def _protocol(experiment: Experiment, env_id: str, stored: Results | None, budget: int) -> Protocol:
    """The requested values, else the stored baseline's, else the defaults."""
    protocol = (Protocol(budget) if stored is None else Protocol(**stored.protocol[env_id]))._asdict()
    for key, value in protocol.items():
        asked = experiment.of(env_id, key)
        if asked is not None and stored is not None and asked != value:
            raise ArgumentError(f"--{key.replace('_', '-')}", asked, f"{value}, as for the baseline on {env_id}")
        protocol[key] = value if asked is None else asked
    check_whole_number("steps", protocol["steps"], protocol["evaluations"])
    return Protocol(**protocol)


def check_budget(spec: RunSpec, advice: str) -> None:
    first_update = int(spec.settings.get("learning_starts", 100)) + 1
    if spec.steps < first_update:
        allowed = f"at least {first_update} (when {spec.arm} makes its first update on {spec.env_id})"
        raise ArgumentError("--steps", spec.steps, allowed, advice)


def try_out(specs: list[RunSpec]) -> None:
    """Set up each arm once in each environment without training, so that errors show before any run."""
    first = {(spec.arm, spec.env_id): spec for spec in reversed(specs)}
    for spec in first.values():
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(None):
            try:
                manager, model = prepare(spec, Path(folder))
                if spec.diagnostics:
                    ActorCritic(model)
            except Exception as error:
                allowed = f"one that can be set up on {spec.env_id} ({type(error).__name__}: {error})"
                raise ArgumentError(f"arm {spec.arm}", spec.algo, allowed) from error
            model.env.close()
            for callback in manager.callbacks:
                if hasattr(callback, "eval_env"):
                    callback.eval_env.close()
