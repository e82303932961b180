"""Replay: transitions as packed rows of float32, so that a batch is one gather."""

import warnings
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.errors import ArgumentError

_GOES_ON, _TERMINATED, _TRUNCATED = 0, 1, 2


class BatchColumns(NamedTuple):
    """
    Where a batch row keeps what: ``observation | action | reward | continuation | next observation | next action``.

    An observation and its action stand side by side, as the critic takes them, and so do the next two (the next
    action's columns are left to the updater). The continuation is 0 after a termination, else 1, or gamma^k in a k-step
    return.
    """

    observation_dim: int
    action_dim: int

    @property
    def critic_input(self) -> slice:
        """Observation and action."""
        return slice(0, self.observation_dim + self.action_dim)

    @property
    def observation(self) -> slice:
        """Observation."""
        return slice(0, self.observation_dim)

    @property
    def action(self) -> slice:
        """Normalised action."""
        return slice(self.observation_dim, self.observation_dim + self.action_dim)

    @property
    def reward(self) -> int:
        """Reward, or discounted n-step sum of rewards."""
        return self.observation_dim + self.action_dim

    @property
    def continuation(self) -> int:
        """Factor of the next Q-value, gamma left out in one-step returns."""
        return self.observation_dim + self.action_dim + 1

    @property
    def next_observation(self) -> slice:
        """Next observation."""
        return slice(self.continuation + 1, self.width)

    @property
    def width(self) -> int:
        """Number of columns up to the next observation's last."""
        return 2 * self.observation_dim + self.action_dim + 2


def packable(observation_space: spaces.Space) -> bool:
    """
    :param observation_space: the environment's observation space
    :return: whether packed rows suit it: a Box of floating-point numbers
    """
    return (
        isinstance(observation_space, spaces.Box)
        and np.issubdtype(observation_space.dtype, np.floating)
        and not is_image_space(observation_space)
    )


