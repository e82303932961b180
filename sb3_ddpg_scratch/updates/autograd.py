"""
The reference update: gradients by torch's autograd, any policy, and SB3's numbers to the last bit.

:class:`AutogradUpdater` is the inner loop of Algorithm 1 (Lillicrap et al. 2015); the functions are its lines.
With two critics, a delayed actor and target policy smoothing it is Algorithm 1 of TD3 (Fujimoto et al. 2018).
"""

from functools import reduce

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.type_aliases import DictReplayBufferSamples, ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize
from torch.nn.functional import mse_loss

from sb3_ddpg_scratch.policies import Actor, Critic, ScratchDDPGPolicy
from sb3_ddpg_scratch.soft_update import copy_running_statistics, running_statistics, soft_update
from sb3_ddpg_scratch.updates.interface import UpdateSettings

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
        next_actions = actor_target(batch.next_observations)
        if settings.target_policy_noise > 0:
            noise = th.empty_like(batch.actions).normal_(0, settings.target_policy_noise)
            noise = noise.clamp(-settings.target_noise_clip, settings.target_noise_clip)
            next_actions = (next_actions + noise).clamp(-1, 1)
        next_q_values = th.cat(critic_target(batch.next_observations, next_actions), dim=1)
        next_q_values = next_q_values.min(dim=1, keepdim=True).values
        return batch.rewards + (1 - batch.dones) * discounts * next_q_values


def critic_loss(current_q_values: tuple[th.Tensor, ...], target_q_values: th.Tensor) -> th.Tensor:
    """
    ``sum_i mean((Q_i(s, a) - y)^2)``.

    :param current_q_values: for each critic Q_i(s, a), shape ``(batch, 1)``
    :param target_q_values: y, shape ``(batch, 1)``
    :return: the loss, a scalar
    """
    return reduce(th.add, [mse_loss(q_values, target_q_values) for q_values in current_q_values])


def actor_loss(batch: Batch, actor: Actor, critic: Critic) -> th.Tensor:
    """
    ``-mean(Q_1(s, mu(s)))``, whose gradient is the deterministic policy gradient (Silver et al. 2014, theorem 1).

    :param batch: sampled transitions
    :param actor: mu
    :param critic: Q
    :return: the loss, a scalar
    """
    return -critic.q1_forward(batch.observations, actor(batch.observations)).mean()


def gradient_step(
    loss: th.Tensor, parameters: list[th.Tensor], optimizer: th.optim.Optimizer, max_grad_norm: float | None
) -> th.Tensor | None:
    """
    One optimiser step down the gradient of a loss, with respect to these parameters alone.

    :param loss: a scalar
    :param parameters: the optimiser's parameters
    :param optimizer: the optimiser
    :param max_grad_norm: largest global norm of the gradient; ``None`` for no limit
    :return: the global norm before clipping, a scalar; ``None`` where nothing is clipped
    """
    optimizer.zero_grad()
    loss.backward(inputs=[parameter for parameter in parameters if parameter.requires_grad])
    grad_norm = None
    if max_grad_norm is not None:
        grad_norm = th.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
    optimizer.step()
    return grad_norm


