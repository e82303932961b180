"""Batches drawn and gathered in compiled code: the same transitions as by ``np.random.randint``, from the same generator."""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from sb3_ddpg_scratch.batches import samples_packed_rows
from sb3_ddpg_scratch.replay import PackedReplayBuffer


@intrinsic
def _next_uint32(_, function, state):
    def code(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], pointer)])

    return types.uint32(function, state), code


@njit(cache=True)
def _draw(function, state, below, out):
    """What ``np.random.randint(0, below, size=len(out))`` draws: random bits under a mask, until they are small enough."""
    largest = below - 1
    mask = largest
    for shift in (1, 2, 4, 8, 16):
        mask |= mask >> shift
    for i in range(len(out)):
        out[i] = _next_uint32(function, state) & mask if largest > 0 else 0
        while out[i] > largest:
            out[i] = _next_uint32(function, state) & mask


# Python's lock stays held: NumPy's generator belongs to all threads.
@njit(cache=True)
def _sample(rows, function, state, steps, n_envs, batches):
    index, env = np.empty(batches.shape[1], np.int64), np.empty(batches.shape[1], np.int64)
    for batch in batches:
        _draw(function, state, steps, index)
        _draw(function, state, n_envs, env)
        for i in range(len(batch)):
            row = rows[index[i] * n_envs + env[i]]
            for j in range(len(row)):
                batch[i, j] = row[j]


class RowSampler:
    """Draws batches of a :class:`PackedReplayBuffer` from NumPy's global generator."""

    def __init__(self) -> None:
        self._generator: Any = None

    def supports(self, buffer: PackedReplayBuffer) -> bool:
        """Whether the rows of a buffer are its transitions, and there is one to draw."""
        return not buffer.optimize_memory_usage and (buffer.full or buffer.pos > 0) and samples_packed_rows(buffer)

    def __call__(self, buffer: PackedReplayBuffer, batches: np.ndarray) -> None:
        """
        Draw and write batches, one after another.

        :param buffer: one that is supported
        :param batches: float32, shape ``(n_batches, batch_size, width)``
        """
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator:
            self._generator = generator
            interface = generator.ctypes
            self._state = interface.state_address
            self._function = int(ctypes.cast(interface.next_uint32, ctypes.c_void_p).value or 0)
        with generator.lock:
            _sample(buffer.rows, self._function, self._state, buffer.size(), buffer.n_envs, batches)
