"""
The arithmetic of an update, compiled by Numba: the derivation of :mod:`~sb3_ddpg_scratch.updates.analytic` with loops.

A network is given by ``params``, its weights (n_out, n_in) and biases one behind the other; ``dims``, a row (n_in, n_out) for
each layer, where n_in counts an action that joins there; and ``x``, memory for the layers' inputs (batch, n_in) one behind the
other, which the way back reads again. ``sums`` is memory for products. Products go to the BLAS behind ``np.dot``.
"""

from functools import partial

import numpy as np
from numba import njit

compiled = partial(njit, cache=True, fastmath=True, error_model="numpy", nogil=True)

ZERO, ONE = np.float32(0), np.float32(1)


# Products with no more outputs than this are faster as loops: a library's call costs more than their arithmetic.
FEW = 4


@compiled()
def product(x, weight, z):
    """``z = x W'``."""
    batch, n_in = x.shape
    n_out = len(weight)
    if n_out > FEW:
        np.dot(x, weight.T, z)
        return
    for i in range(batch):
        for j in range(n_out):
            total = ZERO
            for k in range(n_in):
                total += x[i, k] * weight[j, k]
            z[i, j] = total


@compiled()
def product_of_weights(delta, x, grad):
    """``dL/dW = (dL/dz)' x``."""
    batch, n_out = delta.shape
    n_in = x.shape[1]
    if n_out > FEW:
        np.dot(delta.T, x, grad)
        return
    grad[:, :] = 0
    for i in range(batch):
        for j in range(n_out):
            factor = delta[i, j]
            for k in range(n_in):
                grad[j, k] += factor * x[i, k]


@compiled()
def product_of_inputs(delta, weight, x_grad):
    """``dL/dx = dL/dz W``."""
    batch, n_out = delta.shape
    n_in = weight.shape[1]
    if n_out > FEW:
        np.dot(delta, weight, x_grad)
        return
    for i in range(batch):
        for k in range(n_in):
            x_grad[i, k] = delta[i, 0] * weight[0, k]
        for j in range(1, n_out):
            factor = delta[i, j]
            for k in range(n_in):
                x_grad[i, k] += factor * weight[j, k]


@compiled()
def write_inputs(dims, x, observation, action, action_layer):
    """Write an observation as the first layer's input, and an action behind what the layer that it joins will read."""
    batch, n_in = len(observation), dims[0, 0]
    first = x[: batch * n_in].reshape((batch, n_in))
    for i in range(batch):
        for j in range(observation.shape[1]):
            first[i, j] = observation[i, j]
    at_x = 0
    for layer in range(action_layer):
        at_x += batch * dims[layer, 0]
    n_in = dims[action_layer, 0]
    joined = x[at_x : at_x + batch * n_in].reshape((batch, n_in))
    start = n_in - action.shape[1]
    for i in range(batch):
        for j in range(action.shape[1]):
            joined[i, start + j] = action[i, j]


@compiled()
def forward(params, dims, tanh, x, sums, output):
    """From the inputs in ``x`` to ``output`` (batch, n_out): z = x W' + b, and between layers h = f(z)."""
    batch = len(output)
    n_layers = len(dims)
    at_param, at_x = 0, 0
    for layer in range(n_layers):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        weight = params[at_param : at_param + n_in * n_out].reshape((n_out, n_in))
        bias = params[at_param + n_in * n_out : at_param + (n_in + 1) * n_out]
        inputs = x[at_x : at_x + batch * n_in].reshape((batch, n_in))
        at_param += (n_in + 1) * n_out
        at_x += batch * n_in
        z = sums[: batch * n_out].reshape((batch, n_out))
        product(inputs, weight, z)
        if layer == n_layers - 1:
            for i in range(batch):
                for j in range(n_out):
                    output[i, j] = z[i, j] + bias[j]
        else:
            # In front of the action, where it joins the next layer.
            n_next = dims[layer + 1, 0]
            activate(z, bias, tanh, x[at_x : at_x + batch * n_next].reshape((batch, n_next)))


