"""
The update with hand-written gradients as functions compiled by Numba, for networks so small that calling torch costs more
than the arithmetic. They work directly on the networks' tensors and the optimizers' state; one call makes many updates.

A larger update is shared among torch's threads: each computes the gradients for some of the batch's rows, which are then
added up. Splitting every single product among threads would cost more than it saves (see the documentation's benchmarks).
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import partial
from itertools import chain
from operator import attrgetter, itemgetter
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_ddpg_scratch.batches import Batches, remaining_discount
from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.inspection import AdamWatch, NetworksWatch, why_not_adam, why_not_compiled, why_not_its_state
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings
from sb3_ddpg_scratch.updates.kernel_memory import (
    Frame,
    address,
    address_of,
    is_contiguous,
    layer_table,
    load_kernels,
    numbers_table,
    size_of,
    sizes_of,
)
from sb3_ddpg_scratch.updates.steady_step import SteadyStep, UpdaterMemory
from sb3_ddpg_scratch.updates.thread_pool import run_together

# Maximum number of updates per call: their batches are gathered beforehand.
UPDATES_PER_CALL = 64

# Minimum rows per share of a batch, and multiplications per share of an update: below, handing out work costs too much.
ROWS_OF_A_SHARE = 32
MULTIPLICATIONS_OF_A_SHARE = 4_000_000
MOST_SHARES = 16


_grad = attrgetter("grad")
_read_adam = itemgetter("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")
_values: Callable[[Any], Iterable[Any]] = dict.values


class CompiledUpdater:
    """DDPG updates as compiled functions, in place, on the CPU."""

    name = "compiled"

    def __init__(self) -> None:
        # Loaded on the first update.
        self._kernels: Any = None
        self._watch: NetworksWatch | None = None
        self._adams: list[AdamWatch] = []
        # The addresses of parameters, gradients, moments and steps that the tables were made for.
        self._addresses: list[int] = []
        self._batch_size = self._n_threads = 0
        # For each share of a batch: where its rows end (after a leading start), and the layers that it computes with.
        self._ends: list[int] = []
        self._layers: list[np.ndarray] = []
        self._present_settings: Any = None
        self._sampler: Any = None
        # From the latest of earlier series of updates that included the actor: its losses, and the norm of its last gradient.
        self._earlier: tuple[np.ndarray, float] | None = None
        # From the last series of updates.
        self._results = np.zeros((0, 6))
        self._first_update = self._updates = 0
        self._policy_delay = 1
        self._clips = False

    # ------------------------------------------------------------------------------------------------------ Inspection

    def objection(self, networks: Networks) -> str | None:
        """Why these networks cannot be trained this way; ``None`` if they can."""
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
            self._parameter_sizes = list(map(size_of, self._watch.parameters))
            self._addresses = []
        return reason

    def _is_as_before(self, networks: Networks) -> bool:
        watch = self._watch
        return (
            watch is not None
            and watch.holds(networks)
            and self._adams[0].holds(networks.actor.optimizer)
            and self._adams[1].holds(networks.critic.optimizer)
            and all(map(is_contiguous, watch.parameters))
            and list(map(size_of, watch.parameters)) == self._parameter_sizes
            and self._present_addresses(networks) == self._addresses
        )

    # ---------------------------------------------------------------------------------------------------------- Tables

    def _present_addresses(self, networks: Networks) -> list[int]:
        """Addresses of all parameters, gradients, moments and steps; empty if any of them do not exist yet."""
        assert self._watch is not None
        entries = chain(networks.actor.optimizer.state.values(), networks.critic.optimizer.state.values())
        states = chain.from_iterable(map(_values, entries))
        try:
            return list(map(address, chain(self._watch.parameters, map(_grad, self._watch.trained), states)))
        except TypeError:
            return []

    def _complete_state(self, networks: Networks) -> None:
        """Create missing gradients and entries of the optimizers' state, as torch does."""
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
        self._sizes = sizes_of(self._kernels, networks.actor, networks.critic)
        self._columns = BatchColumns(self._sizes.observation, self._sizes.action)
        rows: list[list[int]] = []
        for network, target in zip(networks[:2], networks[2:], strict=True):
            for parameter, moved in zip(network.parameters(), target.parameters(), strict=True):
                entry = network.optimizer.state[parameter]
                size, offset = parameter.numel(), sum(rows[-1][6:]) if rows else 0
                tensors = (parameter, parameter.grad, entry["exp_avg"], entry["exp_avg_sq"], entry["step"], moved)
                sizes = (size, size, size, size, 1, size)
                places = [address_of(tensor.detach().view(-1), (n,)) for tensor, n in zip(tensors, sizes, strict=True)]
                rows.append([*places, size, offset])
        self._table = np.array(rows, np.int64)
        self._multiplications_of_a_row = 2 * int(self._table[:, self._kernels.SIZE].sum())
        self._batch_size = 0
        # The table of numbers contains the sizes.
        self._present_settings = None

    # ---------------------------------------------------------------------------------------------------------- Shares

    def _share_count(self, batch_size: int) -> int:
        """The number of threads that an update is worth sharing among."""
        multiplications = batch_size * self._multiplications_of_a_row
        limits = (th.get_num_threads(), batch_size // ROWS_OF_A_SHARE, multiplications // MULTIPLICATIONS_OF_A_SHARE)
        return max(1, min(*limits, MOST_SHARES))

    def _make_shares(self, networks: Networks, batch_size: int, n_shares: int) -> None:
        self._batch_size = batch_size
        n_values = int(self._table[:, self._kernels.SIZE].sum())
        self._other_grads = np.zeros((n_shares - 1, n_values), np.float32)
        self._frame.place(self._kernels.OTHER_GRADS, self._other_grads, (n_shares - 1, n_values))
        self._frame.table[self._kernels.OTHER_THREADS] = n_shares - 1
        self._ends = [batch_size * number // n_shares for number in range(n_shares + 1)]
        self._layers = [self._layers_of_share(networks, number) for number in range(n_shares)]
        self._rows = np.zeros((0, batch_size, self._columns.width), np.float32)
        self._noise = np.zeros((0, batch_size, self._sizes.action), np.float32)

    def _layers_of_share(self, networks: Networks, number: int) -> np.ndarray:
        """A table of all networks' layers, in which every share but the first has its own gradients."""
        n_values = int(self._table[:, self._kernels.SIZE].sum())
        start = 0 if number == 0 else address_of(self._other_grads[number - 1], (n_values,))
        grads = self._table[:, self._kernels.GRAD] if number == 0 else start + 4 * self._table[:, self._kernels.OFFSET]
        of_actor, of_critics = np.split(grads, [len(list(networks.actor.parameters()))])
        q_networks, target_q_networks = networks.critic.q_networks, networks.critic_target.q_networks
        tables = [
            layer_table(networks.actor_target.mu),
            *map(layer_table, target_q_networks),
            layer_table(networks.actor.mu, of_actor),
            *map(layer_table, q_networks, np.split(of_critics, len(q_networks))),
        ]
        return np.concatenate(tables)

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
            self._frame = Frame(self._kernels)
        if not self._addresses:
            self._complete_state(networks)
            self._make_tables(networks)
            self._addresses = self._present_addresses(networks)
        self._networks = networks
        self._keep_actor_losses()
        if len(self._results) < gradient_steps:
            self._results = np.zeros((gradient_steps, 6))
        self._first_update, self._updates, self._policy_delay = n_updates, 0, settings.policy_delay
        self._clips = settings.max_grad_norm is not None
        drawn = env is None and self._sampler.supports(buffer)
        batches = None if drawn else Batches(buffer, batch_size, gradient_steps, self._columns, settings.gamma, env)
        at_once = min(UPDATES_PER_CALL, gradient_steps) if batches is None or batches.packed else 1
        while self._updates < gradient_steps:
            count = min(at_once, gradient_steps - self._updates)
            rows = self._rows_for(networks, count, batch_size if batches is None else batches.prepare())
            discount = remaining_discount(buffer, settings.gamma) if batches is None else batches.discount
            self._set_numbers(networks, discount, getattr(buffer, "gamma", 1.0), settings)
            for number in () if batches is None else range(count):
                batches.write(self._updates + number, rows[number])  # type: ignore[union-attr]
            self._update(count, settings, buffer if batches is None else None)  # type: ignore[arg-type]

    def _rows_for(self, networks: Networks, count: int, batch_size: int) -> np.ndarray:
        """Memory for batches, and for the gradients of each share."""
        n_threads = th.get_num_threads()
        if batch_size != self._batch_size or n_threads != self._n_threads:
            self._n_threads = n_threads
            self._make_shares(networks, batch_size, self._share_count(batch_size))
        if len(self._rows) < count:
            self._rows = np.zeros((count, batch_size, self._columns.width), np.float32)
        return self._rows[:count]

    def _set_numbers(self, networks: Networks, discount: float, gamma: float, settings: UpdateSettings) -> None:
        """Set what the kernels read of the settings and of both optimizers, if it changed."""
        groups = (networks.actor.optimizer.param_groups[0], networks.critic.optimizer.param_groups[0])
        present = (discount, gamma, settings, *map(_read_adam, groups))
        if present == self._present_settings:
            return
        self._present_settings = present
        kernels, end, adams = self._kernels, 0, []
        for network, (rate, betas, eps, decay, decoupled) in zip(networks[:2], present[3:], strict=True):
            first, end = end, end + len(network.optimizer.param_groups[0]["params"])
            # Converted, whatever the user gave: other types would trigger another compilation.
            numbers = map(float, (rate, *betas, eps, decay))
            adams.append(kernels.Adam(first, end, *numbers, bool(decoupled), float(settings.max_grad_norm or 0)))
        clip, delay, action_l2 = float(settings.target_noise_clip), settings.policy_delay, float(settings.action_l2)
        settings_row = kernels.Settings(float(discount), float(settings.tau), clip, delay, 0, float(gamma), action_l2)
        self._numbers = numbers_table(self._sizes, settings_row, *adams)

    def _update(self, count: int, settings: UpdateSettings, drawn_from: PackedReplayBuffer | None) -> None:
        """Update with ``count`` batches, drawing them first if necessary."""
        kernels, frame = self._kernels, self._frame.table
        alone = len(self._layers) == 1
        self._frame.place_batches(self._rows, self._columns.width)
        noise = self._smoothing_noise(count, settings.target_policy_noise)
        self._frame.place_smoothing(noise, count, self._sizes.action)
        frame[kernels.DRAWN], frame[kernels.UPDATES] = 0 if drawn_from is None else count, count if alone else 0
        results = self._results[self._updates :]
        self._numbers[kernels.SETTINGS, 4] = self._first_update + self._updates
        with one_blas_thread, self._lock_of(drawn_from):
            kernels.advance(self._numbers, self._layers[0], self._table, frame, results)
            for number in () if alone else range(count):
                self._update_together(number, results[number : number + 1])
        self._updates += count

    def _lock_of(self, buffer: PackedReplayBuffer | None) -> Any:
        if buffer is None:
            return nullcontext()
        return self._frame.place_buffer(buffer, self._sampler, self._columns.width)

    def _update_together(self, number: int, result: np.ndarray) -> None:
        """One update, with the gradients for a batch computed by several threads."""
        kernels, rows = self._kernels, self._rows[number]
        self._numbers[kernels.SETTINGS, 4] = self._first_update + self._updates + number
        frames = np.tile(self._frame.table, (len(self._layers), 1))
        frames[:, [kernels.DRAWN, kernels.UPDATES]] = 0, 1
        frames[:, kernels.BATCHES] = address_of(rows, (self._batch_size, self._columns.width))
        frames[:, kernels.SMOOTHING] += self._noise.strides[0] * number * (frames[:, kernels.SMOOTHING] != 0)
        results = np.zeros((len(frames), 1, result.shape[1]))

        def call(share: int, part: int) -> None:
            frame = frames[share]
            frame[[kernels.FIRST_PART, kernels.END_PART]] = part, part + 1
            kernels.advance(self._numbers, self._layers[share], self._table, frame, results[share])

        for gradient, step in ((kernels.CRITIC_GRADIENT, kernels.CRITIC_STEP), (kernels.ACTOR_GRADIENT, kernels.ACTOR_STEP)):
            frames[:, kernels.FIRST_ROW], frames[:, kernels.END_ROW] = self._ends[:-1], self._ends[1:]
            run_together([partial(call, share, gradient) for share in range(len(frames))])
            call(0, step)
        result[:] = results.sum(axis=0)

    def _smoothing_noise(self, count: int, sigma: float) -> np.ndarray | None:
        if sigma == 0:
            return None
        if len(self._noise) < count:
            self._noise = np.zeros((count, *self._noise.shape[1:]), np.float32)
            self._noise_tensors = th.from_numpy(self._noise).unbind()
        # Drawn one update after another, as the reference draws them.
        for noise in self._noise_tensors[:count]:
            noise.normal_(0, sigma)
        return self._noise

    # --------------------------------------------------------------------------------------------------------- Steadily

    def steady_step(
        self, networks: Networks, buffer: PackedReplayBuffer, batch_size: int, count: int, settings: UpdateSettings
    ) -> SteadyStep | None:
        """A step with ``count`` updates, while nothing else changes networks or settings; ``None`` if unsupported."""
        if not (self._addresses and self._sampler.supports(buffer) and 0 < count <= UPDATES_PER_CALL):
            return None
        rows = self._rows_for(networks, count, batch_size)
        if len(self._layers) > 1:
            return None
        self._networks, results = networks, np.zeros((count, 6))
        self._set_numbers(networks, remaining_discount(buffer, settings.gamma), getattr(buffer, "gamma", 1.0), settings)
        # Learning rates will be set directly in the table.
        self._present_settings = None
        optimizers = networks.actor.optimizer, networks.critic.optimizer

        def prepare(n_updates: int) -> np.ndarray | None:
            self._keep_actor_losses()
            self._results, self._updates = results, count
            self._policy_delay, self._clips = settings.policy_delay, settings.max_grad_norm is not None
            self._first_update = self._numbers[self._kernels.SETTINGS, 4] = n_updates
            return self._smoothing_noise(count, settings.target_policy_noise)

        tables = (self._numbers, self._layers[0], self._table)
        memory = UpdaterMemory(*tables, results, rows, self._sampler, optimizers, prepare)
        return SteadyStep(self._kernels, memory, buffer, networks.actor.action_space)

    # --------------------------------------------------------------------------------------------------------- Reading

    def _actor_losses(self) -> np.ndarray:
        done = self._first_update + 1 + np.arange(self._updates)
        return self._results[: self._updates, self._kernels.ACTOR_LOSS][done % self._policy_delay == 0]

    def _last_of_actor(self) -> int:
        """The number of the last update that included the actor; negative if there was none."""
        return self._updates - 1 - (self._first_update + self._updates) % self._policy_delay

    def _keep_actor_losses(self) -> None:
        """Keep the losses of the last series of updates, if it included the actor, before another one replaces them."""
        last = self._last_of_actor()
        if self._policy_delay > 1 and last >= 0:
            self._earlier = self._actor_losses(), self._results.item(last, self._kernels.ACTOR_NORM)

    def read_losses(self) -> dict[str, float]:
        losses = {}
        if self._updates:
            losses["critic_loss"] = float(self._results[self._updates - 1, self._kernels.CRITIC_LOSS])
            last = self._last_of_actor()
            if last >= 0:
                losses["actor_loss"] = float(self._results[last, self._kernels.ACTOR_LOSS])
            elif self._earlier is not None:
                losses["actor_loss"] = float(self._earlier[0][-1])
        return losses

    def read_statistics(self) -> dict[str, float]:
        if not self._updates:
            return {}
        kernels, results, last = self._kernels, self._results[: self._updates], self._last_of_actor()
        of_actor = (self._actor_losses(), float(results[last, kernels.ACTOR_NORM])) if last >= 0 else self._earlier
        norm = float(results[-1, kernels.CRITIC_NORM]) if self._clips else self._grad_norm(self._networks.critic)
        statistics = {
            "critic_loss": float(results[:, kernels.CRITIC_LOSS].mean()),
            "q_mean": float(results[-1, kernels.Q]),
            "target_q_mean": float(results[-1, kernels.TARGET_Q]),
            "critic_grad_norm": norm,
        }
        if of_actor is not None:
            losses, norm = of_actor
            statistics["actor_loss"] = float(losses.mean())
            statistics["actor_grad_norm"] = norm if self._clips else self._grad_norm(self._networks.actor)
        return statistics

    @staticmethod
    def _grad_norm(network: nn.Module) -> float:
        # Gradients stay until the next update, so that an unused norm costs nothing until somebody reads it.
        grads = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        return th.nn.utils.get_total_norm(grads).item()
