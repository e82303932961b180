"""Batches drawn and gathered in compiled code: the same transitions as by ``np.random.randint``, from the same generator."""

import ctypes
from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_ddpg_scratch.batches import samples_packed_rows
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
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


class Replay(NamedTuple):
    """The rows of a buffer, how episodes end with them (uint8; 0 where none does), and the terms of an n-step return."""

    rows: np.ndarray
    ends: np.ndarray
    n_envs: int
    newest: int
    n_steps: int
    gamma: float


@inlined()
def extend_return(replay, row, transition, reward):
    """
    Make the transition of a row that of an n-step return: ``sum_(j<k) gamma^j r_j`` in column ``reward``, followed by
    ``gamma^k`` times the continuation and the next observation of the k-th transition. An episode's end or the newest
    transitions stop it before the n-th.
    """
    last, total, factor = row, transition[reward], np.float32(replay.gamma)
    for _ in range(1, replay.n_steps):
        if replay.ends[last] != 0 or last // replay.n_envs == replay.newest:
            break
        last = (last + replay.n_envs) % len(replay.rows)
        total += factor * replay.rows[last, reward]
        factor *= np.float32(replay.gamma)
    transition[reward] = total
    transition[reward + 1] = factor * replay.rows[last, reward + 1]
    for j in range(reward + 2, len(transition)):
        transition[j] = replay.rows[last, j]


@inlined()
def sample_rows(replay, function, state, steps, batch, reward):
    """Draw the rows of a batch among those of so many steps of all environments, and write them."""
    index, env = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
    draw(function, state, steps, index)
    draw(function, state, replay.n_envs, env)
    for i in range(len(batch)):
        row = index[i] * replay.n_envs + env[i]
        for j in range(batch.shape[1]):
            batch[i, j] = replay.rows[row, j]
        if replay.n_steps > 1:
            extend_return(replay, row, batch[i], reward)


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
        packed = type(buffer) in (PackedReplayBuffer, PackedNStepReplayBuffer) and not buffer.optimize_memory_usage
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
