"""What an update reads besides a batch: the networks and the numbers."""

from typing import NamedTuple

from sb3_ddpg_scratch.networks import Actor, Critic


class Networks(NamedTuple):
    """The networks that an update trains, and their target networks. The first two have an ``optimizer``."""

    actor: Actor
    critic: Critic
    actor_target: Actor
    critic_target: Critic


class UpdateSettings(NamedTuple):
    """
    The numbers of one update.

    :param gamma: discount factor of one environment step
    :param tau: share of the trained networks in the soft update
    :param max_grad_norm: largest global norm of a network's gradient; ``None`` for no limit
    :param policy_delay: updates of the critic for each of the actor and the targets
    :param target_policy_noise: standard deviation of the target policy smoothing, in normalized action units; 0 for none
    :param target_noise_clip: limit for the absolute value of that noise
    :param action_l2: weight of the mean squared action in the actor's loss
    :param bc_alpha: alpha of TD3+BC, whose term of behavior cloning is then part of the actor's loss; ``None`` for none
    :param bc_weight: weight of that term
    """

    gamma: float
    tau: float
    max_grad_norm: float | None = None
    policy_delay: int = 1
    target_policy_noise: float = 0.0
    target_noise_clip: float = 0.5
    action_l2: float = 0.0
    bc_alpha: float | None = None
    bc_weight: float = 1.0
