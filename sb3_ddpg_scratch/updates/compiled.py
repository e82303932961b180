"""
The update with gradients written by hand as functions compiled by Numba, for networks so small that calling torch costs more
than the arithmetic. They work on the networks' own tensors and the optimizers' own state; many updates are one call.

A larger update is shared among torch's threads: each computes the gradients of some of the batch's rows, and they are added
up. Dividing every single product among threads instead costs more than it saves (see the documentation's benchmarks).
"""

import sys
from collections.abc import Callable
from functools import cache, partial
from itertools import pairwise
from operator import attrgetter
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


def sizes_of(kernels: Any, actor: Actor, action_layer: int = 0) -> Any:
    """What the kernels are told of an actor and its critic."""
    from sb3_ddpg_scratch.updates.operations import CODES

    norm_eps = next((np.float32(layer.eps) for layer in actor.mu.children() if isinstance(layer, nn.LayerNorm)), np.float32(0))
    action_dim = get_action_dim(actor.action_space)
    return kernels.Sizes(actor.features_dim, action_dim, action_layer, CODES[actor.activation_fn], norm_eps)


class CompiledActor:
    """The actor's forward pass compiled, for choosing actions between two updates."""

    def __init__(self) -> None:
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

    def __call__(self, observations: np.ndarray) -> np.ndarray:
        """
        The actions of an actor to which there is no :meth:`objection`.

        :param observations: float32, shape ``(n, observation_dim)``
        :return: normalized actions in [-1, 1], float32, shape ``(n, action_dim)``
        """
        if self._kernels is None:
            self._kernels = load_kernels()
        if self._network_sizes is None:
            self._network_sizes = sizes_of(self._kernels, self._actor)
        actions = np.empty((self._network_sizes.action, len(observations)), np.float32)
        with one_blas_thread:
            self._kernels.act(self._layers, self._network_sizes, observations, actions)
        return actions.T


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
        self._batch_size = 0
        self._shares: list[Any] = []
        self._descent_settings: list[tuple[Any, ...]] = []
        self._sampler: Any = None
        # Of the last series of updates.
        self._updates = 0
        self._actor_updates = 0
        self._grad_norms: tuple[float, float] | None = None
        self._losses: Any = None

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
        tensors: list[th.Tensor] = [*self._watch.parameters, *map(_grad, self._watch.trained)]
        for network in networks[:2]:
            for entry in network.optimizer.state.values():
                tensors += entry.values()
        try:
            return list(map(_address, tensors))
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

    def _parameter_table(self, network: Any, target: Any) -> np.ndarray:
        table = np.zeros((len(network.optimizer.param_groups[0]["params"]), 8), np.int64)
        offset = 0
        for row, parameter, moved in zip(table, network.parameters(), target.parameters(), strict=True):
            entry = network.optimizer.state[parameter]
            tensors = (parameter, parameter.grad, entry["exp_avg"], entry["exp_avg_sq"], entry["step"], moved)
            row[:6] = [tensor.data_ptr() for tensor in tensors]
            row[6:] = parameter.numel(), offset
            offset += parameter.numel()
        return table

    def _make_tables(self, networks: Networks) -> None:
        actor, critic, actor_target, critic_target = networks
        self._sizes = sizes_of(self._kernels, actor, critic.action_layer)
        self._columns = BatchColumns(self._sizes.observation, self._sizes.action)
        critics = np.stack([_layer_table(q_network) for q_network in critic_target.q_networks])
        self._targets = self._kernels.Targets(_layer_table(actor_target.mu), critics)
        self._tables = [self._parameter_table(actor, actor_target), self._parameter_table(critic, critic_target)]
        self._multiplications_of_a_row = 2 * sum(int(table[:, self._kernels.SIZE].sum()) for table in self._tables)
        self._batch_size = 0

    # ---------------------------------------------------------------------------------------------------------- Shares

    def _share_count(self, batch_size: int) -> int:
        """Among how many threads an update is worth sharing."""
        multiplications = batch_size * self._multiplications_of_a_row
        limits = (th.get_num_threads(), batch_size // ROWS_OF_A_SHARE, multiplications // MULTIPLICATIONS_OF_A_SHARE)
        return max(1, min(*limits, MOST_SHARES))

    def _make_shares(self, networks: Networks, batch_size: int, n_shares: int) -> None:
        self._batch_size = batch_size
        sizes = [int(table[:, self._kernels.SIZE].sum()) for table in self._tables]
        self._other_grads = [np.zeros((n_shares - 1, size), np.float32) for size in sizes]
        self._descent_settings = []
        ends = [batch_size * number // n_shares for number in range(n_shares + 1)]
        self._shares = [self._make_share(networks, number, *rows) for number, rows in enumerate(pairwise(ends))]
        self._rows = np.zeros((0, batch_size, self._columns.width), np.float32)
        self._no_noise = np.zeros((0, batch_size, self._sizes.action), np.float32)

    def _make_share(self, networks: Networks, number: int, first: int, end: int) -> Any:
        kernels = self._kernels
        grads = []
        for table, other in zip(self._tables, self._other_grads, strict=True):
            # The first share's gradients are the parameters' own.
            start = 0 if number == 0 else other[number - 1].ctypes.data
            grads.append(table[:, kernels.GRAD] if number == 0 else start + 4 * table[:, kernels.OFFSET])
        actor = _layer_table(networks.actor.mu, grads[0])
        of_each = np.split(grads[1], len(networks.critic.q_networks))
        critics = np.stack([_layer_table(*pair) for pair in zip(networks.critic.q_networks, of_each, strict=True)])
        return kernels.Share(first, end, actor, critics)

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
        self._networks = networks
        if not self._addresses:
            self._complete_state(networks)
            self._make_tables(networks)
            self._addresses = self._present_addresses(networks)
        self._reserve_losses(gradient_steps)
        self._updates = self._actor_updates = 0
        drawn = type(buffer) is PackedReplayBuffer and env is None and self._sampler.supports(buffer)
        batches = None if drawn else Batches(buffer, batch_size, gradient_steps, self._columns, settings.gamma, env)
        at_once = min(UPDATES_PER_CALL, gradient_steps) if batches is None or batches.packed else 1
        for first in range(0, gradient_steps, at_once):
            count = min(at_once, gradient_steps - first)
            rows = self._rows_for(networks, count, batch_size if batches is None else batches.prepare())
            if batches is None:
                self._sampler(buffer, rows)
            else:
                for number in range(count):
                    batches.write(first + number, rows[number])
            discount = settings.gamma if batches is None else batches.discount
            self._update(networks, rows, discount, settings, n_updates + first)

    def _rows_for(self, networks: Networks, count: int, batch_size: int) -> np.ndarray:
        """Memory for batches, and for the gradients of those that share them."""
        n_shares = self._share_count(batch_size)
        if (batch_size, n_shares) != (self._batch_size, len(self._shares)):
            self._make_shares(networks, batch_size, n_shares)
        if len(self._rows) < count:
            self._rows = np.zeros((count, batch_size, self._columns.width), np.float32)
        return self._rows[:count]

    def _descents(self, networks: Networks, max_grad_norm: float | None) -> tuple[Any, Any]:
        """What the kernels' Adam reads of the critic's optimizer, and of the actor's."""
        limit = 0.0 if max_grad_norm is None else float(max_grad_norm)
        groups = [network.optimizer.param_groups[0] for network in networks[:2]]
        names = ("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")
        settings = [(*map(group.get, names), limit) for group in groups]
        if settings != self._descent_settings:
            self._descent_settings = settings
            actor, critic = (
                self._kernels.Descent(
                    table,
                    other,
                    # Floats, whatever the user wrote: other types would be compiled anew.
                    *map(float, (group["lr"], *group["betas"], group["eps"], group["weight_decay"])),
                    bool(group.get("decoupled_weight_decay", False)),
                    limit,
                )
                for group, table, other in zip(groups, self._tables, self._other_grads, strict=True)
            )
            self._both_descents = critic, actor
        return self._both_descents

    def _update(
        self, networks: Networks, batches: np.ndarray, discount: float, settings: UpdateSettings, n_updates: int
    ) -> None:
        descents = self._descents(networks, settings.max_grad_norm)
        numbers = self._kernels.Settings(
            float(discount), float(settings.tau), float(settings.target_noise_clip), settings.policy_delay
        )
        noise = self._smoothing_noise(len(batches), settings)
        losses = self._losses
        if self._updates:
            losses = losses._replace(critic=losses.critic[self._updates :], actor=losses.actor[self._actor_updates :])
        with one_blas_thread:
            if len(self._shares) == 1:
                norms = self._kernels.updates(
                    self._sizes, self._targets, self._shares[0], descents, numbers, batches, noise, n_updates, losses
                )
            else:
                norms = self._update_together(batches, noise, descents, numbers, n_updates, losses)
        self._updates += len(batches)
        self._actor_updates += (n_updates + len(batches)) // settings.policy_delay - n_updates // settings.policy_delay
        self._grad_norms = norms if settings.max_grad_norm is not None else None

    def _update_together(
        self, batches: np.ndarray, noise: np.ndarray, descents: tuple[Any, Any], settings: Any, n_updates: int, losses: Any
    ) -> tuple[float, float]:
        """What the kernel ``updates`` does, with the gradients of a batch computed by several threads."""
        kernels, sizes, targets, shares = self._kernels, self._sizes, self._targets, self._shares
        critic, actor = descents
        batch_size = batches.shape[1]
        turns, critic_norm, actor_norm = 0, 0.0, 0.0
        for number, batch in enumerate(batches):
            smoothing = noise[number] if len(noise) else batch[:0]
            found = run_together(
                [partial(kernels.critic_gradient, sizes, targets, share, batch, smoothing, settings) for share in shares]
            )
            losses.critic[number] = sum(sums.squared_error for sums in found) / batch_size
            n_values = batch_size * len(targets.critics)
            losses.last_q[0] = sum(sums.q for sums in found) / n_values
            losses.last_q[1] = sum(sums.target_q for sums in found) / n_values
            critic_norm = kernels.adam(critic)
            if (n_updates + number + 1) % settings.policy_delay == 0:
                q_sums = run_together([partial(kernels.actor_gradient, sizes, share, batch) for share in shares])
                losses.actor[turns] = -sum(q_sums) / batch_size
                turns += 1
                actor_norm = kernels.adam(actor)
                kernels.soft_update(actor.parameters, settings.tau)
                kernels.soft_update(critic.parameters, settings.tau)
        return critic_norm, actor_norm

    def _smoothing_noise(self, count: int, settings: UpdateSettings) -> np.ndarray:
        if settings.target_policy_noise == 0:
            return self._no_noise
        shape = (self._batch_size, self._sizes.action)
        # Drawn one update after another, as the reference draws them.
        return th.stack([th.empty(shape).normal_(0, settings.target_policy_noise) for _ in range(count)]).numpy()

    # --------------------------------------------------------------------------------------------------------- Reading

    def _reserve_losses(self, count: int) -> None:
        if self._losses is None or len(self._losses.critic) < count:
            self._losses = self._kernels.Losses(np.zeros(count), np.zeros(count), np.zeros(2))

    def read_losses(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.autograd.AutogradUpdater.read_losses`."""
        losses = {}
        if self._updates:
            losses["critic_loss"] = float(self._losses.critic[self._updates - 1])
        if self._actor_updates:
            losses["actor_loss"] = float(self._losses.actor[self._actor_updates - 1])
        return losses

    def read_statistics(self) -> dict[str, float]:
        """See :meth:`~sb3_ddpg_scratch.updates.autograd.AutogradUpdater.read_statistics`."""
        if not self._updates:
            return {}
        norms = self._grad_norms or tuple(map(self._grad_norm, (self._networks.critic, self._networks.actor)))
        statistics = {
            "critic_loss": float(self._losses.critic[: self._updates].mean()),
            "q_mean": float(self._losses.last_q[0]),
            "target_q_mean": float(self._losses.last_q[1]),
            "critic_grad_norm": norms[0],
        }
        if self._actor_updates:
            statistics["actor_loss"] = float(self._losses.actor[: self._actor_updates].mean())
            statistics["actor_grad_norm"] = norms[1]
        return statistics

    @staticmethod
    def _grad_norm(network: nn.Module) -> float:
        # Gradients stay until the next update, so that a norm that nobody clipped by costs nothing until somebody looks.
        grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return th.nn.utils.get_total_norm(grads).item()
