"""What an update reads besides the networks and the batch."""

from typing import NamedTuple


class UpdateSettings(NamedTuple):
    """
    The numbers of one update.

    :param gamma: discount factor of one environment step
    :param tau: share of the trained networks in the soft update
    :param max_grad_norm: largest global norm of a network's gradient; ``None`` for no limit
    :param target_policy_noise: standard deviation of the target policy smoothing, in normalised action units; 0 for none
    :param target_noise_clip: largest size of that noise
    """

    gamma: float
    tau: float
    max_grad_norm: float | None = None
    target_policy_noise: float = 0.0
    target_noise_clip: float = 0.5
