"""
Activations and layer normalization for the kernels: forward beside backward, in place on values (units, batch).

The derivations are in :mod:`~sb3_ddpg_scratch.updates.analytic`. ``forward`` takes z without its bias and leaves h;
``backward`` takes dL/dh and leaves dL/dz. Where the derivative cannot be read off h, ``forward`` keeps z.
"""

import hashlib
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from numba import njit
from torch import nn

OPTIONS: Any = {"fastmath": True, "error_model": "numpy", "nogil": True}
# For what only other compiled functions call: without the code that would take its arguments from Python.
internal = partial(njit, no_cpython_wrapper=True, no_cfunc_wrapper=True, **OPTIONS)
# For what is called in one or two places: compiled as part of its caller. By itself it would be optimized once more for each
# function on the way to the outermost one, which doubles the time that compiling takes. Small functions are better off
# internal, since each copy costs as much as a large one.
inlined = partial(internal, inline="always")
# Each operation rounded in the order that is written. The order that fast arithmetic chooses may be another one in the process
# that compiles than in those that load the result.
exact = partial(internal, fastmath=False)


def compiled(function: Callable[..., Any]) -> Any:
    """For what Python calls: kept on disk, if Numba finds a folder to write to."""
    try:
        return njit(cache=True, **OPTIONS)(function)
    except RuntimeError:
        return njit(**OPTIONS)(function)


def digest_of(*modules: ModuleType) -> str:
    """A digest of the modules' source files."""
    return hashlib.sha256(b"".join(Path(module.__file__ or "").read_bytes() for module in modules)).hexdigest()


ZERO, ONE, HALF = np.float32(0), np.float32(1), np.float32(0.5)
RELU, TANH, LEAKY_RELU, SIGMOID, ELU, SELU, SOFTPLUS, SILU, MISH, GELU = range(10)
# The derivatives of these and of the following need z. (ELU's, h + 1, would cancel where it is saturated.)
FIRST_THAT_NEEDS_Z = ELU
CODES = {
    nn.ReLU: RELU,
    nn.Tanh: TANH,
    nn.LeakyReLU: LEAKY_RELU,
    nn.ELU: ELU,
    nn.SELU: SELU,
    nn.Sigmoid: SIGMOID,
    nn.Softplus: SOFTPLUS,
    nn.SiLU: SILU,
    nn.Mish: MISH,
    nn.GELU: GELU,
}
LEAK = np.float32(0.01)
SELU_SCALE, SELU_SCALE_ALPHA = np.float32(1.0507009873554805), np.float32(1.0507009873554805 * 1.6732632423543772)
ROOT_HALF, DENSITY_AT_0 = np.float32(math.sqrt(0.5)), np.float32(1 / math.sqrt(2 * math.pi))
SOFTPLUS_THRESHOLD = np.float32(20)


@inlined()
def relu(z, bias):
    """``h = max(z, 0)``."""
    for j in range(len(z)):
        for i in range(z.shape[1]):
            z[j, i] = max(z[j, i] + bias[j], ZERO)


@inlined()
def relu_backward(grad, h):
    """``h' = [h > 0]``."""
    for j in range(len(h)):
        for i in range(h.shape[1]):
            grad[j, i] = grad[j, i] if h[j, i] > 0 else ZERO


@inlined()
def tanh(z, bias):
    """``h = tanh(z)``."""
    for j in range(len(z)):
        for i in range(z.shape[1]):
            z[j, i] = np.tanh(z[j, i] + bias[j])


@internal()
def tanh_backward(grad, h):
    """``h' = 1 - h^2``."""
    for j in range(len(h)):
        for i in range(h.shape[1]):
            grad[j, i] *= ONE - h[j, i] * h[j, i]


@inlined()
def scalar_forward(code, z):
    """The other activations of one value."""
    if code == LEAKY_RELU:
        return z if z > 0 else LEAK * z
    if code == ELU:
        return z if z > 0 else np.expm1(z)
    if code == SELU:
        return SELU_SCALE * z if z > 0 else SELU_SCALE_ALPHA * np.expm1(z)
    if code == SIGMOID:
        return ONE / (ONE + np.exp(-z))
    if code == SOFTPLUS:
        return softplus(z)
    if code == SILU:
        return z / (ONE + np.exp(-z))
    if code == MISH:
        return z * np.tanh(softplus(z))
    return z * HALF * (ONE + math.erf(z * ROOT_HALF))


