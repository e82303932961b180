"""Batches drawn and gathered in compiled code: the same transitions as by ``np.random.randint``, from the same generator."""

import ctypes
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_ddpg_scratch.batches import samples_packed_rows
from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.updates.operations import inlined


@intrinsic
def _next_uint32(_, function, state):
    def code(context, builder, signature, args):
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.IntType(32), [pointer])
        return builder.call(builder.inttoptr(args[0], kind.as_pointer()), [builder.inttoptr(args[1], pointer)])

    return types.uint32(function, state), code


@inlined()
def draw(function, state, below, out):
    """What ``np.random.randint(0, below, size=len(out))`` draws: random bits under a mask, until they are small enough."""
    largest = below - 1
    mask = largest
    for shift in (1, 2, 4, 8, 16):
        mask |= mask >> shift
    for i in range(len(out)):
        out[i] = _next_uint32(function, state) & mask if largest > 0 else 0
        while out[i] > largest:
            out[i] = _next_uint32(function, state) & mask


@inlined()
def sample_rows(rows, function, state, steps, n_envs, batch):
    """Draw the rows of a batch among those of so many steps of all environments, and write them."""
    index, env = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
    draw(function, state, steps, index)
    draw(function, state, n_envs, env)
    for i in range(len(batch)):
        row = rows[index[i] * n_envs + env[i]]
        for j in range(len(row)):
            batch[i, j] = row[j]


class RowSampler:
    """
    What :func:`sample_rows` needs to draw from NumPy's global generator: where the generator has its state and the function
    that draws 32 bits.
    """

    def __init__(self) -> None:
        self._generator: Any = None
        self.next_uint32 = self.state = 0

    def supports(self, buffer: ReplayBuffer) -> bool:
        """Whether the rows of a buffer are its transitions, and there is one to draw."""
        packed = type(buffer) is PackedReplayBuffer and not buffer.optimize_memory_usage
        return packed and buffer.size() > 0 and samples_packed_rows(buffer)

    def find_generator(self) -> Any:
        """Set both addresses; returns the generator's lock, which whoever draws from it holds."""
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator:
            self._generator = generator
            interface = generator.ctypes
            self.state = interface.state_address
            self.next_uint32 = int(ctypes.cast(interface.next_uint32, ctypes.c_void_p).value or 0)
        return generator.lock
