"""Soft updates of target networks: theta' <- tau theta + (1 - tau) theta'."""

import torch as th
from torch import nn


def soft_update(sources: list[th.Tensor], targets: list[th.Tensor], tau: float) -> None:
    """
    Move every target towards its source, in place: ``theta' <- tau theta + (1 - tau) theta'``
    (Lillicrap et al. 2015, Algorithm 1, last lines of the inner loop).

    The two products are rounded one after the other, as SB3 does, so that the result is SB3's to the last bit.

    :param sources: the parameters theta of the networks that are trained
    :param targets: the parameters theta' of the target networks, each of its source's shape
    :param tau: share of the source in the new target, in (0, 1]
    :raises RuntimeError: if the two sequences differ in length
    """
    with th.no_grad():
        th._foreach_mul_(targets, 1 - tau)
        th._foreach_add_(targets, sources, alpha=tau)


def running_statistics(network: nn.Module) -> list[th.Tensor]:
    """
    The batch-norm running means and variances of a network, in the order of its ``state_dict``.

    :param network: any module
    :return: the tensors themselves, not copies
    """
    return [tensor for name, tensor in network.state_dict().items() if "running_" in name]


def copy_running_statistics(sources: list[th.Tensor], targets: list[th.Tensor]) -> None:
    """
    Give target networks the batch-norm statistics of the trained ones, unsmoothed, whatever tau is
    (SB3's pull request 1004: averaging an average makes the targets normalise by stale statistics).

    :param sources: running statistics of the trained networks, see :func:`running_statistics`
    :param targets: running statistics of the target networks, in the same order
    """
    if sources:
        with th.no_grad():
            th._foreach_copy_(targets, sources)
