"""
The arithmetic of an update, compiled by Numba: the derivation of :mod:`~sb3_ddpg_scratch.updates.analytic` with loops.

A network is given by ``params``, its weights (n_out, n_in) and biases one behind the other; ``dims``, a row (n_in, n_out) for
each layer, where n_in counts an action that joins there; and ``x``, memory for the layers' inputs (batch, n_in) one behind the
other, which the way back reads again. ``sums`` is memory for products. Products go to the BLAS behind ``np.dot``.

Several threads can share an update: each runs :func:`updates` for some rows of the batch and then some of the parameters,
and they :func:`meet` where one needs what all have written.
"""

import os
from functools import partial

import numpy as np
from numba import njit, types
from numba.extending import intrinsic

compiled = partial(njit, cache=True, fastmath=True, error_model="numpy", nogil=True)

ZERO, ONE = np.float32(0), np.float32(1)
# What is summed over rows, or over parameters.
N_SUMS = 5
SQUARED_ERROR, Q_VALUE, TARGET, POLICY_Q_VALUE, NORM = range(N_SUMS)

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
def td_target(rows, noise, columns_of, targets, shape, actor_net, critic_net, work, gamma, noise_clip):
    """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation and mu' smoothed by clipped noise."""
    actor_dims, actor_x = actor_net
    critic_dims, critic_x, action_layer, tanh = critic_net
    sums, _, action, _, y, q = work
    split, n_each = shape
    o, a = columns_of
    batch = len(rows)
    next_observation = rows[:, o + a + 2 : 2 * o + a + 2]
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
        y[i, 0] = rows[i, o + a] + gamma * rows[i, o + a + 1] * y[i, 0]


@compiled()
def critic_gradient(rows, noise, columns_of, parameters, shape, actor_net, critic_net, work, numbers, grads, batch_size):
    """
    ``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``, for some rows of the batch.

    Returns sums over these rows: of squared errors, of Q-values, and of TD targets, once for each Q-network.
    """
    critic_dims, critic_x, action_layer, tanh = critic_net
    sums, deltas, _, _, y, q = work
    split, n_each = shape
    trained, targets = parameters
    gamma, noise_clip = np.float32(numbers[0]), np.float32(numbers[3])
    o, a = columns_of
    n_rows = len(rows)
    td_target(rows, noise, columns_of, targets, shape, actor_net, critic_net, work, gamma, noise_clip)
    squared, q_sum, y_sum = 0.0, 0.0, 0.0
    for start in range(split, len(trained), n_each):
        params = trained[start : start + n_each]
        write_inputs(critic_dims, critic_x, rows[:, :o], rows[:, o : o + a], action_layer)
        forward(params, critic_dims, tanh, critic_x, sums, q)
        for i in range(n_rows):
            error = q[i, 0] - y[i, 0]
            squared += error * error
            q_sum += q[i, 0]
            y_sum += y[i, 0]
            deltas[0, i] = np.float32(2 / batch_size) * error
        backward(params, grads[start : start + n_each], critic_dims, tanh, critic_x, deltas, sums, n_rows)
    return squared, q_sum, y_sum


@compiled()
def actor_gradient(rows, columns_of, parameters, shape, actor_net, critic_net, work, grads, batch_size):
    """
    ``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor, for some rows
    of the batch.

    Returns the sum of Q-values over these rows.
    """
    actor_dims, actor_x = actor_net
    critic_dims, critic_x, action_layer, tanh = critic_net
    sums, deltas, action, action_grad, _, q = work
    split, n_each = shape
    trained, _ = parameters
    o, a = columns_of
    n_rows = len(rows)
    write_inputs(actor_dims, actor_x, rows[:, :o], action[:, :0], 0)
    forward(trained[:split], actor_dims, tanh, actor_x, sums, action)
    for i in range(n_rows):
        for j in range(a):
            action[i, j] = np.tanh(action[i, j])
    critic = trained[split : split + n_each]
    write_inputs(critic_dims, critic_x, rows[:, :o], action, action_layer)
    forward(critic, critic_dims, tanh, critic_x, sums, q)
    q_sum = 0.0
    for i in range(n_rows):
        q_sum += q[i, 0]
        deltas[0, i] = np.float32(-1 / batch_size)
    backward_to_action(critic, critic_dims, tanh, critic_x, deltas, sums, action_layer, action_grad)
    delta = deltas[0, : n_rows * a].reshape((n_rows, a))
    activate_backward(action_grad, action, True, delta)
    backward(trained[:split], grads[:split], actor_dims, tanh, actor_x, deltas, sums, n_rows)
    return q_sum


# ------------------------------------------------------------------------------------------------------------- Threads

# Whether threads can share an update here: one that waits must be able to leave its core to another.
SHAREABLE = os.name == "posix"
_yield_core = types.ExternalFunction("sched_yield", types.int32())
# What a gate holds once the thread that called the others will not come.
ABANDONED = -(2**62)


@intrinsic
def _count_up(_, gate):
    def code(context, builder, signature, args):
        memory = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.atomic_rmw("add", memory.data, context.get_constant(types.int64, 1), "seq_cst")

    return types.int64(gate), code


@intrinsic
def _count_of(_, gate):
    def code(context, builder, signature, args):
        memory = context.make_array(signature.args[0])(context, builder, args[0])
        return builder.load_atomic(memory.data, "seq_cst", 8)

    return types.int64(gate), code


