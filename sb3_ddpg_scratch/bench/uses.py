"""What users add to the fastest case: environments, wrappers, callbacks and noise of their own."""

import timeit
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.bench.rounds import Setting
from sb3_ddpg_scratch.bench.workload import CALLBACK, DICT, NORMALIZED, WRAPPER, Workload


def _as_a_users(kind: type) -> type:
    """The class, as if it was defined in the script of a user."""
    kind.__module__ = "users_script"
    return kind


@_as_a_users
class OwnCallback(BaseCallback):
    def _on_step(self) -> bool:
        return True


@_as_a_users
class OwnWrapper(gym.Wrapper[Any, Any, Any, Any]):
    def step(self, action: Any) -> Any:
        return self.env.step(action)


class HalvesAsDict(gym.ObservationWrapper[Any, Any, Any]):
    """The first half of an observation and the rest, as entries of a Dict."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        space: Any = env.observation_space
        self.middle = len(space.low) // 2
        parts = ((space.low[where], space.high[where]) for where in (slice(self.middle), slice(self.middle, None)))
        first, second = (spaces.Box(*bounds) for bounds in parts)
        self.observation_space = spaces.Dict(first=first, second=second)

    def observation(self, observation: Any) -> Any:
        return {"first": observation[: self.middle], "second": observation[self.middle :]}


def make_env(env: str, uses: Sequence[str]) -> VecEnv:
    def make() -> gym.Env[Any, Any]:
        made = gym.make(env)
        made = HalvesAsDict(made) if DICT in uses else made
        return OwnWrapper(made) if WRAPPER in uses else made

    made = make_vec_env(make, seed=0)
    return VecNormalize(made) if NORMALIZED in uses else made


def make_callback(uses: Sequence[str]) -> BaseCallback | None:
    return OwnCallback() if CALLBACK in uses else None


def measured(model: Any, workload: Workload) -> dict[str, float]:
    """The microseconds of a step of the environments alone, and of a look at networks and optimizers (ours)."""
    env = make_env(workload.env, workload.uses or ())
    env.reset()
    actions = np.zeros((1, *(env.action_space.shape or ())), np.float32)
    found = {"environment_us": _microseconds(lambda: env.step(actions))}
    if workload.contender == "compiled":
        updater, networks = model._updater.pick(model._networks()), model._networks()
        found["guard_us"] = _microseconds(lambda: updater.is_as_before(networks))
    return found


def _microseconds(action: Callable[[], object]) -> float:
    return float(1e4 * np.median(timeit.repeat(action, number=100, repeat=30)))


HEADINGS = ("use", "env steps/s", "of the fastest", "environment", "SB3", "vs SB3")


def rows_of(settings: Sequence[Setting]) -> list[list[str]]:
    """
    A row of text for each use, under :data:`HEADINGS`: medians over rounds of steps and of their ratios to the fastest case,
    which is the first setting, and to SB3's; microseconds of a step of the environment.
    """
    rows = []
    for setting in settings:
        speeds = [[values["compiled", 1].get("steps_per_s") for values in one.rounds] for one in (settings[0], setting)]
        shares = [float(own) / float(fastest) for fastest, own in zip(*speeds, strict=False) if own and fastest]
        own, sb3 = (setting.values(name, 1, "steps_per_s") for name in ("compiled", "sb3"))
        alone = median(setting.values("compiled", 1, "environment_us"))
        against = median(setting.ratios("compiled", "sb3", "steps_per_s"))
        numbers = (
            f"{median(own):,.0f}",
            f"{median(shares):.2f}",
            f"{alone:.1f} us",
            f"{median(sb3):,.0f}",
            f"{against:.1f} x",
        )
        added = setting.name.partition(", ")[2].split(", ")
        rows.append([added[0] or "fastest case" if len(added) == 1 else "all of these", *numbers])
    return rows


def guard_of(settings: Sequence[Setting]) -> float:
    """Microseconds of a look at networks and optimizers, median over all."""
    return median(value for setting in settings for value in setting.values("compiled", 1, "guard_us"))
