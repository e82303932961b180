"""
Whether code that runs during ``learn`` may change networks or optimizers behind the updater's back.

The fast updaters look for such changes before every update, which takes a fifth of a step with small networks. They skip
that where every callback, environment, noise and schedule is a class of the packages below, which make no such changes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.vec_env import VecEnv

_PACKAGES = frozenset({"gymnasium", "gymnasium_robotics", "rl_zoo3", "sb3_ddpg_scratch", "stable_baselines3"})


def only_known_code(model: Any, env: VecEnv, callback: BaseCallback) -> bool:
    """Whether all code that runs while this model learns is from known packages, including what its objects call."""
    schedules = [getattr(one, "value_schedule", one) for one in (model.lr_schedule, model.qf_lr_schedule)]
    noise = getattr(model.action_noise, "base_noise", model.action_noise)
    writers = model._logger.output_formats
    envs = [env, *(part for one in callbacks_in(callback) for part in _parts_of(one) if isinstance(part, (VecEnv, gym.Env)))]
    parts = [model, model.policy, model.replay_buffer, noise, *schedules, *writers, *callbacks_in(callback)]
    return all(map(_is_known, parts)) and all(_is_known(layer) for one in envs for layer in _environments(one))


def watches_rollouts(callback: BaseCallback) -> bool:
    """Whether a callback does anything when rollouts begin or end."""
    methods = ("_on_rollout_start", "_on_rollout_end")
    leaves = [type(one) for one in callbacks_in(callback) if not isinstance(one, CallbackList)]
    return any(getattr(one, name) is not getattr(BaseCallback, name) for one in leaves for name in methods)


def _is_known(part: Any) -> bool:
    if part is None:
        return True
    called = [value for value in getattr(part, "__dict__", {}).values() if callable(value) and not isinstance(value, type)]
    return all(type(one).__module__.partition(".")[0] in _PACKAGES for one in (part, *called))


def _environments(env: Any) -> Iterator[Any]:
    """Vectorized environments and wrappers, outermost first."""
    while env is not None:
        yield env
        for one in vars(env).get("envs", ()):
            yield from _environments(one)
        env = vars(env).get("venv", vars(env).get("env"))


def callbacks_in(callback: BaseCallback, found: Sequence[BaseCallback] = ()) -> list[BaseCallback]:
    """``found``, then a callback and all that it calls, each once and callers first."""
    found = [*found, callback]
    for part in _parts_of(callback):
        if isinstance(part, BaseCallback) and part not in found:
            found = callbacks_in(part, found)
    return found


def _parts_of(callback: BaseCallback) -> Iterator[Any]:
    for value in vars(callback).values():
        yield from value if isinstance(value, list) else (value,)