@compiled()
def meet(gate, n_shares, meeting):
    """
    Wait until all threads have come to this meeting, the ``meeting``-th from 0; what they wrote is seen by all afterwards.

    gate: how often threads have come to a meeting, int64 (1,)
    Returns the number of the next one, or -1 if it is abandoned.
    """
    if n_shares > 1:
        _count_up(gate)
        rounds = 0
        while _count_of(gate) < n_shares * (meeting + 1):
            if _count_of(gate) < 0:
                return -1
            rounds += 1
            if rounds % 256 == 0 and SHAREABLE:
                _yield_core()
    return meeting + 1


@compiled()
def part(start, stop, share, n_shares):
    """The part of ``start`` to ``stop`` that falls to one of several shares."""
    length = stop - start
    return start + length * share // n_shares, start + length * (share + 1) // n_shares


# --------------------------------------------------------------------------------------------------------------- Steps


@compiled()
def add_up(grads, others, start, stop):
    """Add the gradients of a batch's other shares (shares, parameters) to the first one's, between two parameters."""
    for share in range(len(others)):
        for i in range(start, stop):
            grads[i] += others[share, i]


@compiled()
def clip_norm(grad, max_grad_norm, squared):
    """Limit the gradient's global norm, given its square (0: no limit); returns the norm as it was."""
    if max_grad_norm == 0:
        return 0.0
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
def step(start, stop, team, parameters, grads, others, moments, settings, decoupled, number, max_grad_norm):
    """
    One step of Adam for the parameters from ``start`` to ``stop``, after clipping: this thread's part of them.

    team: share, gate, number of the next meeting, sums of each share
    Returns the number of the next meeting, and the gradient's norm before clipping (0 where it is not limited).
    """
    share, gate, meeting, sums = team
    trained, _ = parameters
    low, high = part(start, stop, share, len(sums))
    add_up(grads, others, low, high)
    squared = 0.0
    if max_grad_norm > 0:
        for i in range(low, high):
            squared += grads[i] * grads[i]
        sums[share, NORM] = squared
        meeting = meet(gate, len(sums), meeting)
        squared = sums[:, NORM].sum()
    norm = clip_norm(grads[low:high], max_grad_norm, squared)
    adam(trained[low:high], grads[low:high], moments[0, low:high], moments[1, low:high], settings, decoupled, number)
    return meeting, norm


@compiled()
def updates(
    share,
    gate,
    sums,
    batches,
    noise,
    columns_of,
    parameters,
    moments,
    grads,
    others,
    steps,
    adam_settings,
    decoupled,
    shape,
    numbers,
    n_updates,
    policy_delay,
    critic_losses,
    actor_losses,
    last,
    rows_of,
    actor_net,
    critic_net,
    work,
):
    """
    One thread's share of the updates on ``batches`` (updates, batch, width), one after another, in place.

    share, gate: which share, and where the threads meet; sums: for each share its sums over rows, float64 (shares, 5)
    noise: smoothing noise of the target policy (updates, batch, action_dim), or of no updates
    columns_of: sizes of observation and action; parameters: trained and target vector
    grads, others: gradients of the first share, and of the others (shares - 1, parameters)
    steps, adam_settings: of actor and critic; shape: parameters of the actor and of one Q-network
    numbers: gamma's factor, tau, largest gradient norm or 0, clip of the smoothing noise
    rows_of: the first of the share's rows in a batch, and the first that is not
    The first thread writes the losses, and of the last update the mean Q-value, mean TD target and gradient norms of critic
    and actor. Returns how many updates were the actor's turn as well, or -1 if the gate was abandoned: then nothing was done.
    """
    trained, targets = parameters
    split, n_each = shape
    _, tau, max_grad_norm, _ = numbers
    n_shares, batch_size = len(sums), batches.shape[1]
    of_all = batch_size * ((len(trained) - split) // n_each)
    first, end = rows_of
    mine = grads if share == 0 else others[share - 1]
    turns = 0
    meeting = meet(gate, n_shares, 0)
    if meeting < 0:
        return -1
    for update in range(len(batches)):
        rows = batches[update, first:end]
        smoothing = noise[update, first:end] if len(noise) > 0 else rows[:0]
        sums[share, SQUARED_ERROR], sums[share, Q_VALUE], sums[share, TARGET] = critic_gradient(
            rows, smoothing, columns_of, parameters, shape, actor_net, critic_net, work, numbers, mine, batch_size
        )
        meeting = meet(gate, n_shares, meeting)
        team = (share, gate, meeting, sums)
        if share == 0:
            critic_losses[update] = sums[:, SQUARED_ERROR].sum() / batch_size
            last[0], last[1] = sums[:, Q_VALUE].sum() / of_all, sums[:, TARGET].sum() / of_all
        number = steps[1] + update + 1
        meeting, norm = step(
            split, len(trained), team, parameters, grads, others, moments, adam_settings[1], decoupled, number, max_grad_norm
        )
        if share == 0:
            last[2] = norm
        meeting = meet(gate, n_shares, meeting)
        if (n_updates + update + 1) % policy_delay == 0:
            sums[share, POLICY_Q_VALUE] = actor_gradient(
                rows, columns_of, parameters, shape, actor_net, critic_net, work, mine, batch_size
            )
            meeting = meet(gate, n_shares, meeting)
            team = (share, gate, meeting, sums)
            if share == 0:
                actor_losses[turns] = -sums[:, POLICY_Q_VALUE].sum() / batch_size
            turns += 1
            number = steps[0] + turns
            meeting, norm = step(
                0, split, team, parameters, grads, others, moments, adam_settings[0], decoupled, number, max_grad_norm
            )
            if share == 0:
                last[3] = norm
            # Of each network the part that this thread has stepped itself.
            for start, stop in ((0, split), (split, len(trained))):
                low, high = part(start, stop, share, n_shares)
                soft_update(trained[low:high], targets[low:high], tau)
            meeting = meet(gate, n_shares, meeting)
    return turns