@compiled()
def activate(z, bias, tanh, hidden):
    """``h = f(z + b)``, into the first columns of ``hidden``."""
    batch, n_out = z.shape
    if tanh:
        for i in range(batch):
            for j in range(n_out):
                hidden[i, j] = np.tanh(z[i, j] + bias[j])
    else:
        for i in range(batch):
            for j in range(n_out):
                hidden[i, j] = max(z[i, j] + bias[j], ZERO)


@compiled()
def activate_backward(hidden_grad, hidden, tanh, delta):
    """``dL/dz = dL/dh f'(z)``: relu'(z) = [h > 0], tanh'(z) = 1 - h^2."""
    batch, n_hidden = delta.shape
    if tanh:
        for i in range(batch):
            for j in range(n_hidden):
                delta[i, j] = hidden_grad[i, j] * (ONE - hidden[i, j] * hidden[i, j])
    else:
        for i in range(batch):
            for j in range(n_hidden):
                delta[i, j] = hidden_grad[i, j] if hidden[i, j] > 0 else ZERO


@compiled()
def backward(params, grads, dims, tanh, x, deltas, sums, batch):
    """
    From dL/dz of the output, in ``deltas[0]``, to the parameters' gradients: ``dL/dW = (dL/dz)' x``, ``dL/db`` the sum of
    dL/dz over the batch, and ``dL/dx = dL/dz W``.
    """
    at_param, at_x = len(params), 0
    for layer in range(len(dims)):
        at_x += batch * dims[layer, 0]
    here = 0
    for layer in range(len(dims) - 1, -1, -1):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        at_param -= (n_in + 1) * n_out
        at_x -= batch * n_in
        at_bias = at_param + n_in * n_out
        inputs = x[at_x : at_x + batch * n_in].reshape((batch, n_in))
        delta = deltas[here, : batch * n_out].reshape((batch, n_out))
        product_of_weights(delta, inputs, grads[at_param:at_bias].reshape((n_out, n_in)))
        bias_grad = grads[at_bias : at_bias + n_out]
        bias_grad[:] = 0
        for i in range(batch):
            for j in range(n_out):
                bias_grad[j] += delta[i, j]
        if layer > 0:
            input_grad = sums[: batch * n_in].reshape((batch, n_in))
            product_of_inputs(delta, params[at_param:at_bias].reshape((n_out, n_in)), input_grad)
            here = 1 - here
            n_hidden = dims[layer - 1, 1]
            activate_backward(input_grad, inputs, tanh, deltas[here, : batch * n_hidden].reshape((batch, n_hidden)))


@compiled()
def backward_to_action(params, dims, tanh, x, deltas, sums, action_layer, action_grad):
    """From dL/dz of the output, in ``deltas[0]``, to the gradient with respect to the action alone."""
    batch, action_dim = action_grad.shape
    at_param, at_x = len(params), 0
    for layer in range(len(dims)):
        at_x += batch * dims[layer, 0]
    here = 0
    for layer in range(len(dims) - 1, action_layer - 1, -1):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        at_param -= (n_in + 1) * n_out
        at_x -= batch * n_in
        weight = params[at_param : at_param + n_in * n_out].reshape((n_out, n_in))
        delta = deltas[here, : batch * n_out].reshape((batch, n_out))
        if layer == action_layer:
            action_weight = sums[: n_out * action_dim].reshape((n_out, action_dim))
            action_weight[:, :] = weight[:, n_in - action_dim :]
            np.dot(delta, action_weight, action_grad)
        else:
            input_grad = sums[: batch * n_in].reshape((batch, n_in))
            product_of_inputs(delta, weight, input_grad)
            here = 1 - here
            n_hidden = dims[layer - 1, 1]
            inputs = x[at_x : at_x + batch * n_in].reshape((batch, n_in))
            activate_backward(input_grad, inputs, tanh, deltas[here, : batch * n_hidden].reshape((batch, n_hidden)))


