"""Observations as flat rows of numbers: which spaces support it, and where each entry of a Dict space is."""

from collections.abc import Mapping
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space

Observations = np.ndarray | Mapping[str, np.ndarray]


def packable(observation_space: spaces.Space[Any]) -> bool:
    """Whether observations fit into packed rows: a Box of floating-point numbers, or a Dict of these and MultiBinary."""
    if isinstance(observation_space, spaces.Dict):
        parts = observation_space.spaces.values()
        return len(parts) > 0 and all(isinstance(part, spaces.MultiBinary) or _is_vector(part) for part in parts)
    return _is_vector(observation_space)


def _is_vector(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Box) and np.issubdtype(space.dtype, np.floating) and not is_image_space(space)


def flat_dim(observation_space: spaces.Space[Any]) -> int:
    """How many numbers an observation has."""
    return get_flattened_obs_dim(observation_space)


def flat_slices(observation_space: spaces.Dict) -> dict[str, slice]:
    """Where each entry is in a flat observation: in the space's order, which is that of SB3's ``CombinedExtractor``."""
    ends = accumulate(map(flat_dim, observation_space.spaces.values()), initial=0)
    return {key: slice(*ends) for key, ends in zip(observation_space.spaces, pairwise(ends), strict=True)}


def flatten(observations: Observations, observation_space: spaces.Space[Any]) -> np.ndarray:
    """Observations of several environments as float32, shape ``(n, flat_dim)``; may share their memory."""
    if not isinstance(observation_space, spaces.Dict):
        return np.ascontiguousarray(observations, np.float32).reshape(len(observations), -1)
    parts = [observations[key] for key in observation_space.spaces]
    flat = [part.reshape(len(part), -1) for part in parts]
    return np.concatenate(flat, axis=1, dtype=np.float32, casting="same_kind")
