"""Replay of Dict observations as packed rows, with all entries side by side in the order of the space."""

from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples

from sb3_ddpg_scratch.observations import flat_slices, flatten
from sb3_ddpg_scratch.replay import PackedReplayBuffer, as_stored


class PackedDictReplayBuffer(PackedReplayBuffer, DictReplayBuffer):  # type: ignore[override]
    """:class:`PackedReplayBuffer` for Dict observations of vectors; draws the transitions of SB3's ``DictReplayBuffer``."""

    observation_space: spaces.Dict
    obs_shape: dict[str, tuple[int, ...]]
    _space_types = (spaces.Dict,)
    _samples_type = DictReplayBufferSamples

    def _share_rows(self) -> None:
        super()._share_rows()
        self._slices = flat_slices(self.observation_space)

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_slices"]
        return state

    def _flatten(self, observations: Any) -> np.ndarray:
        return flatten(observations, self.observation_space)

    def _stored(self, observations: Any) -> np.ndarray:
        parts = [
            as_stored(observations[key], (self.n_envs, *self.obs_shape[key]), space.dtype).reshape(self.n_envs, -1)
            for key, space in self.observation_space.spaces.items()
        ]
        return np.concatenate(parts, axis=1, dtype=np.float32, casting="same_kind")

    def _split(self, flat: Any) -> dict[str, Any]:
        lead = flat.shape[:-1]
        return {key: flat[..., where].reshape(*lead, *self.obs_shape[key]) for key, where in self._slices.items()}
