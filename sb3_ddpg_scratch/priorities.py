"""Prioritized experience replay (Schaul et al. 2016, https://arxiv.org/abs/1511.05952) on packed rows."""

from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import Schedule
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from sb3_ddpg_scratch.sum_tree import compiled, planted
from sb3_ddpg_scratch.validation import check_number, check_whole_number

# Added to an error, so that no transition is lost.
_LEAST_ERROR = 1e-6


class PrioritizedSamples(NamedTuple):
    """SB3's samples, and the weight of each in the critic's loss."""

    observations: Any
    actions: th.Tensor
    next_observations: Any
    dones: th.Tensor
    rewards: th.Tensor
    discounts: th.Tensor | None
    weights: th.Tensor


class PrioritizedReplayBuffer(PackedNStepReplayBuffer):
    """
    Draws transition i with probability ``p_i^alpha / sum_j p_j^alpha``, where ``p_i`` is its last TD error plus 1e-6 (the
    largest one, of several critics), or the largest p yet if it was never drawn. In the critic's loss it has the weight
    ``(n P(i))^-beta``, divided by the largest in the batch. A batch of k has one of each k-th of the probability.

    Give it as ``replay_buffer_class``, with ``alpha`` and ``beta`` in ``replay_buffer_kwargs``. The model's ``n_steps``,
    ``gamma`` and ``optimize_memory_usage`` are its own.

    :param alpha: 0 for uniform batches, 1 for proportional ones
    :param beta: its first value, from which it rises to 1 in the course of ``learn``; or a function of the progress remaining
    :param n_steps: length of n-step returns
    :param gamma: their discount factor
    """

    def __init__(
        self,
        buffer_size: int,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        device: th.device | str = "auto",
        n_envs: int = 1,
        optimize_memory_usage: bool = False,
        handle_timeout_termination: bool = True,
        alpha: float = 0.6,
        beta: float | Schedule = 0.4,
        n_steps: int = 1,
        gamma: float = 0.99,
    ) -> None:
        check_number("alpha", alpha, 0)
        if not callable(beta):
            check_number("beta", beta, 0, 1)
        check_whole_number("n_steps", n_steps, 1)
        self.alpha, self.beta = alpha, beta
        self.progress_remaining = 1.0
        flags = (optimize_memory_usage, handle_timeout_termination)
        arguments = (buffer_size, observation_space, action_space, device, n_envs, *flags)
        super().__init__(*arguments, n_steps=n_steps, gamma=gamma)
        self.continuation_is_discounted = n_steps > 1

    @property
    def is_prioritized(self) -> bool:
        """Whether batches have weights."""
        return self.alpha > 0

    # ------------------------------------------------------------------------------------------------------------ Memory

    @property
    def nbytes(self) -> int:
        return super().nbytes + 16 * self.buffer_size * self.n_envs

    def _forget_ends(self) -> None:
        super()._forget_ends()
        self._plant(np.zeros(0), 1.0)

    def _plant(self, priorities: np.ndarray, largest: float) -> None:
        """Begin with these values of ``p^alpha``."""
        self._tree, self._largest = planted(priorities, len(self.rows)), largest
        self._drawn = np.zeros(0, np.int64)

    @property
    def priorities(self) -> np.ndarray:
        """``p^alpha`` of each row, a view; 0 where none can be drawn."""
        half = len(self._tree) // 2
        return self._tree[half : half + len(self.rows)]

    def _priorities_as_data(self) -> dict[str, Any]:
        written = len(self.rows) if self.full else min((self.pos + 1) * self.n_envs, len(self.rows))
        return {"_priorities": self.priorities[:written].copy(), "_largest": self._largest}

    def beside_rows(self) -> dict[str, Any]:
        return super().beside_rows() | self._priorities_as_data()

    def set_beside_rows(self, state: dict[str, Any]) -> None:
        super().set_beside_rows(state)
        self._plant(state["_priorities"], state["_largest"])

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__() | self._priorities_as_data()
        del state["_tree"], state["_drawn"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        kept = {name: value for name, value in state.items() if name != "_priorities"}
        super().__setstate__(kept)
        self._plant(state["_priorities"], state["_largest"])

    # ----------------------------------------------------------------------------------------------------------- Storing

    def move_on(self, ends: np.ndarray | None) -> None:
        first = self.pos * self.n_envs
        super().move_on(ends)
        if not self.is_prioritized:
            return
        set_leaves, envs = compiled()[0], np.arange(self.n_envs)
        set_leaves(self._tree, first + envs, np.full(self.n_envs, self._largest))
        if self.optimize_memory_usage:
            # What is there loses its observation next.
            set_leaves(self._tree, self.pos * self.n_envs + envs, np.zeros(self.n_envs))

    # ---------------------------------------------------------------------------------------------------------- Sampling

    def draw(self, batch_size: int, n_batches: int = 1) -> np.ndarray:
        if not self.is_prioritized:
            return super().draw(batch_size, n_batches)
        drawn = np.empty((n_batches, batch_size), np.int64)
        for batch in drawn:
            points = (np.arange(batch_size) + np.random.random_sample(batch_size)) / batch_size
            compiled()[1](self._tree, points * self._tree[1], batch)
        return drawn

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        if not self.is_prioritized or self.replaces_get_samples():
            return super().sample(batch_size, env)
        self._drawn = self.draw(batch_size)[0]
        samples = self._samples(self._drawn, env)
        return PrioritizedSamples(**samples._asdict(), weights=self.to_torch(self._weights(self._drawn)))

    def _weights(self, rows: np.ndarray) -> np.ndarray:
        progress = self.progress_remaining
        beta = self.beta(progress) if callable(self.beta) else 1 + (self.beta - 1) * progress
        priorities = self.priorities[rows]
        # The number of transitions, and the sum of priorities, are the same in the largest weight.
        return ((priorities / priorities.min()) ** -beta).astype(np.float32)[:, None]

    def set_priorities(self, errors: np.ndarray) -> None:
        """Set those of the batch drawn last, by its TD errors."""
        values = (np.abs(errors.astype(np.float64)) + _LEAST_ERROR) ** self.alpha
        self._largest = max(self._largest, float(values.max()))
        compiled()[0](self._tree, self._drawn, values)

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        kind: type[PackedReplayBuffer] = PackedReplayBuffer if self.n_steps == 1 else PackedNStepReplayBuffer
        kind.gather(self, indices, out, env)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> Any:
        kind: type[PackedReplayBuffer] = PackedReplayBuffer if self.n_steps == 1 else PackedNStepReplayBuffer
        return kind._samples(self, indices, env)


class PrioritizedDictReplayBuffer(PrioritizedReplayBuffer, PackedDictReplayBuffer):  # type: ignore[override]
    """:class:`PrioritizedReplayBuffer` for Dict observations of vectors, which it becomes by itself."""
