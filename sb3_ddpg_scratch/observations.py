"""Observations as flat rows of numbers, where each entry of a Dict space is, and which statistics normalize them."""

import hashlib
from collections.abc import Mapping
from itertools import accumulate, chain, pairwise
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_flattened_obs_dim, is_image_space
from stable_baselines3.common.vec_env import VecNormalize

Observations = np.ndarray | Mapping[str, np.ndarray]


# Up to here float32 holds every whole number.
_EXACT_UP_TO = 2**24


def packable(observation_space: spaces.Space[Any]) -> bool:
    """Whether observations fit into packed rows: vectors of numbers that float32 holds, or a Dict of such."""
    return why_not_packable(observation_space) is None


def why_not_packable(space: spaces.Space[Any]) -> str | None:
    """Why observations do not fit into packed rows, with the cure if there is one; ``None`` if they do."""
    if isinstance(space, spaces.Dict):
        parts = space.spaces.values()
        nested = (f"observations of {part} are no vectors" for part in parts if isinstance(part, spaces.Dict))
        return next(filter(None, chain(nested, map(why_not_packable, parts))), None) if parts else "observations are empty"
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        return f"observations of {space} are no vectors (gymnasium.wrappers.FlattenObservation makes them one-hot)"
    if not isinstance(space, (spaces.Box, spaces.MultiBinary)) or is_image_space(space):
        return f"observations of {space} are no vectors"
    if isinstance(space, spaces.Box) and not np.issubdtype(space.dtype, np.floating):
        largest = np.abs(np.stack([space.low, space.high]).astype(np.float64)).max(initial=0)
        if largest > _EXACT_UP_TO:
            return f"whole numbers of {space} may exceed 2**24, beyond which float32 rounds (declare closer bounds)"
    return None


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


def flatten_into(out: np.ndarray, observations: Observations, observation_space: spaces.Space[Any]) -> None:
    """Write observations of several environments into float32 of shape ``(n, flat_dim)``."""
    if isinstance(observations, np.ndarray):
        out[...] = observations.reshape(out.shape)
        return
    assert isinstance(observation_space, spaces.Dict)
    flat = [observations[key].reshape(len(out), -1) for key in observation_space.spaces]
    np.concatenate(flat, axis=1, out=out, casting="same_kind")


def statistics_id(vec_normalize: VecNormalize | None) -> str | None:
    """Identifies how observations are normalized at this moment; ``None`` if they are not."""
    if vec_normalize is None or not vec_normalize.norm_obs:
        return None
    statistics: Any = vec_normalize.obs_rms
    by_key = sorted(statistics.items()) if isinstance(statistics, dict) else [("", statistics)]
    digest = hashlib.sha256(repr((float(vec_normalize.epsilon), float(vec_normalize.clip_obs))).encode())
    for key, one in by_key:
        digest.update(key.encode())
        digest.update(b"".join(np.asarray(values, np.float64).tobytes() for values in (one.mean, one.var)))
    return digest.hexdigest()[:16]
