"""What all updaters have in common: what an update reads besides networks and batch, and what it must offer."""

from typing import NamedTuple, Protocol

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize


class UpdateSettings(NamedTuple):
    """
    The numbers of one update.

    :param gamma: discount factor of one environment step
    :param tau: share of the trained networks in the soft update
    :param max_grad_norm: largest global norm of a network's gradient; ``None`` for no limit
    :param policy_delay: updates of the critic for each of the actor and the targets
    :param target_policy_noise: standard deviation of the target policy smoothing, in normalised action units; 0 for none
    :param target_noise_clip: largest size of that noise
    """

    gamma: float
    tau: float
    max_grad_norm: float | None = None
    policy_delay: int = 1
    target_policy_noise: float = 0.0
    target_noise_clip: float = 0.5


class Updater(Protocol):
    """One way to compute updates. All ways sample the same batches and give the same numbers, but for rounding."""

    name: str

    def act(self, observations: np.ndarray) -> np.ndarray:
        """
        The actor's output for observations that its first layer reads as they are.

        :param observations: float32, shape ``(n, observation_dim)``
        :return: normalised actions in [-1, 1], float32, shape ``(n, action_dim)``
        """

    def train(
        self,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """
        Make several updates.

        :param buffer: where batches are sampled from
        :param gradient_steps: number of updates
        :param batch_size: transitions in each
        :param settings: the numbers of an update
        :param n_updates: updates made before, which tells whose turn the actor's is
        :param env: normalises observations and rewards
        """

    def read_losses(self) -> dict[str, float]:
        """
        :return: ``critic_loss`` and, if the actor was updated, ``actor_loss`` of the last :meth:`train`'s last update
        """

    def read_statistics(self) -> dict[str, float]:
        """
        :return: of the last :meth:`train` the mean ``critic_loss`` and ``actor_loss``; of its last update ``q_mean``,
            ``target_q_mean`` and, before clipping, ``critic_grad_norm`` and ``actor_grad_norm``
        """
