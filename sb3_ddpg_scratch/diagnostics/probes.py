"""Probe states: a fixed set on which policy and Q are recorded throughout training."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic
from sb3_ddpg_scratch.diagnostics.recording_writer import PROBES_FILE
from sb3_ddpg_scratch.mixed_replay import replay_of

Observations = np.ndarray | dict[str, np.ndarray]

STATES_PER_PROBE = 10
PLANE_POINTS = 21
PLANE_MAX_ACTIONS = 4
RECORDED_MAX_DIMENSIONS = 64


def for_each_part(function: Callable[[Any], np.ndarray], observations: Any) -> Any:
    """Apply a function to the observations, or to each part of Dict observations."""
    if isinstance(observations, dict):
        return {key: function(part) for key, part in observations.items()}
    return function(observations)


def distinct(observations: Observations, count: int) -> np.ndarray:
    """Indices of the first ``count`` distinct states, or of all if there are fewer."""
    arrays = list(observations.values()) if isinstance(observations, dict) else [observations]
    rows = np.concatenate([array.reshape(len(array), -1).astype(np.float64) for array in arrays], axis=1)
    _, first = np.unique(rows, axis=0, return_index=True)
    return np.sort(first)[:count]


def has_enough_states(buffer: ReplayBuffer, count: int) -> bool:
    """Whether ``count`` probe states can be drawn: replay holds ten times as many transitions, or is full."""
    return buffer.size() * buffer.n_envs >= min(STATES_PER_PROBE * count, buffer.buffer_size * buffer.n_envs)


class ProbeStates:
    """
    Fixed states on which policy and Q are recorded throughout training, kept in the environment's units.

    For vectors of 2 to 64 numbers and at most four action dimensions, a snapshot also holds the policy over a plane: the two
    observation dimensions that change its actions most, the others at their median. Which two is decided anew when others
    change the actions by half as much again.
    """

    def __init__(
        self, observations: Observations, ranges: np.ndarray | None = None, dimensions: list[int] | None = None
    ) -> None:
        self.observations = observations
        self.ranges = ranges
        """Lowest, highest and median value of each number in a sample of replay, if there is a plane."""
        self.dimensions = dimensions

    @classmethod
    def draw(cls, model: Any, count: int) -> "ProbeStates":
        """Choose ``count`` states from a sample of replay in the environment's units."""
        tensors = replay_of(model).sample(STATES_PER_PROBE * count, env=None).observations
        sample = for_each_part(lambda part: part.cpu().numpy(), tensors)
        ranges = None
        if isinstance(model.observation_space, spaces.Box) and sample.ndim == 2:
            has_plane = 2 <= sample.shape[1] <= RECORDED_MAX_DIMENSIONS and np.count_nonzero(np.ptp(sample, axis=0)) >= 2
            if has_plane and np.prod(model.action_space.shape) <= PLANE_MAX_ACTIONS:
                ranges = np.stack([sample.min(axis=0), sample.max(axis=0), np.median(sample, axis=0)])
        chosen = distinct(sample, count)
        return cls(for_each_part(lambda part: part[chosen], sample), ranges)

    def record(self) -> dict[str, Any]:
        """What a recording holds: the states if they are vectors of at most 64 numbers."""
        states = self.observations
        shown = isinstance(states, np.ndarray) and states.ndim == 2 and states.shape[1] <= RECORDED_MAX_DIMENSIONS
        return {"states": states if shown else None}

    def snapshot(self, networks: ActorCritic, normalize: VecNormalize | None) -> dict[str, Any]:
        """``actions``, shape ``(n, action_dim)``; ``q``, shape ``(n,)``; ``plane``, shape ``(action_dim, y, x)``, if any."""
        actions, q_values = networks.value_of(self.observations, normalize)
        plane = None
        if self.ranges is not None:
            self._choose_dimensions(networks, normalize, actions)
            on_grid, _ = networks.value_of(self._grid(), normalize)
            plane = _rounded(on_grid.T.reshape(-1, PLANE_POINTS, PLANE_POINTS))
        return {"actions": _rounded(actions), "q": q_values, "plane": plane}

    def plane(self) -> dict[str, Any]:
        """The plane that snapshots are of."""
        assert self.ranges is not None
        assert self.dimensions is not None
        x, y = (np.linspace(self.ranges[0, one], self.ranges[1, one], PLANE_POINTS) for one in self.dimensions)
        return {"dimensions": self.dimensions, "x": x, "y": y, "others": self.ranges[2]}

    def _choose_dimensions(self, networks: ActorCritic, normalize: VecNormalize | None, actions: np.ndarray) -> None:
        """
        The two numbers that, exchanged between the states, change the actions most. Unlike a number's own spread, that does
        not depend on its unit; unlike a gradient, it is not 0 where actions saturate.
        """
        assert isinstance(self.observations, np.ndarray)
        count, width = self.observations.shape
        exchanged = np.tile(self.observations, (width, 1, 1))
        for dimension in range(width):
            exchanged[dimension, :, dimension] = np.roll(self.observations[:, dimension], count // 2)
        changed, _ = networks.value_of(exchanged.reshape(-1, width), normalize)
        changes = np.abs(changed.reshape(width, count, -1) - actions).mean(axis=(1, 2))
        best = sorted(int(dimension) for dimension in np.argsort(-changes, kind="stable")[:2])
        if self.dimensions is None or changes[best].sum() > 1.5 * changes[self.dimensions].sum():
            self.dimensions = best

    def _grid(self) -> np.ndarray:
        assert isinstance(self.observations, np.ndarray)
        plane = self.plane()
        grid = np.tile(plane["others"], (PLANE_POINTS**2, 1))
        x, y = np.meshgrid(plane["x"], plane["y"])
        first, second = plane["dimensions"]
        grid[:, first], grid[:, second] = x.ravel(), y.ravel()
        return grid.astype(self.observations.dtype)

    def save(self, folder: Path) -> None:
        states = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        arrays = {f"observation/{key}": array for key, array in states.items()}
        if self.ranges is not None:
            arrays["ranges"] = self.ranges
        content = io.BytesIO()
        np.savez_compressed(content, **arrays)  # type: ignore[arg-type]
        write_whole(folder / PROBES_FILE, content.getvalue())

    @classmethod
    def load(cls, folder: Path) -> "ProbeStates | None":
        """The states that :meth:`save` wrote; ``None`` if missing or unreadable."""
        try:
            with np.load(folder / PROBES_FILE, allow_pickle=False) as file:
                arrays = dict(file)
        except (OSError, ValueError, EOFError):
            return None
        part = "observation/"
        observations = {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
        if not observations:
            return None
        return cls(observations[""] if list(observations) == [""] else observations, arrays.get("ranges"))


def _rounded(actions: np.ndarray) -> np.ndarray:
    return np.round(actions.astype(np.float64), 4)
