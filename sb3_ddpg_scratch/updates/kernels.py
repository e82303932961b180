"""
The arithmetic of an update, compiled by Numba: the derivation of :mod:`~sb3_ddpg_scratch.updates.analytic` with loops.

A network is given by ``params``, its weights (n_out, n_in) and biases one behind the other; ``dims``, a row (n_in, n_out) for
each layer, where n_in counts an action that joins there; and ``x``, memory for the layers' inputs (n_in, batch) one behind the
other, which the way back reads again. Values stand with the batch as columns: all of one unit are neighbours, an action that
joins is further rows, and the forward products are in the form that libraries multiply fastest. Products go to the BLAS behind
``np.dot``.

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

# Products with no more inputs or outputs than this are faster as loops: a library's call costs more than their arithmetic.
FEW = 4


@compiled()
def product(weight, x, z):
    """``z = W x``; with the weights' transpose, ``dL/dx = W' dL/dz``."""
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
def product_of_weights(delta, x, grad):
    """``dL/dW = dL/dz x'``."""
    n_out, n_in = grad.shape
    if min(n_in, n_out) > FEW:
        np.dot(delta, x.T, grad)
        return
    for j in range(n_out):
        for k in range(n_in):
            total = ZERO
            for i in range(x.shape[1]):
                total += delta[j, i] * x[k, i]
            grad[j, k] = total


@compiled()
def inputs_of(dims, x, layer, batch):
    """The inputs of a layer (n_in, batch), in ``x``."""
    start = 0
    for before in range(layer):
        start += dims[before, 0]
    n_in = dims[layer, 0]
    return x[start * batch : (start + n_in) * batch].reshape((n_in, batch))


@compiled()
def write_inputs(dims, x, observation, action, action_layer):
    """
    Write an observation (batch, observation_dim) as the first layer's input, and an action (action_dim, batch) behind what
    the layer that it joins will read.
    """
    batch = len(observation)
    first = inputs_of(dims, x, 0, batch)
    for j in range(observation.shape[1]):
        for i in range(batch):
            first[j, i] = observation[i, j]
    joined = inputs_of(dims, x, action_layer, batch)
    joined[len(joined) - len(action) :, :] = action


@compiled()
def forward(params, dims, tanh, x, output):
    """From the inputs in ``x`` to ``output`` (n_out, batch): z = W x + b, and between layers h = f(z)."""
    batch = output.shape[1]
    n_layers = len(dims)
    at_param = 0
    for layer in range(n_layers):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        weight = params[at_param : at_param + n_in * n_out].reshape((n_out, n_in))
        bias = params[at_param + n_in * n_out : at_param + (n_in + 1) * n_out]
        at_param += (n_in + 1) * n_out
        inputs = inputs_of(dims, x, layer, batch)
        if layer < n_layers - 1:
            # In front of the action, where it joins the next layer.
            hidden = inputs_of(dims, x, layer + 1, batch)[:n_out]
            product(weight, inputs, hidden)
            activate(hidden, bias, tanh)
        else:
            product(weight, inputs, output)
            for j in range(n_out):
                for i in range(batch):
                    output[j, i] += bias[j]


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
def backward(params, grads, dims, tanh, x, deltas, batch):
    """
    From dL/dz of the output, in ``deltas[0]``, to the parameters' gradients: ``dL/dW = dL/dz x'``, ``dL/db`` the sum of
    dL/dz over the batch, and ``dL/dx = W' dL/dz``.
    """
    at_param = len(params)
    here = 0
    for layer in range(len(dims) - 1, -1, -1):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        at_param -= (n_in + 1) * n_out
        at_bias = at_param + n_in * n_out
        inputs = inputs_of(dims, x, layer, batch)
        delta = deltas[here, : n_out * batch].reshape((n_out, batch))
        product_of_weights(delta, inputs, grads[at_param:at_bias].reshape((n_out, n_in)))
        for j in range(n_out):
            total = ZERO
            for i in range(batch):
                total += delta[j, i]
            grads[at_bias + j] = total
        if layer > 0:
            here = 1 - here
            input_grad = deltas[here, : n_in * batch].reshape((n_in, batch))
            product(params[at_param:at_bias].reshape((n_out, n_in)).T, delta, input_grad)
            activate_backward(input_grad[: dims[layer - 1, 1]], inputs, tanh)


@compiled()
def backward_to_action(params, dims, tanh, x, deltas, action_weights, action_layer, action_grad):
    """
    From dL/dz of the output, in ``deltas[0]``, to the gradient with respect to the action alone (action_dim, batch).

    action_weights: memory for the weights that multiply the action
    """
    action_dim, batch = action_grad.shape
    at_param = len(params)
    here = 0
    for layer in range(len(dims) - 1, action_layer - 1, -1):
        n_in, n_out = dims[layer, 0], dims[layer, 1]
        at_param -= (n_in + 1) * n_out
        weight = params[at_param : at_param + n_in * n_out].reshape((n_out, n_in))
        delta = deltas[here, : n_out * batch].reshape((n_out, batch))
        if layer == action_layer:
            weight_of_action = action_weights[: n_out * action_dim].reshape((n_out, action_dim))
            weight_of_action[:, :] = weight[:, n_in - action_dim :]
            product(weight_of_action.T, delta, action_grad)
        else:
            here = 1 - here
            input_grad = deltas[here, : n_in * batch].reshape((n_in, batch))
            product(weight.T, delta, input_grad)
            activate_backward(input_grad[: dims[layer - 1, 1]], inputs_of(dims, x, layer, batch), tanh)


