"""
Hindsight experience replay (Andrychowicz et al. 2017, https://arxiv.org/abs/1707.01495) on packed rows: a batch is relabeled
at once, with one call of ``compute_reward``.

Observations are stored once, since a transition's next observation is the following one's observation. What an episode has
only one of (goal, last observation) is in a table of episodes. Time step number ``t``, counted from the first ever
added, is at position ``t`` modulo ``buffer_size``.
"""

import warnings
from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import BaseBuffer
from stable_baselines3.common.vec_env import VecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.episodes import NO_EPISODE, NONE, START, STOP, EpisodeTable
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.goals import check_goal_env, check_goal_selection
from sb3_ddpg_scratch.observations import flat_dim
from sb3_ddpg_scratch.replay import (
    _ONGOING,
    _TERMINATED,
    _TRUNCATED,
    BatchColumns,
    as_stored,
    discounts,
    last_of,
    n_step_rewards,
    n_step_samples,
    read_only,
)
from sb3_ddpg_scratch.validation import check_number, check_whole_number


class PackedHerReplayBuffer(PackedDictReplayBuffer, HerReplayBuffer):
    """
    SB3's ``HerReplayBuffer``, with its arguments, on packed rows. With the same seed it draws the same transitions and goals.

    ``replay_buffer_class=HerReplayBuffer`` creates one if observations are vectors and the updater is not ``"autograd"``.
    ``optimize_memory_usage`` has no effect: observations are always stored once.
    """

    _row_arrays = ("rows", "_ends", "_episode")

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Dict,
        action_space: spaces.Space[Any],
        env: VecEnv | None,
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        n_sampled_goal: int = 4,
        goal_selection_strategy: GoalSelectionStrategy | str = "future",
        copy_info_dict: bool = False,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        BaseBuffer.__init__(self, buffer_size, observation_space, action_space, device, n_envs=n_envs)
        self._check_space()
        if env is not None:
            check_goal_env(env, observation_space)
        check_goal_selection(goal_selection_strategy, n_sampled_goal)
        check_whole_number("n_steps", n_steps, 1)
        check_number("gamma", gamma, 0, 1)
        self.buffer_size = max(buffer_size // n_envs, 1)
        self.env = env
        self.optimize_memory_usage = False
        self.handle_timeout_termination = handle_timeout_termination
        self.n_sampled_goal = n_sampled_goal
        self.her_ratio = 1 - (1.0 / (n_sampled_goal + 1))
        strategy = goal_selection_strategy
        self.goal_selection_strategy = KEY_TO_GOAL_STRATEGY[strategy.lower()] if isinstance(strategy, str) else strategy
        self.copy_info_dict = copy_info_dict
        self.n_steps, self.gamma = n_steps, gamma
        self.continuation_is_discounted = n_steps > 1
        self.columns = BatchColumns(flat_dim(observation_space), self.action_dim)
        # The observation without its desired goal, then the action and the reward.
        self._row_width = self.columns.continuation - flat_dim(observation_space["desired_goal"])
        self._allocate()

    # ------------------------------------------------------------------------------------------------------------ Memory

    @property
    def _goal(self) -> slice:
        return self._slices["desired_goal"]

    @property
    def nbytes(self) -> int:
        """Bytes of the full buffer, without the table of episodes."""
        return (4 * (self._row_width + 1) + 1) * self.buffer_size * self.n_envs

    def _forget_ends(self) -> None:
        total = self.buffer_size * self.n_envs
        self._ends, self._episode = np.zeros(total, np.uint8), np.zeros(total, np.int32)
        goal_dim = flat_dim(self.observation_space["desired_goal"])
        self._table = EpisodeTable.empty(self.n_envs, goal_dim, self.columns.observation_dim)
        self._newest = np.zeros((self.n_envs, self.columns.observation_dim), np.float32)
        # Time steps ever added.
        self._time = 0
        if self.copy_info_dict:
            self.infos = np.full((self.buffer_size, self.n_envs), None)

    def beside_rows(self) -> dict[str, Any]:
        table = self._table
        of_table = {"spans": table.spans, "goals": table.goals, "lasts": table.lasts}
        return of_table | {"newest": self._newest, "time": self._time}

    def set_beside_rows(self, state: dict[str, Any]) -> None:
        self._newest, self._time = state["newest"], state["time"]
        self._table = EpisodeTable(self.n_envs, state["spans"], state["goals"], state["lasts"], self._time)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | {"_table": self.beside_rows()}
        del state["env"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        PackedDictReplayBuffer.__setstate__(self, state)
        self.env = None
        self.set_beside_rows(state["_table"])

    # ----------------------------------------------------------------------------------------------------------- Storing

    def add(
        self,
        obs: Any,
        next_obs: Any,
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        observation, next_observation = self._stored(obs), self._stored(next_obs)
        ends = self.ends_of(done, infos)
        added = self._stored_columns(action, reward)
        if self.full and self._table.forget(self._time - self.buffer_size):
            allowed = f"larger than the longest episode, which has more than {self.buffer_size} steps"
            raise ArgumentError("buffer_size", self.buffer_size * self.n_envs, f"{allowed} in each environment")
        self._end_abandoned(observation)
        self._table.follow(observation[:, self._goal], self._time)
        here = slice(self.pos * self.n_envs, (self.pos + 1) * self.n_envs)
        goal = self._goal
        columns = (observation[:, : goal.start], observation[:, goal.stop :], *added)
        np.concatenate(columns, axis=1, out=self.rows[here], casting="same_kind")
        self._episode[here], self._ends[here] = self._table.present, _ONGOING
        if self.copy_info_dict:
            self.infos[self.pos] = infos
        self._newest = next_observation
        self._time += 1
        self.pos = self._time % self.buffer_size
        self.full = self._time >= self.buffer_size
        if ends is None:
            return
        for index in np.flatnonzero(as_stored(done, ends.shape, bool)):
            self._end_episode(int(index), terminated=ends[index] == _TERMINATED)

    def _end_abandoned(self, observation: np.ndarray) -> None:
        """Mark trajectories that do not continue where they left off as truncated."""
        differs = self._newest != observation
        differs[:, self._goal] = False
        for index in self._table.under_way if differs.any() else ():
            if differs[index].any():
                self._end_episode(int(index), terminated=False)

    def _end_episode(self, index: int, terminated: bool) -> None:
        """Mark an environment's newest transition as the last of its episode."""
        self._ends[(self._time - 1) % self.buffer_size * self.n_envs + index] = _TERMINATED if terminated else _TRUNCATED
        self._table.end(index, self._newest[index], self._time)

    def truncate_last_trajectory(self) -> None:
        """End the episodes under way, with SB3's warning; later transitions begin new ones."""
        under_way = self._table.under_way
        if len(under_way):
            warnings.warn(
                "The last trajectory in the replay buffer will be truncated.\n"
                "If you are in the same episode as when the replay buffer was saved,\n"
                "you should use `truncate_last_trajectory=False` to avoid that issue."
            )
        for index in under_way:
            self._end_episode(int(index), terminated=not self.handle_timeout_termination)

    # ---------------------------------------------------------------------------------------------------------- Sampling

    def draw(self, batch_size: int, n_batches: int = 1) -> np.ndarray:
        """
        Draw several batches as SB3's buffer would sample one after another: int64, shape ``(n_batches, batch_size, 2)``, the
        index of a row and of the row after which its new goal was achieved. Rows that keep their goal come first, with -1.
        """
        count = int((self._table.current - self._table.oldest).sum())
        if count == 0 and self.full:
            allowed = "larger: it holds no whole episode of any environment"
            raise ArgumentError("buffer_size", self.buffer_size * self.n_envs, allowed, "Twice the longest episode is enough.")
        if count == 0:
            raise RuntimeError(
                "Unable to sample before the end of the first episode. We recommend choosing a value "
                "for learning_starts that is greater than the maximum number of timesteps in the environment."
            )
        gaps = self._rows_out_of_reach()
        gaps -= np.arange(len(gaps))
        n_virtual = int(self.her_ratio * batch_size)
        drawn = np.full((n_batches, batch_size, 2), NONE)
        for batch in drawn:
            number = np.random.randint(0, count, size=batch_size)
            # The n-th row of those within reach.
            rows = number + np.searchsorted(gaps, number, side="right")
            batch[: batch_size - n_virtual, 0] = rows[n_virtual:]
            batch[batch_size - n_virtual :, 0] = rows[:n_virtual]
            batch[batch_size - n_virtual :, 1] = self._draw_goals(rows[:n_virtual])
        return drawn

    def _rows_out_of_reach(self) -> np.ndarray:
        """Rows of episodes under way or partly overwritten, in ascending order."""
        oldest, current = self._table.oldest, self._table.current
        first, reached = max(self._time - self.buffer_size, 0), oldest.max()
        times = np.concatenate([np.arange(first, reached), np.arange(max(reached, current.min()), self._time)])[:, None]
        out_of_reach = (times < oldest) | (times >= current)
        rows = times % self.buffer_size * self.n_envs + np.arange(self.n_envs)
        return np.sort(rows[out_of_reach])

    def _draw_goals(self, rows: np.ndarray) -> np.ndarray:
        """For each row, one of the same episode after which the new goal was achieved."""
        steps, envs = np.divmod(rows, self.n_envs)
        episodes = self._episode[rows]
        start = self._table.spans[START][episodes]
        length = self._table.spans[STOP][episodes] - start
        if self.goal_selection_strategy == GoalSelectionStrategy.FINAL:
            chosen = length - 1
        elif self.goal_selection_strategy == GoalSelectionStrategy.FUTURE:
            chosen = np.random.randint((steps - start) % self.buffer_size, length)
        else:
            chosen = np.random.randint(0, length)
        return (start + chosen) % self.buffer_size * self.n_envs + envs

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        """Write the rows drawn by :meth:`draw`, relabeled. With n-step returns, the continuation holds ``gamma^k``."""
        rows, goal_rows = np.ascontiguousarray(indices.T)
        virtual = slice(int(np.count_nonzero(goal_rows == NONE)), len(rows))
        columns, goal, achieved = self.columns, self._goal, self._slices["achieved_goal"]
        batch = np.asarray(out)
        window, length = self._window(rows)
        last = last_of(window, length)
        following, goals = np.split(self._next(np.concatenate([last, goal_rows[virtual]])), [len(rows)])
        stored, goals = np.take(self.rows, rows, axis=0), goals[:, achieved]
        batch[:, : goal.start] = stored[:, : goal.start]
        batch[:, goal] = self._table.goals[self._episode[rows]]
        batch[:, goal.stop : columns.continuation] = stored[:, goal.start :]
        batch[:, columns.continuation] = self._ends[last] != _TERMINATED
        batch[:, columns.next_observation] = following
        batch[virtual, goal] = goals
        batch[:, columns.next_observation][virtual, goal] = goals
        steps = following[virtual] if self.n_steps == 1 else self._next(window[virtual].ravel())
        rewards = stored[:, -1:] if self.n_steps == 1 else self.rows[window, -1]
        rewards[virtual] = self._rewards(window[virtual], steps[:, achieved], goals)
        if env is not None:
            self._normalize(batch, env)
            rewards = self._normalize_reward(rewards, env)
        batch[:, columns.reward] = n_step_rewards(rewards, length, self.gamma)
        if self.n_steps > 1:
            batch[:, columns.continuation] *= discounts(self.gamma, length)

    def _window(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rows of each return, ``(batch, n_steps)``, the last one repeated, and how many they are, ``(batch,)``."""
        if self.n_steps == 1:
            return rows[:, None], np.ones(len(rows), np.int64)
        left = (self._table.spans[STOP][self._episode[rows]] - rows // self.n_envs - 1) % self.buffer_size + 1
        length = np.minimum(left, self.n_steps)
        steps = np.minimum(np.arange(self.n_steps), length[:, None] - 1)
        return (rows[:, None] + self.n_envs * steps) % len(self.rows), length

    def _next(self, rows: np.ndarray) -> np.ndarray:
        """The next observations of finished episodes' transitions, flat."""
        goal = self._goal
        following = (rows + self.n_envs) % len(self.rows)
        stored = np.take(self.rows, following, axis=0)
        observations = np.empty((len(rows), self.columns.observation_dim), np.float32)
        observations[:, : goal.start] = stored[:, : goal.start]
        observations[:, goal] = self._table.goals[self._episode[following]]
        observations[:, goal.stop :] = stored[:, goal.start : goal.start + self.columns.observation_dim - goal.stop]
        last = np.flatnonzero(self._ends[rows])
        observations[last] = self._table.lasts[self._episode[rows[last]]]
        return observations

    def _rewards(self, window: np.ndarray, achieved: np.ndarray, goals: np.ndarray) -> np.ndarray:
        """The environment's rewards for the steps of these windows under these goals, shape ``(batch, n_steps)``."""
        if self.env is None:
            raise RuntimeError("You must initialize HerReplayBuffer with a VecEnv so it can compute rewards: set_env(env).")
        desired = goals if self.n_steps == 1 else np.repeat(goals, self.n_steps, axis=0)
        infos: Any = [{} for _ in desired]
        if self.copy_info_dict:
            infos = deepcopy(self.infos[np.divmod(window.ravel(), self.n_envs)])
        given = self._in_space("achieved_goal", achieved), self._in_space("desired_goal", desired), infos
        # All environments are identical: ask the first one.
        rewards = self.env.env_method("compute_reward", *given, indices=[0])[0]
        return np.asarray(rewards, np.float32).reshape(window.shape)

    def _in_space(self, key: str, flat: np.ndarray) -> np.ndarray:
        return flat.reshape(-1, *self.obs_shape[key]).astype(self.observation_space[key].dtype)

    def replaces_get_samples(self) -> bool:
        # SB3's samples without it.
        return False

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> Any:
        samples = super()._samples(indices, env)
        return samples if self.n_steps == 1 else n_step_samples(samples, self, *self._window(indices[:, 0]))

    def _get_samples(self, batch_inds: np.ndarray, env: VecNormalize | None = None) -> Any:
        """Transitions of finished episodes with their own goals."""
        rows = batch_inds * self.n_envs + np.random.randint(0, high=self.n_envs, size=(len(batch_inds),))
        return self._samples(np.stack([rows, np.full_like(rows, NONE)], axis=1), env)

    # ------------------------------------------------------------------------------------- SB3's arrays, as read-only copies

    def _by_step(self, values: np.ndarray) -> np.ndarray:
        return values.reshape(self.buffer_size, self.n_envs, *values.shape[1:])

    @property
    def observations(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        goal, dim = self._goal, self.columns.observation_dim
        stored = self.rows[:, : dim - (goal.stop - goal.start)]
        parts = [stored[:, : goal.start], self._table.goals[self._episode], stored[:, goal.start :]]
        return self._split(self._by_step(read_only(np.concatenate(parts, axis=1))))

    @property
    def next_observations(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        flat = self._next(np.arange(len(self.rows)))
        flat[self._episode == NO_EPISODE] = 0
        if self._time > 0:
            newest = (self._time - 1) % self.buffer_size * self.n_envs
            flat[newest : newest + self.n_envs] = self._newest
        return self._split(self._by_step(read_only(flat)))

    @property
    def actions(self) -> np.ndarray:  # type: ignore[override]
        return self._by_step(self.rows[:, -1 - self.action_dim : -1])

    @property
    def rewards(self) -> np.ndarray:  # type: ignore[override]
        return self._by_step(self.rows[:, -1])

    @property
    def ep_start(self) -> np.ndarray:  # type: ignore[override]
        return self._by_step(read_only(self._table.spans[START][self._episode] % self.buffer_size))

    @property
    def ep_length(self) -> np.ndarray:  # type: ignore[override]
        """Length of each transition's episode; 0 if it is under way or partly overwritten."""
        _, start, stop = self._table.spans[:, self._episode]
        length = self._by_step(stop - start)
        length.reshape(-1)[self._rows_out_of_reach()] = 0
        return read_only(length)

    @property
    def _current_ep_start(self) -> np.ndarray:  # type: ignore[override]
        return read_only(self._table.current % self.buffer_size)
