"""Measures the networks of any actor-critic without affecting its training: TD target, losses, values."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.checkpoint.object_state import capture_generators, restore_generators
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.updates.autograd import actor_loss, critic_loss, td_target
from sb3_ddpg_scratch.updates.interface import UpdateSettings

SATURATED_ABOVE = 0.99
"""A normalized action component beyond this, on either side, counts as saturated."""
_GENERATORS = (np.random.Generator, np.random.RandomState, th.Generator)


class ActorCritic:
    """A model's networks, found by name, and the numbers that an update would have, without making it."""

    def __init__(self, model: BaseAlgorithm) -> None:
        needed = ("replay_buffer", "gamma", "actor", "critic", "critic_target")
        missing = [name for name in needed if not hasattr(model, name)]
        self.model: Any = model
        self.has_entropy_bonus = not hasattr(model, "actor_target")
        if not missing and self.has_entropy_bonus and not hasattr(getattr(model, "actor", None), "action_log_prob"):
            missing = ["actor_target"]
        if missing or not isinstance(model.action_space, spaces.Box):
            raise ArgumentError(
                "model",
                type(model).__name__,
                "an off-policy actor-critic with continuous actions, as ScratchDDPG and SB3's DDPG, TD3 and SAC",
                f"This one has no {', '.join(missing)}." if missing else f"Its actions are {model.action_space}.",
            )

    def act(self, observations: Any) -> th.Tensor:
        """The policy's normalized actions without noise, shape ``(batch, action_dim)``."""
        actor = self.model.actor
        return actor(observations, deterministic=True) if self.has_entropy_bonus else actor(observations)

    def q_values(self, observations: Any, actions: th.Tensor) -> th.Tensor:
        """The minimum over all critics, as in the targets, shape ``(batch,)``."""
        return th.cat(self.model.critic(observations, actions), dim=1).min(dim=1).values

    def value_of(self, observations: Any, normalize: VecNormalize | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Normalized actions mu(s), shape ``(batch, action_dim)``, and Q(s, mu(s)); ``normalize`` is for raw observations."""
        observations = observations if normalize is None else normalize.normalize_obs(observations)
        with th.no_grad():
            tensors, _ = self.model.policy.obs_to_tensor(observations)
            actions = self.act(tensors)
            return actions.cpu().numpy(), self.q_values(tensors, actions).cpu().numpy()

    def measure(self, batch: Any) -> dict[str, float]:
        """
        The numbers of an update on this batch, before gradient clipping; nothing is changed, not even gradients. Q covers the
        batch and all critics, ``td_error`` is the mean of |Q - y|, ``bonus`` is SAC's largest entropy bonus.
        """
        actor, critic = self.model.actor, self.model.critic
        targets, bonus = self._targets(batch)
        q_values = critic(batch.observations, batch.actions)
        of_critic, of_actor = critic_loss(q_values, targets), self._actor_loss(batch)
        if self.has_entropy_bonus:
            of_critic = 0.5 * of_critic
        norms = gradient_norm(of_critic, critic), gradient_norm(of_actor, actor)
        with th.no_grad():
            actions = self.act(batch.observations)
        all_q_values = th.cat(q_values, dim=1).detach()
        numbers = {
            "q_mean": all_q_values.mean(),
            "q_abs_mean": all_q_values.abs().mean(),
            "target_mean": targets.mean(),
            "td_error": (all_q_values - targets).abs().mean(),
            "critic_loss": of_critic.detach(),
            "actor_loss": of_actor.detach(),
            "critic_grad_norm": norms[0],
            "actor_grad_norm": norms[1],
            "saturated": (actions.abs() > SATURATED_ABOVE).float().mean(),
            "bonus": bonus,
        }
        # A single transfer from the device.
        values = th.stack([number.double().to(targets.device) for number in numbers.values()]).tolist()
        return dict(zip(numbers, values, strict=True))

    def _targets(self, batch: Any) -> tuple[th.Tensor, th.Tensor]:
        """The TD targets, shape (batch, 1), and the largest entropy bonus among them."""
        model = self.model
        if not self.has_entropy_bonus:
            smoothing = (getattr(model, name, 0.0) for name in ("target_policy_noise", "target_noise_clip"))
            settings = UpdateSettings(model.gamma, model.tau, None, 1, *smoothing)
            return td_target(batch, model.actor_target, model.critic_target, settings), th.zeros(())
        with th.no_grad():
            next_actions, log_prob = model.actor.action_log_prob(batch.next_observations)
            bonuses = -self._entropy_coefficient() * log_prob.reshape(-1, 1)
            next_q_values = th.cat(model.critic_target(batch.next_observations, next_actions), dim=1)
            next_q_values = next_q_values.min(dim=1, keepdim=True).values + bonuses
            discounts = model.gamma if batch.discounts is None else batch.discounts
            return batch.rewards + (1 - batch.dones) * discounts * next_q_values, bonuses.abs().max()

    def _actor_loss(self, batch: Any) -> th.Tensor:
        if not self.has_entropy_bonus:
            # SB3's models have none of ours.
            settings = self.model._update_settings() if hasattr(self.model, "_update_settings") else UpdateSettings(0, 0)
            terms = (settings.action_l2, settings.bc_alpha, settings.bc_weight)
            return actor_loss(batch, self.model.actor, self.model.critic, *terms)
        actions, log_prob = self.model.actor.action_log_prob(batch.observations)
        return (self._entropy_coefficient() * log_prob.reshape(-1) - self.q_values(batch.observations, actions)).mean()

    def _entropy_coefficient(self) -> th.Tensor:
        logarithm = getattr(self.model, "log_ent_coef", None)
        return self.model.ent_coef_tensor if logarithm is None else logarithm.detach().exp()


def gradient_norm(loss: th.Tensor, network: th.nn.Module) -> th.Tensor:
    """The 2-norm of a loss's gradient with respect to a network's parameters, whose ``grad`` is not changed."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    gradients = th.autograd.grad(loss, parameters, retain_graph=False, allow_unused=True) if parameters else ()
    return th.nn.utils.get_total_norm([gradient for gradient in gradients if gradient is not None])


@contextmanager
def isolated(model: OffPolicyAlgorithm, seed: int) -> Iterator[None]:
    """Put networks into evaluation mode and draw random numbers from ``seed``; everything is restored afterwards."""
    # Between trainings hardly any module is in training mode, and switching all of them would take longest.
    in_training = [module for module in model.policy.modules() if module.training]
    states = capture_generators(model.device)
    own = [_restorer(value) for value in vars(model.replay_buffer).values() if isinstance(value, _GENERATORS)]
    random.seed(seed)
    np.random.seed(seed)
    th.default_generator.manual_seed(seed)
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
        restore_generators(states, model.device)
        for restore in own:
            restore()


def _restorer(generator: Any) -> Callable[[], None]:
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    return partial(generator.set_state, generator.get_state())
