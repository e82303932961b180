"""The table of episodes in hindsight replay: per-episode data, and which transitions belong to complete episodes."""

from collections import deque

import numpy as np

# Rows of ``spans``. A free entry has no environment, and that of an episode under way has no end.
ENV, START, STOP = range(3)
NONE = -1
# The entry of transitions never written.
NO_EPISODE = 0


class EpisodeTable:
    """
    An entry for each episode in the buffer, and a further one where the goal changes within an episode: ``spans``
    (environment, first time step and the one after the last, counted from the first ever added), goal and last observation.
    """

    def __init__(self, n_envs: int, spans: np.ndarray, goals: np.ndarray, lasts: np.ndarray, time: int = 0) -> None:
        self.spans, self.goals, self.lasts = spans, goals, lasts
        env, start, stop = spans
        order = np.lexsort((np.arange(len(env)), start))
        finished = stop[order] != NONE
        entries = [order[(env[order] == index) & finished].tolist() for index in range(n_envs)]
        # By environment, oldest first.
        self._finished = list(map(deque, entries))
        self._open: list[list[int]] = [order[(env[order] == index) & ~finished].tolist() for index in range(n_envs)]
        self._free = [entry for entry in range(len(env) - 1, NO_EPISODE, -1) if env[entry] == NONE]
        # The entry of each episode under way.
        self.present = np.array([entries[-1] if entries else NO_EPISODE for entries in self._open])
        # Where it begins, or the next one will; transitions from ``oldest``, its oldest finished one, to there can be drawn.
        self.current = np.array([start[entries[0]] if entries else time for entries in self._open])
        self.oldest = self.current.copy()
        for index in range(n_envs):
            self._find_oldest(index)

    @classmethod
    def empty(cls, n_envs: int, goal_dim: int, observation_dim: int) -> "EpisodeTable":
        goals, lasts = (np.zeros((1, size), np.float32) for size in (goal_dim, observation_dim))
        return cls(n_envs, np.array([[NONE], [0], [0]]), goals, lasts)

    @property
    def under_way(self) -> np.ndarray:
        """Indices of environments with an episode under way."""
        return np.flatnonzero(self.present != NO_EPISODE)

    def follow(self, goals: np.ndarray, time: int) -> None:
        """Before a time step is stored, begin episodes where none is under way, and record goals that have changed."""
        for index in np.flatnonzero((self.goals[self.present] != goals).any(axis=1) | (self.present == NO_EPISODE)):
            if self.present[index] == NO_EPISODE:
                self.current[index] = time
                self._find_oldest(int(index))
            if not self._free:
                self._grow()
            entry = self._free.pop()
            self.spans[:, entry] = index, self.current[index], NONE
            self.goals[entry] = goals[index]
            self._open[index].append(entry)
            self.present[index] = entry

    def end(self, index: int, last: np.ndarray, time: int) -> None:
        """End an environment's episode before this time step; ``last`` is its last observation."""
        entries = self._open[index]
        self.spans[STOP, entries] = time
        self.lasts[entries] = last
        self._finished[index] += entries
        entries.clear()
        self.present[index] = NO_EPISODE
        self.current[index] = time
        self._find_oldest(index)

    def forget(self, time: int) -> bool:
        """Drop episodes that begin at a time step being overwritten; returns whether one of them is still under way."""
        for index in np.flatnonzero(self.oldest == time):
            if self.current[index] == time:
                return True
            finished = self._finished[index]
            while finished and self.spans[START, finished[0]] == time:
                entry = finished.popleft()
                self.spans[ENV, entry] = NONE
                self._free.append(entry)
            self._find_oldest(int(index))
        return False

    def _find_oldest(self, index: int) -> None:
        finished = self._finished[index]
        self.oldest[index] = self.spans[START, finished[0]] if finished else self.current[index]

    def _grow(self) -> None:
        old = len(self.goals)
        new = max(old, 64)
        self.spans = np.concatenate([self.spans, np.tile(self.spans[:, :1], new)], axis=1)
        for name in ("goals", "lasts"):
            table = getattr(self, name)
            setattr(self, name, np.concatenate([table, np.zeros((new, table.shape[1]), np.float32)]))
        self._free = list(range(old + new - 1, old - 1, -1))
