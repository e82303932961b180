"""Batches from any replay buffer, as the rows that the fast updaters read."""

from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer


def samples_packed_rows(buffer: ReplayBuffer) -> bool:
    """Whether a buffer's batches are our packed rows: no method that samples them is overridden."""
    return (
        isinstance(buffer, PackedReplayBuffer)
        and type(buffer).sample is PackedReplayBuffer.sample
        and "sample" not in vars(buffer)
        and not buffer.replaces_get_samples()
    )


def remaining_discount(buffer: Any, gamma: float) -> float:
    """The factor of the next Q-value that a packed row's continuation does not include."""
    return 1.0 if buffer.continuation_is_discounted else gamma


class Batches:
    """Batches for several updates, as rows; a packed buffer draws all of them at once."""

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
        self._sampled: ReplayBufferSamples | DictReplayBufferSamples
        self.discount = 1.0
        self.packed = samples_packed_rows(buffer)
        if self.packed:
            assert isinstance(buffer, PackedReplayBuffer)
            self._indices = buffer.draw(batch_size, count)
            self.discount = remaining_discount(buffer, gamma)

    def prepare(self) -> int:
        """Sample the next batch unless already drawn; returns its size, which a custom buffer may choose."""
        if self.packed:
            return self.batch_size
        self._sampled = self.buffer.sample(self.batch_size, env=self.env)
        return len(self._sampled.rewards)

    def write(self, number: int, rows: th.Tensor | np.ndarray) -> None:
        """Write the batch prepared last, number ``number``, into float32 rows on the CPU."""
        if self.packed:
            self.buffer.gather(self._indices[number], rows, self.env)  # type: ignore[attr-defined]
            return
        batch, columns, out = self._sampled, self.columns, th.as_tensor(rows)
        out[:, columns.observation] = self._flatten(batch.observations)
        out[:, columns.action] = batch.actions
        out[:, columns.next_observation] = self._flatten(batch.next_observations)
        out[:, columns.reward] = batch.rewards[:, 0]
        discounts = self._gamma if batch.discounts is None else batch.discounts
        out[:, columns.continuation] = ((1 - batch.dones) * discounts)[:, 0]

    def _flatten(self, observations: th.Tensor | dict[str, th.Tensor]) -> th.Tensor:
        if isinstance(observations, th.Tensor):
            return observations.flatten(1)
        keys = self.buffer.observation_space.spaces  # type: ignore[attr-defined]
        return th.cat([observations[key].flatten(1).float() for key in keys], dim=1)