@inlined()
def scalar_slope(code, z, h):
    """Their derivatives; ``z`` is only read where it was kept."""
    if code == LEAKY_RELU:
        return ONE if h > 0 else LEAK
    if code == ELU:
        return ONE if z > 0 else np.exp(z)
    if code == SELU:
        return SELU_SCALE if z > 0 else SELU_SCALE_ALPHA * np.exp(z)
    if code == SIGMOID:
        return h * (ONE - h)
    if code == SOFTPLUS:
        return ONE if z > SOFTPLUS_THRESHOLD else np.exp(z) / (ONE + np.exp(z))
    if code == SILU:
        s = ONE / (ONE + np.exp(-z))
        return s * (ONE + z * (ONE - s))
    if code == MISH:
        t = np.tanh(softplus(z))
        return t + z * (ONE - t * t) / (ONE + np.exp(-z))
    return HALF * (ONE + math.erf(z * ROOT_HALF)) + z * DENSITY_AT_0 * np.exp(-HALF * z * z)


@internal()
def softplus(z):
    """``log(1 + e^z)``, as torch computes it."""
    return z if z > SOFTPLUS_THRESHOLD else np.log1p(np.exp(z))


@inlined()
def activate(code, z, bias, kept):
    """``h = f(z + b)``, in place; ``kept`` is memory for z + b, or of no rows."""
    if code == RELU:
        relu(z, bias)
    elif code == TANH:
        tanh(z, bias)
    else:
        for j in range(len(z)):
            for i in range(z.shape[1]):
                value = z[j, i] + bias[j]
                if len(kept) > 0:
                    kept[j, i] = value
                z[j, i] = scalar_forward(code, value)


@inlined()
def activate_backward(code, grad, h, kept):
    """``dL/dz = dL/dh f'(z)``, in place."""
    if code == RELU:
        relu_backward(grad, h)
    elif code == TANH:
        tanh_backward(grad, h)
    else:
        for j in range(len(grad)):
            for i in range(grad.shape[1]):
                grad[j, i] *= scalar_slope(code, kept[j, i] if len(kept) > 0 else ZERO, h[j, i])


@exact()
def normalize(out, h, weight, eps, standardized, inverse_std):
    """
    Layer normalization without its bias: ``out = w s`` with ``s = (h - mean) / std`` over the units of each column; ``out``
    may be ``h``.

    ``standardized`` (units, batch) and ``inverse_std`` (batch) keep what the way back needs.
    """
    n, batch = h.shape
    mean = np.zeros(batch, np.float32)
    inverse_std[:] = ZERO
    for j in range(n):
        for i in range(batch):
            mean[i] += h[j, i]
    mean /= np.float32(n)
    for j in range(n):
        for i in range(batch):
            standardized[j, i] = h[j, i] - mean[i]
            inverse_std[i] += standardized[j, i] * standardized[j, i]
    for i in range(batch):
        inverse_std[i] = ONE / np.sqrt(inverse_std[i] / np.float32(n) + eps)
    for j in range(n):
        for i in range(batch):
            standardized[j, i] *= inverse_std[i]
            out[j, i] = standardized[j, i] * weight[j]


@exact()
def normalize_backward(grad, weight, standardized, inverse_std):
    """``dL/dz = (g - mean(g) - s mean(g s)) / std`` with ``g = w dL/dy``, in place."""
    n, batch = grad.shape
    mean, mean_with_s = np.zeros(batch, np.float32), np.zeros(batch, np.float32)
    for j in range(n):
        for i in range(batch):
            grad[j, i] *= weight[j]
            mean[i] += grad[j, i]
            mean_with_s[i] += grad[j, i] * standardized[j, i]
    mean /= np.float32(n)
    mean_with_s /= np.float32(n)
    for j in range(n):
        for i in range(batch):
            grad[j, i] = (grad[j, i] - mean[i] - standardized[j, i] * mean_with_s[i]) * inverse_std[i]


@inlined()
def normalize_gradient(grad, standardized, weight_grad, bias_grad):
    """``dL/dw``, the sum of ``s dL/dy`` over the batch, and ``dL/db``, that of dL/dy."""
    for j in range(len(grad)):
        with_s, total = ZERO, ZERO
        for i in range(grad.shape[1]):
            with_s += grad[j, i] * standardized[j, i]
            total += grad[j, i]
        weight_grad[j], bias_grad[j] = with_s, total
