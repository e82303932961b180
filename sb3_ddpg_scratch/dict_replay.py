"""Replay of Dict observations as packed rows: every entry's numbers side by side, in the order of the space."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.observations import flat_slices, flatten
from sb3_ddpg_scratch.replay import PackedReplayBuffer


class PackedDictReplayBuffer(PackedReplayBuffer, DictReplayBuffer):  # type: ignore[misc]
    """
    :class:`~sb3_ddpg_scratch.replay.PackedReplayBuffer` for Dict observations of vectors: SB3's ``DictReplayBuffer``, with the
    same transitions drawn, and its ``observations`` and ``next_observations`` as dicts.
    """

    observation_space: spaces.Dict
    obs_shape: dict[str, tuple[int, ...]]
    _space_type = spaces.Dict
    _parts = "vectors (Boxes of floating-point numbers, or MultiBinary)"

    def _share_rows(self) -> None:
        super()._share_rows()
        self._slices = flat_slices(self.observation_space)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_slices"]
        return state

    def add(  # type: ignore[override]
        self,
        obs: dict[str, np.ndarray],
        next_obs: dict[str, np.ndarray],
        action: np.ndarray,
        reward: np.ndarray,
        done: np.ndarray,
        infos: list[dict[str, Any]],
    ) -> None:
        """See :meth:`PackedReplayBuffer.add`."""
        observation, next_observation = self._flatten(obs), self._flatten(next_obs)
        super().add(observation, next_observation, action, reward, done, infos)

    def _flatten(self, observations: dict[str, np.ndarray]) -> np.ndarray:
        return flatten(observations, self.observation_space)

    def _split(self, flat: Any) -> dict[str, Any]:
        """Views of each entry of flat observations; their last axis is divided."""
        lead = flat.shape[:-1]
        return {key: flat[..., where].reshape(*lead, *self.obs_shape[key]) for key, where in self._slices.items()}

    def _normalize(self, out: th.Tensor, env: VecNormalize) -> None:
        batch = out.numpy()
        for where in (self.columns.observation, self.columns.next_observation):
            flat = batch[:, where]
            normalized = env.normalize_obs(self._split(flat))
            assert isinstance(normalized, dict)
            for key, value in normalized.items():
                flat[:, self._slices[key]] = value.reshape(len(flat), -1)
        batch[:, self.columns.reward] = self._normalize_reward(batch[:, self.columns.reward], env)

    def _samples(self, indices: np.ndarray, env: VecNormalize | None) -> DictReplayBufferSamples:  # type: ignore[override]
        batch = th.empty((len(indices), self.columns.width))
        self.gather(indices, batch, env)
        batch = batch.to(self.device)
        columns = self.columns
        return DictReplayBufferSamples(
            observations=self._split(batch[:, columns.observation]),
            actions=batch[:, columns.action],
            next_observations=self._split(batch[:, columns.next_observation]),
            dones=1 - batch[:, columns.continuation, None],
            rewards=batch[:, columns.reward, None],
        )

    @property
    def observations(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        return self._split(self._column(self.columns.observation, -1))

    @property
    def next_observations(self) -> dict[str, np.ndarray]:  # type: ignore[override]
        """Views, or copies with ``optimize_memory_usage``."""
        return self._split(self._flat_next_observations())
