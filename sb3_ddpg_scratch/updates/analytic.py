"""
The update with both gradients written out by hand: the derivation, made to be read.

An operation's forward and backward stand side by side. With z = x W' + b, h = f(z) and a gradient dL/dh, the chain rule is
``dL/dz = dL/dh f'(z)``, ``dL/dW = (dL/dz)' x``, ``dL/db = sum over the batch of dL/dz`` and ``dL/dx = dL/dz W``
(' is the transpose). Gradients that no step uses are not computed: none of the critic's parameters in the actor's step.
The optimizers' own ``step`` descends along them.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch as th
from torch import nn

from sb3_ddpg_scratch.networks import Actor, Critic
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater, Batch
from sb3_ddpg_scratch.updates.inspection import NetworksWatch, why_not_by_hand
from sb3_ddpg_scratch.updates.interface import Networks


def relu(z: th.Tensor) -> th.Tensor:
    """``h = max(z, 0)``."""
    return z.clamp(min=0)


def relu_backward(h: th.Tensor, h_grad: th.Tensor) -> th.Tensor:
    """``dL/dz = dL/dh [h > 0]``."""
    return h_grad * (h > 0)


def tanh(z: th.Tensor) -> th.Tensor:
    """``h = tanh(z)``."""
    return z.tanh()


def tanh_backward(h: th.Tensor, h_grad: th.Tensor) -> th.Tensor:
    """``dL/dz = dL/dh (1 - h^2)``."""
    return h_grad * (1 - h * h)


def linear(layer: nn.Linear, x: th.Tensor) -> th.Tensor:
    """``z = x W' + b``."""
    return th.addmm(layer.bias, x, layer.weight.t())


def linear_backward(layer: nn.Linear, x: th.Tensor, z_grad: th.Tensor) -> None:
    """``dL/dW = (dL/dz)' x`` and ``dL/db``, into the parameters' ``grad``."""
    layer.weight.grad = z_grad.t() @ x
    layer.bias.grad = z_grad.sum(dim=0)


def linear_backward_to_input(layer: nn.Linear, z_grad: th.Tensor) -> th.Tensor:
    """``dL/dx = dL/dz W``."""
    return z_grad @ layer.weight


class Activation(NamedTuple):
    """An activation and its derivative, both as functions of what they are given."""

    forward: Callable[[th.Tensor], th.Tensor]
    backward: Callable[[th.Tensor, th.Tensor], th.Tensor]


ACTIVATIONS = {nn.ReLU: Activation(relu, relu_backward), nn.Tanh: Activation(tanh, tanh_backward)}


class Step(NamedTuple):
    """A layer of a forward pass with its input and output, which the way back needs."""

    layer: nn.Module
    x: th.Tensor
    y: th.Tensor


def forward(layers: nn.Module, x: th.Tensor, actions: th.Tensor | None = None, action_joins_at: int = 0) -> list[Step]:
    """
    A pass through layers in a row, ``Linear`` and activations.

    :param layers: the layers
    :param x: input of the first, shape ``(batch, n)``
    :param actions: joined to the input of one layer, shape ``(batch, action_dim)``
    :param action_joins_at: the index of that layer
    """
    steps = []
    for index, layer in enumerate(layers.children()):
        if actions is not None and index == action_joins_at:
            x = th.cat([x, actions], dim=1)
        y = linear(layer, x) if isinstance(layer, nn.Linear) else ACTIVATIONS[type(layer)].forward(x)
        steps.append(Step(layer, x, y))
        x = y
    return steps


def backward(steps: list[Step], y_grad: th.Tensor) -> None:
    """From the gradient with respect to the output to those of all parameters."""
    for number, (layer, x, y) in reversed(list(enumerate(steps))):
        if isinstance(layer, nn.Linear):
            linear_backward(layer, x, y_grad)
            if number > 0:
                # Without the columns of an action that joined here.
                y_grad = linear_backward_to_input(layer, y_grad)[:, : steps[number - 1].y.shape[1]]
        else:
            y_grad = ACTIVATIONS[type(layer)].backward(y, y_grad)


def backward_to_action(steps: list[Step], y_grad: th.Tensor, action_joins_at: int, action_dim: int) -> th.Tensor:
    """From the gradient with respect to the output to that of the action alone, shape ``(batch, action_dim)``."""
    for layer, _, y in reversed(steps[action_joins_at:]):
        if isinstance(layer, nn.Linear):
            y_grad = linear_backward_to_input(layer, y_grad)
        else:
            y_grad = ACTIVATIONS[type(layer)].backward(y, y_grad)
    return y_grad[:, y_grad.shape[1] - action_dim :]


class AnalyticUpdater(AutogradUpdater):
    """The reference update with gradients by hand, for plain MLPs on any device."""

    name = "analytic"

    def __init__(self) -> None:
        super().__init__()
        self._watch: NetworksWatch | None = None

    def objection(self, networks: Networks) -> str | None:
        """See :meth:`AutogradUpdater.objection`."""
        if self._watch is None or not self._watch.holds(networks):
            reason = why_not_by_hand(networks, trained=2)
            self._watch = NetworksWatch(networks, trained=2) if reason is None else None
            return reason
        return None

    @th.no_grad()
    def critic_gradient(self, critic: Critic, batch: Batch, target_q_values: th.Tensor) -> th.Tensor:
        """``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``."""
        features = critic.extract_features(batch.observations, critic.features_extractor)
        critic.optimizer.zero_grad()
        self._q_values = []
        losses = []
        for q_network in critic.q_networks:
            steps = forward(q_network, features, batch.actions, critic.action_joins_at)
            q_values = steps[-1].y
            error = q_values - target_q_values
            losses.append((error * error).mean())
            backward(steps, error * (2 / len(error)))
            self._q_values.append(q_values)
        return th.stack(losses).sum()

    @th.no_grad()
    def actor_gradient(self, actor: Actor, critic: Critic, batch: Batch) -> th.Tensor:
        """``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through mu to the actor."""
        features = actor.extract_features(batch.observations, actor.features_extractor)
        acting = forward(actor.mu, features)
        actions = acting[-1].y
        valuing = forward(critic.q_networks[0], features, actions, critic.action_joins_at)
        q_values = valuing[-1].y
        q_grad = th.full_like(q_values, -1 / len(q_values))
        action_grad = backward_to_action(valuing, q_grad, critic.action_joins_at, actions.shape[1])
        actor.optimizer.zero_grad()
        backward(acting, action_grad)
        return -q_values.mean()