@compiled()
def act(params, actor_net, tanh, observation, action):
    """``a = tanh(z)`` of the actor, for observations (batch, observation_dim); ``action`` is (action_dim, batch)."""
    dims, x = actor_net
    write_inputs(dims, x, observation, action[:0], 0)
    forward(params, dims, tanh, x, action)
    for j in range(len(action)):
        for i in range(action.shape[1]):
            action[j, i] = np.tanh(action[j, i])


@compiled()
def td_target(rows, noise, columns_of, targets, shape, actor_net, critic_net, work, gamma, noise_clip):
    """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation and mu' smoothed by clipped noise."""
    critic_dims, critic_x, action_layer, tanh = critic_net
    _, _, action, _, y, q = work
    split, n_each = shape
    o, a = columns_of
    batch = len(rows)
    next_observation = rows[:, o + a + 2 : 2 * o + a + 2]
    act(targets[:split], actor_net, tanh, next_observation, action)
    if len(noise) > 0:
        for j in range(a):
            for i in range(batch):
                smoothed = action[j, i] + min(max(noise[i, j], -noise_clip), noise_clip)
                action[j, i] = min(max(smoothed, -ONE), ONE)
    for start in range(split, len(targets), n_each):
        write_inputs(critic_dims, critic_x, next_observation, action, action_layer)
        forward(targets[start : start + n_each], critic_dims, tanh, critic_x, q)
        for i in range(batch):
            y[i] = q[0, i] if start == split else min(y[i], q[0, i])
    for i in range(batch):
        y[i] = rows[i, o + a] + gamma * rows[i, o + a + 1] * y[i]


@compiled()
def critic_gradient(rows, noise, columns_of, parameters, shape, actor_net, critic_net, work, numbers, grads, batch_size):
    """
    ``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``, for some rows of the batch.

    Returns sums over these rows: of squared errors, of Q-values, and of TD targets, once for each Q-network.
    """
    critic_dims, critic_x, action_layer, tanh = critic_net
    _, deltas, action, _, y, q = work
    split, n_each = shape
    trained, targets = parameters
    gamma, noise_clip = np.float32(numbers[0]), np.float32(numbers[3])
    o, a = columns_of
    n_rows = len(rows)
    td_target(rows, noise, columns_of, targets, shape, actor_net, critic_net, work, gamma, noise_clip)
    for j in range(a):
        for i in range(n_rows):
            action[j, i] = rows[i, o + j]
    squared, q_sum, y_sum = 0.0, 0.0, 0.0
    for start in range(split, len(trained), n_each):
        params = trained[start : start + n_each]
        write_inputs(critic_dims, critic_x, rows[:, :o], action, action_layer)
        forward(params, critic_dims, tanh, critic_x, q)
        for i in range(n_rows):
            error = q[0, i] - y[i]
            squared += error * error
            q_sum += q[0, i]
            y_sum += y[i]
            deltas[0, i] = np.float32(2 / batch_size) * error
        backward(params, grads[start : start + n_each], critic_dims, tanh, critic_x, deltas, n_rows)
    return squared, q_sum, y_sum


@compiled()
def actor_gradient(rows, columns_of, parameters, shape, actor_net, critic_net, work, grads, batch_size):
    """
    ``L = -mean(Q_1(s, mu(s)))``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to the actor, for some rows
    of the batch.

    Returns the sum of Q-values over these rows.
    """
    critic_dims, critic_x, action_layer, tanh = critic_net
    action_weights, deltas, action, action_grad, _, q = work
    split, n_each = shape
    trained, _ = parameters
    o, a = columns_of
    n_rows = len(rows)
    act(trained[:split], actor_net, tanh, rows[:, :o], action)
    critic = trained[split : split + n_each]
    write_inputs(critic_dims, critic_x, rows[:, :o], action, action_layer)
    forward(critic, critic_dims, tanh, critic_x, q)
    q_sum = 0.0
    for i in range(n_rows):
        q_sum += q[0, i]
        deltas[0, i] = np.float32(-1 / batch_size)
    backward_to_action(critic, critic_dims, tanh, critic_x, deltas, action_weights, action_layer, action_grad)
    delta = deltas[0, : a * n_rows].reshape((a, n_rows))
    delta[:, :] = action_grad
    activate_backward(delta, action, True)
    actor_dims, actor_x = actor_net
    backward(trained[:split], grads[:split], actor_dims, tanh, actor_x, deltas, n_rows)
    return q_sum


# ------------------------------------------------------------------------------------------------------------- Threads

CAN_YIELD = os.name == "posix"
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
            if rounds % 256 == 0 and CAN_YIELD:
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
