"""
The update with gradients written out by hand as one function compiled by Numba, for networks so small that calling torch
costs more than the arithmetic. The function works on the flat vectors' own memory; many updates are one call of it.

A larger update is shared among torch's threads: each computes the gradients of some of the batch's rows, from the first
product to the last, and they are added up. Sharing out every single product instead costs more than it saves.
"""

import os
import sys
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import Batches
from sb3_ddpg_scratch.updates.blas_threads import OneBlasThread
from sb3_ddpg_scratch.updates.handwritten import HandWrittenUpdater
from sb3_ddpg_scratch.updates.interface import UpdateSettings
from sb3_ddpg_scratch.updates.team import together

# Updates made in one call, at most: their batches are gathered beforehand.
UPDATES_PER_CALL = 64

# A share of a batch has at least so many rows, and an update at least so many multiplications for each of its shares: below,
# handing out work takes what it saves.
ROWS_OF_A_SHARE = 32
MULTIPLICATIONS_OF_A_SHARE = 4_000_000
MOST_SHARES = 16


class Share(NamedTuple):
    """
    Some rows of a batch, and the memory in which a thread computes their gradients, as the kernel takes them.

    :param rows: the first of the rows, and the first behind them
    :param actor_net: the actor's layers and their inputs
    :param critic_net: the critic's layers and their inputs, where the action joins, and whether the activation is tanh
    :param work: memory for values on the way
    """

    rows: tuple[int, int]
    actor_net: tuple[Any, ...]
    critic_net: tuple[Any, ...]
    work: tuple[np.ndarray, ...]


def _load_kernels() -> ModuleType:
    """
    Import what an update needs, and say if its first call will take a while.

    Numba and SciPy take half a second to import, for which a model that only acts shall not wait.
    """
    import scipy.linalg.cython_blas  # noqa: F401  # loads the library behind np.dot, which OneBlasThread looks for

    from sb3_ddpg_scratch.updates import kernels

    written = Path(kernels.__file__).stat().st_mtime
    indices = Path(kernels.updates.stats.cache_path or "").glob("kernels.updates-*.nbi")
    compiled_before = any(index.stat().st_mtime > written for index in indices)
    if not compiled_before and not kernels.updates.signatures:
        print("Compiling the hand-written update, once on this machine: some 15 seconds.", file=sys.stderr)
    return kernels


def _dims(parameters: list[th.Tensor]) -> np.ndarray:
    """Inputs and outputs of each layer, from its weights."""
    return np.array([tuple(weight.shape)[::-1] for weight in parameters[0::2]])


