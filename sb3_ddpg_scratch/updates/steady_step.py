"""All work between two steps of the environments, in one compiled call."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.updates.kernel_memory import Frame


class UpdaterMemory(NamedTuple):
    """What the compiled updater has prepared; ``prepare(n_updates)`` takes the number of earlier updates and draws noise."""

    numbers: np.ndarray
    layers: np.ndarray
    table: np.ndarray
    results: np.ndarray
    batches: np.ndarray
    sampler: Any
    optimizers: tuple[Any, Any]
    prepare: Callable[[int], np.ndarray | None]


class SteadyStep:
    """
    Stores, draws batches, updates and acts, while nothing else changes networks, optimizers, settings or the buffer. It does
    bit for bit what ``PackedReplayBuffer.add``, ``CompiledUpdater.train`` and ``CompiledActor.act`` do in turn:
    :meth:`store`, :meth:`update` and :meth:`act` request work, and :meth:`run` performs it.
    """

    def __init__(self, kernels: Any, memory: UpdaterMemory, buffer: PackedReplayBuffer, action_space: Any) -> None:
        self._kernels, self._memory, self._buffer = kernels, memory, buffer
        self._n_envs = n_envs = buffer.n_envs
        # Work for the next run.
        self.stores, self.updates = False, 0
        self._frame = Frame(kernels)
        observation_dim, action_dim, _, _, _, critics, actor_layers, critic_layers = map(
            int, memory.numbers[kernels.SIZES, :8]
        )
        self._width = 2 * observation_dim + action_dim + 2
        acting = self._frame.place_acting(action_space, n_envs, observation_dim)
        shape = (n_envs, *action_space.shape)
        self._observations = acting.observations.reshape(n_envs, *buffer.obs_shape)
        self._noise, self._actions, self._scaled_actions = (array.reshape(shape) for array in acting[1:])
        self._following = np.zeros_like(self._observations)
        self._rewards = np.zeros(n_envs, np.float32)
        self._ends: np.ndarray | None = None
        self._frame.place(kernels.REWARDS, self._rewards, (n_envs,))
        self._frame.place_batches(memory.batches, self._width)
        self._action_dim = action_dim
        self._frame.table[kernels.ACTOR] = actor_layers + critics * critic_layers

    def store(
        self,
        observations: np.ndarray,
        following: np.ndarray,
        rewards: np.ndarray,
        dones: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """Request storing; where an episode ended, ``following`` has its last observation, not the next one's first."""
        kernels, table = self._kernels, self._frame.table
        np.copyto(self._observations, observations, "same_kind")
        if following is not observations:
            np.copyto(self._following, following, "same_kind")
        next_observations = self._observations if following is observations else self._following
        self._frame.place(kernels.NEXT_OBSERVATIONS, next_observations, self._observations.shape)
        np.copyto(self._rewards, rewards, "same_kind")
        self._ends = self._buffer.ends_of(dones, infos)
        self._frame.place(kernels.CONTINUATIONS, self._buffer.continuations(self._ends), (self._n_envs, 1))
        table[kernels.STORED] = self._n_envs
        self.stores = True

    def update(self, n_updates: int) -> None:
        """Request the updates that follow ``n_updates`` earlier ones."""
        kernels = self._kernels
        noise = self._memory.prepare(n_updates)
        self._frame.place_smoothing(noise, len(self._memory.results), self._action_dim)
        self.updates = len(self._memory.results)
        self._frame.table[kernels.UPDATES] = self._frame.table[kernels.DRAWN] = self.updates

    def act(self, noise: np.ndarray | None, observations: np.ndarray | None = None) -> None:
        """Request the next actions, for the transition's observations unless others are given."""
        kernels = self._kernels
        if observations is not None:
            np.copyto(self._observations, observations, "same_kind")
        self._frame.place(kernels.EXPLORATION, None if noise is None else self._noise, self._noise.shape)
        if noise is not None:
            self._noise[:] = noise
        self._frame.table[kernels.ACTING] = self._n_envs

    def run(self) -> bool:
        """Perform the requested work. Returns ``False``, having done nothing, if an observation or a reward is not finite."""
        kernels, memory, table = self._kernels, self._memory, self._frame.table
        buffer, stores = self._buffer, self.stores
        with self._frame.place_buffer(buffer, memory.sampler, self._width, stores * self._n_envs):
            finite = kernels.advance(memory.numbers, memory.layers, memory.table, table, memory.results)
        if stores and finite:
            buffer.move_on(self._ends)
        table[kernels.STORED] = table[kernels.DRAWN] = table[kernels.UPDATES] = table[kernels.ACTING] = 0
        self.stores, self.updates = False, 0
        return finite

    def read_learning_rates(self) -> None:
        """Copy the optimizers' current learning rates into the table."""
        rows = (self._kernels.ACTOR_ADAM, self._kernels.CRITIC_ADAM)
        for row, optimizer in zip(rows, self._memory.optimizers, strict=True):
            self._memory.numbers[row, 2] = optimizer.param_groups[0]["lr"]

    def losses_are_finite(self) -> bool:
        """Of the last update."""
        return math.isfinite(self._memory.results.item(-1, 0) + self._memory.results.item(-1, 1))

    def actions(self) -> tuple[np.ndarray, np.ndarray]:
        """The latest actions, in environment units and normalized."""
        return self._actions.copy(), self._scaled_actions.copy()
