"""
Whether code that runs during ``learn`` may change networks or optimizers behind the updater's back.

Gathered work looks for such changes in every step, which takes a tenth of one with small networks. It skips that where every
callback, environment, noise, schedule and logger is of the packages below, which make no such changes.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from types import FunctionType, MethodType
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

_PACKAGES = frozenset({"gymnasium", "gymnasium_robotics", "rl_zoo3", "sb3_ddpg_scratch", "stable_baselines3"})


def only_known_code(model: Any, env: VecEnv, callback: BaseCallback) -> bool:
    """Whether all code that runs while this model learns is from known packages, including what its objects call."""
    schedules = [getattr(one, "value_schedule", one) for one in (model.lr_schedule, model.qf_lr_schedule)]
    noise = getattr(model.action_noise, "base_noise", model.action_noise)
    logger, callbacks = model._logger, callbacks_in(callback)
    envs = [env, *(part for one in callbacks for part in _parts_of(one) if isinstance(part, (VecEnv, gym.Env)))]
    parts = [model, model.policy, model.replay_buffer, noise, *schedules, logger, *logger.output_formats, *callbacks]
    return all(map(_is_known, parts)) and all(_is_known(layer) for one in envs for layer in _environments(one))


def _is_known(part: Any) -> bool:
    called = [value for value in getattr(part, "__dict__", {}).values() if callable(value) and not isinstance(value, type)]
    return part is None or all(map(_is_known_code, (part, *called)))


def _is_known_code(value: Any) -> bool:
    """Whether a function, with all that it encloses and is bound to, or the class of another object is of a known package."""
    if isinstance(value, MethodType):
        return _is_known_code(value.__func__) and type(value.__self__).__module__.partition(".")[0] in _PACKAGES
    if isinstance(value, FunctionType):
        # A function made by ``exec`` may have no module.
        known = (value.__module__ or "").partition(".")[0] in _PACKAGES
        return known and all(_is_known_code(one) for one in _enclosed(value) if callable(one))
    return (value if isinstance(value, type) else type(value)).__module__.partition(".")[0] in _PACKAGES


def _enclosed(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        # Of a variable that has no value yet.
        with suppress(ValueError):
            yield cell.cell_contents


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
