"""Replay: transitions as packed rows of float32, so that a batch is one gather."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.observations import flat_dim, why_not_packable

_ONGOING, _TERMINATED, _TRUNCATED = 0, 1, 2


class BatchColumns(NamedTuple):
    """
    The layout of a batch row: ``observation | action | reward | continuation | next observation | next action``.

    The critic's inputs are adjacent; the updater fills the next action. The continuation is the factor of the next
    Q-value: 0 after a termination, else 1, or gamma^k in a k-step return.
    """

    observation_dim: int
    action_dim: int

    @property
    def critic_input(self) -> slice:
        return slice(0, self.observation_dim + self.action_dim)

    @property
    def observation(self) -> slice:
        return slice(0, self.observation_dim)

    @property
    def action(self) -> slice:
        return slice(self.observation_dim, self.observation_dim + self.action_dim)

    @property
    def reward(self) -> int:
        """The reward, or the discounted n-step sum of rewards."""
        return self.observation_dim + self.action_dim

    @property
    def continuation(self) -> int:
        return self.observation_dim + self.action_dim + 1

    @property
    def next_observation(self) -> slice:
        return slice(self.continuation + 1, self.width)

    @property
    def width(self) -> int:
        """Number of columns, without the next action."""
        return 2 * self.observation_dim + self.action_dim + 2


def as_stored(values: Any, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Values as SB3's buffers take them: as by assignment to an array of this shape and dtype, with broadcasting."""
    if type(values) is np.ndarray and values.shape == shape and values.dtype == dtype:
        return values
    stored = np.empty(shape, dtype)
    stored[...] = np.asarray(values)
    return stored


def read_only(copy: np.ndarray) -> np.ndarray:
    """A copy that refuses to be written to, since that would not change the buffer."""
    copy.flags.writeable = False
    return copy


class PackedReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer with every transition as one row of float32, regardless of the environment's dtype.

    Takes the arguments of SB3's ``ReplayBuffer``, and with the same seed samples the same transitions. ``observations``,
    ``actions``, ``rewards``, ``dones``, ``timeouts`` and ``next_observations`` have the same shape as SB3's.

    With ``optimize_memory_usage`` each observation is stored once: the next observation of a transition is the observation
    of the following one. Where an episode was truncated, its last observation is stored separately, so that these
    transitions still bootstrap correctly; SB3's buffer rejects ``handle_timeout_termination`` in this mode.

    :raises ArgumentError: for an observation space that is not packable
    """

    # Whether the continuation includes gamma^k; otherwise the algorithm's gamma is applied later.
    continuation_is_discounted = False
    # Whether ``dones`` may be written to, which changes nothing: while SB3 starts a ``learn``.
    dones_writeable = False
    _space_types: tuple[type[spaces.Space[Any]], ...] = (spaces.Box, spaces.MultiBinary)
    _samples_type: type[ReplayBufferSamples | DictReplayBufferSamples] = ReplayBufferSamples
    # Arrays with one entry per transition.
    _row_arrays: tuple[str, ...] = ("rows", "_ends", "_aside")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self._check_space()
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.columns = BatchColumns(flat_dim(observation_space), self.action_dim)
        # Without the next observation a row ends after the continuation.
        self._row_width = self.columns.continuation + 1 if optimize_memory_usage else self.columns.width
        self._allocate()

    def _check_space(self) -> None:
        reason = why_not_packable(self.observation_space)
        if reason is not None or not isinstance(self.observation_space, self._space_types):
            allowed = "a " + " or ".join(kind.__name__ for kind in self._space_types)
            advice = "" if reason is None else f"{reason[:1].upper()}{reason[1:]}."
            raise ArgumentError("observation_space", self.observation_space, f"{allowed} that fits into packed rows", advice)

    @property
    def nbytes(self) -> int:
        """Bytes of the full buffer, without separately stored last observations."""
        per_row = 4 * self._row_width + 1 + (4 if self.optimize_memory_usage else 0)
        return per_row * self.buffer_size * self.n_envs

    def _allocate(self) -> None:
        self._warn_if_too_large()
        # The system provides zeroed memory only once it is written to.
        self.rows = np.zeros((self.buffer_size * self.n_envs, self._row_width), np.float32)
        self._share_rows()
        self._forget_ends()

    def _warn_if_too_large(self) -> None:
        available = psutil.virtual_memory().available
        if self.nbytes > available:
            advice = "" if self.optimize_memory_usage else ", or optimize_memory_usage=True to store each observation once"
            warnings.warn(
                "This system does not have apparently enough memory to store the complete replay buffer "
                f"{self.nbytes / 1e9:.2f}GB > {available / 1e9:.2f}GB: choose a smaller buffer_size{advice}.",
                stacklevel=2,
            )

    def _forget_ends(self) -> None:
        total = self.buffer_size * self.n_envs
        self._ends = np.zeros(total, np.uint8)
        # For rows whose next observation is not their successor's observation: its index in _last_observations, plus one.
        self._aside = np.zeros(total if self.optimize_memory_usage else 0, np.int32)
        self._last_observations = np.zeros((0, self.columns.observation_dim), np.float32)
        self._free_places: list[int] = []

    def beside_rows(self) -> dict[str, Any]:
        """The data of the transitions besides the arrays with one entry each."""
        return {"_last_observations": self._last_observations, "_free_places": self._free_places}

    def set_beside_rows(self, state: dict[str, Any]) -> None:
        self._last_observations, self._free_places = state["_last_observations"], state["_free_places"]

    def reset(self) -> None:
        super().reset()
        self._forget_ends()

    def _share_rows(self) -> None:
        # The continuation of transitions within an episode.
        self._ones = np.ones((self.n_envs, 1), np.float32)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_ones"]
        if not self.full:
            # Rows never written are not saved; one more row holds the newest observation with optimize_memory_usage.
            written = min((self.pos + 1) * self.n_envs, len(self.rows))
            for name in self._row_arrays:
                state[name] = state[name][:written].copy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        total = self.buffer_size * self.n_envs
        for name in self._row_arrays:
            kept = state[name]
            if 0 < len(kept) < total:
                whole = np.zeros((total, *kept.shape[1:]), kept.dtype)
                whole[: len(kept)] = kept
                setattr(self, name, whole)
        self._share_rows()

    def _flatten(self, observations: Any) -> np.ndarray:
        return np.reshape(observations, (len(observations), -1))

    def _stored(self, observations: Any) -> np.ndarray:
        """Observations given to :meth:`add`, flat, one row for each environment."""
        shape = (self.n_envs, *self.obs_shape)
        return as_stored(observations, shape, self.observation_space.dtype).reshape(self.n_envs, -1)

    def _split(self, flat: Any) -> Any:
        """Flat observations in the shape of their space, as views; only the last axis is split."""
        return flat.reshape(*flat.shape[:-1], *self.obs_shape)

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of every environment; ``TimeLimit.truncated`` in its info marks a truncation. As in SB3, values
        without the axis of environments are those of each.
        """
        first = self.pos * self.n_envs
        here = slice(first, first + self.n_envs)
        observation, next_observation = self._stored(obs), self._stored(next_obs)
        ends = self.ends_of(done, infos)
        columns = [observation, *self._stored_columns(action, reward), self.continuations(ends)]
        if self.optimize_memory_usage:
            self._close_broken_trajectories(here, observation)
        else:
            columns.append(next_observation)
        # In the order of BatchColumns.
        np.concatenate(columns, axis=1, out=self.rows[here], casting="same_kind")
        self.move_on(ends)
        if self.optimize_memory_usage:
            self._open_next_rows(next_observation)

    def _stored_columns(self, action: Any, reward: Any) -> tuple[np.ndarray, np.ndarray]:
        actions = np.reshape(action, (self.n_envs, self.action_dim))
        return as_stored(actions, actions.shape, np.float32), as_stored(reward, (self.n_envs,), np.float32)[:, None]

    def ends_of(self, done: Any, infos: list[dict[str, Any]]) -> np.ndarray | None:
        """How episodes end with these transitions, uint8 ``(n_envs,)``; ``None`` if none does."""
        truncated = [bool(info.get("TimeLimit.truncated")) for info in infos] if self.handle_timeout_termination else []
        if not np.count_nonzero(done) and True not in truncated:
            return None
        ends = np.full(self.n_envs, _ONGOING, np.uint8)
        ends[as_stored(done, ends.shape, bool)] = _TERMINATED
        # Also where SB3's n-step returns stop without a done.
        ends[as_stored(truncated or False, ends.shape, bool)] = _TRUNCATED
        return ends

    def continuations(self, ends: np.ndarray | None) -> np.ndarray:
        """The factors for such ends, float32 ``(n_envs, 1)``."""
        return self._ones if ends is None else (ends != _TERMINATED).astype(np.float32)[:, None]

    def move_on(self, ends: np.ndarray | None) -> None:
        """Count the rows just written at ``pos`` as stored."""
        first = self.pos * self.n_envs
        self._ends[first : first + self.n_envs] = _ONGOING if ends is None else ends
        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0

    def truncate_last_trajectory(self) -> None:
        """
        Truncate the current trajectories before the environments are reset: n-step returns stop there. The last transitions
        still bootstrap, or are terminations, as in SB3, with ``optimize_memory_usage`` but no ``handle_timeout_termination``.
        """
        if not self.full and self.pos == 0:
            return
        first = ((self.pos - 1) % self.buffer_size) * self.n_envs
        ongoing = first + np.flatnonzero(self._ends[first : first + self.n_envs] == _ONGOING)
        bootstraps = self.handle_timeout_termination or not self.optimize_memory_usage
        self._ends[ongoing] = _TRUNCATED if bootstraps else _TERMINATED
        if not bootstraps:
            self.rows[ongoing, self.columns.continuation] = 0.0

    def _open_next_rows(self, next_observation: np.ndarray) -> None:
        """Write the next observations where the following transitions will store theirs."""
        first = self.pos * self.n_envs
        here = slice(first, first + self.n_envs)
        for place in self._aside[here]:
            if place:
                self._free_places.append(int(place) - 1)
        self._aside[here] = 0
        self.rows[here, self.columns.observation] = next_observation

    def _close_broken_trajectories(self, here: slice, observation: np.ndarray) -> None:
        """Store a next observation separately if the new transition does not start at it."""
        if not self.full and self.pos == 0:
            return
        expected = self.rows[here, self.columns.observation]
        broken = np.flatnonzero((expected != observation.astype(np.float32)).any(axis=1))
        before = ((self.pos - 1) % self.buffer_size) * self.n_envs
        for index in broken:
            if self._ends[before + index] == _TERMINATED:
                continue
            # An abandoned trajectory counts as truncated.
            self._ends[before + index] = _TRUNCATED
            if not self._free_places:
                self._grow_aside()
            place = self._free_places.pop()
            self._last_observations[place] = expected[index]
            self._aside[before + index] = place + 1

    def _grow_aside(self) -> None:
        old = len(self._last_observations)
        grown = np.zeros((max(2 * old, 64), self.columns.observation_dim), np.float32)
        grown[:old] = self._last_observations
        self._last_observations = grown
        self._free_places = list(range(len(grown) - 1, old - 1, -1))

    def draw(self, batch_size: int, n_batches: int = 1) -> np.ndarray:
        """Indices of rows, shape ``(n_batches, batch_size)``, as SB3's buffer would sample them one batch after another."""
        first, end = self.drawn_steps()
        if self.n_envs == 1:
            # SB3 draws an environment as well, but a choice of one consumes nothing from the generator.
            steps = np.random.randint(0, end - first, size=n_batches * batch_size).reshape(n_batches, batch_size)
            return (steps + first) % self.buffer_size if first else steps
        lengths = np.array([[end - first], [self.n_envs]])
        drawn = np.random.randint(0, lengths, size=(n_batches, 2, batch_size))
        return (drawn[:, 0] + first) % self.buffer_size * self.n_envs + drawn[:, 1]

    def drawn_steps(self, stored: int = 0) -> tuple[int, int]:
        """
        The first and the end of the steps among which is drawn, once so many more are stored. Beyond the buffer's end they
        continue at its beginning.
        """
        pos = self.pos + stored
        if not (self.full or pos >= self.buffer_size):
            return 0, pos
        # SB3's memory-saving buffer never samples the row whose observation was just overwritten.
        return (pos + 1, pos + self.buffer_size) if self.optimize_memory_usage else (0, self.buffer_size)

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        """Write rows, normalized by ``env``, into float32 on the CPU of shape ``(batch, columns.width)``."""
        batch = np.asarray(out)
        # Indices are within bounds: "clip" avoids a copy.
        np.take(self.rows, indices, axis=0, out=batch[:, : self._row_width], mode="clip")
        if self.optimize_memory_usage:
            batch[:, self.columns.next_observation] = self._following_observations(indices)
        if env is not None:
            self._normalize(batch, env)

    def _following_observations(self, indices: np.ndarray) -> np.ndarray:
        following = (indices + self.n_envs) % len(self.rows)
        # Take whole rows, then columns: gathering from a slice of columns would copy the whole buffer first.
        next_observation = np.take(self.rows, following, axis=0)[:, self.columns.observation]
        places = self._aside[indices]
        separate = np.flatnonzero(places)
        next_observation[separate] = self._last_observations[places[separate] - 1]
        return next_observation

    def _normalize(self, batch: np.ndarray, env: VecNormalize) -> None:
        for where in (self.columns.observation, self.columns.next_observation):
            batch[:, where] = self._flatten(env.normalize_obs(self._split(batch[:, where])))
        batch[:, self.columns.reward] = self._normalize_reward(batch[:, self.columns.reward], env)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        if self.replaces_get_samples():
            return super().sample(batch_size, env)
        return self._samples(self.draw(batch_size)[0], env)

    def replaces_get_samples(self) -> bool:
        """Whether ``_get_samples``, through which SB3's buffer samples, is a subclass's or was patched."""
        return "_get_samples" in vars(self) or type(self)._get_samples.__module__.partition(".")[0] != __package__

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        return self._samples(batch_inds * self.n_envs + env_indices, env)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> Any:
        batch = th.empty((len(indices), self.columns.width))
        self.gather(indices, batch, env)
        batch = batch.to(self.device)
        columns = self.columns
        return self._samples_type(
            observations=self._split(batch[:, columns.observation]),
            actions=batch[:, columns.action],
            next_observations=self._split(batch[:, columns.next_observation]),
            dones=1 - batch[:, columns.continuation, None],
            rewards=batch[:, columns.reward, None],
        )

    def _column(self, where: slice | int, *shape: int) -> np.ndarray:
        return self.rows[:, where].reshape(self.buffer_size, self.n_envs, *shape)

    @property
    def observations(self) -> Any:  # type: ignore[override]
        return self._split(self._column(self.columns.observation, -1))

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        return self._column(self.columns.action, self.action_dim)

    @property
    def rewards(self) -> np.ndarray:  # type: ignore[override]
        return self._column(self.columns.reward)

    @property
    def next_observations(self) -> Any:  # type: ignore[override]
        """A view, or a read-only copy with ``optimize_memory_usage``."""
        if not self.optimize_memory_usage:
            return self._split(self._column(self.columns.next_observation, -1))
        flat = read_only(self._following_observations(np.arange(len(self.rows))))
        return self._split(flat.reshape(self.buffer_size, self.n_envs, -1))

    @property
    def dones(self) -> np.ndarray:  # type: ignore[override]
        """Where an episode terminated or was truncated: a read-only copy."""
        dones = (self._ends != _ONGOING).astype(np.float32).reshape(self.buffer_size, self.n_envs)
        return dones if self.dones_writeable else read_only(dones)

    @property
    def timeouts(self) -> np.ndarray:  # type: ignore[override]
        """Where an episode was truncated: a read-only copy."""
        return read_only((self._ends == _TRUNCATED).astype(np.float32).reshape(self.buffer_size, self.n_envs))


