"""
The arithmetic of an update, compiled by Numba: the derivation of :mod:`~sb3_ddpg_scratch.updates.analytic` with loops.

Kernels read and write the networks' own tensors and the optimizers' own moments, whose addresses stand in tables: a row of
``layers`` is one linear layer, a row of ``parameters`` one parameter. Hidden values stand with the batch as columns,
``(units, batch)``, so that all values of a unit are neighbors and an action that joins is further rows. Products go to the
BLAS behind ``np.dot``.

Several threads can share an update: each computes the gradients of some rows of the batch.
"""

from functools import partial
from typing import NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, njit, types
from numba.extending import intrinsic

compiled = partial(njit, cache=True, fastmath=True, error_model="numpy", nogil=True)

ZERO, ONE = np.float32(0), np.float32(1)
# Products with no more inputs or outputs than this are faster as loops: calling a library costs more than their arithmetic.
FEW = 4

# Columns of a table of layers, int64 (layers, 6): addresses of parameters and their gradients, and sizes.
WEIGHT, BIAS, WEIGHT_GRAD, BIAS_GRAD, N_IN, N_OUT = range(6)
# Columns of a table of parameters, int64 (parameters, 8): addresses, the number of entries, and the place of the gradient
# among the other threads' gradients.
VALUE, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, TARGET, SIZE, OFFSET = range(8)


class Sizes(NamedTuple):
    """What is fixed for a pair of networks."""

    observation: int
    action: int
    action_layer: int
    tanh: bool


class Targets(NamedTuple):
    """The target networks: tables of layers, of each critic one."""

    actor: np.ndarray
    critics: np.ndarray


class Share(NamedTuple):
    """The rows of a batch that one thread computes with, and its tables of layers, whose gradients are its own."""

    first: int
    end: int
    actor: np.ndarray
    critics: np.ndarray


class Descent(NamedTuple):
    """One network's step of Adam: table of parameters, the other threads' gradients, and the optimizer's settings."""

    parameters: np.ndarray
    other_grads: np.ndarray
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    max_grad_norm: float


class Settings(NamedTuple):
    """The numbers of an update; ``discount`` is the factor of the next Q-value besides the row's continuation."""

    discount: float
    tau: float
    noise_clip: float
    policy_delay: int


class Sums(NamedTuple):
    """Sums over the rows of a share, and over the critics."""

    squared_error: float
    q: float
    target_q: float


class Losses(NamedTuple):
    """Of each update the critic's loss; of each actor update the actor's; of the last update the means of Q and target."""

    critic: np.ndarray
    actor: np.ndarray
    last_q: np.ndarray


# -------------------------------------------------------------------------------------------------------------- Memory


@intrinsic
def _pointer(_, address):
    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), code


@compiled()
def vector(address, size):
    """The float32 entries at an address."""
    return carray(_pointer(address), (size,), np.float32)


@compiled()
def weights_of(layer):
    """The weights (n_out, n_in) of a row of a table of layers."""
    return carray(_pointer(layer[WEIGHT]), (layer[N_OUT], layer[N_IN]), np.float32)


@compiled()
def inputs_of(layers, memory, index, batch):
    """The inputs (n_in, batch) of a layer: those of all layers lie one behind the other."""
    start = 0
    for before in range(index):
        start += layers[before, N_IN]
    n_in = layers[index, N_IN]
    return memory[start * batch : (start + n_in) * batch].reshape((n_in, batch))


@compiled()
def memory_for(layers, batch):
    """Memory for the inputs of all layers, and for the gradients on the way back through two layers at a time."""
    inputs = 0
    widest = layers[0, N_IN]
    for index in range(len(layers)):
        inputs += layers[index, N_IN]
        widest = max(widest, layers[index, N_OUT], layers[index, N_IN])
    return np.empty(inputs * batch, np.float32), np.empty((2, widest * batch), np.float32)


@compiled()
def write_inputs(layers, memory, observation, action, action_layer):
    """Write observations (batch, size) as the first layer's inputs, and actions (size, batch) as inputs of their layer."""
    batch = len(observation)
    first = inputs_of(layers, memory, 0, batch)
    for j in range(observation.shape[1]):
        for i in range(batch):
            first[j, i] = observation[i, j]
    joined = inputs_of(layers, memory, action_layer, batch)
    joined[len(joined) - len(action) :, :] = action


# ---------------------------------------------------------------------------------------------- Forward beside backward


