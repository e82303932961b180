"""
Whether networks and optimizers are still as a full inspection (:mod:`~sb3_ddpg_scratch.updates.inspection`) found them.

A user may freeze, replace, hook or override anything at any time: in an environment, a callback, a schedule. The guard takes
one look before each series of updates and each action, in a few microseconds.
"""

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter
from typing import Any

import torch as th
from torch import nn
from torch.utils.hooks import RemovableHandle

from sb3_ddpg_scratch.networks import Critic
from sb3_ddpg_scratch.updates.inspection import ACTIVATIONS, ADAM_FLAGS, any_hooks, methods_of_layers

_address = th.Tensor.data_ptr
_requires_grad, _grad = attrgetter("requires_grad"), attrgetter("grad")
_settings = itemgetter("betas", "eps", "weight_decay", *ADAM_FLAGS)
_ADAMS = (th.optim.Adam, th.optim.AdamW)


class Guard:
    """
    Looks for changes in networks, the first ``trained`` of which are trained, and optionally in their optimizers, whose state
    and gradients must be complete.

    Objects are compared by identity and parameters also by address. What was found at first is kept alive, so that nothing
    else can get the same identity or address.
    """

    def __init__(self, networks: Sequence[Any], trained: int, with_optimizers: bool = False) -> None:
        self._networks = tuple(networks)
        modules = [module for network in networks for module in network.modules()]
        # Part of the policy, which its networks share.
        modules += {network.observation_statistics for network in networks} - {None}
        self._modules, self._attributes = modules, [vars(module) for module in modules]
        self._constants = [(vars(module), name) for module in modules for name in _constants_of(module)]
        self._parameters = [parameter for network in networks for parameter in network.parameters()]
        self.trained = [parameter for network in networks[:trained] for parameter in network.parameters()]
        self._holders = list(networks[:trained]) if with_optimizers else []
        self._with_grads = self.trained if with_optimizers else []
        # Views and lists, which always have the present contents.
        self._children = [vars(module)["_modules"].values() for module in modules if module._modules]
        self._children += [module.q_networks for module in modules if isinstance(module, Critic)]
        self._tensors: list[Iterable[Any]] = [vars(one)["_parameters"].values() for one in modules if one._parameters]
        for optimizer in (one.optimizer for one in self._holders):
            state = optimizer.state
            self._tensors += [optimizer.param_groups[0]["params"], *(entry.values() for entry in state.values())]
        self._expected_tensors = list(self._present_tensors())
        self._kept: list[Any] = [one.detach() for one in self._expected_tensors if isinstance(one, th.Tensor)]
        self._kept += [(one.optimizer.param_groups, *one.optimizer.state.values()) for one in self._holders]
        self._last_hook = RemovableHandle.next_id
        self._expected = self._look()

    def _present_tensors(self) -> Iterable[Any]:
        """Parameters, moments and gradients, and an end by which one more or less is noticed."""
        return chain(*self._tensors, map(_grad, self._with_grads), (Guard,))

    def _look(self) -> tuple[Any, ...]:
        """What can be compared by equality: of modules, of optimizers, and addresses."""
        return (
            list(chain.from_iterable(self._children)),
            list(map(type, self._modules)),
            list(map(len, self._attributes)),
            methods_of_layers(),
            [network.observation_statistics for network in self._networks],
            list(map(_address, self._parameters)),
            [attributes[name] for attributes, name in self._constants],
            [_look_at_optimizer(network.optimizer) for network in self._holders],
        )

    def holds(self, networks: Sequence[Any]) -> bool:
        """Whether these are the same networks, and nothing that compiled code relies on has changed."""
        return (
            # Modules are equal where they are the same; comparing tensors would compare their values.
            tuple(networks) == self._networks
            and all(map(_requires_grad, self.trained))
            and all(map(is_, self._present_tensors(), self._expected_tensors))
            and self._look() == self._expected
            and self._has_no_hooks()
        )

    def _has_no_hooks(self) -> bool:
        # Every hook takes the next number: while that is unchanged, there is no new one.
        last = RemovableHandle.next_id
        if last != self._last_hook:
            if any_hooks(self._modules, self.trained, [one.optimizer for one in self._holders]):
                return False
            self._last_hook = last
        return True


def _constants_of(module: nn.Module) -> Iterable[str]:
    return ("eps",) if type(module) is nn.LayerNorm else ACTIVATIONS.get(type(module), ())


def _look_at_optimizer(optimizer: Any) -> tuple[Any, ...]:
    groups = optimizer.param_groups
    if type(optimizer) not in _ADAMS or len(groups) != 1:
        return ()
    group = groups[0]
    entries = list(map(id, optimizer.state.values()))
    return (
        optimizer,
        len(vars(optimizer)),
        len(groups),
        id(group),
        id(group["params"]),
        type(group["lr"]),
        _settings(group),
        entries,
    )