class PackedReplayBuffer(ReplayBuffer):
    """
    SB3's replay buffer with every transition as one row of float32, whatever the dtype of the environment.

    The same seed samples the same transitions as from SB3's ``ReplayBuffer``. ``observations``, ``actions``, ``rewards``,
    ``dones``, ``timeouts`` and ``next_observations`` can be read as SB3's, shape ``(buffer_size, n_envs, ...)``.

    With ``optimize_memory_usage`` each observation is stored once: the next observation of a transition is the
    observation of the following one. Where an episode broke off (time limits), its last observation is kept aside, so that
    these transitions still bootstrap correctly; SB3's buffer refuses that pair.

    :param buffer_size: capacity in transitions, of all environments together
    :param observation_space: a Box of floating-point numbers
    :param action_space: a Box
    :param device: device of the samples
    :param n_envs: number of environments
    :param optimize_memory_usage: store each observation once
    :param handle_timeout_termination: treat time limits as no end of the task; otherwise as terminations
    :raises ArgumentError: for an observation space that is not packable
    """

    # Whether the continuation holds the power of gamma already, or the algorithm's gamma is still to be applied.
    continuation_is_discounted = False

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space,
        action_space: spaces.Space,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        if not packable(observation_space):
            raise ArgumentError("observation_space", observation_space, "a Box of floating-point numbers, for packed rows")
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.optimize_memory_usage = optimize_memory_usage
        self.handle_timeout_termination = handle_timeout_termination
        self.columns = BatchColumns(int(np.prod(self.obs_shape)), self.action_dim)
        # Without the next observation a row ends after the continuation.
        self._row_width = self.columns.continuation + 1 if optimize_memory_usage else self.columns.width
        self._allocate()

    # ------------------------------------------------------------------------------------------------------- Memory

    @property
    def nbytes(self) -> int:
        """Bytes of the whole buffer once it is full (last observations kept aside not counted)."""
        per_row = 4 * self._row_width + 1 + (4 if self.optimize_memory_usage else 0)
        return per_row * self.buffer_size * self.n_envs

    def _allocate(self) -> None:
        self._warn_if_too_large()
        # Zeroed memory is only taken from the system where it is written to.
        self.rows = np.zeros((self.buffer_size * self.n_envs, self._row_width), np.float32)
        self._share_rows()
        self._forget_ends()

    def _warn_if_too_large(self) -> None:
        try:
            import psutil
        except ImportError:
            return
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
        # For rows whose next observation is not their successor's: its place in _last_observations, plus one.
        self._aside = np.zeros(total if self.optimize_memory_usage else 0, np.int32)
        self._last_observations = np.zeros((0, self.columns.observation_dim), np.float32)
        self._free_places: list[int] = []

    def reset(self) -> None:
        """Remove all transitions."""
        super().reset()
        self._forget_ends()

    def _share_rows(self) -> None:
        self._row_tensor = th.from_numpy(self.rows)
        # The continuation of transitions in the midst of an episode.
        self._going_on = np.ones((self.n_envs, 1), np.float32)

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        del state["_row_tensor"], state["_going_on"]
        if not self.full:
            # Rows never written need no place in a file; one more holds the memory-saving mode's newest observation.
            written = min((self.pos + 1) * self.n_envs, len(self.rows))
            for name in ("rows", "_ends", "_aside"):
                state[name] = state[name][:written].copy()
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        total = self.buffer_size * self.n_envs
        for name in ("rows", "_ends", "_aside"):
            kept = state[name]
            if 0 < len(kept) < total:
                whole = np.zeros((total, *kept.shape[1:]), kept.dtype)
                whole[: len(kept)] = kept
                setattr(self, name, whole)
        self._share_rows()

    # ------------------------------------------------------------------------------------------------------- Writing

    def add(
        self,
        obs: np.ndarray,
        next_obs: np.ndarray,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """
        Store one transition of every environment.

        :param obs: observations, shape ``(n_envs, *obs_shape)``
        :param next_obs: next observations, of an ended episode its last
        :param action: normalised actions, shape ``(n_envs, *action_shape)``
        :param reward: rewards, shape ``(n_envs,)``
        :param done: whether the episode ended, shape ``(n_envs,)``
        :param infos: of each environment; ``TimeLimit.truncated`` tells time limits from terminations
        """
        first = self.pos * self.n_envs
        here = slice(first, first + self.n_envs)
        rows = self.rows[here]
        observation, next_observation = obs.reshape(self.n_envs, -1), next_obs.reshape(self.n_envs, -1)
        columns = [observation, action.reshape(self.n_envs, -1), reward.reshape(self.n_envs, 1), self._going_on]
        if self.optimize_memory_usage:
            self._close_broken_trajectories(here, observation)
        else:
            columns.append(next_observation)
        # In the order of BatchColumns, in one call.
        np.concatenate(columns, axis=1, out=rows, casting="same_kind")
        self._ends[here] = _GOES_ON
        for index in np.flatnonzero(done) if done.any() else ():
            truncated = self.handle_timeout_termination and infos[index].get("TimeLimit.truncated", False)
            self._ends[first + index] = _TRUNCATED if truncated else _TERMINATED
            if not truncated:
                rows[index, self.columns.continuation] = 0.0

        self.pos += 1
        if self.pos == self.buffer_size:
            self.full = True
            self.pos = 0
        if self.optimize_memory_usage:
            self._open_next_rows(next_observation)

    def truncate_last_trajectory(self) -> None:
        """
        End the trajectories that are under way, because the environments are about to be reset: n-step returns stop there.

        The last transitions still bootstrap. With ``optimize_memory_usage`` and without ``handle_timeout_termination``
        they count as terminations, as in SB3's buffer.
        """
        if not self.full and self.pos == 0:
            return
        first = ((self.pos - 1) % self.buffer_size) * self.n_envs
        going_on = first + np.flatnonzero(self._ends[first : first + self.n_envs] == _GOES_ON)
        bootstraps = self.handle_timeout_termination or not self.optimize_memory_usage
        self._ends[going_on] = _TRUNCATED if bootstraps else _TERMINATED
        if not bootstraps:
            self.rows[going_on, self.columns.continuation] = 0.0

    def _open_next_rows(self, next_observation: np.ndarray) -> None:
        """Write the next observations where the following transitions will have theirs."""
        first = self.pos * self.n_envs
        here = slice(first, first + self.n_envs)
        for place in self._aside[here]:
            if place:
                self._free_places.append(int(place) - 1)
        self._aside[here] = 0
        self.rows[here, self.columns.observation] = next_observation

    def _close_broken_trajectories(self, here: slice, observation: np.ndarray) -> None:
        """Where a new transition does not begin at the last one's next observation, keep that one aside."""
        if not self.full and self.pos == 0:
            return
        awaited = self.rows[here, self.columns.observation]
        broken = np.flatnonzero((awaited != observation.astype(np.float32)).any(axis=1))
        before = ((self.pos - 1) % self.buffer_size) * self.n_envs
        for index in broken:
            if self._ends[before + index] == _TERMINATED:
                continue
            # A trajectory that was left in its middle breaks off like one at its time limit.
            self._ends[before + index] = _TRUNCATED
            if not self._free_places:
                self._grow_aside()
            place = self._free_places.pop()
            self._last_observations[place] = awaited[index]
            self._aside[before + index] = place + 1

    def _grow_aside(self) -> None:
        old = len(self._last_observations)
        grown = np.zeros((max(2 * old, 64), self.columns.observation_dim), np.float32)
        grown[:old] = self._last_observations
        self._last_observations = grown
        self._free_places = list(range(len(grown) - 1, old - 1, -1))

    # ------------------------------------------------------------------------------------------------------ Sampling

    def draw(self, batch_size: int, n_batches: int = 1) -> np.ndarray:
        """
        Draw the transitions of several batches in one go: those that SB3's buffer would sample one batch after another.

        :param batch_size: transitions in a batch
        :param n_batches: number of batches
        :return: row indices, int64, shape ``(n_batches, batch_size)``
        """
        stored = self.buffer_size if self.full else self.pos
        # SB3's memory-saving buffer never samples the row whose observation was just overwritten.
        newest_aside = self.optimize_memory_usage and self.full
        low, shift = (1, self.pos) if newest_aside else (0, 0)
        if self.n_envs == 1:
            # SB3 draws an environment as well, but a choice of one takes nothing from the generator.
            steps = np.random.randint(low, stored, size=n_batches * batch_size).reshape(n_batches, batch_size)
            return (steps + shift) % self.buffer_size if newest_aside else steps
        lows, highs = np.array([[low], [0]]), np.array([[stored], [self.n_envs]])
        drawn = np.random.randint(lows, highs, size=(n_batches, 2, batch_size))
        return (drawn[:, 0] + shift) % self.buffer_size * self.n_envs + drawn[:, 1]

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        """
        Write a batch's rows.

        :param indices: row indices, shape ``(batch,)``
        :param out: float32 on the CPU, shape ``(batch, columns.width)``; rows of a tensor may be further apart than that
        :param env: normalises observations and rewards
        """
        if isinstance(out, np.ndarray) and not self.optimize_memory_usage:
            # Faster than torch for rows as short as these. Indices are within bounds: "clip" spares a copy.
            np.take(self.rows, indices, axis=0, out=out, mode="clip")
            if env is not None:
                self._normalize(th.from_numpy(out), env)
            return
        batch, index = th.as_tensor(out), th.from_numpy(indices)
        if self.optimize_memory_usage:
            th.index_select(self._row_tensor, 0, index, out=batch[:, : self._row_width])
            self._gather_next_observations(indices, batch)
        else:
            th.index_select(self._row_tensor, 0, index, out=batch)
        if env is not None:
            self._normalize(batch, env)

    def _gather_next_observations(self, indices: np.ndarray, out: th.Tensor) -> None:
        following = (indices + self.n_envs) % len(self.rows)
        # Whole rows, then their columns: a gather from a slice of columns would copy all of the buffer first.
        next_observation = np.take(self.rows, following, axis=0)[:, self.columns.observation]
        places = self._aside[indices]
        kept_aside = np.flatnonzero(places)
        next_observation[kept_aside] = self._last_observations[places[kept_aside] - 1]
        out[:, self.columns.next_observation] = th.from_numpy(next_observation)

    def _normalize(self, out: th.Tensor, env: VecNormalize) -> None:
        batch = out.numpy()
        for where in (self.columns.observation, self.columns.next_observation):
            observation = batch[:, where].reshape(-1, *self.obs_shape)
            batch[:, where] = np.asarray(self._normalize_obs(observation, env)).reshape(len(batch), -1)
        batch[:, self.columns.reward] = self._normalize_reward(batch[:, self.columns.reward], env)

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> ReplayBufferSamples:
        """
        :param batch_size: number of transitions
        :param env: normalises observations and rewards
        :return: a batch, as from SB3's buffer
        """
        return self._samples(self.draw(batch_size)[0], env)

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> ReplayBufferSamples:
        env_indices = np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        return self._samples(batch_inds * self.n_envs + env_indices, env)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        batch = th.empty((len(indices), self.columns.width))
        self.gather(indices, batch, env)
        batch = batch.to(self.device)
        columns = self.columns
        return ReplayBufferSamples(
            observations=batch[:, columns.observation].reshape(-1, *self.obs_shape),
            actions=batch[:, columns.action],
            next_observations=batch[:, columns.next_observation].reshape(-1, *self.obs_shape),
            dones=1 - batch[:, columns.continuation, None],
            rewards=batch[:, columns.reward, None],
        )

    # ----------------------------------------------------------------------------------------------- What SB3's users read

    def _column(self, where: slice | int, *shape: int) -> np.ndarray:
        return self.rows[:, where].reshape(self.buffer_size, self.n_envs, *shape)

    @property
    def observations(self) -> np.ndarray:  # type: ignore[override]
        """Observations, a view of shape ``(buffer_size, n_envs, *obs_shape)``."""
        return self._column(self.columns.observation, *self.obs_shape)

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        """Normalised actions, a view of shape ``(buffer_size, n_envs, action_dim)``."""
        return self._column(self.columns.action, self.action_dim)

    @property
    def rewards(self) -> np.ndarray:  # type: ignore[override]
        """Rewards, a view of shape ``(buffer_size, n_envs)``."""
        return self._column(self.columns.reward)

    @property
    def next_observations(self) -> np.ndarray:  # type: ignore[override]
        """Next observations, shape ``(buffer_size, n_envs, *obs_shape)``: a view, or a copy in the memory-saving mode."""
        if not self.optimize_memory_usage:
            return self._column(self.columns.next_observation, *self.obs_shape)
        batch = th.empty((len(self.rows), self.columns.width))
        self._gather_next_observations(np.arange(len(self.rows)), batch)
        return batch[:, self.columns.next_observation].numpy().reshape(self.buffer_size, self.n_envs, *self.obs_shape)

    @property
    def dones(self) -> np.ndarray:  # type: ignore[override]
        """Whether an episode ended or was cut off there: a copy of shape ``(buffer_size, n_envs)``."""
        return (self._ends != _GOES_ON).astype(np.float32).reshape(self.buffer_size, self.n_envs)

    @property
    def timeouts(self) -> np.ndarray:  # type: ignore[override]
        """Whether an episode was cut off there, as by a time limit: a copy of shape ``(buffer_size, n_envs)``."""
        return (self._ends == _TRUNCATED).astype(np.float32).reshape(self.buffer_size, self.n_envs)


class PackedNStepReplayBuffer(PackedReplayBuffer, NStepReplayBuffer):
    """
    :class:`PackedReplayBuffer` with n-step returns, those of SB3's ``NStepReplayBuffer``.

    ``R = sum_(j<k) gamma^j r_(t+j)``, where k is n, or less if the episode ends or the newest transition is reached
    before; the next observation is that after the k-th transition, and the next Q-value counts gamma^k.

    :param args: as for :class:`PackedReplayBuffer`
    :param n_steps: n
    :param gamma: discount factor of one step
    :param kwargs: as for :class:`PackedReplayBuffer`
    """

    continuation_is_discounted = True

    def __init__(self, *args: Any, n_steps: int = 3, gamma: float = 0.99, **kwargs: Any) -> None:
        PackedReplayBuffer.__init__(self, *args, **kwargs)
        self.n_steps = n_steps
        self.gamma = gamma

    def _window(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows that each return may reach, shape ``(batch, n_steps)``, and how many count, shape ``(batch,)``."""
        window = (indices[:, None] + self.n_envs * np.arange(self.n_steps)) % len(self.rows)
        newest = (self.pos - 1) % self.buffer_size
        stops = (self._ends[window] != _GOES_ON) | (window // self.n_envs == newest)
        return window, np.where(stops.any(axis=1), stops.argmax(axis=1), self.n_steps - 1) + 1

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        """See :meth:`PackedReplayBuffer.gather`; the continuation holds ``gamma^k``."""
        out = th.as_tensor(out)
        window, length = self._window(indices)
        last = window[np.arange(len(indices)), length - 1]
        super().gather(last, out)
        batch, columns = out.numpy(), self.columns
        batch[:, columns.critic_input] = self.rows[indices, columns.critic_input]
        batch[:, columns.continuation] *= self._discounts(length)
        if env is not None:
            self._normalize(out, env)
        rewards = self._normalize_reward(self.rows[window, columns.reward], env)
        counts = np.arange(self.n_steps) < length[:, None]
        batch[:, columns.reward] = (rewards * self._discounts(np.arange(self.n_steps)) * counts).sum(axis=1)

    def _discounts(self, steps: np.ndarray) -> np.ndarray:
        return self.gamma ** steps.astype(np.float32)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> ReplayBufferSamples:
        samples = super()._samples(indices, env)
        window, length = self._window(indices)
        last = window[np.arange(len(indices)), length - 1]
        terminated = (self._ends[last] == _TERMINATED).astype(np.float32)
        return samples._replace(
            dones=th.from_numpy(terminated[:, None]).to(self.device),
            discounts=th.from_numpy(self._discounts(length)[:, None]).to(self.device),
        )


def samples_packed_rows(buffer: ReplayBuffer) -> bool:
    """Whether a buffer's batches are rows of ours: its ``sample`` was not overridden."""
    return (
        isinstance(buffer, PackedReplayBuffer)
        and type(buffer).sample is PackedReplayBuffer.sample
        and "sample" not in vars(buffer)
    )


class Batches:
    """
    The batches of several updates as rows, drawn in one go where the buffer packs its transitions.

    :param buffer: any replay buffer whose observations are vectors
    :param batch_size: transitions in a batch
    :param count: number of batches
    :param columns: layout of the rows
    :param gamma: discount factor of one step
    :param env: normalises observations and rewards
    """

    def __init__(
        self,
        buffer: ReplayBuffer,
        batch_size: int,
        count: int,
        columns: BatchColumns,
        gamma: float,
        env: VecNormalize | None = None,
    ) -> None:
        self.buffer, self.batch_size, self.columns, self.env = buffer, batch_size, columns, env
        self._gamma = gamma
        self._sampled: ReplayBufferSamples
        # What the next Q-value is multiplied by besides the continuation.
        self.discount = 1.0
        self.packed = samples_packed_rows(buffer)
        if self.packed:
            assert isinstance(buffer, PackedReplayBuffer)
            self._indices = buffer.draw(batch_size, count)
            self.discount = 1.0 if buffer.continuation_is_discounted else gamma

    def prepare(self) -> int:
        """
        Sample the next batch, if it was not drawn with all others.

        :return: its number of transitions: a buffer of the user's own may give others than it was asked for
        """
        if self.packed:
            return self.batch_size
        self._sampled = self.buffer.sample(self.batch_size, env=self.env)
        return len(self._sampled.rewards)

    def write(self, number: int, rows: th.Tensor | np.ndarray) -> None:
        """
        :param number: which batch, the one prepared last
        :param rows: where to write it, float32 on the CPU, shape ``(batch, columns.width)``
        """
        if self.packed:
            self.buffer.gather(self._indices[number], rows, self.env)  # type: ignore[attr-defined]
            return
        batch, columns, out = self._sampled, self.columns, th.as_tensor(rows)
        out[:, columns.observation] = batch.observations.flatten(1)
        out[:, columns.action] = batch.actions
        out[:, columns.next_observation] = batch.next_observations.flatten(1)
        out[:, columns.reward] = batch.rewards[:, 0]
        discounts = self._gamma if batch.discounts is None else batch.discounts
        out[:, columns.continuation] = ((1 - batch.dones) * discounts)[:, 0]
