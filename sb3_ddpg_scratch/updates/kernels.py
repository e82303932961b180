"""
The arithmetic of an update, compiled by Numba: the derivation of :mod:`~sb3_ddpg_scratch.updates.analytic` with loops.

Kernels read and write the networks' own tensors and the optimizers' own moments, whose addresses stand in tables: a row of
``layers`` is one linear layer, a row of ``parameters`` one parameter. Hidden values stand with the batch as columns,
``(units, batch)``, so that all values of a unit are neighbors and an action that joins is further rows. Products go to the
BLAS behind ``np.dot``.

Several threads can share updates: each calls :func:`advance`, computes the gradients of some rows of a batch and then moves
some of the parameters, and waits for the others in between. All is one function for Python, since compiling a second one
takes as long again for what both call.
"""

from typing import Any, NamedTuple

import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

from sb3_ddpg_scratch.updates import operations, random_rows
from sb3_ddpg_scratch.updates.operations import (
    FIRST_THAT_NEEDS_Z,
    HALF,
    ONE,
    ZERO,
    activate,
    activate_backward,
    compiled,
    inlined,
    internal,
    normalize,
    normalize_backward,
    normalize_gradient,
    tanh_backward,
)
from sb3_ddpg_scratch.updates.random_rows import Replay, clipped_quotient, sample_rows

# Products with no more inputs or outputs than this are faster as loops: calling a library costs more than their arithmetic.
FEW = 4

# Constants that are written out in a call would have the function compiled for each value by itself.
FIRST = np.int64(0)

# Columns of a table of linear layers, int64: sizes, addresses of parameters and their gradients; the same of a layer
# normalization of this layer's sums or, in residual networks, of its input, if there is one, and the units that it normalizes;
# the units that an activation follows; whether the outputs are added to a block's input.
N_IN, N_OUT, WEIGHT, BIAS, WEIGHT_GRAD, BIAS_GRAD, NORM_WEIGHT, NORM_BIAS, NORM_WEIGHT_GRAD, NORM_BIAS_GRAD = range(10)
NORM, N_NORMED, N_ACTIVE, ADDS, LAYER_COLUMNS = range(10, 15)
OF_SUMS, OF_INPUT = 1, 2
INPUT, NORMED, ACTIVE = np.int64(N_IN), np.int64(N_NORMED), np.int64(N_ACTIVE)
# Columns of a table of parameters, int64 (parameters, 8): addresses, the number of entries, and the place of the gradient
# among the other threads' gradients.
VALUE, GRAD, EXP_AVG, EXP_AVG_SQ, STEP, TARGET, SIZE, OFFSET = range(8)


class Sizes(NamedTuple):
    """What is fixed for a pair of networks. The last three number the rows of their tables."""

    observation: int
    action: int
    action_layer: int
    activation: int
    norm_eps: float
    critics: int
    actor_layers: int
    critic_layers: int


class Memory(NamedTuple):
    """
    What a forward pass keeps for the way back, of all layers one behind the other, gradients of two layers, and what passes
    by a residual network's blocks, with its gradient.
    """

    inputs: np.ndarray
    sums: np.ndarray
    standardized: np.ndarray
    inverse_std: np.ndarray
    deltas: np.ndarray
    stream: np.ndarray


class Adam(NamedTuple):
    """The settings of one network's optimizer, and the rows of its parameters in their table."""

    first: int
    end: int
    learning_rate: float
    beta1: float
    beta2: float
    eps: float
    weight_decay: float
    decoupled: bool
    max_grad_norm: float


class Settings(NamedTuple):
    """
    The numbers of an update; ``discount`` is the factor of the next Q-value besides the row's continuation, ``gamma`` that of
    n-step returns.
    """

    discount: float
    tau: float
    noise_clip: float
    policy_delay: int
    n_updates: int
    gamma: float
    action_l2: float