@compiled()
def td_target(row, columns_of, targets, split, n_each, actor_net, critic_net, sums, noise, noise_clip, gamma, action, y, q):
    """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation and mu' smoothed by clipped noise."""
    actor_dims, actor_x = actor_net
    critic_dims, critic_x, action_layer, tanh = critic_net
    o, a = columns_of
    batch = len(row)
    next_observation = row[:, o + a + 2 : 2 * o + a + 2]
    write_inputs(actor_dims, actor_x, next_observation, action[:, :0], 0)
    forward(targets[:split], actor_dims, tanh, actor_x, sums, action)
    for i in range(batch):
        for j in range(a):
            action[i, j] = np.tanh(action[i, j])
            if len(noise) > 0:
                smoothed = action[i, j] + min(max(noise[i, j], -noise_clip), noise_clip)
                action[i, j] = min(max(smoothed, -ONE), ONE)
    for start in range(split, len(targets), n_each):
        write_inputs(critic_dims, critic_x, next_observation, action, action_layer)
        forward(targets[start : start + n_each], critic_dims, tanh, critic_x, sums, q)
        for i in range(batch):
            y[i, 0] = q[i, 0] if start == split else min(y[i, 0], q[i, 0])
    for i in range(batch):
        y[i, 0] = row[i, o + a] + gamma * row[i, o + a + 1] * y[i, 0]


@compiled()
def critic_gradient(row, columns_of, trained, split, n_each, critic_net, sums, deltas, grads, y, q):
    """
    ``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``.

    Returns the loss, the mean Q-value and the mean TD target.
    """
    critic_dims, critic_x, action_layer, tanh = critic_net
    o, a = columns_of
    batch = len(row)
    squared, q_sum, y_sum, n_critics = 0.0, 0.0, 0.0, 0
    for start in range(split, len(trained), n_each):
        params = trained[start : start + n_each]
        write_inputs(critic_dims, critic_x, row[:, :o], row[:, o : o + a], action_layer)
        forward(params, critic_dims, tanh, critic_x, sums, q)
        for i in range(batch):
            error = q[i, 0] - y[i, 0]
            squared += error * error
            q_sum += q[i, 0]
            y_sum += y[i, 0]
            deltas[0, i] = np.float32(2 / batch) * error
        backward(params, grads[start : start + n_each], critic_dims, tanh, critic_x, deltas, sums, batch)
        n_critics += 1
    return squared / batch, q_sum / (batch * n_critics), y_sum / (batch * n_critics)


@compiled()
def actor_gradient(
    row, columns_of, trained, split, n_each, actor_net, critic_net, sums, deltas, grads, action, action_grad, q
):
    """
    ``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor.

    Returns the loss.
    """
    actor_dims, actor_x = actor_net
    critic_dims, critic_x, action_layer, tanh = critic_net
    o, a = columns_of
    batch = len(row)
    write_inputs(actor_dims, actor_x, row[:, :o], action[:, :0], 0)
    forward(trained[:split], actor_dims, tanh, actor_x, sums, action)
    for i in range(batch):
        for j in range(a):
            action[i, j] = np.tanh(action[i, j])
    critic = trained[split : split + n_each]
    write_inputs(critic_dims, critic_x, row[:, :o], action, action_layer)
    forward(critic, critic_dims, tanh, critic_x, sums, q)
    q_sum = 0.0
    for i in range(batch):
        q_sum += q[i, 0]
        deltas[0, i] = np.float32(-1 / batch)
    backward_to_action(critic, critic_dims, tanh, critic_x, deltas, sums, action_layer, action_grad)
    delta = deltas[0, : batch * a].reshape((batch, a))
    activate_backward(action_grad, action, True, delta)
    backward(trained[:split], grads[:split], actor_dims, tanh, actor_x, deltas, sums, batch)
    return -q_sum / batch


@compiled()
def clip_norm(grad, max_grad_norm):
    """Limit the gradient's global norm (0: no limit); returns it as it was."""
    if max_grad_norm == 0:
        return 0.0
    squared = 0.0
    for i in range(len(grad)):
        squared += grad[i] * grad[i]
    norm = np.sqrt(squared)
    scale = np.float32(min(1.0, max_grad_norm / (norm + 1e-6)))
    for i in range(len(grad)):
        grad[i] *= scale
    return norm