@compiled()
def matmul(weight, x, z):
    """``z = W x``; with the transpose of W, ``dL/dx = W' dL/dz``."""
    n_out, n_in = weight.shape
    if min(n_in, n_out) > FEW:
        np.dot(weight, x, z)
        return
    for j in range(n_out):
        z[j, :] = ZERO
        for k in range(n_in):
            factor = weight[j, k]
            for i in range(x.shape[1]):
                z[j, i] += factor * x[k, i]


@compiled()
def matmul_backward(delta, x, weight_grad):
    """``dL/dW = dL/dz x'``."""
    n_out, n_in = weight_grad.shape
    if min(n_in, n_out) > FEW:
        np.dot(delta, x.T, weight_grad)
        return
    for j in range(n_out):
        for k in range(n_in):
            total = ZERO
            for i in range(x.shape[1]):
                total += delta[j, i] * x[k, i]
            weight_grad[j, k] = total


@compiled()
def activate(z, bias, tanh):
    """``h = f(z + b)``, in place."""
    n_out, batch = z.shape
    for j in range(n_out):
        shift = bias[j]
        if tanh:
            for i in range(batch):
                z[j, i] = np.tanh(z[j, i] + shift)
        else:
            for i in range(batch):
                z[j, i] = max(z[j, i] + shift, ZERO)


@compiled()
def activate_backward(grad, h, tanh):
    """``dL/dz = dL/dh f'(z)``, in place: relu'(z) = [h > 0], tanh'(z) = 1 - h^2."""
    n_out, batch = grad.shape
    for j in range(n_out):
        if tanh:
            for i in range(batch):
                grad[j, i] *= ONE - h[j, i] * h[j, i]
        else:
            for i in range(batch):
                grad[j, i] = grad[j, i] if h[j, i] > 0 else ZERO


@compiled()
def forward(layers, tanh, memory, output):
    """From the inputs in ``memory`` to ``output`` (n_out, batch): z = W x + b, and between layers h = f(z)."""
    batch = output.shape[1]
    last = len(layers) - 1
    for index in range(last + 1):
        layer = layers[index]
        bias = vector(layer[BIAS], layer[N_OUT])
        x = inputs_of(layers, memory, index, batch)
        if index < last:
            # In front of the action, where it joins the next layer.
            hidden = inputs_of(layers, memory, index + 1, batch)[: layer[N_OUT]]
            matmul(weights_of(layer), x, hidden)
            activate(hidden, bias, tanh)
        else:
            matmul(weights_of(layer), x, output)
            for j in range(len(bias)):
                for i in range(batch):
                    output[j, i] += bias[j]


@compiled()
def backward(layers, tanh, memory, deltas, batch):
    """From dL/dz of the output, in ``deltas[0]``, to the gradients: dL/dW, and dL/db, the sum of dL/dz over the batch."""
    here = 0
    for index in range(len(layers) - 1, -1, -1):
        layer = layers[index]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        x = inputs_of(layers, memory, index, batch)
        delta = deltas[here, : n_out * batch].reshape((n_out, batch))
        matmul_backward(delta, x, carray(_pointer(layer[WEIGHT_GRAD]), (n_out, n_in), np.float32))
        bias_grad = vector(layer[BIAS_GRAD], n_out)
        for j in range(n_out):
            total = ZERO
            for i in range(batch):
                total += delta[j, i]
            bias_grad[j] = total
        if index > 0:
            here = 1 - here
            input_grad = deltas[here, : n_in * batch].reshape((n_in, batch))
            matmul(weights_of(layer).T, delta, input_grad)
            activate_backward(input_grad[: layers[index - 1, N_OUT]], x, tanh)


@compiled()
def backward_to_action(layers, tanh, memory, deltas, action_layer, action_grad):
    """From dL/dz of the output, in ``deltas[0]``, to the gradient with respect to the action (size, batch) alone."""
    action_dim, batch = action_grad.shape
    here = 0
    for index in range(len(layers) - 1, action_layer - 1, -1):
        layer = layers[index]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        delta = deltas[here, : n_out * batch].reshape((n_out, batch))
        if index == action_layer:
            # As a matrix without gaps, which libraries multiply by.
            weight_of_action = np.ascontiguousarray(weights_of(layer)[:, n_in - action_dim :])
            matmul(weight_of_action.T, delta, action_grad)
        else:
            here = 1 - here
            input_grad = deltas[here, : n_in * batch].reshape((n_in, batch))
            matmul(weights_of(layer).T, delta, input_grad)
            activate_backward(input_grad[: layers[index - 1, N_OUT]], inputs_of(layers, memory, index, batch), tanh)


