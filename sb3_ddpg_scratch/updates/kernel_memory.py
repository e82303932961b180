"""The memory that Python shares with the kernels: tables of layers and numbers, and the work for a call of ``advance``."""

import gc
import sys
from collections.abc import Callable
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_ddpg_scratch.networks import Actor
from sb3_ddpg_scratch.replay import PackedReplayBuffer

# Of a tensor.
address: Callable[[Any], int] = th.Tensor.data_ptr
is_contiguous: Callable[[Any], bool] = th.Tensor.is_contiguous
size_of: Callable[[Any], int] = th.Tensor.numel


@cache
def load_kernels() -> ModuleType:
    """Import the kernels, with a message if they are compiled; on demand, since Numba and SciPy take half a second."""
    import scipy.linalg.cython_blas  # noqa: F401  # loads the library behind np.dot
    from numba.core import event

    from sb3_ddpg_scratch.updates import kernels

    class Compilation(event.Listener):
        collecting = False

        def on_start(self, found: Any) -> None:
            if found.data["dispatcher"] is kernels.advance:
                # Garbage collection among the compiler's live objects would take a fifth of the time.
                self.collecting = gc.isenabled()
                gc.disable()
                where = "once on this machine"
                if kernels.advance.stats.cache_path is None:
                    where = "in each process: no folder is writable. Set NUMBA_CACHE_DIR to one"
                print(f"Compiling the hand-written update takes some 8 seconds, {where}.", file=sys.stderr)

        def on_end(self, found: Any) -> None:
            if found.data["dispatcher"] is kernels.advance and self.collecting:
                gc.enable()

    event.register("numba:compile", Compilation())  # type: ignore[no-untyped-call]
    return kernels


def layer_table(layers: nn.Module, grads: Any = None) -> np.ndarray:
    """A table of layers as the kernels read it; without ``grads`` for a network that is not trained."""
    of_layers = [layer for layer in layers.children() if isinstance(layer, nn.Linear)]
    table = np.zeros((len(of_layers), 10), np.int64)
    # In the order of the parameters.
    addresses = iter(np.zeros(4 * len(of_layers), np.int64) if grads is None else grads)
    number = -1
    for layer in layers.children():
        number += isinstance(layer, nn.Linear)
        if isinstance(layer, (nn.Linear, nn.LayerNorm)):
            first = 2 if isinstance(layer, nn.Linear) else 6
            table[number, first : first + 2] = layer.weight.data_ptr(), layer.bias.data_ptr()
            table[number, first + 2 : first + 4] = next(addresses), next(addresses)
        if isinstance(layer, nn.Linear):
            table[number, :2] = layer.weight.shape[1], layer.weight.shape[0]
    return table


def sizes_of(kernels: Any, actor: Actor, critic: Any = None) -> Any:
    """What the kernels need to know about an actor and its critic."""
    from sb3_ddpg_scratch.updates.operations import CODES

    norm_eps = next((np.float32(layer.eps) for layer in actor.mu.children() if isinstance(layer, nn.LayerNorm)), np.float32(0))
    action_dim = get_action_dim(actor.action_space)
    of_both = (actor.features_dim, action_dim, getattr(critic, "action_layer", 0), CODES[actor.activation_fn], norm_eps)
    n_critics = 0 if critic is None else critic.n_critics
    return kernels.Sizes(*of_both, n_critics, len(actor.net_arch) + 1, 0 if critic is None else len(critic.net_arch) + 1)


def numbers_table(*rows: tuple[float, ...]) -> np.ndarray:
    numbers = np.zeros((4, 9))
    for row, values in zip(numbers, rows, strict=False):
        row[: len(values)] = values
    return numbers


class Acting(NamedTuple):
    """Memory for acting in n environments, float32: observations, noise, actions in environment units and normalized."""

    observations: np.ndarray
    noise: np.ndarray
    actions: np.ndarray
    scaled_actions: np.ndarray


class Frame:
    """The work for the kernel ``advance``, and the memory that it shares with Python."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.table = np.zeros(kernels.FRAME_SIZE, np.int64)
        self.table[kernels.END_PART] = kernels.PARTS
        self._arrays: dict[int, np.ndarray] = {}

    def place(self, column: int, array: np.ndarray | None) -> None:
        """Set an address and keep its array alive; ``None`` for no array."""
        if self._arrays.get(column) is not array:
            self._arrays[column] = array  # type: ignore[assignment]
            self.table[column] = 0 if array is None else array.ctypes.data

    def place_acting(self, action_space: spaces.Box, n: int, observation_dim: int) -> Acting:
        kernels, action_dim = self.kernels, get_action_dim(action_space)
        observations, last = np.zeros((2, n, observation_dim), np.float32)
        acting = Acting(observations, *np.zeros((3, n, action_dim), np.float32))
        self.place(kernels.OBSERVATIONS, observations)
        self.place(kernels.LAST_OBSERVATIONS, last)
        self.place(kernels.EXPLORATION, acting.noise)
        self.place(kernels.BOUNDS, np.stack([action_space.low.ravel(), action_space.high.ravel()]).astype(np.float32))
        self.place(kernels.ACTIONS, acting.actions)
        self.place(kernels.SCALED_ACTIONS, acting.scaled_actions)
        return acting

    def place_batches(self, batches: np.ndarray) -> None:
        """Use this memory for batches, shape ``(updates, batch, width)``."""
        self.place(self.kernels.BATCHES, batches)
        self.table[self.kernels.BATCH_SIZE] = self.table[self.kernels.END_ROW] = batches.shape[1]

    def place_buffer(self, buffer: PackedReplayBuffer, sampler: Any, newest: int) -> Any:
        """Set the addresses of a buffer's rows and NumPy's generator, and the newest step to draw; returns that one's lock."""
        kernels, table = self.kernels, self.table
        lock = sampler.find_generator()
        self.place(kernels.ROWS, buffer.rows)
        self.place(kernels.ENDS, buffer._ends)
        table[kernels.CAPACITY], table[kernels.ENVS] = len(buffer.rows), buffer.n_envs
        table[kernels.NEWEST], table[kernels.N_STEPS] = newest, getattr(buffer, "n_steps", 1)
        table[kernels.DRAWN_FROM] = buffer.buffer_size if buffer.full else newest + 1
        table[kernels.NEXT_UINT32], table[kernels.GENERATOR] = sampler.next_uint32, sampler.state
        return lock
