"""What a resumed model knows of the ``learn`` that was interrupted."""

from collections.abc import Callable
from typing import NamedTuple

from stable_baselines3.common.callbacks import BaseCallback


class InterruptedLearn(NamedTuple):
    """
    A ``learn`` that the next one goes on with.

    :param total_timesteps: ``num_timesteps`` at which it was to end
    :param first_timestep: ``num_timesteps`` at which it had begun
    :param elapsed_ns: nanoseconds that it had taken
    :param restore: puts back what the beginning of a ``learn`` changes, its callback among it
    """

    total_timesteps: int
    first_timestep: int
    elapsed_ns: int
    restore: Callable[[BaseCallback], None]
