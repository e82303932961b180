"""Batches drawn and gathered in compiled code: the same transitions as by ``np.random.randint``, from the same generator."""

import ctypes
import math
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.batches import samples_packed_rows
from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.observation_statistics import EPSILON, ObservationStatistics
from sb3_ddpg_scratch.observations import flat_dim, flat_slices
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from sb3_ddpg_scratch.updates.operations import inlined, internal


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
    """
    A replay buffer: its rows, how episodes end with them (uint8; 0 where none does), and the terms of an n-step return. Where
    rows have no next observation, it is that of the following row, unless ``aside`` has its place in ``lasts``, plus one.
    Without normalization, ``normal`` is of no entries; see :class:`Normalization`.
    """

    rows: np.ndarray
    ends: np.ndarray
    aside: np.ndarray
    lasts: np.ndarray
    normal: np.ndarray
    n_envs: int
    newest: int
    n_steps: int
    gamma: float
    observation: int
    reward: int


# Rounds as NumPy does: fast arithmetic would multiply by the inverse.
@internal(fastmath=False)
def clipped_quotient(x, mean, std, limit):
    """``(x - mean) / std``, within the limit."""
    return np.float32(min(max((np.float64(x) - mean) / std, -limit), limit))


@internal()
def reward_of(replay, row):
    """The reward of a row, normalized."""
    reward, n = replay.rows[row, replay.reward], 3 * replay.observation
    return clipped_quotient(reward, 0.0, replay.normal[n], replay.normal[n + 1]) if len(replay.normal) > 0 else reward


@internal()
def write_observation(replay, observation, out):
    """Write an observation, normalized."""
    n = replay.observation
    for j in range(n):
        out[j] = observation[j]
    if len(replay.normal) > 0:
        for j in range(n):
            out[j] = clipped_quotient(out[j], replay.normal[j], replay.normal[n + j], replay.normal[2 * n + j])


@inlined()
def write_next_observation(replay, row, out):
    """Write the next observation of a row, normalized."""
    if len(replay.aside) == 0:
        write_observation(replay, replay.rows[row, replay.reward + 2 :], out)
    elif 0 < replay.aside[row] <= len(replay.lasts):
        write_observation(replay, replay.lasts[replay.aside[row] - 1], out)
    else:
        write_observation(replay, replay.rows[(row + replay.n_envs) % len(replay.rows)], out)


@inlined()
def write_transition(replay, row, out):
    """
    Write the transition of a row, or that of its n-step return: ``sum_(j<k) gamma^j r_j`` as the reward, ``gamma^k`` times the
    continuation and the next observation of the k-th transition. An episode's end or the newest transitions stop it before
    the n-th.
    """
    reward = replay.reward
    write_observation(replay, replay.rows[row], out)
    for j in range(replay.observation, reward):
        out[j] = replay.rows[row, j]
    last, total, factor = row, reward_of(replay, row), np.float32(replay.gamma if replay.n_steps > 1 else 1)
    for _ in range(1, replay.n_steps):
        if replay.ends[last] != 0 or last // replay.n_envs == replay.newest:
            break
        last = (last + replay.n_envs) % len(replay.rows)
        total += factor * reward_of(replay, last)
        factor *= np.float32(replay.gamma)
    out[reward], out[reward + 1] = total, factor * replay.rows[last, reward + 1]
    write_next_observation(replay, last, out[reward + 2 :])


@inlined()
def sample_rows(replay, function, state, steps, first, batch):
    """Draw the transitions of a batch among those of so many steps of all environments from ``first`` on, and write them."""
    index, env = np.empty(len(batch), np.int64), np.empty(len(batch), np.int64)
    draw(function, state, steps, index)
    draw(function, state, replay.n_envs, env)
    plain = replay.n_steps == 1 and len(replay.normal) == 0 and len(replay.aside) == 0
    for i in range(len(batch)):
        row = (index[i] + first) * replay.n_envs % len(replay.rows) + env[i]
        if plain:
            for j in range(batch.shape[1]):
                batch[i, j] = replay.rows[row, j]
        else:
            write_transition(replay, row, batch[i])


