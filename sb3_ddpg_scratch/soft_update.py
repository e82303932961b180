"""Soft updates of target networks: theta' <- tau theta + (1 - tau) theta'."""

from collections.abc import Iterable
from itertools import chain

import torch as th
from torch import nn


def soft_update(sources: Iterable[th.Tensor], targets: Iterable[th.Tensor], tau: float) -> None:
    """
    Move every target toward its source, in place: ``theta' <- tau theta + (1 - tau) theta'``
    (Lillicrap et al. 2015, Algorithm 1, last lines of the inner loop).

    The two products are rounded one after the other, as in SB3, so that the result is SB3's to the last bit.

    :param sources: the parameters theta of the trained networks
    :param targets: the parameters theta' of the target networks, each with its source's shape
    :param tau: weight of the source in the new target, in [0, 1]
    :raises RuntimeError: if the two sequences differ in length
    """
    moved = list(targets)
    with th.no_grad():
        th._foreach_mul_(moved, 1 - tau)
        th._foreach_add_(moved, list(sources), alpha=tau)


def running_statistics(network: nn.Module, inside: bool = False) -> list[th.Tensor]:
    """The running means and variances of a network: as in SB3, all of its state with ``running_`` in the name."""
    named = chain(network._parameters.items(), network._buffers.items())
    found = [tensor for name, tensor in named if (inside or "running_" in name) and tensor is not None]
    for name, child in network._modules.items():
        if child is not None:
            found += running_statistics(child, inside or "running_" in name)
    return found


def copy_running_statistics(network: nn.Module, target: nn.Module) -> None:
    """Copy batch-norm statistics, unsmoothed: averages of averages are stale (SB3's pull request 1004)."""
    sources = running_statistics(network)
    if sources:
        with th.no_grad():
            th._foreach_copy_(running_statistics(target), sources)