class AutogradUpdater:
    """
    One DDPG update of a policy's networks, in place.

    :param policy: the policy, on the device where it will be trained
    """

    name = "autograd"

    def __init__(self, policy: ScratchDDPGPolicy) -> None:
        self.policy = policy
        self._actor_parameters: list[th.Tensor] = list(policy.actor.parameters())
        self._critic_parameters: list[th.Tensor] = list(policy.critic.parameters())
        critic_pair = (self._critic_parameters, list[th.Tensor](policy.critic_target.parameters()))
        actor_pair = (self._actor_parameters, list[th.Tensor](policy.actor_target.parameters()))
        if policy.share_features_extractor:
            # Both networks hold the extractor: like SB3, move its target with the critic and again with the actor.
            self._soft_updates = [critic_pair, actor_pair]
        else:
            self._soft_updates = [(critic_pair[0] + actor_pair[0], critic_pair[1] + actor_pair[1])]
        self._running = running_statistics(policy.critic) + running_statistics(policy.actor)
        self._running_target = running_statistics(policy.critic_target) + running_statistics(policy.actor_target)

        self._critic_losses: list[th.Tensor] = []
        self._actor_losses: list[th.Tensor] = []
        self._current_q_values: tuple[th.Tensor, ...] = ()
        self._target_q_values: th.Tensor | None = None
        self._critic_grad_norm: th.Tensor | None = None
        self._actor_grad_norm: th.Tensor | None = None

    def act(self, observations: np.ndarray) -> np.ndarray:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.act`."""
        return self.policy.actor.act(th.from_numpy(observations).to(self.policy.device)).cpu().numpy()

    def begin(self) -> None:
        """Begin a series of updates: the mean losses that are read later are theirs."""
        self._critic_losses = []
        self._actor_losses = []

    def train(
        self,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """See :meth:`~sb3_ddpg_scratch.updates.interface.Updater.train`."""
        self.begin()
        for update in range(n_updates + 1, n_updates + gradient_steps + 1):
            batch = buffer.sample(batch_size, env=env)
            self.update(batch, settings, update_policy=update % settings.policy_delay == 0)

    def update(self, batch: Batch, settings: UpdateSettings, update_policy: bool) -> None:
        """
        One update: the critic's step, then the actor's, then the soft updates.

        :param batch: sampled transitions
        :param settings: what the update reads besides networks and batch
        :param update_policy: whether it is the actor's and the targets' turn as well (every one in DDPG)
        """
        actor, critic = self.policy.actor, self.policy.critic

        target_q_values = td_target(batch, self.policy.actor_target, self.policy.critic_target, settings)
        current_q_values = critic(batch.observations, batch.actions)
        loss = critic_loss(current_q_values, target_q_values)
        self._critic_grad_norm = gradient_step(loss, self._critic_parameters, critic.optimizer, settings.max_grad_norm)
        self._critic_losses.append(loss.detach())
        self._current_q_values, self._target_q_values = current_q_values, target_q_values

        if update_policy:
            loss = actor_loss(batch, actor, critic)
            self._actor_grad_norm = gradient_step(loss, self._actor_parameters, actor.optimizer, settings.max_grad_norm)
            self._actor_losses.append(loss.detach())

            for sources, targets in self._soft_updates:
                soft_update(sources, targets, settings.tau)
            copy_running_statistics(self._running, self._running_target)

    def read_losses(self) -> dict[str, float]:
        """
        :return: the latest critic and actor loss since :meth:`begin`, read off the device
        """
        latest = {"critic_loss": self._critic_losses, "actor_loss": self._actor_losses}
        return {name: losses[-1].item() for name, losses in latest.items() if losses}

    def read_statistics(self) -> dict[str, float]:
        """
        :return: mean losses since :meth:`begin`; mean Q-value, mean TD target and gradient norms (before clipping) of
            the last update. Read off the device
        """
        statistics = {
            "critic_loss": th.stack(self._critic_losses).double().mean(),
            "q_mean": th.stack([q_values.detach().mean() for q_values in self._current_q_values]).mean(),
            "target_q_mean": self._target_q_values.mean() if self._target_q_values is not None else th.tensor(th.nan),
            "critic_grad_norm": _norm(self._critic_grad_norm, self._critic_parameters),
        }
        if self._actor_losses:
            statistics["actor_loss"] = th.stack(self._actor_losses).double().mean()
            statistics["actor_grad_norm"] = _norm(self._actor_grad_norm, self._actor_parameters)
        return {name: value.item() for name, value in statistics.items()}


def _norm(known: th.Tensor | None, parameters: list[th.Tensor]) -> th.Tensor:
    # Gradients stay until the next step, so that a norm that nobody clipped by costs nothing until somebody looks.
    if known is not None:
        return known
    return th.nn.utils.get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