# ------------------------------------------------------------------------------------------------------- Losses


@compiled()
def squash(action):
    """``a = tanh(z)``, in place."""
    for j in range(len(action)):
        for i in range(action.shape[1]):
            action[j, i] = np.tanh(action[j, i])


@compiled()
def act(layers, tanh, observation, action):
    """``a = mu(s)``, for observations (batch, size); ``action`` is (size, batch)."""
    memory, _ = memory_for(layers, len(observation))
    write_inputs(layers, memory, observation, action[:0], 0)
    forward(layers, tanh, memory, action)
    squash(action)


@compiled()
def td_target(sizes, targets, memory, rows, noise, settings):
    """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation and mu' smoothed by clipped noise."""
    o, a = sizes.observation, sizes.action
    batch = len(rows)
    action, q, y = np.empty((a, batch), np.float32), np.empty((1, batch), np.float32), np.empty(batch, np.float32)
    next_observation = rows[:, o + a + 2 : 2 * o + a + 2]
    act(targets.actor, sizes.tanh, next_observation, action)
    if len(noise) > 0:
        clip = np.float32(settings.noise_clip)
        for j in range(a):
            for i in range(batch):
                smoothed = action[j, i] + min(max(noise[i, j], -clip), clip)
                action[j, i] = min(max(smoothed, -ONE), ONE)
    for number in range(len(targets.critics)):
        critic = targets.critics[number]
        write_inputs(critic, memory, next_observation, action, sizes.action_layer)
        forward(critic, sizes.tanh, memory, q)
        for i in range(batch):
            y[i] = q[0, i] if number == 0 else min(y[i], q[0, i])
    gamma = np.float32(settings.discount)
    for i in range(batch):
        y[i] = rows[i, o + a] + gamma * rows[i, o + a + 1] * y[i]
    return y


@compiled()
def critic_gradient(sizes, targets, share, batch, noise, settings):
    """``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``, for the rows of a share."""
    o, a = sizes.observation, sizes.action
    rows = batch[share.first : share.end]
    memory, deltas = memory_for(share.critics[0], len(rows))
    y = td_target(sizes, targets, memory, rows, noise[share.first : share.end], settings)
    action = np.ascontiguousarray(rows[:, o : o + a].T)
    q = np.empty((1, len(rows)), np.float32)
    scale = np.float32(2 / len(batch))
    squared, q_sum, y_sum = 0.0, 0.0, 0.0
    for number in range(len(share.critics)):
        critic = share.critics[number]
        write_inputs(critic, memory, rows[:, :o], action, sizes.action_layer)
        forward(critic, sizes.tanh, memory, q)
        for i in range(len(rows)):
            error = q[0, i] - y[i]
            squared += error * error
            q_sum += q[0, i]
            y_sum += y[i]
            deltas[0, i] = scale * error
        backward(critic, sizes.tanh, memory, deltas, len(rows))
    return Sums(squared, q_sum, y_sum)


@compiled()
def actor_gradient(sizes, share, batch):
    """
    ``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor, for the rows
    of a share. Returns their sum of Q-values.
    """
    o, a = sizes.observation, sizes.action
    rows = batch[share.first : share.end]
    critic = share.critics[0]
    actor_memory, actor_deltas = memory_for(share.actor, len(rows))
    memory, deltas = memory_for(critic, len(rows))
    action, q = np.empty((a, len(rows)), np.float32), np.empty((1, len(rows)), np.float32)
    write_inputs(share.actor, actor_memory, rows[:, :o], action[:0], 0)
    forward(share.actor, sizes.tanh, actor_memory, action)
    squash(action)
    write_inputs(critic, memory, rows[:, :o], action, sizes.action_layer)
    forward(critic, sizes.tanh, memory, q)
    q_sum = 0.0
    for i in range(len(rows)):
        q_sum += q[0, i]
        deltas[0, i] = np.float32(-1 / len(batch))
    delta = actor_deltas[0, : a * len(rows)].reshape((a, len(rows)))
    backward_to_action(critic, sizes.tanh, memory, deltas, sizes.action_layer, delta)
    activate_backward(delta, action, True)
    backward(share.actor, sizes.tanh, actor_memory, actor_deltas, len(rows))
    return q_sum