# Rows of a table of numbers, float64 (4, 9), whose columns are the fields of Sizes, Settings and twice Adam. Python hands over
# an array in a twentieth of the time that it takes for the fields of a tuple.
SIZES, SETTINGS, ACTOR_ADAM, CRITIC_ADAM = range(4)
# Columns of the results, float64 (updates, 6): losses, of the actor where it was updated, means of Q and target, and the norms
# of gradients before clipping, where they are limited.
CRITIC_LOSS, ACTOR_LOSS, Q, TARGET_Q, CRITIC_NORM, ACTOR_NORM = range(6)
# Columns of a frame, int64: how much there is to do, and addresses. Of the replay buffer,
ROWS, ROW_WIDTH, CAPACITY, ENVS, ENDS, ASIDE, LASTS, N_LASTS, NORMAL, NEWEST, N_STEPS = range(11)
# transitions to store,
STORED, PLACE, LAST_OBSERVATIONS, TAKEN_ACTIONS, REWARDS, CONTINUATIONS, NEXT_OBSERVATIONS = range(11, 18)
# batches,
DRAWN, DRAWN_FIRST, DRAWN_FROM, NEXT_UINT32, GENERATOR, BATCH_SIZE, BATCHES, SMOOTHING = range(18, 26)
# updates, and acting, with observations that may yet have to be normalized as batches are; and at the end what became of it.
UPDATES, ACTING, ACTOR, SEES_RAW, OBSERVATIONS, EXPLORATION, BOUNDS, ACTIONS, SCALED_ACTIONS, OUTCOME = range(26, 36)
# Of several threads: this one's number and rows of the batch, the gradients of all but the first, where they meet, and the
# system's function that lets another thread run.
SHARE, FIRST_ROW, END_ROW, OTHER_THREADS, OTHER_GRADS, N_GRADS, MEETING, YIELD = range(36, 44)
# Set by a call: how many have met so far, and its memory: where it begins, where it is free, the most that was used, its end.
MET, SCRATCH, FREE, MOST, LIMIT, FRAME_SIZE = range(44, 50)
DONE, NOT_FINITE, STOPPED = 1, 2, 3
# Entries of the memory where threads meet, int64: how often one arrived, whether to stop waiting, and for each thread its
# share of the squared norm of a gradient (float64).
ARRIVALS, STOP, SQUARED = range(3)
# How often a waiting thread looks before it lets others run.
LOOKS = 2000
# The bits of a float32 that are all set in NaN and infinity.
EXPONENT = np.uint32(0x7F800000)


# -------------------------------------------------------------------------------------------------------------- Memory


@intrinsic
def _pointer(_, address):
    def code(context, builder, signature, args):
        return builder.inttoptr(args[0], ir.IntType(8).as_pointer())

    return types.voidptr(address), code


@internal()
def vector(address, size):
    """The float32 entries at an address."""
    return carray(_pointer(address), (size,), np.float32)


@internal()
def weights_of(layer):
    """The weights (n_out, n_in) of a row of a table of layers."""
    return carray(_pointer(layer[WEIGHT]), (layer[N_OUT], layer[N_IN]), np.float32)


@intrinsic
def uncounted(_, array):
    """The same array, without a share in its memory: every slice of one with a share counts up and down atomically."""

    def code(context, builder, signature, args):
        view = context.make_array(signature.return_type)(context, builder, args[0])
        view.meminfo = cgutils.get_null_value(view.meminfo.type)
        view.parent = cgutils.get_null_value(view.parent.type)
        return view._getvalue()

    return array(array), code


@internal()
def take(frame, size):
    """Some of a call's memory; ``scratch_for`` says how much there is."""
    start = frame[FREE]
    # Aligned to cache lines.
    frame[FREE] = start + (4 * size + 63) // 64 * 64
    frame[MOST] = max(frame[MOST], frame[FREE])
    return vector(start, size)


@internal()
def memory_sizes(layers, sizes, batch):
    """The numbers of entries in memory for a network and a batch."""
    inputs, active, normed, stream, widest = 0, 0, 0, 0, 0
    for index in range(len(layers)):
        inputs += layers[index, N_IN]
        active += layers[index, N_ACTIVE]
        normed += layers[index, N_NORMED]
        widest = max(widest, layers[index, N_OUT], layers[index, N_IN])
        if layers[index, NORM] == OF_INPUT:
            stream = 2 * layers[index, N_IN]
    sums = active * batch if sizes.activation >= FIRST_THAT_NEEDS_Z else 0
    stds = len(layers) * batch if normed > 0 else 0
    return inputs * batch, sums, normed * batch, stds, 2 * widest * batch, stream * batch


@internal()
def memory_for(frame, layers, sizes, batch):
    """Memory for a network and a batch."""
    inputs, sums, normed, stds, deltas, stream = memory_sizes(layers, sizes, batch)
    inverse_std = take(frame, stds).reshape((len(layers) if stds > 0 else 0, batch))
    kept = take(frame, inputs), take(frame, sums), take(frame, normed)
    return Memory(kept[0], kept[1], kept[2], inverse_std, take(frame, deltas), take(frame, stream))


@inlined()
def scratch_for(frame, layers, sizes):
    """Memory for whatever a call has to do: for an actor and a critic, and a few values of each row of a batch."""
    n = max(frame[BATCH_SIZE] if frame[UPDATES] > 0 else 0, frame[ACTING])
    size = 2 * (sizes.action + 2) * n + sizes.observation * frame[ACTING]
    for part in memory_sizes(layers[: sizes.actor_layers], sizes, n):
        size += part
    if frame[UPDATES] > 0:
        for part in memory_sizes(critic_of(layers, sizes, FIRST), sizes, n):
            size += part
    # Up to twenty parts, each rounded up to cache lines.
    return np.empty(size + 20 * 16 + 16, np.float32)


