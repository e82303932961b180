"""The actor's forward pass compiled, for choosing actions between two updates."""

from typing import Any

import numpy as np

from sb3_ddpg_scratch.observations import Observations, flatten
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.inspection import NetworksWatch, why_not_compiled
from sb3_ddpg_scratch.updates.kernel_memory import (
    Frame,
    address,
    is_contiguous,
    layer_table,
    load_kernels,
    numbers_table,
    size_of,
    sizes_of,
)

_NO_TABLE, _NO_RESULTS = np.zeros((0, 8), np.int64), np.zeros((0, 6))


class CompiledActor:
    def __init__(self) -> None:
        # Whether there was no objection and none can arise.
        self.inspected = False
        self._watch: NetworksWatch | None = None
        self._addresses: list[int] = []
        self._sizes: list[int] = []
        self._frame: Frame | None = None
        self._n = 0

    def objection(self, actor: Any) -> str | None:
        """Why this actor cannot act this way; ``None`` if it can."""
        if (
            self._watch is not None
            and self._watch.holds((actor,))
            and list(map(address, self._watch.parameters)) == self._addresses
            and all(map(is_contiguous, self._watch.parameters))
            and list(map(size_of, self._watch.parameters)) == self._sizes
        ):
            return None
        reason = why_not_compiled((actor,), trained=0)
        self._watch = NetworksWatch((actor,), trained=0) if reason is None else None
        if self._watch is not None:
            self._addresses = list(map(address, self._watch.parameters))
            self._sizes = list(map(size_of, self._watch.parameters))
            self._layers = layer_table(actor.mu)
            self._actor, self._n = actor, 0
        return reason

    def act(self, observations: Observations, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Actions, with noise, in environment units and normalized, ``(n, *action_shape)``; requires no :meth:`objection`."""
        if self._frame is None:
            self._frame = Frame(load_kernels())
        given = flatten(observations, self._actor.observation_space)
        n, kernels = len(given), self._frame.kernels
        if n != self._n:
            self._n = n
            self._numbers = numbers_table(sizes_of(kernels, self._actor))
            self._memory = self._frame.place_acting(self._actor.action_space, n, self._actor.features_dim)
            self._frame.table[kernels.ACTING] = n
        flat, added, actions, scaled_actions = self._memory
        flat[:] = given
        self._frame.place(kernels.EXPLORATION, None if noise is None else added, added.shape)
        if noise is not None:
            added[:] = np.reshape(noise, added.shape)
        with one_blas_thread:
            kernels.advance(self._numbers, self._layers, _NO_TABLE, self._frame.table, _NO_RESULTS)
        shape = (n, *self._actor.action_space.shape)
        return actions.reshape(shape).copy(), scaled_actions.reshape(shape).copy()
