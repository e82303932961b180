"""
The update with hand-written gradients as functions compiled by Numba, for networks so small that calling torch costs more
than the arithmetic. They work directly on the networks' tensors and the optimizers' state; one call makes many updates, which
several threads share where they are large (see :mod:`~sb3_ddpg_scratch.updates.team`).
"""

import math
from contextlib import nullcontext
from operator import itemgetter
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_ddpg_scratch.batches import Batches, remaining_discount
from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.guard import Guard
from sb3_ddpg_scratch.updates.inspection import why_not_adam, why_not_compiled, why_not_its_state
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings
from sb3_ddpg_scratch.updates.kernel_memory import (
    Acting,
    Frame,
    Transition,
    address_of,
    load_kernels,
    numbers_table,
    sizes_of,
)
from sb3_ddpg_scratch.updates.team import Team, thread_limit

# Maximum number of updates per call: their batches are gathered beforehand.
UPDATES_PER_CALL = 64

_read_adam = itemgetter("lr", "betas", "eps", "weight_decay", "decoupled_weight_decay")


class CompiledUpdater:
    """DDPG updates as compiled functions, in place, on the CPU."""

    name = "compiled"
    team_type = Team

    def __init__(self) -> None:
        # Loaded on the first update.
        self._kernels: Any = None
        # Made with the tables of addresses.
        self._guard: Guard | None = None
        # The attributes of the modules of actor and critic.
        self.trained_modules: list[dict[str, Any]] = []
        self._batch_size = self._thread_limit = 0
        self._present_settings: Any = None
        self._sampler: Any = None
        # From the latest of earlier series of updates that included the actor: its losses, and the norm of its last gradient.
        self._earlier: tuple[np.ndarray, float] | None = None
        # From the last series of updates.
        self._results = np.zeros((0, 6))
        self._first_update = self._updates = 0
        self._policy_delay = 1
        self._clips = False
        # The number of updates that the frame is prepared for while they are gathered.
        self._expected = -1
        self._rates: list[float] = []
        self._continuations: np.ndarray | None = None

    # ------------------------------------------------------------------------------------------------------ Inspection

    def objection(self, networks: Networks) -> str | None:
        """Why these networks cannot be trained this way; ``None`` if they can."""
        if self.is_as_before(networks):
            return None
        self._guard = None
        for name, network in zip(("actor", "critic"), networks, strict=False):
            own = list(network.parameters())
            reason = why_not_adam(name, network.optimizer, own) or why_not_its_state(name, network.optimizer, own)
            if reason is not None:
                return reason
        return why_not_compiled(networks, trained=2)

    def is_as_before(self, networks: Networks) -> bool:
        """Whether these are still the networks that the tables were made for."""
        return self._guard is not None and self._guard.holds(networks)

    # ---------------------------------------------------------------------------------------------------------- Tables

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
        self._normalization = self._kernels.random_rows.Normalization(networks.actor.observation_space)
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
        self._batch_size = 0
        # The table of numbers contains the sizes.
        self._present_settings = None

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
        if self._guard is None:
            self._prepare(networks)
        self._keep_actor_losses()
        if len(self._results) < gradient_steps:
            self._results = np.zeros((gradient_steps, 6))
        self._first_update, self._updates, self._policy_delay = n_updates, 0, settings.policy_delay
        self._clips = settings.max_grad_norm is not None
        if self._sampler.supports(buffer, env):
            assert isinstance(buffer, PackedReplayBuffer)
            self.begin(networks, buffer, settings, env)
            while self._updates < gradient_steps:
                count = min(UPDATES_PER_CALL, gradient_steps - self._updates)
                self._rows_for(networks, count, batch_size)
                self._update(count, settings, drawn_from=buffer)
            return
        batches = Batches(buffer, batch_size, gradient_steps, self._columns, settings.gamma, env)
        normalization = None
        if networks.actor.observation_statistics is not None:
            normalization = self._normalization
            normalization.read(None, networks.actor.observation_statistics)
        self._set_numbers(networks, batches.discount, getattr(buffer, "gamma", 1.0), settings)
        while self._updates < gradient_steps:
            count = min(UPDATES_PER_CALL, gradient_steps - self._updates) if batches.packed else 1
            rows = self._rows_for(networks, count, batches.prepare())
            for number in range(count):
                batches.write(self._updates + number, rows[number])
                if normalization is not None:
                    normalization.apply(rows[number][:, self._columns.observation])
                    normalization.apply(rows[number][:, self._columns.next_observation])
            self._update(count, settings)

    def begin(self, networks: Networks, buffer: ReplayBuffer, settings: UpdateSettings, env: VecNormalize | None) -> None:
        """Prepare for drawing batches from this buffer, normalized by ``env`` as it is now."""
        self._set_numbers(networks, remaining_discount(buffer, settings.gamma), getattr(buffer, "gamma", 1.0), settings)
        self.place_normalization(env)

    def place_normalization(self, env: VecNormalize | None) -> None:
        """Normalize batches, and with a policy's own statistics also observations to act on, by the present numbers."""
        statistics, normal = self._networks.actor.observation_statistics, None
        if env is not None or statistics is not None:
            normal = self._normalization.read(env, statistics)
        self.frame.place(self._kernels.NORMAL, normal, (3 * self._sizes.observation + 2,), np.float64)
        self.frame.table[self._kernels.SEES_RAW] = statistics is not None

    def _prepare(self, networks: Networks) -> None:
        """Make the tables of these networks, and the guard over what stands in them."""
        if self._kernels is None:
            self._kernels = load_kernels()
            self._sampler = self._kernels.random_rows.RowSampler()
            self.frame = Frame(self._kernels)
        self._complete_state(networks)
        self._make_tables(networks)
        self._guard, self._networks = Guard(networks, trained=2, with_optimizers=True), networks
        self.trained_modules = [vars(module) for network in networks[:2] for module in network.modules()]

    def _rows_for(self, networks: Networks, count: int, batch_size: int) -> np.ndarray:
        """Memory for batches, and threads that share their updates."""
        limit = thread_limit()
        if batch_size != self._batch_size or limit != self._thread_limit:
            self._batch_size, self._thread_limit = batch_size, limit
            self._team = self.team_type(self.frame, networks, self._table, batch_size, limit)
            self._rows = np.zeros((0, batch_size, self._columns.width), np.float32)
            self._noise = np.zeros((0, batch_size, self._sizes.action), np.float32)
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

    def _update(self, count: int, settings: UpdateSettings, drawn_from: PackedReplayBuffer | None = None) -> None:
        """Update with ``count`` batches, after drawing them if necessary."""
        kernels, frame = self._kernels, self.frame.table
        self.frame.place_batches(self._rows, self._columns.width)
        noise = self._smoothing_noise(count, settings.target_policy_noise)
        self.frame.place_smoothing(noise, count, self._sizes.action)
        frame[kernels.STORED] = frame[kernels.ACTING] = 0
        frame[kernels.DRAWN], frame[kernels.UPDATES] = 0 if drawn_from is None else count, count
        self._numbers[kernels.SETTINGS, 4] = self._first_update + self._updates
        lock = nullcontext() if drawn_from is None else self.frame.place_buffer(drawn_from, self._sampler, self._columns)
        with one_blas_thread, lock:
            self._team.advance(self._numbers, self._results[self._updates : self._updates + count])
        self._updates += count

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

    # -------------------------------------------------------------------------------------------------------- Gathered

    def gathers(self, networks: Networks, buffer: ReplayBuffer, env: VecNormalize | None, batch_size: int) -> bool:
        """Whether updates with such batches can be part of one call with storing and acting."""
        if self._guard is None or not self._sampler.supports(buffer, env):
            return False
        self._rows_for(networks, 1, batch_size)
        return True

    def begin_gathered(
        self, buffer: PackedReplayBuffer, settings: UpdateSettings, env: VecNormalize | None
    ) -> tuple[Transition, Acting]:
        """:meth:`begin`, and place memory for transitions and actions in the frame."""
        self.begin(self._networks, buffer, settings, env)
        self.read_learning_rates()
        self._settings, self._expected, self._continuations = settings, -1, None
        self.take_outcome()
        self.frame.table[self._kernels.ACTOR] = self._sizes.actor_layers + self._sizes.critics * self._sizes.critic_layers
        n, observation, action = buffer.n_envs, self._sizes.observation, self._sizes.action
        acting = self.frame.place_acting(self._networks.actor.action_space, n, observation)
        return self.frame.place_transition(n, observation, action), acting

    def expect(self, count: int, n_updates: int) -> None:
        """Prepare the frame for ``count`` updates after ``n_updates`` earlier ones."""
        settings = self._settings
        if settings.policy_delay > 1:
            self._keep_actor_losses()
        if count != self._expected:
            self._expected = count
            self._results = np.zeros((count, 6))
            self._rows_for(self._networks, count, self._batch_size)
            self.frame.place_batches(self._rows, self._columns.width)
            self.frame.place_smoothing(None, count, self._sizes.action)
            self._policy_delay, self._clips = settings.policy_delay, settings.max_grad_norm is not None
        if settings.target_policy_noise > 0:
            noise = self._smoothing_noise(count, settings.target_policy_noise)
            self.frame.place_smoothing(noise, count, self._sizes.action)
        self._updates, self._first_update = count, n_updates
        self._numbers[self._kernels.SETTINGS, 4] = n_updates

    def advance(self, buffer: PackedReplayBuffer, continuations: np.ndarray | None, updates: int, acts: bool) -> None:
        """
        Store transitions with these factors of the next Q-values (``None`` for none), make updates and act, as the frame is
        prepared; see :meth:`take_outcome`.
        """
        kernels, frame, table = self._kernels, self.frame, self.frame.table
        if continuations is not None and continuations is not self._continuations:
            self._continuations = continuations
            frame.place(kernels.CONTINUATIONS, continuations, (buffer.n_envs, 1))
        table[kernels.ACTING] = buffer.n_envs if acts else 0
        table[kernels.UPDATES] = table[kernels.DRAWN] = updates
        with frame.place_buffer(buffer, self._sampler, self._columns, int(continuations is not None)):
            self._team.advance(self._numbers, self._results)

    def take_outcome(self) -> bool:
        """
        Whether an :meth:`advance` since the last look has done all. It did nothing if an observation or a reward was not
        finite, or if it was interrupted before.
        """
        table, outcome = self.frame.table, self._kernels.OUTCOME
        done = table.item(outcome) == self._kernels.DONE
        table[outcome] = 0
        return done

    def read_learning_rates(self) -> None:
        """Copy the optimizers' present learning rates."""
        self._rates = [network.optimizer.param_groups[0]["lr"] for network in self._networks[:2]]
        self._numbers[[self._kernels.ACTOR_ADAM, self._kernels.CRITIC_ADAM], 2] = self._rates
        self._present_settings = None

    def has_learning_rates(self) -> bool:
        """Whether those are still the optimizers' rates."""
        return [network.optimizer.param_groups[0]["lr"] for network in self._networks[:2]] == self._rates

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

    def losses_are_finite(self) -> bool:
        """Of the last update."""
        return math.isfinite(self._results.item(self._updates - 1, 0) + self._results.item(self._updates - 1, 1))

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
