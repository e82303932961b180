"""Batches that mix demonstrations, which are kept, with transitions of one's own."""

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize


class MixedReplay:
    """
    Of each batch, ``share`` is drawn from the demonstrations and the rest from replay, as in RLPD (Ball et al. 2023); all of
    it from the demonstrations as long as replay is empty.
    """

    def __init__(self, demonstrations: ReplayBuffer, replay: ReplayBuffer, share: float) -> None:
        self.demonstrations, self.replay, self.share = demonstrations, replay, share

    @property
    def is_prioritized(self) -> bool:
        return getattr(self.replay, "is_prioritized", False)

    @property
    def observation_space(self) -> spaces.Space[Any]:
        return self.replay.observation_space

    @property
    def buffer_size(self) -> int:
        return self.demonstrations.buffer_size + self.replay.buffer_size

    @property
    def n_envs(self) -> int:
        return self.replay.n_envs

    def size(self) -> int:
        return self.demonstrations.size() + self.replay.size()

    def sample(self, batch_size: int, env: VecNormalize | None = None) -> Any:
        self._demonstrated = demonstrated = round(self.share * batch_size) if self.replay.size() else batch_size
        parts = ((self.demonstrations, demonstrated), (self.replay, batch_size - demonstrated))
        samples = [buffer.sample(count, env=env) for buffer, count in parts if count]
        return samples[0] if len(samples) == 1 else type(samples[0])(*map(_joined, *samples))

    def set_priorities(self, errors: np.ndarray) -> None:
        """Of the batch drawn last; both buffers are prioritized."""
        parts = ((self.demonstrations, errors[: self._demonstrated]), (self.replay, errors[self._demonstrated :]))
        for buffer, part in parts:
            if len(part):
                buffer.set_priorities(part)  # type: ignore[attr-defined]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {key: th.cat([first[key], second[key]]) for key in first}
    return first if first is None else th.cat([first, second])


def replay_of(model: Any) -> Any:
    """What batches of a model, which may be any of SB3's, are drawn from; prioritized replay learns how far training is."""
    demonstrations = getattr(model, "demonstrations", None)
    buffers: tuple[Any, ...] = (model.replay_buffer, demonstrations)
    for buffer in buffers:
        if getattr(buffer, "is_prioritized", False):
            buffer.progress_remaining = model._current_progress_remaining
    if demonstrations is None or model.demonstration_share is None:
        return model.replay_buffer
    return MixedReplay(demonstrations, model.replay_buffer, model.demonstration_share)
