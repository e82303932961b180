"""
The reference update: gradients by torch's autograd, any policy, and SB3's numbers to the last bit.

:meth:`AutogradUpdater.update` is the inner loop of Algorithm 1 (Lillicrap et al. 2015); the functions are its lines.
With two critics, a delayed actor and target policy smoothing it is Algorithm 1 of TD3 (Fujimoto et al. 2018).
"""

import math
from collections.abc import Iterable
from functools import reduce

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.functional import mse_loss

from sb3_ddpg_scratch.networks import Actor, Critic
from sb3_ddpg_scratch.soft_update import copy_running_statistics, soft_update
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings

Batch = ReplayBufferSamples | DictReplayBufferSamples


def td_target(batch: Batch, actor_target: Actor, critic_target: Critic, settings: UpdateSettings) -> th.Tensor:
    """
    ``y = r + gamma (1 - terminated) min_i Q_i'(s', mu'(s'))`` (Algorithm 1 of DDPG; the minimum over several critics and
    the smoothing noise are equations 10 and 14 of TD3). An n-step batch brings its own discounts.

    :param batch: sampled transitions; ``dones`` marks terminations, not time limits
    :param actor_target: mu'
    :param critic_target: Q', one or more
    :param settings: gamma and the smoothing noise
    :return: y, shape ``(batch, 1)``
    """
    discounts = settings.gamma if batch.discounts is None else batch.discounts
    with th.no_grad():
        # Drawn even without smoothing, as in SB3: what draws from torch elsewhere, such as dropout, gets SB3's numbers.
        noise = th.empty_like(batch.actions).normal_(0, settings.target_policy_noise)
        noise = noise.clamp(-settings.target_noise_clip, settings.target_noise_clip)
        next_actions = (actor_target(batch.next_observations) + noise).clamp(-1, 1)
        next_q_values = th.cat(critic_target(batch.next_observations, next_actions), dim=1)
        next_q_values = next_q_values.min(dim=1, keepdim=True).values
        return batch.rewards + (1 - batch.dones) * discounts * next_q_values


def critic_loss(
    current_q_values: tuple[th.Tensor, ...], target_q_values: th.Tensor, weights: th.Tensor | None = None
) -> th.Tensor:
    """
    ``sum_i mean(w (Q_i(s, a) - y)^2)``, where w is 1 unless replay is prioritized.

    :param current_q_values: for each critic Q_i(s, a), shape ``(batch, 1)``
    :param target_q_values: y, shape ``(batch, 1)``
    :param weights: w, shape ``(batch, 1)``
    :return: the loss, a scalar
    """
    if weights is not None:
        return reduce(th.add, [(weights * (q_values - target_q_values).square()).mean() for q_values in current_q_values])
    return reduce(th.add, [mse_loss(q_values, target_q_values) for q_values in current_q_values])


def q_scale(q_values: th.Tensor, bc_alpha: float) -> th.Tensor:
    """``alpha / mean |Q|``, which makes the weight of cloning independent of the rewards' size (Fujimoto and Gu 2021)."""
    return bc_alpha / q_values.detach().abs().mean().clamp(min=1e-8)


def actor_loss(
    batch: Batch, actor: Actor, critic: Critic, action_l2: float = 0.0, bc_alpha: float | None = None, bc_weight: float = 1.0
) -> th.Tensor:
    """
    ``-mean(Q_1(s, mu(s)))``, whose gradient is the deterministic policy gradient (Silver et al. 2014, theorem 1). With
    ``bc_alpha`` it is multiplied by :func:`q_scale`, and ``mean((mu(s) - a)^2)`` is added: equation 3 of TD3+BC.

    :param batch: sampled transitions
    :param actor: mu
    :param critic: Q
    :param action_l2: weight of ``mean(mu(s)^2)``, which is added (Plappert et al. 2018)
    :param bc_alpha: alpha of TD3+BC; ``None`` for no cloning
    :param bc_weight: weight of the term of cloning
    :return: the loss, a scalar
    """
    actions = actor(batch.observations)
    q_values = critic.q1_forward(batch.observations, actions)
    loss = -q_values.mean()
    if bc_alpha is not None:
        loss = q_scale(q_values, bc_alpha) * loss + bc_weight * mse_loss(actions, batch.actions)
    return loss + action_l2 * actions.square().mean() if action_l2 else loss


def descend(parameters: Iterable[th.Tensor], optimizer: th.optim.Optimizer, max_grad_norm: float | None = None) -> th.Tensor:
    """Clip the gradients and take an optimizer step; returns their global norm before clipping."""
    clipped = list(parameters)
    norm = th.nn.utils.get_total_norm([parameter.grad for parameter in clipped if parameter.grad is not None])
    if max_grad_norm is not None:
        th.nn.utils.clip_grads_with_norm_(clipped, max_grad_norm, norm)
    optimizer.step()
    return norm


def weights_of(batch: Batch) -> th.Tensor | None:
    """What a prioritized replay buffer weights each transition with."""
    return getattr(batch, "weights", None)