@internal()
def block(memory, start, size, batch):
    """Values (size, batch) in memory where those of all layers lie one behind the other."""
    return memory[start * batch : (start + size) * batch].reshape((size, batch))


@internal()
def values_of(layers, column, memory, index, batch):
    """The inputs of one layer, or what is kept of its outputs (of no rows if nothing is), by the column of their number."""
    if len(memory) == 0:
        return block(memory, FIRST, FIRST, batch)
    start = FIRST
    for before in range(index):
        start += layers[before, column]
    return block(memory, start, layers[index, column], batch)


@internal()
def gradients(memory, here, size, batch):
    """Gradients (size, batch) in one of the two halves of their memory."""
    return block(memory.deltas, here * (len(memory.deltas) // 2 // batch), size, batch)


@internal()
def stream_of(memory, half, batch):
    """What passes by the blocks (units, batch), or its gradient: a half of their memory."""
    size = len(memory.stream) // 2
    return memory.stream[half * size : (half + 1) * size].reshape((size // batch, batch))


@internal()
def ends_in_stream(layers, index):
    """Whether a layer's outputs become, or are added to, what passes by the blocks."""
    return index < len(layers) - 1 and (layers[index, ADDS] != 0 or layers[index + 1, NORM] == OF_INPUT)


@internal()
def write_observations(layers, memory, rows, first, size):
    """Write the observations that stand in ``rows`` (batch, width) from column ``first`` on as the first layer's inputs."""
    batch = len(rows)
    inputs = values_of(layers, INPUT, memory.inputs, FIRST, batch)
    for j in range(size):
        for i in range(batch):
            inputs[j, i] = rows[i, first + j]


@internal()
def write_actions(layers, memory, action, action_layer):
    """Write actions (size, batch) as inputs of their layer."""
    batch = action.shape[1]
    inputs = values_of(layers, INPUT, memory.inputs, action_layer, batch)
    first = len(inputs) - len(action)
    for j in range(len(action)):
        for i in range(batch):
            inputs[first + j, i] = action[j, i]


# ------------------------------------------------------------------------------------------------------ Several threads


@intrinsic
def _add_atomically(_, address, value):
    def code(context, builder, signature, args):
        return builder.atomic_rmw("add", builder.inttoptr(args[0], ir.IntType(64).as_pointer()), args[1], "seq_cst")

    return types.int64(address, value), code


@intrinsic
def _read_atomically(_, address):
    def code(context, builder, signature, args):
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(64).as_pointer()), "acquire", 8)

    return types.int64(address), code


@intrinsic
def _call(_, function):
    def code(context, builder, signature, args):
        return builder.call(builder.inttoptr(args[0], ir.FunctionType(ir.IntType(32), []).as_pointer()), [])

    return types.int32(function), code


@internal()
def meet(frame):
    """Wait until all threads are here; returns whether they are, and not told to stop waiting."""
    if frame[OTHER_THREADS] == 0:
        return True
    frame[MET] += frame[OTHER_THREADS] + 1
    _add_atomically(frame[MEETING] + 8 * ARRIVALS, FIRST + 1)
    looks = 0
    while _read_atomically(frame[MEETING] + 8 * ARRIVALS) < frame[MET]:
        if _read_atomically(frame[MEETING] + 8 * STOP) != 0:
            return False
        looks += 1
        if looks > LOOKS and frame[YIELD] != 0:
            _call(frame[YIELD])
    return True


@internal()
def portion(frame, address, size):
    """A thread's portion of so many entries at an address."""
    share, threads = frame[SHARE], frame[OTHER_THREADS] + 1
    first = size * share // threads
    return vector(address + 4 * first, size * (share + 1) // threads - first)


# ---------------------------------------------------------------------------------------------- Forward beside backward


@internal()
def matmul(weight, x, z):
    """``z = W x``; with the transpose of W, ``dL/dx = W' dL/dz``."""
    n_out, n_in = weight.shape
    if min(n_in, n_out) > FEW:
        np.dot(weight, x, z)
        return
    # Four terms at a time: a quarter of the passes over z. The first pass has the rest of them.
    rest = (n_in - 1) % 4 + 1
    for j in range(n_out):
        # The choice stands outside the loops over the batch, which are vectorized only so.
        w0, w1 = weight[j, 0], weight[j, 1] if rest > 1 else ZERO
        w2, w3 = weight[j, 2] if rest > 2 else ZERO, weight[j, 3] if rest > 3 else ZERO
        if rest == 1:
            for i in range(x.shape[1]):
                z[j, i] = w0 * x[0, i]
        elif rest == 2:
            for i in range(x.shape[1]):
                z[j, i] = w0 * x[0, i] + w1 * x[1, i]
        elif rest == 3:
            for i in range(x.shape[1]):
                z[j, i] = w0 * x[0, i] + w1 * x[1, i] + w2 * x[2, i]
        else:
            for i in range(x.shape[1]):
                z[j, i] = w0 * x[0, i] + w1 * x[1, i] + w2 * x[2, i] + w3 * x[3, i]
        for k in range(rest, n_in, 4):
            w0, w1, w2, w3 = weight[j, k], weight[j, k + 1], weight[j, k + 2], weight[j, k + 3]
            for i in range(x.shape[1]):
                z[j, i] += w0 * x[k, i] + w1 * x[k + 1, i] + w2 * x[k + 2, i] + w3 * x[k + 3, i]


@inlined()
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


@internal()
def add_bias(z, bias):
    """``z + b``, in place."""
    for j in range(len(bias)):
        for i in range(z.shape[1]):
            z[j, i] += bias[j]


@internal()
def forward(layers, sizes, memory, output):
    """From the inputs in ``memory`` to ``output`` (n_out, batch): z = W x + b, and between layers h = f(z)."""
    batch = output.shape[1]
    stream = stream_of(memory, 0, batch)
    for index in range(len(layers)):
        layer = layers[index]
        x = values_of(layers, INPUT, memory.inputs, index, batch)
        standardized = values_of(layers, NORMED, memory.standardized, index, batch)
        bias = vector(layer[BIAS], layer[N_OUT])
        if layer[NORM] == OF_INPUT:
            weight, norm_bias = vector(layer[NORM_WEIGHT], layer[N_IN]), vector(layer[NORM_BIAS], layer[N_IN])
            normalize(x, stream, weight, sizes.norm_eps, standardized, memory.inverse_std[index])
            add_bias(x, norm_bias)
        if index == len(layers) - 1:
            z = output
        elif layer[ADDS] != 0:
            z = gradients(memory, FIRST, layer[N_OUT], batch)
        elif ends_in_stream(layers, index):
            z = stream
        else:
            # In front of the action, where it joins the next layer.
            z = values_of(layers, INPUT, memory.inputs, index + 1, batch)[: layer[N_OUT]]
        matmul(weights_of(layer), x, z)
        if layer[NORM] == OF_SUMS:
            weight = vector(layer[NORM_WEIGHT], layer[N_OUT])
            add_bias(z, bias)
            normalize(z, z, weight, sizes.norm_eps, standardized, memory.inverse_std[index])
            bias = vector(layer[NORM_BIAS], layer[N_OUT])
        if layer[N_ACTIVE] > 0:
            activate(sizes.activation, z, bias, values_of(layers, ACTIVE, memory.sums, index, batch))
        else:
            add_bias(z, bias)
        if layer[ADDS] != 0:
            # Not in one sum with the bias, whose order would be the compiler's choice.
            for j in range(len(bias)):
                for i in range(batch):
                    stream[j, i] += z[j, i]


@internal()
def backward(layers, sizes, memory, batch, action_grad):
    """
    From dL/dz of the output, in the first half of ``deltas``, to the gradients of all parameters; or to ``action_grad``
    (size, batch) alone, unless it is of no rows.
    """
    here = 0
    to_action = len(action_grad) > 0
    first = sizes.action_layer if to_action else 0
    stream_grad = stream_of(memory, 1, batch)
    for index in range(len(layers) - 1, first - 1, -1):
        layer = layers[index]
        n_in, n_out = layer[N_IN], layer[N_OUT]
        delta = stream_grad if ends_in_stream(layers, index) else gradients(memory, here, n_out, batch)
        if layer[NORM] == OF_SUMS:
            norm_backward(layers, memory, index, delta, to_action)
        if not to_action:
            x = values_of(layers, INPUT, memory.inputs, index, batch)
            layer_backward(layer, delta, x)
        if layer[NORM] == OF_INPUT:
            here = 1 - here
            input_grad = gradients(memory, here, n_in, batch)
            matmul(weights_of(layer).T, delta, input_grad)
            norm_backward(layers, memory, index, input_grad, to_action)
            # The gradient passes by a block, and through it.
            for j in range(n_in):
                for i in range(batch):
                    stream_grad[j, i] = input_grad[j, i] + (stream_grad[j, i] if index < len(layers) - 1 else ZERO)
        elif index > first:
            here = 1 - here
            backward_to_hidden(layers, sizes, memory, index, delta, here)
        elif to_action:
            # As a matrix without gaps, which libraries multiply by.
            weight_of_action = np.ascontiguousarray(weights_of(layer)[:, n_in - len(action_grad) :])
            matmul(weight_of_action.T, delta, action_grad)


@internal()
def norm_backward(layers, memory, index, grad, to_action):
    """Through a layer's normalization, in place, and to the gradients of its parameters unless only the action's is wanted."""
    layer, (n, batch) = layers[index], grad.shape
    standardized = values_of(layers, NORMED, memory.standardized, index, batch)
    if not to_action:
        weight_grad, bias_grad = vector(layer[NORM_WEIGHT_GRAD], n), vector(layer[NORM_BIAS_GRAD], n)
        normalize_gradient(grad, standardized, weight_grad, bias_grad)
    normalize_backward(grad, vector(layer[NORM_WEIGHT], n), standardized, memory.inverse_std[index])


@inlined()
def layer_backward(layer, delta, x):
    """``dL/dW = dL/dz x'``, and ``dL/db``, the sum of dL/dz over the batch."""
    n_out, batch = delta.shape
    matmul_backward(delta, x, carray(_pointer(layer[WEIGHT_GRAD]), (n_out, layer[N_IN]), np.float32))
    bias_grad = vector(layer[BIAS_GRAD], n_out)
    for j in range(n_out):
        total = ZERO
        for i in range(batch):
            total += delta[j, i]
        bias_grad[j] = total


@inlined()
def backward_to_hidden(layers, sizes, memory, index, delta, here):
    """From dL/dz of a layer to that of the hidden layer before it, in the other half of ``deltas``."""
    batch = delta.shape[1]
    n_in = layers[index, N_IN]
    n_hidden = layers[index - 1, N_OUT]
    input_grad = gradients(memory, here, n_in, batch)
    matmul(weights_of(layers[index]).T, delta, input_grad)
    hidden = values_of(layers, INPUT, memory.inputs, index, batch)[:n_hidden]
    sums = values_of(layers, ACTIVE, memory.sums, index - 1, batch)
    activate_backward(sizes.activation, input_grad[:n_hidden], hidden, sums)


# ------------------------------------------------------------------------------------------------------- Losses


@internal()
def squash(action):
    """``a = tanh(z)``, in place."""
    for j in range(len(action)):
        for i in range(action.shape[1]):
            action[j, i] = np.tanh(action[j, i])


@inlined()
def act(frame, layers, sizes, rows, first, action):
    """``a = mu(s)``, for observations in ``rows`` (batch, width) from column ``first`` on; ``action`` is (size, batch)."""
    memory = memory_for(frame, layers, sizes, len(rows))
    write_observations(layers, memory, rows, first, sizes.observation)
    forward(layers, sizes, memory, action)
    squash(action)


@internal()
def sizes_from(numbers):
    """The sizes in a table of numbers."""
    n = numbers[SIZES]
    return Sizes(int(n[0]), int(n[1]), int(n[2]), int(n[3]), np.float32(n[4]), int(n[5]), int(n[6]), int(n[7]))


@internal()
def adam_from(n):
    """The settings of an optimizer in a row of the table of numbers."""
    return Adam(int(n[0]), int(n[1]), n[2], n[3], n[4], n[5], n[6], n[7] != 0, n[8])


@internal()
def actor_of(layers, sizes):
    """The rows of the actor in a table of all layers."""
    first = sizes.actor_layers + sizes.critics * sizes.critic_layers
    return layers[first : first + sizes.actor_layers]


@internal()
def critic_of(layers, sizes, number):
    """The rows of a critic in a table of all layers."""
    first = 2 * sizes.actor_layers + (sizes.critics + number) * sizes.critic_layers
    return layers[first : first + sizes.critic_layers]


@internal()
def target_critic_of(layers, sizes, number):
    """The rows of a target critic in a table of all layers."""
    first = sizes.actor_layers + number * sizes.critic_layers
    return layers[first : first + sizes.critic_layers]


@inlined()
def td_target(frame, sizes, layers, memory, rows, noise, settings):
    """``y = r + gamma c min_i Q_i'(s', mu'(s'))``, with c the continuation and mu' smoothed by clipped noise."""
    o, a = sizes.observation, sizes.action
    batch = len(rows)
    action, q, y = take(frame, a * batch).reshape((a, batch)), take(frame, batch).reshape((1, batch)), take(frame, batch)
    free = frame[FREE]
    act(frame, layers[: sizes.actor_layers], sizes, rows, o + a + 2, action)
    frame[FREE] = free
    if len(noise) > 0:
        clip = np.float32(settings.noise_clip)
        for j in range(a):
            for i in range(batch):
                smoothed = action[j, i] + min(max(noise[i, j], -clip), clip)
                action[j, i] = min(max(smoothed, -ONE), ONE)
    critic = target_critic_of(layers, sizes, FIRST)
    write_observations(critic, memory, rows, o + a + 2, o)
    write_actions(critic, memory, action, sizes.action_layer)
    for number in range(sizes.critics):
        # All critics have the same inputs, which stay.
        forward(target_critic_of(layers, sizes, number), sizes, memory, q)
        for i in range(batch):
            y[i] = q[0, i] if number == 0 else min(y[i], q[0, i])
    gamma = np.float32(settings.discount)
    for i in range(batch):
        y[i] = rows[i, o + a] + gamma * rows[i, o + a + 1] * y[i]
    return y


@inlined()
def critic_gradient(frame, sizes, layers, rows, noise, scale, settings, result):
    """``L = sum_i mean((Q_i(s, a) - y)^2)``, so that ``dL/dQ_i = 2 (Q_i - y) / batch``, with ``scale = 1 / batch``."""
    o, a = sizes.observation, sizes.action
    critic = critic_of(layers, sizes, FIRST)
    memory = memory_for(frame, critic, sizes, len(rows))
    y = td_target(frame, sizes, layers, memory, rows, noise, settings)
    q = take(frame, len(rows)).reshape((1, len(rows)))
    squared, q_sum, y_sum = 0.0, 0.0, 0.0
    action = take(frame, a * len(rows)).reshape((a, len(rows)))
    for j in range(a):
        for i in range(len(rows)):
            action[j, i] = rows[i, o + j]
    write_observations(critic, memory, rows, FIRST, o)
    write_actions(critic, memory, action, sizes.action_layer)
    for number in range(sizes.critics):
        critic = critic_of(layers, sizes, number)
        forward(critic, sizes, memory, q)
        for i in range(len(rows)):
            error = q[0, i] - y[i]
            squared += error * error
            q_sum += q[0, i]
            y_sum += y[i]
            memory.deltas[i] = np.float32(2 * scale) * error
        backward(critic, sizes, memory, len(rows), action[:0])
    result[CRITIC_LOSS] = scale * squared
    result[Q], result[TARGET_Q] = scale * q_sum / sizes.critics, scale * y_sum / sizes.critics


@inlined()
def actor_gradient(frame, sizes, layers, rows, scale, action_l2, result):
    """
    ``L = -mean(Q_1(s, mu(s))) + action_l2 mean(mu(s)^2)``, so that ``dL/dQ_1 = -1 / batch``, and then through a = tanh(z) to
    the actor, with ``scale = 1 / batch``.
    """
    o, a = sizes.observation, sizes.action
    actor, critic = actor_of(layers, sizes), critic_of(layers, sizes, FIRST)
    actor_memory, memory = memory_for(frame, actor, sizes, len(rows)), memory_for(frame, critic, sizes, len(rows))
    action, q = take(frame, a * len(rows)).reshape((a, len(rows))), take(frame, len(rows)).reshape((1, len(rows)))
    write_observations(actor, actor_memory, rows, FIRST, o)
    forward(actor, sizes, actor_memory, action)
    squash(action)
    write_observations(critic, memory, rows, FIRST, o)
    write_actions(critic, memory, action, sizes.action_layer)
    forward(critic, sizes, memory, q)
    q_sum = 0.0
    for i in range(len(rows)):
        q_sum += q[0, i]
        memory.deltas[i] = np.float32(-scale)
    delta = gradients(actor_memory, FIRST, a, len(rows))
    backward(critic, sizes, memory, len(rows), delta)
    squared = 0.0
    if action_l2 > 0:
        share = action_l2 * scale / a
        for j in range(a):
            for i in range(len(rows)):
                squared += share * action[j, i] * action[j, i]
                delta[j, i] += np.float32(2 * share) * action[j, i]
    tanh_backward(delta, action)
    backward(actor, sizes, actor_memory, len(rows), action[:0])
    result[ACTOR_LOSS] = squared - scale * q_sum


# --------------------------------------------------------------------------------------------------------------- Steps


@inlined()
def add_other_grads(frame, table):
    """Add the other threads' gradients to those of the first one, which are the parameters' own."""
    for row in table:
        grad = portion(frame, row[GRAD], row[SIZE])
        for thread in range(frame[OTHER_THREADS]):
            other = portion(frame, frame[OTHER_GRADS] + 4 * (thread * frame[N_GRADS] + row[OFFSET]), row[SIZE])
            for i in range(len(grad)):
                grad[i] += other[i]


@inlined()
def clip_grad_norm(frame, table, max_grad_norm):
    """Limit the gradient's global norm, which is returned."""
    squared = 0.0
    for row in table:
        grad = portion(frame, row[GRAD], row[SIZE])
        for i in range(len(grad)):
            squared += grad[i] * grad[i]
    if frame[OTHER_THREADS] > 0:
        parts = carray(_pointer(frame[MEETING] + 8 * SQUARED), (frame[OTHER_THREADS] + 1,), np.float64)
        parts[frame[SHARE]] = squared
        meet(frame)
        squared = parts.sum()
    norm = np.sqrt(squared)
    scale = np.float32(min(1.0, max_grad_norm / (norm + 1e-6)))
    for row in table:
        grad = portion(frame, row[GRAD], row[SIZE])
        for i in range(len(grad)):
            grad[i] *= scale
    return norm


@internal()
def adam(frame, table, settings):
    """
    Adam (Kingma and Ba 2015, Algorithm 1) or AdamW, after clipping, of a thread's portion of each parameter; returns the norm
    before it (0 without a limit).
    """
    table = table[settings.first : settings.end]
    add_other_grads(frame, table)
    norm = clip_grad_norm(frame, table, settings.max_grad_norm) if settings.max_grad_norm > 0 else 0.0
    rate, decay = settings.learning_rate, settings.weight_decay
    keep1, keep2 = np.float32(settings.beta1), np.float32(settings.beta2)
    new1, new2 = np.float32(1 - settings.beta1), np.float32(1 - settings.beta2)
    eps = np.float32(settings.eps)
    shrink = np.float32(1 - rate * decay if settings.decoupled else 1)
    pull = np.float32(0 if settings.decoupled else decay)
    for row in table:
        param, grad = portion(frame, row[VALUE], row[SIZE]), portion(frame, row[GRAD], row[SIZE])
        exp_avg, exp_avg_sq = portion(frame, row[EXP_AVG], row[SIZE]), portion(frame, row[EXP_AVG_SQ], row[SIZE])
        # As in single precision, which the count is kept in.
        step = float(vector(row[STEP], FIRST + 1)[0] + ONE)
        step_size = np.float32(rate / (1 - settings.beta1**step))
        root_correction = np.float32(1 / np.sqrt(1 - settings.beta2**step))
        for i in range(len(param)):
            g = grad[i] + pull * param[i]
            m = keep1 * exp_avg[i] + new1 * g
            v = keep2 * exp_avg_sq[i] + new2 * g * g
            exp_avg[i], exp_avg_sq[i] = m, v
            param[i] = param[i] * shrink - step_size * m / (np.sqrt(v) * root_correction + eps)
    return norm


@internal()
def count_step(frame, table, settings):
    """Count a step of Adam, once every thread has read the count."""
    if frame[SHARE] == 0:
        for row in table[settings.first : settings.end]:
            vector(row[STEP], FIRST + 1)[0] += ONE


@inlined()
def soft_update(frame, table, tau):
    """``theta' <- tau theta + (1 - tau) theta'``."""
    share, rest = np.float32(tau), np.float32(1 - tau)
    for row in table:
        param, target = portion(frame, row[VALUE], row[SIZE]), portion(frame, row[TARGET], row[SIZE])
        for i in range(len(target)):
            target[i] = rest * target[i] + share * param[i]


# ------------------------------------------------------------------------------------ Between two steps of environments


@internal()
def matrix(address, rows, columns):
    """The float32 entries at an address."""
    return carray(_pointer(address), (rows, columns), np.float32)


@inlined()
def all_finite(address, size):
    """Whether there is no NaN or infinity, by the bits: fast arithmetic assumes that there is none."""
    bits = carray(_pointer(address), (size,), np.uint32)
    largest = np.uint32(0)
    for i in range(size):
        largest = max(largest, bits[i] & EXPONENT)
    return largest < EXPONENT


@inlined()
def store(frame, sizes):
    """Write the transitions of all environments as rows of the replay buffer."""
    o, a, n = sizes.observation, sizes.action, frame[STORED]
    rows = matrix(frame[ROWS], frame[CAPACITY], 2 * o + a + 2)
    last, following = matrix(frame[LAST_OBSERVATIONS], n, o), matrix(frame[NEXT_OBSERVATIONS], n, o)
    actions = matrix(frame[TAKEN_ACTIONS], n, a)
    rewards, continuations = vector(frame[REWARDS], n), vector(frame[CONTINUATIONS], n)
    for i in range(n):
        row = rows[frame[PLACE] + i]
        for j in range(o):
            row[j], row[o + a + 2 + j] = last[i, j], following[i, j]
        for j in range(a):
            row[o + j] = actions[i, j]
        row[o + a], row[o + a + 1] = rewards[i], continuations[i]


@inlined()
def explore(frame, layers, sizes):
    """``a = mu(s) + N`` (or without N), clipped: within bounds, and normalized."""
    o, a, n = sizes.observation, sizes.action, frame[ACTING]
    observations = matrix(frame[OBSERVATIONS], n, o)
    noise, bounds = matrix(frame[EXPLORATION], n, a), matrix(frame[BOUNDS], FIRST + 2, a)
    actions, scaled_actions = matrix(frame[ACTIONS], n, a), matrix(frame[SCALED_ACTIONS], n, a)
    frame[FREE] = frame[SCRATCH]
    if frame[SEES_RAW] != 0:
        normal = carray(_pointer(frame[NORMAL]), (3 * o + 2,), np.float64)
        raw, observations = observations, take(frame, o * n).reshape((n, o))
        for i in range(n):
            for j in range(o):
                observations[i, j] = clipped_quotient(raw[i, j], normal[j], normal[o + j], normal[2 * o + j])
    mu = take(frame, a * n).reshape((a, n))
    act(frame, layers[frame[ACTOR] : frame[ACTOR] + sizes.actor_layers], sizes, observations, FIRST, mu)
    for i in range(n):
        for j in range(a):
            scaled = max(min(mu[j, i] + noise[i, j], ONE), -ONE) if frame[EXPLORATION] != 0 else mu[j, i]
            low, high = bounds[0, j], bounds[1, j]
            actions[i, j], scaled_actions[i, j] = low + HALF * (scaled + ONE) * (high - low), scaled


@internal()
def replay_of(frame, sizes, gamma):
    """The replay buffer that a frame describes."""
    capacity, width, o = frame[CAPACITY], frame[ROW_WIDTH], sizes.observation
    rows, ends = matrix(frame[ROWS], capacity, width), carray(_pointer(frame[ENDS]), (capacity,), np.uint8)
    aside = carray(_pointer(frame[ASIDE]), (capacity if frame[ASIDE] != 0 else 0,), np.int32)
    normal = carray(_pointer(frame[NORMAL]), (3 * o + 2 if frame[NORMAL] != 0 else 0,), np.float64)
    lasts = matrix(frame[LASTS], frame[N_LASTS], o)
    counts = frame[ENVS], frame[NEWEST], frame[N_STEPS]
    return Replay(rows, ends, aside, lasts, normal, counts[0], counts[1], counts[2], gamma, o, o + sizes.action)


@internal()
def update(number, numbers, layers, table, frame, result):
    """One update with a batch, of which a thread has some rows; returns whether all threads made it."""
    sizes, n, size = sizes_from(numbers), numbers[SETTINGS], frame[BATCH_SIZE]
    width, first, end = 2 * sizes.observation + sizes.action + 2, frame[FIRST_ROW], frame[END_ROW]
    rows = matrix(frame[BATCHES] + 4 * number * size * width, size, width)[first:end]
    n_noise = size if frame[SMOOTHING] != 0 else 0
    noise = matrix(frame[SMOOTHING] + 4 * number * size * sizes.action, n_noise, sizes.action)[first:end]
    settings = Settings(n[0], n[1], n[2], int(n[3]), int(n[4]), n[5], n[6])
    of_critic, of_actor = adam_from(numbers[CRITIC_ADAM]), adam_from(numbers[ACTOR_ADAM])
    frame[FREE] = frame[SCRATCH]
    critic_gradient(frame, sizes, layers, rows, noise, 1 / size, settings, result)
    if not meet(frame):
        return False
    result[CRITIC_NORM] = adam(frame, table, of_critic)
    meet(frame)
    count_step(frame, table, of_critic)
    if (settings.n_updates + number + 1) % settings.policy_delay == 0:
        frame[FREE] = frame[SCRATCH]
        actor_gradient(frame, sizes, layers, rows, 1 / size, settings.action_l2, result)
        meet(frame)
        result[ACTOR_NORM] = adam(frame, table, of_actor)
        soft_update(frame, table, settings.tau)
        meet(frame)
        count_step(frame, table, of_actor)
    return True


def _make_advance(sources: str) -> Any:
    """:func:`advance`, by whose closure Numba's cache on disk depends on more than this file."""

    @compiled
    def advance(numbers, layers, table, frame, results):
        """
        What there is to do, each part if ``frame`` says so: store transitions, draw batches (batch, width), update with them
        one after another, choose actions. If an observation or a reward is not finite, nothing is done. Of several threads
        one does all but its portion of the updates, and the others theirs.
        """
        _ = sources
        numbers, layers, table = uncounted(numbers), uncounted(layers), uncounted(table)
        frame, results = uncounted(frame), uncounted(results)
        sizes, n_envs = sizes_from(numbers), frame[STORED]
        width, size = 2 * sizes.observation + sizes.action + 2, frame[BATCH_SIZE]
        if n_envs > 0:
            n_next = n_envs * sizes.observation
            if not (all_finite(frame[NEXT_OBSERVATIONS], n_next) and all_finite(frame[REWARDS], n_envs)):
                frame[OUTCOME] = NOT_FINITE
                return
            store(frame, sizes)
        scratch = scratch_for(frame, layers, sizes)
        frame[SCRATCH] = frame[FREE] = frame[MOST] = (scratch.ctypes.data + 63) // 64 * 64
        frame[LIMIT], frame[MET] = scratch.ctypes.data + 4 * len(scratch), 0
        for number in range(frame[DRAWN]):
            batch = matrix(frame[BATCHES] + 4 * number * size * width, size, width)
            replay = replay_of(frame, sizes, numbers[SETTINGS, 5])
            sample_rows(replay, frame[NEXT_UINT32], frame[GENERATOR], frame[DRAWN_FROM], frame[DRAWN_FIRST], batch)
        # The first thread's batches.
        together = meet(frame) if frame[UPDATES] > 0 else True
        for number in range(frame[UPDATES]):
            together = together and update(number, numbers, layers, table, frame, results[number])
        if frame[ACTING] > 0:
            explore(frame, layers, sizes)
        # Alive until here.
        scratch[0] = ZERO
        frame[OUTCOME] = DONE if together else STOPPED

    return advance


advance = _make_advance(operations.digest_of(operations, random_rows))
