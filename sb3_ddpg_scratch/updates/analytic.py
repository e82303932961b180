"""
The update with both gradients derived by hand, written to be read.

An operation's forward and backward stand side by side. With y = f(x) and a gradient dL/dy, the chain rule gives dL/dx, and
for a layer with parameters dL/dW and dL/db (' is the transpose). Gradients that no step uses are not computed: in the
actor's step, none for the critic's parameters. The optimizers' own ``step`` applies them.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch as th
from torch import nn
from torch.nn import functional

from sb3_ddpg_scratch.networks import Actor, Critic, ResidualBlock
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater, Batch, q_scale, weights_of
from sb3_ddpg_scratch.updates.guard import Guard
from sb3_ddpg_scratch.updates.inspection import why_not_by_hand
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings

# --------------------------------------------------------------------------------------------------- Layers with parameters


def linear(layer: nn.Linear, x: th.Tensor) -> th.Tensor:
    """``y = x W' + b``."""
    return th.addmm(layer.bias, x, layer.weight.t())


def linear_backward(layer: nn.Linear, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``dL/dx = dL/dy W``."""
    return y_grad @ layer.weight


def linear_gradient(layer: nn.Linear, x: th.Tensor, y_grad: th.Tensor) -> None:
    """``dL/dW = (dL/dy)' x`` and ``dL/db``, the sum of dL/dy over the batch."""
    layer.weight.grad = y_grad.t() @ x
    layer.bias.grad = y_grad.sum(dim=0)


def _standardize(layer: nn.LayerNorm, x: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
    centered = x - x.mean(dim=1, keepdim=True)
    inverse_std = (centered.square().mean(dim=1, keepdim=True) + layer.eps).rsqrt()
    return centered * inverse_std, inverse_std


def layer_norm(layer: nn.LayerNorm, x: th.Tensor) -> th.Tensor:
    """``y = w s + b`` with the standardized ``s = (x - mean) / std`` of each row (Ba et al. 2016, equation 4)."""
    return _standardize(layer, x)[0] * layer.weight + layer.bias


def layer_norm_backward(layer: nn.LayerNorm, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``dL/dx = (g - mean(g) - s mean(g s)) / std`` with ``g = w dL/dy``."""
    s, inverse_std = _standardize(layer, x)
    g = y_grad * layer.weight
    return (g - g.mean(dim=1, keepdim=True) - s * (g * s).mean(dim=1, keepdim=True)) * inverse_std


def layer_norm_gradient(layer: nn.LayerNorm, x: th.Tensor, y_grad: th.Tensor) -> None:
    """``dL/dw``, the sum of ``s dL/dy`` over the batch, and ``dL/db``, that of dL/dy."""
    layer.weight.grad = (y_grad * _standardize(layer, x)[0]).sum(dim=0)
    layer.bias.grad = y_grad.sum(dim=0)


# ----------------------------------------------------------------------------------------------------------- Activations


def relu(layer: nn.ReLU, x: th.Tensor) -> th.Tensor:
    """``y = max(x, 0)``."""
    return x.clamp(min=0)


def relu_backward(layer: nn.ReLU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = [x > 0]``."""
    return y_grad * (x > 0)


def tanh(layer: nn.Tanh, x: th.Tensor) -> th.Tensor:
    """``y = tanh(x)``."""
    return x.tanh()


def tanh_backward(layer: nn.Tanh, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = 1 - y^2``."""
    return y_grad * (1 - y * y)


def leaky_relu(layer: nn.LeakyReLU, x: th.Tensor) -> th.Tensor:
    """``y = x`` where x > 0, else ``slope x``."""
    return th.where(x > 0, x, layer.negative_slope * x)


def leaky_relu_backward(layer: nn.LeakyReLU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = 1`` where x > 0, else ``slope``."""
    return th.where(x > 0, y_grad, layer.negative_slope * y_grad)


def elu(layer: nn.ELU, x: th.Tensor) -> th.Tensor:
    """``y = x`` where x > 0, else ``alpha (e^x - 1)``."""
    return th.where(x > 0, x, layer.alpha * x.clamp(max=0).expm1())


def elu_backward(layer: nn.ELU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = 1`` where x > 0, else ``alpha e^x``."""
    return th.where(x > 0, y_grad, layer.alpha * x.clamp(max=0).exp() * y_grad)


SELU_ALPHA, SELU_SCALE = 1.6732632423543772, 1.0507009873554805


def selu(layer: nn.SELU, x: th.Tensor) -> th.Tensor:
    """``y = scale x`` where x > 0, else ``scale alpha (e^x - 1)`` (Klambauer et al. 2017, equation 2)."""
    return SELU_SCALE * th.where(x > 0, x, SELU_ALPHA * x.clamp(max=0).expm1())


def selu_backward(layer: nn.SELU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = scale`` where x > 0, else ``scale alpha e^x``."""
    return th.where(x > 0, SELU_SCALE * y_grad, SELU_SCALE * SELU_ALPHA * x.clamp(max=0).exp() * y_grad)


def sigmoid(layer: nn.Sigmoid, x: th.Tensor) -> th.Tensor:
    """``y = 1 / (1 + e^-x)``."""
    return x.sigmoid()


def sigmoid_backward(layer: nn.Sigmoid, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = y (1 - y)``."""
    return y_grad * y * (1 - y)


def softplus(layer: nn.Softplus, x: th.Tensor) -> th.Tensor:
    """``y = log(1 + e^(beta x)) / beta``; the identity where ``beta x`` is above the threshold."""
    return functional.softplus(x, layer.beta, layer.threshold)


def softplus_backward(layer: nn.Softplus, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = sigmoid(beta x)``; 1 where y = x."""
    return th.where(layer.beta * x > layer.threshold, y_grad, y_grad * (layer.beta * x).sigmoid())


def silu(layer: nn.SiLU, x: th.Tensor) -> th.Tensor:
    """``y = x sigmoid(x)``."""
    return x * x.sigmoid()


def silu_backward(layer: nn.SiLU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = s (1 + x (1 - s))`` with ``s = sigmoid(x)``."""
    s = x.sigmoid()
    return y_grad * s * (1 + x * (1 - s))


def mish(layer: nn.Mish, x: th.Tensor) -> th.Tensor:
    """``y = x tanh(softplus(x))``."""
    return x * functional.softplus(x).tanh()


def mish_backward(layer: nn.Mish, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = t + x (1 - t^2) sigmoid(x)`` with ``t = tanh(softplus(x))``."""
    t = functional.softplus(x).tanh()
    return y_grad * (t + x * (1 - t * t) * x.sigmoid())


def gelu(layer: nn.GELU, x: th.Tensor) -> th.Tensor:
    """``y = x P(X <= x)`` for a standard normal X (Hendrycks and Gimpel 2016)."""
    return x * 0.5 * (1 + (x / math.sqrt(2)).erf())


def gelu_backward(layer: nn.GELU, x: th.Tensor, y: th.Tensor, y_grad: th.Tensor) -> th.Tensor:
    """``y' = P(X <= x) + x p(x)``."""
    density = (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)
    return y_grad * (0.5 * (1 + (x / math.sqrt(2)).erf()) + x * density)


class Operation(NamedTuple):
    """A kind of layer: y of (layer, x), dL/dx of (layer, x, y, dL/dy), and a function that sets its parameters' ``grad``."""

    forward: Callable[[Any, th.Tensor], th.Tensor]
    backward: Callable[[Any, th.Tensor, th.Tensor, th.Tensor], th.Tensor]
    gradient: Callable[[Any, th.Tensor, th.Tensor], None] | None = None


OPERATIONS: dict[type[nn.Module], Operation] = {
    nn.Linear: Operation(linear, linear_backward, linear_gradient),
    nn.LayerNorm: Operation(layer_norm, layer_norm_backward, layer_norm_gradient),
    nn.ReLU: Operation(relu, relu_backward),
    nn.Tanh: Operation(tanh, tanh_backward),
    nn.LeakyReLU: Operation(leaky_relu, leaky_relu_backward),
    nn.ELU: Operation(elu, elu_backward),
    nn.SELU: Operation(selu, selu_backward),
    nn.Sigmoid: Operation(sigmoid, sigmoid_backward),
    nn.Softplus: Operation(softplus, softplus_backward),
    nn.SiLU: Operation(silu, silu_backward),
    nn.Mish: Operation(mish, mish_backward),
    nn.GELU: Operation(gelu, gelu_backward),
}

# --------------------------------------------------------------------------------------------------------------- Networks


class Step(NamedTuple):
    """A layer of a forward pass with its input and output, for the backward pass; a residual block with its own steps."""

    layer: nn.Module
    x: th.Tensor
    y: th.Tensor
    inside: "list[Step]"


def forward(layers: nn.Module, x: th.Tensor, actions: th.Tensor | None = None, action_joins_at: int = 0) -> list[Step]:
    """Pass ``x``, ``(batch, n)``, through layers; ``actions`` join the input of the layer with index ``action_joins_at``."""
    steps = []
    for index, layer in enumerate(layers.children()):
        if actions is not None and index == action_joins_at:
            x = th.cat([x, actions], dim=1)
        if type(layer) is ResidualBlock:
            steps.append(residual(layer, x))
        else:
            steps.append(Step(layer, x, OPERATIONS[type(layer)].forward(layer, x), []))
        x = steps[-1].y
    return steps


def residual(block: ResidualBlock, x: th.Tensor) -> Step:
    """``y = x + f(x)`` with the block's layers f (He et al. 2016, equation 1)."""
    inside = forward(block, x)
    return Step(block, x, x + inside[-1].y, inside)


def residual_backward(step: Step, y_grad: th.Tensor, parameters: bool) -> th.Tensor:
    """``dL/dx = dL/dy + f'(x)' dL/dy``: the gradient passes by the layers, and through them."""
    through = y_grad
    for inner in reversed(step.inside):
        through = step_backward(inner, through, parameters)
    return y_grad + through


def step_backward(step: Step, y_grad: th.Tensor, parameters: bool = True, to_input: bool = True) -> th.Tensor:
    """Backpropagate the gradient of a step's output to its parameters and its input, as far as they are wanted."""
    if step.inside:
        return residual_backward(step, y_grad, parameters)
    operation = OPERATIONS[type(step.layer)]
    if parameters and operation.gradient is not None:
        operation.gradient(step.layer, step.x, y_grad)
    return operation.backward(step.layer, step.x, step.y, y_grad) if to_input else y_grad


def backward(steps: list[Step], y_grad: th.Tensor) -> None:
    """Backpropagate the output's gradient to all parameters."""
    for number, step in reversed(list(enumerate(steps))):
        y_grad = step_backward(step, y_grad, to_input=number > 0)
        if number > 0:
            # Drop the columns of an action that joined here.
            y_grad = y_grad[:, : steps[number - 1].y.shape[1]]


def backward_to_action(steps: list[Step], y_grad: th.Tensor, action_joins_at: int, action_dim: int) -> th.Tensor:
    """Backpropagate the output's gradient to the action alone, shape ``(batch, action_dim)``."""
    for step in reversed(steps[action_joins_at:]):
        y_grad = step_backward(step, y_grad, parameters=False)
    return y_grad[:, y_grad.shape[1] - action_dim :]


class AnalyticUpdater(AutogradUpdater):
    """The reference update with hand-written gradients, for MLPs and residual networks on any device."""

    name = "analytic"

    def __init__(self) -> None:
        super().__init__()
        self._guard: Guard | None = None

    def objection(self, networks: Networks) -> str | None:
        if self._guard is not None and self._guard.holds(networks):
            return None
        reason = why_not_by_hand(networks, trained=2)
        self._guard = Guard(networks, trained=2) if reason is None else None
        return reason

    @th.no_grad()
    def critic_gradient(self, critic: Critic, batch: Batch, target_q_values: th.Tensor) -> th.Tensor:
        """``L = sum_i mean(w (Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 w (Q_i - y) / batch``; w is mostly 1."""
        weights = weights_of(batch)
        features = critic.extract_features(batch.observations, critic.features_extractor)
        critic.optimizer.zero_grad()
        self._q_values = []
        losses = []
        for q_network in critic.q_networks:
            steps = forward(q_network, features, batch.actions, critic.action_joins_at)
            q_values = steps[-1].y
            error = q_values - target_q_values
            weighted = error if weights is None else weights * error
            losses.append((weighted * error).mean())
            backward(steps, weighted * (2 / len(error)))
            self._q_values.append(q_values)
        return th.stack(losses).sum()

    @th.no_grad()
    def actor_gradient(self, actor: Actor, critic: Critic, batch: Batch, settings: UpdateSettings) -> th.Tensor:
        """
        ``L = -mean(Q_1(s, a)) + action_l2 mean(a^2)``: from ``dL/dQ_1 = -1 / batch`` through a = mu(s) to the actor.

        Cloning multiplies ``mean(Q_1)`` by the constant :func:`q_scale` and adds ``bc_weight mean((a - a_batch)^2)``.
        """
        features = actor.extract_features(batch.observations, actor.features_extractor)
        acting = forward(actor.mu, features)
        actions = acting[-1].y
        valuing = forward(critic.q_networks[0], features, actions, critic.action_joins_at)
        q_values = valuing[-1].y
        q_grad = th.full_like(q_values, -1 / len(q_values))
        action_grad = backward_to_action(valuing, q_grad, critic.action_joins_at, actions.shape[1])
        loss = -q_values.mean()
        if settings.bc_alpha is not None:
            scale, away = q_scale(q_values, settings.bc_alpha), actions - batch.actions
            action_grad = scale * action_grad + 2 * settings.bc_weight / away.numel() * away
            loss = scale * loss + settings.bc_weight * away.square().mean()
        if settings.action_l2:
            action_grad = action_grad + 2 * settings.action_l2 / actions.numel() * actions
            loss = loss + settings.action_l2 * actions.square().mean()
        actor.optimizer.zero_grad()
        backward(acting, action_grad)
        return loss
