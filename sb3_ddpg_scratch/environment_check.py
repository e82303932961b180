"""Checks of an environment's outputs: shape and dtype at the first step, finite numbers at every step."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from sb3_ddpg_scratch.errors import DivergenceError, EnvironmentOutputError
from sb3_ddpg_scratch.names import entry
from sb3_ddpg_scratch.observations import Observations

# What the methods of an environment return.
_INTERFACE = {"reset": "observation, info", "step": "observation, reward, terminated, truncated, info"}
# Replay and networks are in single precision: a larger number is infinite there.
_LARGEST = np.finfo(np.float32).max


def all_finite(observations: Observations, rewards: np.ndarray) -> bool:
    """Whether every number is finite in single precision, which a sum of squares nearly always tells."""
    arrays = (observations,) if isinstance(observations, np.ndarray) else observations.values()
    for array in (rewards, *arrays):
        # If the sum is too large, each number is checked.
        if array.dtype.kind == "f" and not (float(np.vdot(array, array)) < 1e37 or finite_in_float32(array).all()):
            return False
    return True


def finite_in_float32(array: np.ndarray) -> Any:
    return np.abs(array) <= _LARGEST


def check_finite(
    outputs: tuple[Observations, np.ndarray],
    infos: list[dict[str, Any]],
    any_done: bool,
    normalizer: VecNormalize | None,
    step: int,
    last_checkpoint: str | None,
    names: Any = None,
) -> None:
    """Check what a step returned, and before it what ``VecNormalize`` may have clipped, or spread to all environments."""
    if normalizer is not None and not all_finite(normalizer.old_obs, normalizer.old_reward):
        stop_if_not_finite(normalizer.old_obs, normalizer.old_reward, [{} for _ in infos], step, last_checkpoint, names)
    # The last observations of ended episodes are checked one by one.
    if any_done or not all_finite(*outputs):
        stop_if_not_finite(*outputs, infos, step, last_checkpoint, names)


def stop_if_not_finite(
    observations: Observations,
    rewards: np.ndarray,
    infos: list[dict[str, Any]],
    step: int,
    last_checkpoint: str | None,
    names: Any = None,
) -> None:
    """Raise ``DivergenceError`` that names the first environment with a number that is not finite, and where it is."""
    for index in range(len(rewards)):
        values = {("reward", ""): rewards[index]} | _named("observation", _row(observations, index))
        if infos[index].get("terminal_observation") is not None:
            values |= _named("terminal observation", infos[index]["terminal_observation"])
        for (part, key), value in values.items():
            array = np.asarray(value)
            if array.dtype.kind not in "fc" or finite_in_float32(array).all():
                continue
            place = tuple(int(number) for number in np.argwhere(~finite_in_float32(array))[0])
            flat = int(np.ravel_multi_index(place, array.shape)) if place else 0
            where = entry(part, key, list(place), flat, None if part == "reward" else names)
            beyond = ", beyond single precision," if np.isfinite(array[place]) else ""
            raise DivergenceError(
                f"Environment {index} returned {where} = {array[place]}{beyond} at environment step {step}. It was not stored "
                "or learned from. Check what the environment computes there (for actions near the bounds, and in "
                "states that training rarely reaches)." + checkpoint_hint(last_checkpoint)
            )


def checkpoint_hint(last_checkpoint: str | None) -> str:
    return f" The last good checkpoint is {last_checkpoint}." if last_checkpoint else ""


def check_outputs(space: spaces.Space[Any], observations: Any, rewards: Any, n_envs: int) -> None:
    """Raise ``EnvironmentOutputError`` unless shapes and dtypes are the space's; ``rewards`` is ``None`` after a reset."""
    _check_observation(space, observations, (n_envs,), "The environments")
    if rewards is not None:
        array = np.asarray(rewards)
        if array.shape != (n_envs,) or array.dtype.kind not in "fiub":
            got = f"rewards of shape {array.shape} and dtype {array.dtype}"
            _fail("The environments", got, f"numbers of shape ({n_envs},)")


