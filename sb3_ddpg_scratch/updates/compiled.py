"""
The update with gradients written by hand as functions compiled by Numba, for networks so small that calling torch costs more
than the arithmetic. They work on the networks' own tensors and the optimizers' own state; many updates are one call.

A larger update is shared among torch's threads: each computes the gradients of some of the batch's rows, and they are added
up. Dividing every single product among threads instead costs more than it saves (see the documentation's benchmarks).
"""

import sys
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import chain, pairwise
from operator import attrgetter, itemgetter
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_ddpg_scratch.batches import Batches
from sb3_ddpg_scratch.networks import Actor
from sb3_ddpg_scratch.observations import Observations, flatten
from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.inspection import AdamWatch, NetworksWatch, why_not_adam, why_not_compiled, why_not_its_state
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings
from sb3_ddpg_scratch.updates.thread_pool import run_together

# Updates made in one call, at most: their batches are gathered beforehand.
UPDATES_PER_CALL = 64

# A share of a batch has at least so many rows, and an update at least so many multiplications for each of its shares: below,
# handing out work costs more than it saves.
ROWS_OF_A_SHARE = 32
MULTIPLICATIONS_OF_A_SHARE = 4_000_000
MOST_SHARES = 16


@cache
def load_kernels() -> ModuleType:
    """
    Import the kernels, with a message if the first call of one will take a while.

    Importing Numba and SciPy takes half a second, for which a model that only predicts does not wait.
    """
    import scipy.linalg.cython_blas  # noqa: F401  # loads the library behind np.dot

    from sb3_ddpg_scratch.updates import kernels

    written = Path(kernels.__file__).stat().st_mtime
    indices = Path(kernels.updates.stats.cache_path or "").glob("kernels.updates-*.nbi")
    if not any(index.stat().st_mtime > written for index in indices) and not kernels.updates.signatures:
        print("Compiling the hand-written update, once on this machine: some 20 seconds.", file=sys.stderr)
    return kernels


_address: Callable[[Any], int] = th.Tensor.data_ptr
_is_contiguous: Callable[[Any], bool] = th.Tensor.is_contiguous
_size: Callable[[Any], int] = th.Tensor.numel
_grad = attrgetter("grad")
_read_adam = itemgetter("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")
_values: Callable[[Any], Iterable[Any]] = dict.values


def _layer_table(layers: nn.Module, grads: Any = None) -> np.ndarray:
    """A table of layers as the kernels read it; without ``grads``, of a network that is not trained."""
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


def _sizes_of(kernels: Any, actor: Actor, critic: Any = None) -> Any:
    """What the kernels are told of an actor and its critic."""
    from sb3_ddpg_scratch.updates.operations import CODES

    norm_eps = next((np.float32(layer.eps) for layer in actor.mu.children() if isinstance(layer, nn.LayerNorm)), np.float32(0))
    action_dim = get_action_dim(actor.action_space)
    of_both = (actor.features_dim, action_dim, getattr(critic, "action_layer", 0), CODES[actor.activation_fn], norm_eps)
    n_critics = 0 if critic is None else critic.n_critics
    return kernels.Sizes(*of_both, n_critics, len(actor.net_arch) + 1, 0 if critic is None else len(critic.net_arch) + 1)


def _numbers(*rows: tuple[float, ...]) -> np.ndarray:
    """The table of numbers that the kernels read."""
    numbers = np.zeros((4, 9))
    for row, values in zip(numbers, rows, strict=False):
        row[: len(values)] = values
    return numbers