@compiled()
def adam(param, grad, exp_avg, exp_avg_sq, settings, decoupled, step):
    """Adam (Kingma and Ba 2015, Algorithm 1), or AdamW; settings: learning rate, beta1, beta2, eps, weight decay."""
    learning_rate, beta1, beta2, eps, weight_decay = settings[0], settings[1], settings[2], settings[3], settings[4]
    step_size = np.float32(learning_rate / (1 - beta1**step))
    root_correction = np.float32(1 / np.sqrt(1 - beta2**step))
    keep1, keep2 = np.float32(beta1), np.float32(beta2)
    new1, new2 = np.float32(1 - beta1), np.float32(1 - beta2)
    small = np.float32(eps)
    shrink = np.float32(1 - learning_rate * weight_decay if decoupled else 1)
    pull = np.float32(0 if decoupled else weight_decay)
    for i in range(len(param)):
        g = grad[i] + pull * param[i]
        m = keep1 * exp_avg[i] + new1 * g
        v = keep2 * exp_avg_sq[i] + new2 * g * g
        exp_avg[i], exp_avg_sq[i] = m, v
        param[i] = param[i] * shrink - step_size * m / (np.sqrt(v) * root_correction + small)


@compiled()
def soft_update(trained, targets, tau):
    """``theta' <- tau theta + (1 - tau) theta'``."""
    share, rest = np.float32(tau), np.float32(1 - tau)
    for i in range(len(targets)):
        targets[i] = rest * targets[i] + share * trained[i]


@compiled()
def updates(
    rows,
    noise,
    columns_of,
    parameters,
    moments,
    grads,
    steps,
    adam_settings,
    decoupled,
    shape,
    actor_net,
    critic_net,
    work,
    numbers,
    n_updates,
    policy_delay,
    critic_losses,
    actor_losses,
    last,
):
    """
    Updates on the batches in ``rows`` (updates, batch, width), one after another, in place.

    noise: smoothing noise of the target policy (updates, batch, action_dim), or of no updates
    columns_of: sizes of observation and action; parameters: trained and target vector; shape: parameters of the actor and of
    one Q-network; steps, adam_settings: of actor and critic
    numbers: gamma's factor, tau, largest gradient norm or 0, clip of the smoothing noise
    Writes the losses, and of the last update the mean Q-value, mean TD target and gradient norms of critic and actor.
    Returns how many updates were the actor's turn as well.
    """
    trained, targets = parameters
    split, n_each = shape
    sums, deltas, action, action_grad, y, q = work
    gamma, tau, max_grad_norm, noise_clip = np.float32(numbers[0]), numbers[1], numbers[2], np.float32(numbers[3])
    turns = 0
    for update in range(len(rows)):
        row = rows[update]
        smoothing = noise[update] if len(noise) > 0 else action[:0]
        td_target(
            row, columns_of, targets, split, n_each, actor_net, critic_net, sums, smoothing, noise_clip, gamma, action, y, q
        )
        critic_losses[update], last[0], last[1] = critic_gradient(
            row, columns_of, trained, split, n_each, critic_net, sums, deltas, grads, y, q
        )
        last[2] = clip_norm(grads[split:], max_grad_norm)
        steps[1] += 1
        adam(trained[split:], grads[split:], moments[0, split:], moments[1, split:], adam_settings[1], decoupled, steps[1])
        if (n_updates + update + 1) % policy_delay == 0:
            actor_losses[turns] = actor_gradient(
                row, columns_of, trained, split, n_each, actor_net, critic_net, sums, deltas, grads, action, action_grad, q
            )
            turns += 1
            last[3] = clip_norm(grads[:split], max_grad_norm)
            steps[0] += 1
            adam(trained[:split], grads[:split], moments[0, :split], moments[1, :split], adam_settings[0], decoupled, steps[0])
            soft_update(trained, targets, tau)
    return turns