@contextmanager
def checked_outputs(env: VecEnv, method: str) -> Iterator[None]:
    """Check each environment's outputs from one ``method``: ``DummyVecEnv`` would silently broadcast a wrong shape."""
    inner = env.unwrapped
    environments = inner.envs if isinstance(inner, DummyVecEnv) else []
    checks = [_CheckedCall(one, method, f"Environment {index}") for index, one in enumerate(environments)]
    for check in checks:
        vars(check.env).setdefault(method, check)
    try:
        yield
        infos = getattr(inner, "reset_infos", ())
        if method == "reset" and not all(isinstance(info, (Mapping, NoneType)) for info in infos):
            _fail_by_interface("An environment", method)
    except (EOFError, ConnectionError) as error:
        if not isinstance(inner, SubprocVecEnv):
            raise
        problem = f"An environment's process failed in its first {method} and printed why. If values could not be unpacked,"
        _fail_by_interface(f"{problem} the environment", method, error)
    finally:
        for check in checks:
            check.remove()


class _CheckedCall:
    """Replaces a method of an environment during one call; a copy of the environment gets its own."""

    def __init__(self, env: gym.Env, method: str, who: str) -> None:
        self.env, self.method, self.who = env, method, who

    def remove(self) -> None:
        if vars(self.env).get(self.method) is self:
            del vars(self.env)[self.method]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.remove()
        expected = _INTERFACE[self.method].count(",") + 1
        try:
            returned = getattr(self.env, self.method)(*args, **kwargs)
        except ValueError as error:
            # A wrapper unpacks what the environment returned.
            if re.search(rf"values to unpack \(expected {expected}\b", str(error)):
                _fail_by_interface(self.who, self.method, error)
            raise
        # SB3 accepts a reset's None.
        infos = Mapping if self.method == "step" else (Mapping, NoneType)
        if not isinstance(returned, (tuple, list)) or len(returned) != expected or not isinstance(returned[-1], infos):
            _fail_by_interface(self.who, self.method)
        _check_observation(self.env.observation_space, returned[0], (), self.who)
        if self.method == "step":
            reward = np.asarray(returned[1])
            if reward.shape != () or reward.dtype.kind not in "fiub":
                got = f"a reward of shape {reward.shape} and dtype {reward.dtype}"
                _fail(self.who, got, "a number", "Return float(reward).")
        return returned


def _check_observation(space: spaces.Space[Any], observation: Any, lead: tuple[int, ...], who: str, name: str = "") -> None:
    if isinstance(space, spaces.Dict):
        if not isinstance(observation, Mapping) or set(observation) != set(space.spaces):
            keys = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            _fail(who, f"an observation with {keys}", f"a dict with {sorted(space.spaces)}")
        for key, part in space.spaces.items():
            _check_observation(part, observation[key], lead, who, f"[{key!r}]")
        return
    array = np.asarray(observation)
    shape, dtype = (*lead, *(space.shape or ())), space.dtype
    if array.shape != shape or array.dtype.kind not in "fiub" or not np.can_cast(array.dtype, dtype or float, "same_kind"):
        got = f"an observation{name} of shape {array.shape} and dtype {array.dtype}"
        _fail(who, got, f"shape {shape} and dtype {dtype}, as in its observation space {space}")


def _fail(who: str, got: str, expected: str, advice: str = "Correct the environment, or its observation space.") -> NoReturn:
    raise EnvironmentOutputError(f"{who} returned {got} instead of {expected}. {advice}")


def _fail_by_interface(who: str, method: str, cause: Exception | None = None) -> NoReturn:
    rule = f"{who}'s {method} must return ({_INTERFACE[method]}). gym's old interface was different: see"
    raise EnvironmentOutputError(f"{rule} https://gymnasium.farama.org/introduction/migration_guide.") from cause


def _row(observations: Observations, index: int) -> Any:
    if isinstance(observations, Mapping):
        return {key: array[index] for key, array in observations.items()}
    return observations[index]


def _named(part: str, value: Any) -> dict[tuple[str, str], Any]:
    return {(part, key): item for key, item in value.items()} if isinstance(value, Mapping) else {(part, ""): value}
