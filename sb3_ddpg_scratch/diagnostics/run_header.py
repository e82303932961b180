"""What a recording says of its run before it begins: the algorithm, the environment, the settings."""

import json
import platform
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

SETTINGS = ("gamma", "tau", "batch_size", "learning_starts", "seed", "policy_delay", "target_policy_noise", "gradient_steps")


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """The header's entries; ``None`` where something has no JSON form."""
    space: Any = model.action_space
    normalize = model.get_vec_normalize_env()
    return {
        "algorithm": type(model).__name__,
        "environment": _environment_of(model),
        "policy": _policy_of(model),
        "n_envs": model.n_envs,
        "settings": {name: _in_json(getattr(model, name, None)) for name in SETTINGS},
        "noise": None if model.action_noise is None else repr(model.action_noise),
        "actions": {"low": np.asarray(space.low).ravel(), "high": np.asarray(space.high).ravel()},
        "normalized": None if normalize is None else {"observations": normalize.norm_obs, "rewards": normalize.norm_reward},
        "versions": {
            "python": platform.python_version(),
            "torch": th.__version__,
            "stable_baselines3": stable_baselines3.__version__,
        },
    }


def _environment_of(model: BaseAlgorithm) -> dict[str, Any] | None:
    """``id`` and ``kwargs`` for ``gymnasium.make``; ``None`` if the environment was not made by its id."""
    assert model.env is not None
    try:
        spec = model.env.get_attr("spec")[0]
    except AttributeError:
        return None
    if spec is None:
        return None
    return {"id": spec.id, "kwargs": _in_json({key: value for key, value in spec.kwargs.items() if key != "render_mode"})}


def _policy_of(model: BaseAlgorithm) -> dict[str, Any] | None:
    """What builds a policy of the same shape without reading code; ``None`` if it has parts of the user's own."""
    names = {policy: name for name, policy in model.policy_aliases.items()}
    name = names.get(model.policy_class)
    kwargs: dict[str, Any] = {}
    for key, value in model.policy_kwargs.items():
        class_name = value.__name__ if isinstance(value, type) else ""
        if class_name and value is getattr(th.nn, class_name, None):
            kwargs[key] = {"torch.nn": class_name}
        elif _in_json(value) is None and value is not None:
            return None
        else:
            kwargs[key] = value
    q_networks = getattr(getattr(model, "critic", None), "q_networks", None)
    if q_networks is not None:
        kwargs["n_critics"] = len(q_networks)
    return None if name is None else {"name": name, "kwargs": kwargs}


def observation_statistics(normalize: VecNormalize | None) -> dict[str, Any] | None:
    """VecNormalize's mean and variance for each part of the observation (``""`` if it has no parts)."""
    if normalize is None or not normalize.norm_obs:
        return None
    statistics = normalize.obs_rms
    parts = {"": statistics} if isinstance(statistics, RunningMeanStd) else dict(statistics)
    return {
        "parts": {key: {"mean": th.tensor(part.mean), "var": th.tensor(part.var)} for key, part in parts.items()},
        "epsilon": float(normalize.epsilon),
        "limit": float(normalize.clip_obs),
    }


def _in_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