# --------------------------------------------------------------------------------------------------------------- Steps


@compiled()
def add_other_grads(descent):
    """Add the gradients of the other shares to those of the first one, which are the parameters' own."""
    for row in descent.parameters:
        grad = vector(row[GRAD], row[SIZE])
        for share in range(len(descent.other_grads)):
            other = descent.other_grads[share, row[OFFSET] : row[OFFSET] + row[SIZE]]
            for i in range(len(grad)):
                grad[i] += other[i]


@compiled()
def clip_grad_norm(parameters, max_grad_norm):
    """Limit the gradient's global norm."""
    squared = 0.0
    for row in parameters:
        grad = vector(row[GRAD], row[SIZE])
        for i in range(len(grad)):
            squared += grad[i] * grad[i]
    norm = np.sqrt(squared)
    scale = np.float32(min(1.0, max_grad_norm / (norm + 1e-6)))
    for row in parameters:
        grad = vector(row[GRAD], row[SIZE])
        for i in range(len(grad)):
            grad[i] *= scale
    return norm


@compiled()
def adam(descent):
    """Adam (Kingma and Ba 2015, Algorithm 1) or AdamW, after clipping; returns the norm before it (0 without a limit)."""
    add_other_grads(descent)
    norm = clip_grad_norm(descent.parameters, descent.max_grad_norm) if descent.max_grad_norm > 0 else 0.0
    rate, decay = descent.learning_rate, descent.weight_decay
    keep1, keep2 = np.float32(descent.beta1), np.float32(descent.beta2)
    new1, new2 = np.float32(1 - descent.beta1), np.float32(1 - descent.beta2)
    eps = np.float32(descent.eps)
    shrink = np.float32(1 - rate * decay if descent.decoupled else 1)
    pull = np.float32(0 if descent.decoupled else decay)
    for row in descent.parameters:
        param, grad = vector(row[VALUE], row[SIZE]), vector(row[GRAD], row[SIZE])
        exp_avg, exp_avg_sq = vector(row[EXP_AVG], row[SIZE]), vector(row[EXP_AVG_SQ], row[SIZE])
        steps = vector(row[STEP], 1)
        steps[0] += ONE
        step = float(steps[0])
        step_size = np.float32(rate / (1 - descent.beta1**step))
        root_correction = np.float32(1 / np.sqrt(1 - descent.beta2**step))
        for i in range(len(param)):
            g = grad[i] + pull * param[i]
            m = keep1 * exp_avg[i] + new1 * g
            v = keep2 * exp_avg_sq[i] + new2 * g * g
            exp_avg[i], exp_avg_sq[i] = m, v
            param[i] = param[i] * shrink - step_size * m / (np.sqrt(v) * root_correction + eps)
    return norm


@compiled()
def soft_update(parameters, tau):
    """``theta' <- tau theta + (1 - tau) theta'``."""
    share, rest = np.float32(tau), np.float32(1 - tau)
    for row in parameters:
        param, target = vector(row[VALUE], row[SIZE]), vector(row[TARGET], row[SIZE])
        for i in range(len(target)):
            target[i] = rest * target[i] + share * param[i]


@compiled()
def updates(sizes, targets, share, descents, settings, batches, noise, n_updates, losses):
    """
    Updates on ``batches`` (updates, batch, width), one after another, in place.

    noise: smoothing noise of the target policy (updates, batch, action_dim), or of no updates
    Returns the norms of both gradients (critic, actor) in the last update, before clipping, where they are limited.
    """
    critic_descent, actor_descent = descents
    batch_size = batches.shape[1]
    n_values = batch_size * len(share.critics)
    critic_norm, actor_norm = 0.0, 0.0
    turns = 0
    for update in range(len(batches)):
        batch = batches[update]
        smoothing = noise[update] if len(noise) > 0 else batch[:0]
        sums = critic_gradient(sizes, targets, share, batch, smoothing, settings)
        losses.critic[update] = sums.squared_error / batch_size
        losses.last_q[0], losses.last_q[1] = sums.q / n_values, sums.target_q / n_values
        critic_norm = adam(critic_descent)
        if (n_updates + update + 1) % settings.policy_delay == 0:
            losses.actor[turns] = -actor_gradient(sizes, share, batch) / batch_size
            turns += 1
            actor_norm = adam(actor_descent)
            soft_update(actor_descent.parameters, settings.tau)
            soft_update(critic_descent.parameters, settings.tau)
    return critic_norm, actor_norm
