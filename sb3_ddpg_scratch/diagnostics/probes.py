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

Observations = np.ndarray | dict[str, np.ndarray]

STATES_PER_PROBE = 10
PLANE_POINTS = 21
PLANE_MAX_DIMENSIONS = 8
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

    For vectors of 2 to 8 numbers and at most two action dimensions, a snapshot also holds the policy over a plane: the two
    observation dimensions that vary most in a sample of replay, the others at their median.
    """

    def __init__(self, observations: Observations, plane: dict[str, Any] | None = None) -> None:
        self.observations = observations
        self.plane = plane

    @classmethod
    def draw(cls, model: Any, count: int) -> "ProbeStates":
        """Choose ``count`` states, and a plane, from a sample of replay in the environment's units."""
        tensors = model.replay_buffer.sample(STATES_PER_PROBE * count, env=None).observations
        sample = for_each_part(lambda part: part.cpu().numpy(), tensors)
        plane = None
        if isinstance(model.observation_space, spaces.Box) and sample.ndim == 2 and np.prod(model.action_space.shape) <= 2:
            spread = sample.std(axis=0)
            if 2 <= sample.shape[1] <= PLANE_MAX_DIMENSIONS and np.count_nonzero(spread) >= 2:
                first, second = sorted(int(index) for index in np.argsort(-spread, kind="stable")[:2])
                plane = {
                    "dimensions": [first, second],
                    "x": np.linspace(sample[:, first].min(), sample[:, first].max(), PLANE_POINTS),
                    "y": np.linspace(sample[:, second].min(), sample[:, second].max(), PLANE_POINTS),
                    "others": np.median(sample, axis=0),
                }
        chosen = distinct(sample, count)
        return cls(for_each_part(lambda part: part[chosen], sample), plane)

    def record(self) -> dict[str, Any]:
        """What a recording holds: the states if they are vectors of at most 64 numbers, and the plane."""
        states = self.observations
        shown = isinstance(states, np.ndarray) and states.ndim == 2 and states.shape[1] <= RECORDED_MAX_DIMENSIONS
        return {"states": states if shown else None, "plane": self.plane}

    def snapshot(self, networks: ActorCritic, normalize: VecNormalize | None) -> dict[str, Any]:
        """``actions``, shape ``(n, action_dim)``; ``q``, shape ``(n,)``; ``plane``, shape ``(action_dim, y, x)``, if any."""
        actions, q_values = networks.value_of(self.observations, normalize)
        plane = None
        if self.plane is not None:
            on_grid, _ = networks.value_of(self._grid(), normalize)
            plane = on_grid.T.reshape(-1, PLANE_POINTS, PLANE_POINTS)
        return {"actions": _rounded(actions), "q": q_values, "plane": None if plane is None else _rounded(plane)}

    def _grid(self) -> np.ndarray:
        assert self.plane is not None
        assert isinstance(self.observations, np.ndarray)
        grid = np.tile(np.asarray(self.plane["others"]), (PLANE_POINTS**2, 1))
        x, y = np.meshgrid(self.plane["x"], self.plane["y"])
        first, second = self.plane["dimensions"]
        grid[:, first], grid[:, second] = x.ravel(), y.ravel()
        return grid.astype(self.observations.dtype)

    def save(self, folder: Path) -> None:
        states = self.observations if isinstance(self.observations, dict) else {"": self.observations}
        arrays = {f"observation/{key}": array for key, array in states.items()}
        if self.plane is not None:
            arrays |= {f"plane/{key}": np.asarray(value) for key, value in self.plane.items()}
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
        observations, plane = (
            {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
            for part in ("observation/", "plane/")
        )
        if not observations:
            return None
        if plane:
            plane["dimensions"] = plane["dimensions"].tolist()
        return cls(observations[""] if list(observations) == [""] else observations, plane or None)


def _rounded(actions: np.ndarray) -> np.ndarray:
    return np.round(actions.astype(np.float64), 4)