class AutogradUpdater:
    """Updates networks in place, whatever they and their optimizers currently are."""

    name = "autograd"

    def __init__(self) -> None:
        # With a policy delay, of the latest `train` that updated the actor.
        self._actor_losses: list[th.Tensor] = []
        self._earlier_actor_losses: list[th.Tensor] = []
        self._grad_norms: dict[str, th.Tensor] = {}
        self.begin()

    def begin(self) -> None:
        """Forget the results of the last :meth:`train`, except those of the actor, whose turn the next one may not be."""
        self._critic_losses: list[th.Tensor] = []
        self._earlier_actor_losses = self._actor_losses or self._earlier_actor_losses
        self._actor_losses = []
        # From the last update.
        self._q_values: list[th.Tensor] = []
        self._target_q_values = th.tensor(th.nan)

    def objection(self, networks: Networks) -> str | None:
        """Why these networks cannot be trained this way; ``None`` if they can."""
        return None

    def train(
        self,
        networks: Networks,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """
        Make several updates.

        :param networks: what is trained
        :param buffer: where batches are sampled from
        :param gradient_steps: number of updates
        :param batch_size: transitions in each
        :param settings: the numbers of an update
        :param n_updates: updates made before, which determine whether it is the actor's turn
        :param env: normalizes observations and rewards
        """
        self.begin()
        for update in range(n_updates + 1, n_updates + gradient_steps + 1):
            batch = buffer.sample(batch_size, env=env)
            self.update(networks, batch, settings, update_policy=update % settings.policy_delay == 0)
            if weights_of(batch) is not None:
                buffer.set_priorities(self._td_errors())  # type: ignore[attr-defined]

    def update(self, networks: Networks, batch: Batch, settings: UpdateSettings, update_policy: bool) -> None:
        """One update: the critic's step and, if ``update_policy`` (always in DDPG), the actor's and the soft updates."""
        actor, critic, actor_target, critic_target = networks

        self._target_q_values = td_target(batch, actor_target, critic_target, settings)
        self._critic_losses.append(self.critic_gradient(critic, batch, self._target_q_values))
        self._grad_norms["critic"] = descend(critic.parameters(), critic.optimizer, settings.max_grad_norm)

        if update_policy:
            self._actor_losses.append(self.actor_gradient(actor, critic, batch, settings))
            self._grad_norms["actor"] = descend(actor.parameters(), actor.optimizer, settings.max_grad_norm)

            soft_update(critic.parameters(), critic_target.parameters(), settings.tau)
            soft_update(actor.parameters(), actor_target.parameters(), settings.tau)
            copy_running_statistics(critic, critic_target)
            copy_running_statistics(actor, actor_target)

    def _td_errors(self) -> np.ndarray:
        """``max_i |Q_i - y|`` of each transition of the last batch."""
        errors = (th.cat(self._q_values, dim=1) - self._target_q_values).abs()
        return errors.max(dim=1).values.numpy(force=True)

    def critic_gradient(self, critic: Critic, batch: Batch, target_q_values: th.Tensor) -> th.Tensor:
        """Set the ``grad`` of the critic's parameters; returns the loss."""
        current_q_values = critic(batch.observations, batch.actions)
        loss = critic_loss(current_q_values, target_q_values, weights_of(batch))
        self._q_values = [q_values.detach() for q_values in current_q_values]
        critic.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def actor_gradient(self, actor: Actor, critic: Critic, batch: Batch, settings: UpdateSettings) -> th.Tensor:
        """Set the ``grad`` of the actor's parameters; returns the loss."""
        loss = actor_loss(batch, actor, critic, settings.action_l2, settings.bc_alpha, settings.bc_weight)
        actor.optimizer.zero_grad()
        loss.backward()
        return loss.detach()

    def losses_are_finite(self) -> bool:
        """Of the last updates of critic and actor."""
        return all(map(math.isfinite, self.read_losses().values()))

    def read_losses(self) -> dict[str, float]:
        """``critic_loss`` and, if there was any, ``actor_loss`` of the last updates of critic and actor."""
        latest = {"critic_loss": self._critic_losses, "actor_loss": self._actor_losses or self._earlier_actor_losses}
        return {name: losses[-1].item() for name, losses in latest.items() if losses}

    def read_statistics(self) -> dict[str, float]:
        """
        Mean ``critic_loss`` of the last :meth:`train`, ``actor_loss`` of the last one that updated the actor, and ``q_mean``,
        ``target_q_mean``, ``critic_grad_norm`` and ``actor_grad_norm`` (before clipping) of the last updates.
        """
        if not self._critic_losses:
            return {}
        statistics = {
            "critic_loss": th.stack(self._critic_losses).double().mean(),
            "q_mean": th.stack(self._q_values).mean(),
            "target_q_mean": self._target_q_values.mean(),
            "critic_grad_norm": self._grad_norms["critic"],
        }
        if actor_losses := self._actor_losses or self._earlier_actor_losses:
            statistics["actor_loss"] = th.stack(actor_losses).double().mean()
            statistics["actor_grad_norm"] = self._grad_norms["actor"]
        return {name: value.item() for name, value in statistics.items()}