class CompiledActor:
    """The actor's forward pass compiled, for choosing actions between two updates."""

    def __init__(self) -> None:
        # Whether there was no objection, and none can come up.
        self.inspected = False
        self._watch: NetworksWatch | None = None
        self._addresses: list[int] = []
        self._sizes: list[int] = []
        self._kernels: Any = None
        self._network_sizes: Any = None

    def objection(self, actor: Any) -> str | None:
        """Why this actor cannot act this way, if it cannot."""
        if (
            self._watch is not None
            and self._watch.holds((actor,))
            and list(map(_address, self._watch.parameters)) == self._addresses
            and all(map(_is_contiguous, self._watch.parameters))
            and list(map(_size, self._watch.parameters)) == self._sizes
        ):
            return None
        reason = why_not_compiled((actor,), trained=0)
        self._watch = NetworksWatch((actor,), trained=0) if reason is None else None
        if self._watch is not None:
            self._addresses = list(map(_address, self._watch.parameters))
            self._sizes = list(map(_size, self._watch.parameters))
            self._layers = _layer_table(actor.mu)
            self._actor, self._network_sizes = actor, None
        return reason

    def act(self, observations: Observations, noise: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """
        The actions of an actor to which there is no :meth:`objection`.

        :param observations: of ``n`` environments
        :param noise: is added; of ``n`` actions, or ``None``
        :return: actions in environment units and normalized, shape ``(n, *action_shape)``
        """
        if self._kernels is None:
            self._kernels = load_kernels()
        if self._network_sizes is None:
            self._network_sizes = _sizes_of(self._kernels, self._actor)
            self._numbers = _numbers(self._network_sizes)
            space = self._actor.action_space
            self._action_shape = space.shape
            self._bounds = np.stack([space.low.ravel(), space.high.ravel()]).astype(np.float32)
        flat = flatten(observations, self._actor.observation_space)
        n = len(flat)
        noise = flat[:, :0] if noise is None else np.ascontiguousarray(noise, np.float32).reshape(n, -1)
        out = np.empty((2, n, self._network_sizes.action), np.float32)
        with one_blas_thread:
            self._kernels.explore(self._numbers, self._layers, flat, noise, self._bounds, out)
        actions, scaled = out.reshape(2, n, *self._action_shape)
        return actions, scaled


class CompiledUpdater:
    """DDPG updates as compiled functions, in place, on the CPU."""

    name = "compiled"

    def __init__(self) -> None:
        # Loaded with the first update.
        self._kernels: Any = None
        self._watch: NetworksWatch | None = None
        self._adams: list[AdamWatch] = []
        # What the tables were made for: addresses of parameters, gradients, moments and steps.
        self._addresses: list[int] = []
        self._batch_size = self._n_threads = 0
        self._shares: list[Any] = []
        self._present_settings: Any = None
        self._sampler: Any = None
        # Of the last series of updates.
        self._results = np.zeros((0, 4))
        self._first_update = self._updates = 0
        self._policy_delay = 1
        self._grad_norms: tuple[float, float] | None = None

    # ------------------------------------------------------------------------------------------------------ Inspection

    def objection(self, networks: Networks) -> str | None:
        """Why these networks cannot be trained this way, if they cannot."""
        if self._is_as_before(networks):
            return None
        self._watch = None
        parameters = [list(network.parameters()) for network in networks[:2]]
        for name, network, own in zip(("actor", "critic"), networks, parameters, strict=False):
            reason = why_not_adam(name, network.optimizer, own) or why_not_its_state(name, network.optimizer, own)
            if reason is not None:
                return reason
        reason = why_not_compiled(networks, trained=2)
        if reason is None:
            self._watch = NetworksWatch(networks, trained=2)
            self._adams = [AdamWatch(network.optimizer, own) for network, own in zip(networks, parameters, strict=False)]
            self._parameter_sizes = list(map(_size, self._watch.parameters))
            self._addresses = []
        return reason

    def _is_as_before(self, networks: Networks) -> bool:
        watch = self._watch
        return (
            watch is not None
            and watch.holds(networks)
            and self._adams[0].holds(networks.actor.optimizer)
            and self._adams[1].holds(networks.critic.optimizer)
            and all(map(_is_contiguous, watch.parameters))
            and list(map(_size, watch.parameters)) == self._parameter_sizes
            and self._present_addresses(networks) == self._addresses
        )

    # ---------------------------------------------------------------------------------------------------------- Tables

    def _present_addresses(self, networks: Networks) -> list[int]:
        """Addresses of all parameters, and of gradients, moments and steps; empty if there are not all of them."""
        assert self._watch is not None
        entries = chain(networks.actor.optimizer.state.values(), networks.critic.optimizer.state.values())
        states = chain.from_iterable(map(_values, entries))
        try:
            return list(map(_address, chain(self._watch.parameters, map(_grad, self._watch.trained), states)))
        except TypeError:
            return []

    def _complete_state(self, networks: Networks) -> None:
        """Make the gradients and the entries of the optimizers' state that are not there yet, as torch does."""
        for network in networks[:2]:
            state = network.optimizer.state
            for parameter in network.parameters():
                grad = parameter.grad
                if grad is None or not (grad.dtype == th.float32 and grad.is_contiguous()):
                    parameter.grad = th.zeros_like(parameter, memory_format=th.contiguous_format)
                if not state.get(parameter):
                    moments = {name: th.zeros_like(parameter.data) for name in ("exp_avg", "exp_avg_sq")}
                    state[parameter] = {"step": th.tensor(0.0, dtype=th.float32)} | moments

    def _make_tables(self, networks: Networks) -> None:
        self._sizes = _sizes_of(self._kernels, networks.actor, networks.critic)
        self._columns = BatchColumns(self._sizes.observation, self._sizes.action)
        rows: list[list[int]] = []
        for network, target in zip(networks[:2], networks[2:], strict=True):
            for parameter, moved in zip(network.parameters(), target.parameters(), strict=True):
                entry = network.optimizer.state[parameter]
                tensors = (parameter, parameter.grad, entry["exp_avg"], entry["exp_avg_sq"], entry["step"], moved)
                offset = sum(rows[-1][6:]) if rows else 0
                rows.append([*map(_address, tensors), parameter.numel(), offset])
        self._table = np.array(rows, np.int64)
        self._multiplications_of_a_row = 2 * int(self._table[:, self._kernels.SIZE].sum())
        self._batch_size = 0

    # ---------------------------------------------------------------------------------------------------------- Shares

    def _share_count(self, batch_size: int) -> int:
        """Among how many threads an update is worth sharing."""
        multiplications = batch_size * self._multiplications_of_a_row
        limits = (th.get_num_threads(), batch_size // ROWS_OF_A_SHARE, multiplications // MULTIPLICATIONS_OF_A_SHARE)
        return max(1, min(*limits, MOST_SHARES))

    def _make_shares(self, networks: Networks, batch_size: int, n_shares: int) -> None:
        self._batch_size = batch_size
        n_values = int(self._table[:, self._kernels.SIZE].sum())
        self._other_grads = np.zeros((n_shares - 1, n_values), np.float32)
        self._present_settings = None
        ends = [batch_size * number // n_shares for number in range(n_shares + 1)]
        self._shares = [self._make_share(networks, number, *rows) for number, rows in enumerate(pairwise(ends))]
        self._rows = np.zeros((0, batch_size, self._columns.width), np.float32)
        self._noise = th.zeros((0, batch_size, self._sizes.action))
        self._no_noise = self._noise.numpy()

    def _make_share(self, networks: Networks, number: int, first: int, end: int) -> Any:
        # The first share's gradients are the parameters' own.
        start = 0 if number == 0 else self._other_grads[number - 1].ctypes.data
        grads = self._table[:, self._kernels.GRAD] if number == 0 else start + 4 * self._table[:, self._kernels.OFFSET]
        of_actor, of_critics = np.split(grads, [len(list(networks.actor.parameters()))])
        q_networks, target_q_networks = networks.critic.q_networks, networks.critic_target.q_networks
        tables = [
            _layer_table(networks.actor_target.mu),
            *map(_layer_table, target_q_networks),
            _layer_table(networks.actor.mu, of_actor),
            *map(_layer_table, q_networks, np.split(of_critics, len(q_networks))),
        ]
        return self._kernels.Share(first, end, np.concatenate(tables))

    # --------------------------------------------------------------------------------------------------------- Updates

    def train(
        self,
        networks: Networks,
        buffer: ReplayBuffer,
        gradient_steps: int,
        batch_size: int,
        settings: UpdateSettings,
        n_updates: int,
        env: VecNormalize | None = None,
    ) -> None:
        """See :meth:`~sb3_ddpg_scratch.updates.autograd.AutogradUpdater.train`."""
        if self._kernels is None:
            self._kernels = load_kernels()
            from sb3_ddpg_scratch.updates.random_rows import RowSampler

            self._sampler = RowSampler()
        if not self._addresses:
            self._complete_state(networks)
            self._make_tables(networks)
            self._addresses = self._present_addresses(networks)
        self._networks = networks
        if len(self._results) < gradient_steps:
            self._results = np.zeros((gradient_steps, 4))
        self._first_update, self._updates, self._policy_delay = n_updates, 0, settings.policy_delay
        drawn = type(buffer) is PackedReplayBuffer and env is None and self._sampler.supports(buffer)
        batches = None if drawn else Batches(buffer, batch_size, gradient_steps, self._columns, settings.gamma, env)
        at_once = min(UPDATES_PER_CALL, gradient_steps) if batches is None or batches.packed else 1
        while self._updates < gradient_steps:
            count = min(at_once, gradient_steps - self._updates)
            rows = self._rows_for(networks, count, batch_size if batches is None else batches.prepare())
            if batches is None:
                self._sampler(buffer, rows)
            else:
                for number in range(count):
                    batches.write(self._updates + number, rows[number])
            self._update(networks, rows, settings.gamma if batches is None else batches.discount, settings)

    def _rows_for(self, networks: Networks, count: int, batch_size: int) -> np.ndarray:
        """Memory for batches, and for the gradients of those that share them."""
        n_threads = th.get_num_threads()
        if batch_size != self._batch_size or n_threads != self._n_threads:
            self._n_threads = n_threads
            self._make_shares(networks, batch_size, self._share_count(batch_size))
        if len(self._rows) < count:
            self._rows = np.zeros((count, batch_size, self._columns.width), np.float32)
        return self._rows[:count]

    def _set_numbers(self, networks: Networks, discount: float, settings: UpdateSettings) -> None:
        """What the kernels read of the settings and of both optimizers, if it changed."""
        groups = (networks.actor.optimizer.param_groups[0], networks.critic.optimizer.param_groups[0])
        present = (discount, settings, *map(_read_adam, groups))
        if present == self._present_settings:
            return
        self._present_settings = present
        kernels, end, adams = self._kernels, 0, []
        for network, (rate, betas, eps, decay, decoupled) in zip(networks[:2], present[2:], strict=True):
            first, end = end, end + len(network.optimizer.param_groups[0]["params"])
            # Floats, whatever the user wrote: other types would be compiled anew.
            numbers = map(float, (rate, *betas, eps, decay))
            adams.append(kernels.Adam(first, end, *numbers, bool(decoupled), float(settings.max_grad_norm or 0)))
        clip, delay = float(settings.target_noise_clip), settings.policy_delay
        self._settings = kernels.Settings(float(discount), float(settings.tau), clip, delay, 0)
        self._parameters = kernels.Parameters(self._table, self._other_grads, *adams)
        self._numbers = _numbers(self._sizes, self._settings, *adams)

    def _update(self, networks: Networks, batches: np.ndarray, discount: float, settings: UpdateSettings) -> None:
        self._set_numbers(networks, discount, settings)
        n_updates = self._first_update + self._updates
        noise = self._smoothing_noise(len(batches), settings.target_policy_noise)
        results = self._results[self._updates :]
        with one_blas_thread:
            if len(self._shares) == 1:
                self._numbers[self._kernels.SETTINGS, 4] = n_updates
                layers = self._shares[0].layers
                norms = self._kernels.updates(self._numbers, layers, self._table, batches, noise, results)
            else:
                norms = self._update_together(self._settings._replace(n_updates=n_updates), batches, noise, results)
        self._updates += len(batches)
        self._grad_norms = norms if settings.max_grad_norm is not None else None

    def _update_together(
        self, settings: Any, batches: np.ndarray, noise: np.ndarray, results: np.ndarray
    ) -> tuple[float, float]:
        """What the kernel ``updates`` does, with the gradients of a batch computed by several threads."""
        kernels, sizes, shares, parameters = self._kernels, self._sizes, self._shares, self._parameters
        batch_size = batches.shape[1]
        n_values = batch_size * sizes.critics
        critic_norm, actor_norm = 0.0, 0.0
        for number, batch in enumerate(batches):
            smoothing = noise[number] if len(noise) else batch[:0]
            found = run_together(
                [partial(kernels.critic_gradient, sizes, share, batch, smoothing, settings) for share in shares]
            )
            results[number, kernels.CRITIC_LOSS] = sum(sums.squared_error for sums in found) / batch_size
            results[number, kernels.Q] = sum(sums.q for sums in found) / n_values
            results[number, kernels.TARGET_Q] = sum(sums.target_q for sums in found) / n_values
            critic_norm = kernels.adam(parameters, parameters.critic)
            if (settings.n_updates + number + 1) % settings.policy_delay == 0:
                q_sums = run_together([partial(kernels.actor_gradient, sizes, share, batch) for share in shares])
                results[number, kernels.ACTOR_LOSS] = -sum(q_sums) / batch_size
                actor_norm = kernels.adam(parameters, parameters.actor)
                kernels.soft_update(parameters.table, settings.tau)
        return critic_norm, actor_norm

    def _smoothing_noise(self, count: int, sigma: float) -> np.ndarray:
        if sigma == 0:
            return self._no_noise
        if len(self._noise) < count:
            self._noise = th.zeros((count, *self._noise.shape[1:]))
        # Drawn one update after another, as the reference draws them.
        for noise in self._noise[:count]:
            noise.normal_(0, sigma)
        return self._noise[:count].numpy()

    # --------------------------------------------------------------------------------------------------------- Reading

    def _actor_losses(self) -> np.ndarray:
        done = self._first_update + 1 + np.arange(self._updates)
        return self._results[: self._updates, self._kernels.ACTOR_LOSS][done % self._policy_delay == 0]

    def read_losses(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.autograd.AutogradUpdater.read_losses`."""
        losses = {}
        if self._updates:
            losses["critic_loss"] = float(self._results[self._updates - 1, self._kernels.CRITIC_LOSS])
            done = self._first_update + self._updates
            last = self._updates - 1 - done % self._policy_delay
            if last >= 0:
                losses["actor_loss"] = float(self._results[last, self._kernels.ACTOR_LOSS])
        return losses

    def read_statistics(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.autograd.AutogradUpdater.read_statistics`."""
        if not self._updates:
            return {}
        kernels, results = self._kernels, self._results[: self._updates]
        norms = self._grad_norms or tuple(map(self._grad_norm, (self._networks.critic, self._networks.actor)))
        statistics = {
            "critic_loss": float(results[:, kernels.CRITIC_LOSS].mean()),
            "q_mean": float(results[-1, kernels.Q]),
            "target_q_mean": float(results[-1, kernels.TARGET_Q]),
            "critic_grad_norm": norms[0],
        }
        if len(of_actor := self._actor_losses()):
            statistics["actor_loss"] = float(of_actor.mean())
            statistics["actor_grad_norm"] = norms[1]
        return statistics

    @staticmethod
    def _grad_norm(network: nn.Module) -> float:
        # Gradients stay until the next update, so that a norm that nobody clipped by costs nothing until somebody looks.
        grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return th.nn.utils.get_total_norm(grads).item()
