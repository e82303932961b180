"""
Flat parameter vectors: all parameters of actor and critic as views of one vector, so that Adam and soft update are one call.

Names and shapes in ``state_dict`` stay as they are, and so do the optimisers' entries: each is a view of a flat vector too.
"""

from collections.abc import Sequence

import torch as th
from torch import nn


def views_of(vector: th.Tensor, shapes: Sequence[th.Size]) -> list[th.Tensor]:
    """
    :param vector: as long as all the shapes together
    :param shapes: shapes of the views
    :return: views of the vector, one behind the other
    """
    views, start = [], 0
    for shape in shapes:
        views.append(vector[start : start + shape.numel()].view(shape))
        start += shape.numel()
    return views


class FlatParameters:
    """
    Parameters of one or several networks as views of one vector.

    :param networks: the networks, in the order in which their parameters lie in the vector
    """

    def __init__(self, *networks: nn.Module) -> None:
        self.parameters = [parameter for network in networks for parameter in network.parameters()]
        self.vector = th.empty(sum(parameter.numel() for parameter in self.parameters))
        self.views = views_of(self.vector, [parameter.shape for parameter in self.parameters])
        self._ends = (self.views[0].data_ptr(), self.views[-1].data_ptr())
        self.bind()

    def bind(self) -> None:
        """Take over the present values of parameters that are no longer views, as after ``deepcopy`` or ``to``."""
        # Networks are copied and moved as wholes, so that the two ends tell.
        if (self.parameters[0].data_ptr(), self.parameters[-1].data_ptr()) == self._ends:
            return
        for parameter, view in zip(self.parameters, self.views, strict=True):
            view.copy_(parameter.data)
            parameter.data = view


class FlatAdam:
    """
    Adam's or AdamW's moments as flat vectors behind a torch optimiser, whose ``state_dict`` stays the truth for saving.

    :param optimizer: an ``Adam`` or ``AdamW`` of one parameter group
    :param vector: the slice of the flat parameter vector that the optimiser trains
    """

    def __init__(self, optimizer: th.optim.Optimizer, vector: th.Tensor) -> None:
        self.optimizer = optimizer
        self.parameters: list[nn.Parameter] = optimizer.param_groups[0]["params"]
        self.vector = vector
        self.place(*(th.zeros_like(vector) for _ in range(3)))
        # The gradient's global norm before clipping; None where nothing is clipped.
        self.grad_norm: th.Tensor | None = None
        # Whether weight decay acts on the weights (AdamW) or through the gradient (Adam).
        self.decoupled_decay = isinstance(optimizer, th.optim.AdamW)
        self.begin()

    def place(self, grad: th.Tensor, exp_avg: th.Tensor, exp_avg_sq: th.Tensor) -> None:
        """
        Say where gradient and moments lie.

        :param grad: memory of the gradient, as long as the parameters' slice
        :param exp_avg: memory of the first moment
        :param exp_avg_sq: memory of the second moment
        """
        shapes = [parameter.shape for parameter in self.parameters]
        self.grad, self.exp_avg, self.exp_avg_sq = grad, exp_avg, exp_avg_sq
        self.grads = views_of(grad, shapes)
        # Steps made so far: the optimiser has one such number for each parameter. As an array, it is counted up faster.
        step_tensors = th.zeros(len(shapes))
        self.steps = step_tensors.numpy()
        self.first_step = step_tensors[0]
        moments = (step_tensors.unbind(), views_of(exp_avg, shapes), views_of(exp_avg_sq, shapes))
        names = ("step", "exp_avg", "exp_avg_sq")
        self._entries = [dict(zip(names, values, strict=True)) for values in zip(*moments, strict=True)]

    def begin(self) -> None:
        """Before a series of steps: read the settings, and take over entries that are no longer views, as after loading."""
        group = self.optimizer.param_groups[0]
        beta1, beta2 = group["betas"]
        # All of them floats, whatever the user wrote: what is compiled is compiled anew for other types.
        self.settings = (float(group["lr"]), float(beta1), float(beta2), float(group["eps"]), float(group["weight_decay"]))
        self.grad_norm = None

        state = self.optimizer.state
        if self.parameters[0] not in state:
            self._blank = True
            self.steps[:] = 0
            self.exp_avg.zero_()
            self.exp_avg_sq.zero_()
        else:
            self._blank = False
            if state[self.parameters[0]]["exp_avg"] is not self._entries[0]["exp_avg"]:
                self._adopt()

    def _adopt(self) -> None:
        for parameter, entry in zip(self.parameters, self._entries, strict=True):
            loaded = self.optimizer.state[parameter]
            for name, view in entry.items():
                view.copy_(loaded[name])
                loaded[name] = view

    def advance(self, count: int = 1) -> None:
        """
        Count steps, in every entry of the optimiser.

        :param count: how many
        """
        if self._blank:
            self._blank = False
            for parameter, entry in zip(self.parameters, self._entries, strict=True):
                self.optimizer.state[parameter].update(entry)
        self.steps += count


def flat_adam_supports(optimizer: th.optim.Optimizer) -> bool:
    """
    :param optimizer: a policy's optimiser
    :return: whether :class:`FlatAdam` does what it would do
    """
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW) or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    unusual = ("amsgrad", "maximize", "capturable", "differentiable")
    return not any(group.get(name) for name in unusual) and all(
        not isinstance(group[name], th.Tensor) for name in ("lr", "betas")
    )
