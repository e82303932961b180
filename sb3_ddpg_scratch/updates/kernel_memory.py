"""The memory that Python shares with the kernels: tables of layers and numbers, and the work for a call of ``advance``."""

import gc
import sys
from functools import cache
from operator import is_
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from torch import nn

from sb3_ddpg_scratch.networks import Actor, ResidualBlock, flat_layers
from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer
from sb3_ddpg_scratch.updates.inspection import activations_of, eps_of


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


def address_of(memory: Any, shape: tuple[int, ...], dtype: Any = np.float32) -> int:
    """
    The address of an array, or of a tensor on the CPU, after a check. All addresses for compiled code, which checks no bounds,
    come from here.
    """
    array = memory.detach().numpy() if isinstance(memory, th.Tensor) else memory
    # "carray": contiguous, aligned and writeable.
    if type(array) is np.ndarray and array.dtype == dtype and array.shape == shape and array.flags.carray:
        return array.ctypes.data
    found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
    wanted = f"a contiguous, writeable array of {np.dtype(dtype)}, shape {shape}"
    raise ValueError(f"Compiled code needs {wanted}, got {found}. Was an array of the replay buffer or a parameter replaced?")


def layer_table(kernels: Any, layers: nn.Module, grads: Any = None) -> np.ndarray:
    """A table of linear layers as the kernels read it; without ``grads`` for a network that is not trained."""
    flat = flat_layers(layers)
    blocks_ends = [layer[-1] for layer in layers.children() if isinstance(layer, ResidualBlock)]
    # In the order of the parameters.
    addresses = iter(np.zeros(len(list(layers.parameters())), np.int64) if grads is None else grads)
    rows: list[np.ndarray] = []
    of_input: list[int] = [0] * 6
    for layer, following in zip(flat, [*flat[1:], None], strict=True):
        if isinstance(layer, nn.LayerNorm):
            (n,) = layer.normalized_shape
            norm = [address_of(layer.weight, (n,)), address_of(layer.bias, (n,)), next(addresses), next(addresses)]
            if isinstance(following, nn.Linear):
                of_input = [*norm, kernels.OF_INPUT, n]
            else:
                rows[-1][kernels.NORM_WEIGHT : kernels.N_ACTIVE] = [*norm, kernels.OF_SUMS, n]
        elif isinstance(layer, nn.Linear):
            n_out, n_in = layer.weight.shape
            own = [address_of(layer.weight, (n_out, n_in)), address_of(layer.bias, (n_out,)), next(addresses), next(addresses)]
            adds = any(layer is end for end in blocks_ends)
            rows.append(np.array([n_in, n_out, *own, *of_input, 0, adds], np.int64))
            of_input = [0] * 6
        elif following is not None:
            rows[-1][kernels.N_ACTIVE] = rows[-1][kernels.N_OUT]
    return np.stack(rows)


def sizes_of(kernels: Any, actor: Actor, critic: Any = None) -> Any:
    """What the kernels need to know about an actor and its critic."""
    from sb3_ddpg_scratch.updates.operations import CODES

    action_dim = get_action_dim(actor.action_space)
    networks = [actor] if critic is None else [actor, critic]
    activation, norm_eps = next(iter(activations_of(networks)), nn.ReLU), np.float32(next(iter(eps_of(networks)), 0.0))
    of_both = (actor.features_dim, action_dim, getattr(critic, "action_layer", 0), CODES[activation], norm_eps)
    n_critics, depths = 0 if critic is None else critic.n_critics, [depth_of(actor.mu), 0]
    if critic is not None:
        depths[1] = depth_of(critic.q_networks[0])
    return kernels.Sizes(*of_both, n_critics, *depths)


def depth_of(layers: nn.Module) -> int:
    """The number of rows in a table of layers."""
    return sum(isinstance(layer, nn.Linear) for layer in flat_layers(layers))


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


class Transition(NamedTuple):
    """Memory for what n environments' transitions consist of, float32."""

    last_observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: np.ndarray