class CompiledUpdater(HandWrittenUpdater):
    """
    DDPG updates of a policy's networks as one compiled function, in place, on the CPU.

    :param policy: a policy for which :func:`~sb3_ddpg_scratch.updates.choice.why_not_by_hand` finds nothing
    """

    name = "compiled"

    def __init__(self, policy: ScratchDDPGPolicy) -> None:
        super().__init__(policy)
        # Loaded with the first update.
        self._kernels: Any = None
        n_actor = len(list(policy.actor.parameters()))
        n_each = (len(self.trained.views) - n_actor) // policy.n_critics
        self._actor_dims = _dims(self.trained.views[:n_actor])
        self._critic_dims = _dims(self.trained.views[n_actor : n_actor + n_each])
        self._shape = (self.split, (len(self.trained.vector) - self.split) // policy.n_critics)
        self._parameters = (self.trained.vector.numpy(), self.targets.vector.numpy())
        self._share_moments()
        # Losses of the latest updates; of the last one mean Q-value, mean TD target and both gradient norms.
        self._critic_losses, self._actor_losses, self._last = np.zeros(0), np.zeros(0), np.zeros(4)
        self._multiplications_of_a_row = 2 * len(self.trained.vector)
        self._shares: list[Share] = []
        self._no_gate = np.zeros(1, np.int64)

    def _share_moments(self) -> None:
        """Have gradients and moments of both networks in one vector each, so that the kernel takes few arguments."""
        grads, first, second = (th.zeros_like(self.trained.vector) for _ in range(3))
        moments = th.stack([first, second])
        for adam, where in ((self.actor_adam, slice(0, self.split)), (self.critic_adam, slice(self.split, None))):
            adam.place(grads[where], moments[0, where], moments[1, where])
        self._grads, self._moments = grads.numpy(), moments.numpy()

    def _share_count(self, batch_size: int) -> int:
        """Among how many threads an update is worth sharing."""
        multiplications = batch_size * self._multiplications_of_a_row
        limits = (th.get_num_threads(), batch_size // ROWS_OF_A_SHARE, multiplications // MULTIPLICATIONS_OF_A_SHARE)
        # A thread that waits must be able to leave its core to another.
        return max(1, min(*limits, MOST_SHARES)) if os.name == "posix" else 1

    def _make_memory(self, batch_size: int, n_shares: int) -> None:
        self.batch_size = batch_size
        ends = [batch_size * number // n_shares for number in range(n_shares + 1)]
        self._shares = [self._make_share(*rows) for rows in pairwise(ends)]
        self._sums = np.zeros((n_shares, self._kernels.N_SUMS))
        self._other_grads = np.zeros((n_shares - 1, len(self._grads)), np.float32)
        self._rows = np.zeros((0, batch_size, self.columns.width), np.float32)
        self._no_noise = np.zeros((0, batch_size, self.columns.action_dim), np.float32)

    def _make_share(self, first: int, end: int) -> Share:
        n_rows, action_dim = end - first, self.columns.action_dim
        widest = int(max(self._actor_dims.max(), self._critic_dims.max()))
        floats = lambda *shape: np.zeros(shape, np.float32)  # noqa: E731
        actor_x, critic_x = (floats(n_rows * dims[:, 0].sum()) for dims in (self._actor_dims, self._critic_dims))
        critic_net = (self._critic_dims, critic_x, self.policy.action_layer, self.tanh)
        work = (
            floats(action_dim * widest),
            floats(2, n_rows * widest),
            floats(action_dim, n_rows),
            floats(action_dim, n_rows),
            floats(n_rows),
            floats(1, n_rows),
        )
        return Share((first, end), (self._actor_dims, actor_x), critic_net, work)

    def train(
        self,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.train`."""
        if self._kernels is None:
            self._kernels = _load_kernels()
            self.one_blas_thread = OneBlasThread()
        self.begin()
        batches = Batches(buffer, batch_size, gradient_steps, self.columns, settings.gamma, env)
        if len(self._critic_losses) < gradient_steps:
            self._critic_losses, self._actor_losses = np.zeros(gradient_steps), np.zeros(gradient_steps)
        limit = settings.max_grad_norm or 0.0
        numbers = (float(batches.discount), float(settings.tau), float(limit), float(settings.target_noise_clip))
        at_once = min(UPDATES_PER_CALL, gradient_steps) if batches.packed else 1
        for first in range(0, gradient_steps, at_once):
            count = min(at_once, gradient_steps - first)
            size = batches.prepare()
            n_shares = self._share_count(size)
            if (size, n_shares) != (self.batch_size, len(self._shares)):
                self._make_memory(size, n_shares)
            if len(self._rows) < count:
                self._rows = np.zeros((count, size, self.columns.width), np.float32)
            for number in range(count):
                batches.write(first + number, self._rows[number])
            noise = self._smoothing_noise(count, settings)
            with self.one_blas_thread:
                turns = self._updates(self._rows[:count], noise, numbers, n_updates + first, settings.policy_delay)
            self.updates += count
            self.actor_updates += turns
        self.critic_adam.advance(self.updates)
        if self.actor_updates:
            self.actor_adam.advance(self.actor_updates)
        if settings.max_grad_norm is not None:
            self.critic_adam.grad_norm, self.actor_adam.grad_norm = th.from_numpy(self._last[2:]).unbind()

    def _updates(
        self, batches: np.ndarray, noise: np.ndarray, numbers: tuple[float, ...], n_updates: int, policy_delay: int
    ) -> int:
        """Updates on these batches; how many were the actor's turn as well."""
        # A new one each time: threads that come too late for one that was abandoned shall not find another's.
        gate = np.zeros(1, np.int64) if len(self._shares) > 1 else self._no_gate
        common = (
            gate,
            self._sums,
            batches,
            noise,
            (self.columns.observation_dim, self.columns.action_dim),
            self._parameters,
            self._moments,
            self._grads,
            self._other_grads,
            (self.actor_adam.steps[0] + self.actor_updates, self.critic_adam.steps[0] + self.updates),
            (self.actor_adam.settings, self.critic_adam.settings),
            self.critic_adam.decoupled_decay,
            self._shape,
            numbers,
            n_updates,
            policy_delay,
            self._critic_losses[self.updates :],
            self._actor_losses[self.actor_updates :],
            self._last,
        )
        kernels = self._kernels
        if len(self._shares) == 1:
            return kernels.updates(0, *common, *self._shares[0])

        def abandon() -> None:
            gate[0] = kernels.ABANDONED

        return together(lambda number: kernels.updates(number, *common, *self._shares[number]), len(self._shares), abandon)[0]

    def _smoothing_noise(self, count: int, settings: UpdateSettings) -> np.ndarray:
        if settings.target_policy_noise == 0:
            return self._no_noise
        shape = (self.batch_size, self.columns.action_dim)
        # Drawn one update after another, as the reference draws them.
        return th.stack([th.empty(shape).normal_(0, settings.target_policy_noise) for _ in range(count)]).numpy()

    def critic_losses(self) -> list[float]:
        """See :meth:`HandWrittenUpdater.critic_losses`."""
        return self._critic_losses[: self.updates].tolist()

    def actor_losses(self) -> list[float]:
        """See :meth:`HandWrittenUpdater.actor_losses`."""
        return self._actor_losses[: self.actor_updates].tolist()

    def q_means(self) -> tuple[float, float]:
        """See :meth:`HandWrittenUpdater.q_means`."""
        return float(self._last[0]), float(self._last[1])
