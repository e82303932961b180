"""The actor's forward pass compiled, for choosing actions between two updates."""

from typing import Any

import numpy as np

from sb3_ddpg_scratch.observations import Observations, flatten_into
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.guard import Guard
from sb3_ddpg_scratch.updates.inspection import why_not_compiled
from sb3_ddpg_scratch.updates.kernel_memory import Frame, layer_table, load_kernels, numbers_table, sizes_of

_NO_TABLE, _NO_RESULTS = np.zeros((0, 8), np.int64), np.zeros((0, 6))


class CompiledActor:
    def __init__(self) -> None:
        self._guard: Guard | None = None
        self._frame: Frame | None = None
        self._n = 0

    def objection(self, actor: Any) -> str | None:
        """Why this actor cannot act this way; ``None`` if it can."""
        if self._guard is not None and self._guard.holds((actor,)):
            return None
        reason = why_not_compiled((actor,), trained=0)
        self._guard = Guard((actor,), trained=0) if reason is None else None
        if reason is None:
            self._layers = layer_table(load_kernels(), actor.mu)
            self._actor, self._n = actor, 0
        return reason

    def act(self, observations: Observations, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions, with noise, in environment units and normalized, ``(n, *action_shape)``; requires no :meth:`objection`."""
        if self._frame is None:
            self._frame = Frame(load_kernels())
        kernels, space = self._frame.kernels, self._actor.observation_space
        n = len(observations) if isinstance(observations, np.ndarray) else len(next(iter(observations.values())))
        if n != self._n:
            self._n = n
            self._numbers = numbers_table(sizes_of(kernels, self._actor))
            self._normalization = kernels.random_rows.Normalization(space)
            self._memory = self._frame.place_acting(self._actor.action_space, n, self._actor.features_dim)
            self._frame.table[kernels.ACTING] = n
        flat, added, actions, scaled_actions = self._memory
        flatten_into(flat, observations, space)
        self._frame.place(kernels.EXPLORATION, None if noise is None else added, added.shape)
        if noise is not None:
            added[:] = np.reshape(noise, added.shape)
        statistics = self._actor.observation_statistics
        self._frame.table[kernels.SEES_RAW] = statistics is not None
        if statistics is not None:
            self._frame.place(kernels.NORMAL, self._normalization.read(None, statistics), (3 * flat.shape[1] + 2,), np.float64)
        with one_blas_thread:
            kernels.advance(self._numbers, self._layers, _NO_TABLE, self._frame.table, _NO_RESULTS)
        shape = (n, *self._actor.action_space.shape)
        return actions.reshape(shape).copy(), scaled_actions.reshape(shape).copy()
