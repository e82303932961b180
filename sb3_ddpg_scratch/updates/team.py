"""
Threads that share an update: each computes the gradients for some rows of a batch, and then moves some of the parameters.

All of them stay in compiled code for a series of updates and wait for one another there. Handing every part to them from
Python would take a tenth of an update, and splitting every single product among threads more than it saves (see the
documentation's benchmarks).
"""

import ctypes
from functools import cache, partial

import numpy as np
import torch as th

from sb3_ddpg_scratch.machine import usable_cores
from sb3_ddpg_scratch.updates.interface import Networks
from sb3_ddpg_scratch.updates.kernel_memory import Frame, address_of, layer_table
from sb3_ddpg_scratch.updates.thread_pool import MOST_TASKS, run_together

# Minimum rows per share of a batch, and multiplications per share of an update: below, waiting costs too much.
ROWS_OF_A_SHARE = 32
MULTIPLICATIONS_OF_A_SHARE = 4_000_000


def thread_limit() -> int:
    """The number of threads that may be used."""
    return min(th.get_num_threads(), usable_cores(), MOST_TASKS)


@cache
def _yielding() -> int:
    """The address of the system's function by which a thread lets another run, or 0."""
    windows = getattr(ctypes, "windll", None)
    function = ctypes.CDLL(None).sched_yield if windows is None else windows.kernel32.SwitchToThread
    return ctypes.cast(function, ctypes.c_void_p).value or 0


class Team:
    """So many threads, for updates of these networks with batches of this size; ``table`` has their parameters."""

    def __init__(self, frame: Frame, networks: Networks, table: np.ndarray, batch_size: int, limit: int) -> None:
        self._frame, self._parameters, kernels = frame, table, frame.kernels
        n_values = int(table[:, kernels.SIZE].sum())
        count = self.count_for(batch_size, n_values, limit)
        self._ends = [batch_size * number // count for number in range(count + 1)]
        self._other_grads = np.zeros((count - 1, n_values), np.float32)
        self._meeting = np.zeros(kernels.SQUARED + count, np.int64)
        self._layers = [self._layers_of(networks, number) for number in range(count)]
        frame.place(kernels.OTHER_GRADS, self._other_grads, (count - 1, n_values))
        frame.place(kernels.MEETING, self._meeting, (kernels.SQUARED + count,), np.int64)
        frame.table[kernels.END_ROW], frame.table[kernels.OTHER_THREADS] = self._ends[1], count - 1
        frame.table[kernels.N_GRADS], frame.table[kernels.YIELD] = n_values, _yielding()

    @staticmethod
    def count_for(batch_size: int, n_values: int, limit: int) -> int:
        """The number of threads, up to a limit, that are worth their waiting for one another."""
        multiplications = batch_size * 2 * n_values
        return max(1, min(limit, batch_size // ROWS_OF_A_SHARE, multiplications // MULTIPLICATIONS_OF_A_SHARE))

    def __len__(self) -> int:
        return len(self._layers)

    def _layers_of(self, networks: Networks, number: int) -> np.ndarray:
        """A table of all networks' layers, in which every thread but the first has its own gradients."""
        kernels, grads = self._frame.kernels, self._parameters[:, self._frame.kernels.GRAD]
        if number > 0:
            own = self._other_grads[number - 1]
            grads = address_of(own, own.shape) + 4 * self._parameters[:, kernels.OFFSET]
        of_actor, of_critics = np.split(grads, [len(list(networks.actor.parameters()))])
        q_networks, target_q_networks = networks.critic.q_networks, networks.critic_target.q_networks
        table_of = partial(layer_table, kernels)
        tables = [
            table_of(networks.actor_target.mu),
            *map(table_of, target_q_networks),
            table_of(networks.actor.mu, of_actor),
            *map(table_of, q_networks, np.split(of_critics, len(q_networks))),
        ]
        return np.concatenate(tables)

    def advance(self, numbers: np.ndarray, results: np.ndarray) -> None:
        """The kernel of this name: all that the frame requests in this thread, with the updates shared by the others."""
        kernels, table = self._frame.kernels, self._frame.table
        if len(self) == 1 or table[kernels.UPDATES] == 0:
            kernels.advance(numbers, self._layers[0], self._parameters, table, results)
            return
        tables = np.tile(table, (len(self), 1))
        tables[:, [kernels.STORED, kernels.DRAWN, kernels.ACTING]] = 0
        tables[:, kernels.SHARE], tables[:, kernels.FIRST_ROW] = np.arange(len(self)), self._ends[:-1]
        tables[:, kernels.END_ROW] = self._ends[1:]
        parts = np.zeros((len(self), *results.shape))
        self._meeting[:] = 0

        def call(share: int) -> None:
            own = (table, results) if share == 0 else (tables[share], parts[share])
            kernels.advance(numbers, self._layers[share], self._parameters, *own)

        run_together([partial(call, share) for share in range(len(self))], stop=self._stop)
        norms = results[:, [kernels.CRITIC_NORM, kernels.ACTOR_NORM]]
        results += parts[1:].sum(axis=0)
        # Every thread has the whole norm.
        results[:, [kernels.CRITIC_NORM, kernels.ACTOR_NORM]] = norms

    def _stop(self) -> None:
        self._meeting[self._frame.kernels.STOP] = 1
