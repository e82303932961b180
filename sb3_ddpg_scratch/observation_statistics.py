"""Running mean and variance of the observations, which a policy normalizes its observations by."""

from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_ddpg_scratch.errors import ArgumentError

EPSILON = 1e-8


def normalizable(observation_space: spaces.Space[Any]) -> dict[str, tuple[int, ...]]:
    """The shapes of the entries of a space (``""``: itself) that are normalized: Boxes that are not images."""
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {"": observation_space}
    return {key: part.shape for key, part in parts.items() if isinstance(part, spaces.Box) and not is_image_space(part)}


class ObservationStatistics(nn.Module):
    """
    Normalizes observations by the mean and variance of those seen: ``clip((x - mean) / sqrt(var + 1e-8))``, in float64.

    Boxes are normalized, alone or in a Dict, but not images; whatever becomes one-hot or is binary stays as it is. The
    numbers are VecNormalize's. ``mean`` and ``var`` are those of the normalized entries side by side, in the space's order.
    """

    mean: th.Tensor
    var: th.Tensor
    count: th.Tensor

    def __init__(self, observation_space: spaces.Space[Any], clip: float) -> None:
        super().__init__()
        self.clip = clip
        self.shapes = normalizable(observation_space)
        if not self.shapes:
            problem = f"has nothing to normalize in {observation_space}: only Boxes that are not images are"
            raise ArgumentError("normalize_observations", True, advice="Leave it out.", problem=problem)
        ends = list(accumulate((int(np.prod(shape)) for shape in self.shapes.values()), initial=0))
        self.slices = {key: slice(*where) for key, where in zip(self.shapes, pairwise(ends), strict=True)}
        self.register_buffer("mean", th.zeros(ends[-1], dtype=th.float64))
        self.register_buffer("var", th.ones(ends[-1], dtype=th.float64))
        self.register_buffer("count", th.tensor(1e-4, dtype=th.float64))

    def forward(self, observations: PyTorchObs) -> PyTorchObs:
        """The observations with each normalized entry as float32."""
        if isinstance(observations, th.Tensor):
            return self._normalized("", observations)
        return {key: self._normalized(key, x) if key in self.slices else x for key, x in observations.items()}

    def _normalized(self, key: str, x: th.Tensor) -> th.Tensor:
        where, shape = self.slices[key], self.shapes[key]
        mean, var = self.mean[where].reshape(shape), self.var[where].reshape(shape)
        return ((x.double() - mean) / (var + EPSILON).sqrt()).clamp(-self.clip, self.clip).float()

    def update(self, observations: Any) -> None:
        """Count one observation of each environment (Chan et al. 1983, as in SB3's ``RunningMeanStd``)."""
        parts = observations if isinstance(observations, dict) else {"": observations}
        rows = [np.reshape(parts[key], (len(parts[key]), -1)) for key in self.slices]
        n = len(rows[0])
        # Of each entry in its own precision, as there.
        added_mean = np.concatenate([part.mean(axis=0) for part in rows])
        added_squares = np.concatenate([part.var(axis=0) * n for part in rows])
        mean, var, count = (buffer.numpy(force=True) for buffer in (self.mean, self.var, self.count))
        total, delta = count + n, added_mean - mean
        squares = var * count + added_squares + np.square(delta) * count * n / total
        for buffer, value in ((self.mean, mean + delta * n / total), (self.var, squares / total), (self.count, total)):
            buffer.copy_(th.as_tensor(value))


def statistics_of(policy: Any) -> ObservationStatistics | None:
    """Those of a policy, which may be any; ``None`` if it does not normalize observations."""
    return getattr(policy, "observation_statistics", None)


def count_observations(policy: Any, observations: Any) -> None:
    """Count new observations, one of each environment, if the policy normalizes observations."""
    statistics = statistics_of(policy)
    if statistics is not None:
        statistics.update(observations)