class Normalization:
    """
    What a ``VecNormalize`` or a policy normalizes with at present, float64: means, standard deviations and limits of the
    entries of a flat observation, then the standard deviation and limit of rewards.
    """

    def __init__(self, space: spaces.Space[Any]) -> None:
        self._n = n = flat_dim(space)
        self._slices = flat_slices(space) if isinstance(space, spaces.Dict) else {"": slice(None)}
        self._table = np.zeros(3 * n + 2)
        self._mean, self._std, self._limit = (self._table[n * row : n * (row + 1)] for row in range(3))

    def read(self, env: Any, policys: ObservationStatistics | None = None) -> np.ndarray | None:
        """The numbers of ``env``, or of the policy's statistics for observations; ``None`` if nothing is normalized."""
        if policys is None and (env is None or not (env.norm_obs or env.norm_reward)):
            return None
        rewards, scales = self._table[3 * self._n :], env is not None and env.norm_reward
        rewards[:] = (math.sqrt(env.ret_rms.var + env.epsilon), env.clip_reward) if scales else (1.0, np.inf)
        parts: list[tuple[slice, Any, Any, float, float]] = []
        if policys is not None:
            mean, var = policys.mean.numpy(force=True), policys.var.numpy(force=True)
            for key, where in policys.slices.items():
                parts.append((self._slices[key], mean[where], var[where], EPSILON, policys.clip))
        elif env.norm_obs:
            for key in env.norm_obs_keys or ("",):
                statistics = env.obs_rms[key] if key else env.obs_rms
                parts.append((self._slices[key], statistics.mean, statistics.var, env.epsilon, env.clip_obs))
        if len(parts) < len(self._slices):
            self._mean[:], self._std[:], self._limit[:] = 0.0, 1.0, np.inf
        for where, mean, var, epsilon, clip in parts:
            self._mean[where] = mean.ravel()
            np.sqrt((var + epsilon).ravel(), out=self._std[where])
            self._limit[where] = clip
        return self._table

    def apply(self, observations: np.ndarray) -> None:
        """Normalize flat observations, float32 ``(n, size)``, by the numbers read last."""
        observations[:] = np.clip((observations - self._mean) / self._std, -self._limit, self._limit)


_BUFFERS = (PackedReplayBuffer, PackedNStepReplayBuffer, PackedDictReplayBuffer)


def _normalizing_methods(env: Any) -> tuple[Any, ...]:
    own = env.normalize_obs, env.normalize_reward, env._normalize_obs
    return tuple(getattr(method, "__func__", method) for method in own)


_NORMALIZING_METHODS = _normalizing_methods(VecNormalize)


class RowSampler:
    """
    What :func:`sample_rows` needs to draw from NumPy's global generator: where the generator has its state and the function
    that draws 32 bits.
    """

    def __init__(self) -> None:
        self._generator: Any = None
        self._frame: Any = None
        self._lock: Any = None

    def supports(self, buffer: ReplayBuffer, env: VecNormalize | None) -> bool:
        """Whether batches are rows of this buffer, normalized by SB3's own ``VecNormalize`` if at all."""
        return (
            type(buffer) in _BUFFERS
            # SB3 does not draw the row being overwritten, and so none from a memory-saving buffer of one row.
            and buffer.size() > (1 if buffer.optimize_memory_usage and buffer.full else 0)
            and samples_packed_rows(buffer)
            and (env is None or (type(env) is VecNormalize and _normalizing_methods(env) == _NORMALIZING_METHODS))
        )

    def place_generator(self, frame: Any) -> Any:
        """Place both addresses in a frame; returns the generator's lock, which whoever draws from it holds."""
        generator = np.random.get_bit_generator()  # type: ignore[attr-defined]
        if generator is not self._generator or frame is not self._frame:
            interface, kernels = generator.ctypes, frame.kernels
            self._generator, self._frame, self._lock = generator, frame, generator.lock
            frame.table[kernels.GENERATOR] = interface.state_address
            frame.table[kernels.NEXT_UINT32] = int(ctypes.cast(interface.next_uint32, ctypes.c_void_p).value or 0)
        return self._lock
