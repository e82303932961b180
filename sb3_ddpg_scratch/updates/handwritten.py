"""What the updaters with hand-written gradients share: flat parameters, flat moments, and how numbers are read."""

from copy import deepcopy
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from typing_extensions import Self

from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import BatchColumns
from sb3_ddpg_scratch.updates.blas_threads import OneBlasThread
from sb3_ddpg_scratch.updates.flat import FlatAdam, FlatParameters


class HandWrittenUpdater:
    """
    A policy's networks as flat vectors: actor and critic in one, both targets in another, and Adam's moments beside them.

    :param policy: a policy for which :func:`~sb3_ddpg_scratch.updates.choice.why_not_by_hand` finds nothing
    """

    def __init__(self, policy: ScratchDDPGPolicy) -> None:
        self.policy = policy
        self.one_blas_thread = OneBlasThread()
        self.columns = BatchColumns(policy.actor.features_dim, get_action_dim(policy.action_space))
        self.tanh = policy.activation_fn is th.nn.Tanh
        self.trained = FlatParameters(policy.actor, policy.critic)
        self.targets = FlatParameters(policy.actor_target, policy.critic_target)
        # Parameters before this one in the vectors are the actor's, the others the critic's.
        self.split = sum(parameter.numel() for parameter in policy.actor.parameters())
        self.actor_adam = FlatAdam(policy.actor.optimizer, self.trained.vector[: self.split])
        self.critic_adam = FlatAdam(policy.critic.optimizer, self.trained.vector[self.split :])
        actor = [view.numpy() for view in self.trained.views[: len(list(policy.actor.parameters()))]]
        self._actor_layers = [(weight.T, bias) for weight, bias in zip(actor[0::2], actor[1::2], strict=True)]
        self.batch_size = 0
        # Of the latest series of updates.
        self.updates = 0
        self.actor_updates = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Copied memory would no longer be the copied networks'; an updater has nothing else to keep.
        duplicate = type(self)(deepcopy(self.policy, memo))
        memo[id(self)] = duplicate
        return duplicate

    def act(self, observations: np.ndarray) -> np.ndarray:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.act`."""
        # By NumPy: for so few rows, calling torch takes several times as long as multiplying.
        self.trained.bind()
        with self.one_blas_thread:
            x = observations
            *hidden, (last_weight, last_bias) = self._actor_layers
            for weight, bias in hidden:
                x = np.dot(x, weight)
                x += bias
                if self.tanh:
                    np.tanh(x, out=x)
                else:
                    np.maximum(x, 0.0, out=x)
            x = np.dot(x, last_weight)
            x += last_bias
            return np.tanh(x, out=x)

    def begin(self) -> None:
        """Before a series of updates: whatever was loaded, copied or moved since the last one is taken over."""
        self.trained.bind()
        self.targets.bind()
        self.actor_adam.begin()
        self.critic_adam.begin()
        self.updates = 0
        self.actor_updates = 0

    def critic_losses(self) -> list[float]:
        """The critic's loss in each update of the latest series."""
        raise NotImplementedError

    def actor_losses(self) -> list[float]:
        """The actor's loss in each of its updates in the latest series."""
        raise NotImplementedError

    def q_means(self) -> tuple[float, float]:
        """Mean Q-value and mean TD target of the last update."""
        raise NotImplementedError

    def read_losses(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.read_losses`."""
        losses = {"critic_loss": self.critic_losses()[-1]}
        if self.actor_updates:
            losses["actor_loss"] = self.actor_losses()[-1]
        return losses

    def read_statistics(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.read_statistics`."""
        q_mean, target_q_mean = self.q_means()
        statistics = {
            "critic_loss": sum(self.critic_losses()) / self.updates,
            "q_mean": q_mean,
            "target_q_mean": target_q_mean,
            "critic_grad_norm": self._grad_norm(self.critic_adam),
        }
        if self.actor_updates:
            statistics["actor_loss"] = sum(self.actor_losses()) / self.actor_updates
            statistics["actor_grad_norm"] = self._grad_norm(self.actor_adam)
        return statistics

    @staticmethod
    def _grad_norm(adam: FlatAdam) -> float:
        # Gradients stay until the next step, so that a norm that nobody clipped by costs nothing until somebody looks.
        return (th.linalg.vector_norm(adam.grad) if adam.grad_norm is None else adam.grad_norm).item()