def last_of(window: np.ndarray, length: np.ndarray) -> np.ndarray:
    """The last row that each n-step return uses."""
    return window[np.arange(len(window)), length - 1]


def discounts(gamma: float, steps: np.ndarray) -> np.ndarray:
    return gamma ** steps.astype(np.float32)


def n_step_rewards(rewards: np.ndarray, length: np.ndarray, gamma: float) -> np.ndarray:
    """``sum_(j<k) gamma^j r_j`` with the ``length`` k of each row of rewards."""
    steps = np.arange(rewards.shape[1])
    return (rewards * discounts(gamma, steps) * (steps < length[:, None])).sum(axis=1)


def n_step_samples(samples: Any, buffer: Any, window: np.ndarray, length: np.ndarray) -> Any:
    """Samples with the ``dones`` and ``discounts`` of their n-step returns."""
    terminated = buffer._ends[last_of(window, length)] == _TERMINATED
    columns = (terminated, discounts(buffer.gamma, length))
    dones, powers = (buffer.to_torch(column.astype(np.float32)[:, None]) for column in columns)
    return samples._replace(dones=dones, discounts=powers)


class PackedNStepReplayBuffer(PackedReplayBuffer, NStepReplayBuffer):
    """
    :class:`PackedReplayBuffer` with n-step returns, those of SB3's ``NStepReplayBuffer``.

    ``R = sum_(j<k) gamma^j r_(t+j)``, where k is n, or less if the episode ends or the newest transition comes first; the
    next observation is the one after the k-th transition, and gamma^k multiplies the next Q-value.
    """

    continuation_is_discounted = True

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        PackedReplayBuffer.__init__(self, *args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _window(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Rows that each return may use, shape ``(batch, n_steps)``, and how many it does use, shape ``(batch,)``."""
        window = (indices[:, None] + self.n_envs * np.arange(self.n_steps)) % len(self.rows)
        newest = (self.pos - 1) % self.buffer_size
        stops = (self._ends[window] != _ONGOING) | (window // self.n_envs == newest)
        return window, np.where(stops.any(axis=1), stops.argmax(axis=1), self.n_steps - 1) + 1

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        """See :meth:`PackedReplayBuffer.gather`; the continuation holds ``gamma^k``."""
        batch, columns = np.asarray(out), self.columns
        window, length = self._window(indices)
        super().gather(last_of(window, length), batch)
        batch[:, columns.critic_input] = self.rows[indices, columns.critic_input]
        batch[:, columns.continuation] *= discounts(self.gamma, length)
        if env is not None:
            self._normalize(batch, env)
        rewards = self._normalize_reward(self.rows[window, columns.reward], env)
        batch[:, columns.reward] = n_step_rewards(rewards, length, self.gamma)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> Any:
        return n_step_samples(super()._samples(indices, env), self, *self._window(indices))