class Frame:
    """The work for the kernel ``advance``, and the memory that it shares with Python."""

    def __init__(self, kernels: Any) -> None:
        self.kernels = kernels
        self.table = np.zeros(kernels.FRAME_SIZE, np.int64)
        self._buffer: tuple[Any, ...] = ()
        self._placed: dict[int, tuple[np.ndarray | None, tuple[int, ...]]] = {}

    def place(self, column: int, array: np.ndarray | None, shape: tuple[int, ...] = (), dtype: Any = np.float32) -> None:
        """Set an address, keep its array alive, and check it when it is another one; ``None`` for no array."""
        before, same_shape = self._placed.get(column, (None, None))
        if before is not array or same_shape != shape:
            self.table[column] = 0 if array is None else address_of(array, shape, dtype)
            self._placed[column] = array, shape

    def place_acting(self, action_space: Any, n: int, observation_dim: int) -> Acting:
        kernels, action_dim = self.kernels, get_action_dim(action_space)
        acting = Acting(np.zeros((n, observation_dim), np.float32), *np.zeros((3, n, action_dim), np.float32))
        self.place(kernels.OBSERVATIONS, acting.observations, (n, observation_dim))
        bounds = np.stack([action_space.low.ravel(), action_space.high.ravel()]).astype(np.float32)
        self.place(kernels.BOUNDS, bounds, (2, action_dim))
        for column, array in zip((kernels.EXPLORATION, kernels.ACTIONS, kernels.SCALED_ACTIONS), acting[1:], strict=True):
            self.place(column, array, (n, action_dim))
        return acting

    def place_noise(self, acting: Acting, noise: np.ndarray | None) -> None:
        """Act with this noise."""
        self.place(self.kernels.EXPLORATION, None if noise is None else acting.noise, acting.noise.shape)
        if noise is not None:
            acting.noise[...] = noise.reshape(acting.noise.shape)

    def place_transition(self, n: int, observation_dim: int, action_dim: int) -> Transition:
        kernels = self.kernels
        observations, actions = np.zeros((2, n, observation_dim), np.float32), np.zeros((n, action_dim), np.float32)
        memory = Transition(observations[0], actions, np.zeros(n, np.float32), observations[1])
        columns = (kernels.LAST_OBSERVATIONS, kernels.TAKEN_ACTIONS, kernels.REWARDS, kernels.NEXT_OBSERVATIONS)
        for column, array in zip(columns, memory, strict=True):
            self.place(column, array, array.shape)
        return memory

    def place_batches(self, batches: np.ndarray, width: int) -> None:
        """Use this memory for batches, shape ``(updates, batch, width)``."""
        count, batch_size = batches.shape[:2]
        self.place(self.kernels.BATCHES, batches, (count, batch_size, width))
        self.table[self.kernels.BATCH_SIZE] = batch_size

    def place_smoothing(self, noise: np.ndarray | None, count: int, action_dim: int) -> None:
        """Use this noise, shape ``(count or more, batch, action_dim)``, for target policy smoothing; ``None`` for none."""
        batch_size = 0 if noise is None else int(self.table[self.kernels.BATCH_SIZE])
        shape = () if noise is None else (max(count, len(noise)), batch_size, action_dim)
        self.place(self.kernels.SMOOTHING, noise, shape)

    def place_buffer(self, buffer: PackedReplayBuffer, sampler: Any, columns: BatchColumns, stored: int = 0) -> Any:
        """
        Store in this buffer, whose rows have these columns, and draw batches from it, also among so many steps that are stored
        first. Returns the lock of NumPy's global generator, which they are drawn with.
        """
        kernels, table, pos, size, n_envs = self.kernels, self.table, buffer.pos, buffer.buffer_size, buffer.n_envs
        # Attributes that anybody may set.
        present = (buffer, buffer.rows, buffer._ends, buffer._aside, buffer._last_observations, size, n_envs, columns)
        if len(present) != len(self._buffer) or not all(map(is_, present, self._buffer)):
            self._place_arrays(buffer, columns)
            self._buffer = present
        if not 0 <= pos < size:
            raise ValueError(f"The replay buffer has {size} rows of each environment, which do not match its pos={pos!r}.")
        first, end = buffer.drawn_steps(stored)
        table[kernels.DRAWN_FIRST], table[kernels.DRAWN_FROM] = first, end - first
        table[kernels.NEWEST], table[kernels.N_STEPS] = (pos + stored - 1) % size, getattr(buffer, "n_steps", 1)
        table[kernels.PLACE], table[kernels.STORED] = pos * n_envs, stored * n_envs
        return sampler.place_generator(self)

    def _place_arrays(self, buffer: PackedReplayBuffer, columns: BatchColumns) -> None:
        """Place what a buffer stays with."""
        kernels, table, saves_memory = self.kernels, self.table, buffer.optimize_memory_usage
        rows, size, n_envs = buffer.rows, buffer.buffer_size, buffer.n_envs
        if not (n_envs >= 1 and size * n_envs == len(rows)):
            numbers = f"buffer_size={size!r}, n_envs={n_envs!r}"
            raise ValueError(f"The replay buffer has {len(rows)} rows, which do not match its {numbers}.")
        total, width = len(rows), columns.continuation + 1 if saves_memory else columns.width
        self.place(kernels.ROWS, rows, (total, width))
        self.place(kernels.ENDS, buffer._ends, (total,), np.uint8)
        self.place(kernels.ASIDE, buffer._aside if saves_memory else None, (total,), np.int32)
        n_lasts = len(buffer._last_observations) if saves_memory else 0
        self.place(kernels.LASTS, buffer._last_observations if saves_memory else None, (n_lasts, columns.observation_dim))
        table[kernels.CAPACITY], table[kernels.ROW_WIDTH], table[kernels.ENVS] = total, width, n_envs
        table[kernels.N_LASTS] = n_lasts
