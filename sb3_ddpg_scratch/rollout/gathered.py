"""
The work between two steps of the environments: at once, or gathered into one compiled call.

Gathered work is requested where SB3 does it, and done before the next action, or before code of somebody else runs that could
see it. It does bit for bit what the model's methods do at once.
"""

from operator import itemgetter
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.noise import ActionNoise

from sb3_ddpg_scratch.learning_rates import are_constant, set_learning_rates
from sb3_ddpg_scratch.noise import ColoredNoise, GaussianNoise, OUNoise
from sb3_ddpg_scratch.observation_statistics import statistics_of
from sb3_ddpg_scratch.observations import flatten_into
from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.rollout.steps import (
    Actions,
    acts_compiled,
    advance_observations,
    check_step,
    draw_noise,
    explore,
    original_transition,
)
from sb3_ddpg_scratch.training_log import check_losses
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.compiled import UPDATES_PER_CALL, CompiledUpdater

# What gathered work does in the place of these methods, and the settings that it reads once.
METHODS = ("_sample_action", "_store_transition", "train", "_update_learning_rate", "collect_rollouts", "_on_step")
_settings = itemgetter(
    *("policy", "actor", "critic", "actor_target", "critic_target", "replay_buffer", "action_noise", "env", "train_freq"),
    *("gamma", "tau", "batch_size", "gradient_steps", "policy_delay", "max_grad_norm", "target_policy_noise", "action_l2"),
    *("bc_alpha", "demonstrations"),
    *("target_noise_clip", "random_steps", "learning_starts", "lr_schedule", "qf_lr_schedule", "_vec_normalize_env"),
)


def work_for(
    model: Any, callback: BaseCallback, replay_buffer: ReplayBuffer, noise: ActionNoise | None, learning_starts: int
) -> "AtOnce":
    """Gathered where that is possible."""
    at_once = AtOnce(model, replay_buffer, noise, learning_starts)
    random_steps = learning_starts if model.random_steps is None else model.random_steps
    if (
        model.num_timesteps < max(random_steps, learning_starts + 1)
        or model.gradient_steps == 0
        or not model._outputs_checked
        or not model.is_learning
        or replay_buffer is not model.replay_buffer
        or model.demonstrations is not None
        or model.bc_alpha is not None
        or not _own_methods(model)
        or not acts_compiled(model)
    ):
        return at_once
    networks = model._networks()
    updater = model._updater.pick(networks)
    env = model._vec_normalize_env
    if not isinstance(updater, CompiledUpdater) or not updater.gathers(networks, replay_buffer, env, model.batch_size):
        return at_once
    return Gathered(at_once, updater, callback)


def _own_methods(model: Any) -> bool:
    """Whether no method that gathered work replaces is a subclass's own, or was patched."""
    return methods_of(type(model)) == model.own_methods and vars(model).keys().isdisjoint(METHODS)


def methods_of(kind: type) -> tuple[Any, ...]:
    return tuple(getattr(kind, name) for name in METHODS)


def _watches_rollouts(callback: BaseCallback) -> bool:
    """Whether a callback may do anything when rollouts begin or end."""
    kind = type(callback)
    if kind is CallbackList:
        return any(map(_watches_rollouts, callback.callbacks))  # type: ignore[attr-defined]
    names = ("on_rollout_start", "on_rollout_end", "_on_rollout_start", "_on_rollout_end")
    return any(getattr(kind, name) is not getattr(BaseCallback, name) or name in vars(callback) for name in names)


class AtOnce:
    """Acts and stores at once, by the model's methods; SB3's ``learn`` calls ``train``."""

    def __init__(self, model: Any, replay_buffer: ReplayBuffer, noise: ActionNoise | None, learning_starts: int) -> None:
        self.model, self.replay_buffer, self.noise, self.learning_starts = model, replay_buffer, noise, learning_starts

    def begin(self) -> None:
        """Before the first rollout of a loop."""

    def end(self) -> None:
        """After the last rollout, also if it is interrupted."""

    def act(self) -> Actions:
        return self.model._sample_action(self.learning_starts, self.noise, self.model.env.num_envs)

    def store(self, actions: np.ndarray, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: Any) -> None:
        self.model._store_transition(self.replay_buffer, actions, new_obs, rewards, dones, infos)

    def train(self, steps: int) -> bool:
        """Make the updates after a rollout of so many steps; returns whether another rollout follows in the same loop."""
        return False

    def end_rollout(self) -> None:
        """Before the callbacks' end of a rollout."""

    def finish(self) -> None:
        """Do what has been requested."""


class Gathered(AtOnce):
    """Gathers storing, updates and the next actions into one call, as long as nothing changes that it relies on."""

    replay_buffer: PackedReplayBuffer

    def __init__(self, at_once: AtOnce, updater: CompiledUpdater, callback: BaseCallback) -> None:
        vars(self).update(vars(at_once))
        model, buffer = self.model, self.replay_buffer
        assert isinstance(buffer, PackedReplayBuffer)
        self._updater, self._callback, self._settings = updater, callback, _settings(vars(model))
        self._n_attributes = len(vars(model))
        self._trusted, self._active = bool(model._updater.trusted), True
        self._constant_rates = are_constant(model)
        # Compiled code acts in single precision.
        self._adds_noise = model.action_space.dtype == np.float32
        self._own_noise = type(self.noise) in (type(None), ColoredNoise, GaussianNoise, OUNoise)
        self._memory_saving = buffer.optimize_memory_usage
        self._watched = _watches_rollouts(callback)
        self._env, self._statistics = model._vec_normalize_env, statistics_of(model.policy)
        self._normalizes = self._env is not None or self._statistics is not None
        self._transition, self._acting = updater.begin_gathered(buffer, model._update_settings(), self._env)
        self._shape = (buffer.n_envs, *model.action_space.shape)
        self._actions, self._scaled_actions = (array.reshape(self._shape) for array in self._acting[2:])
        # The observations' memory in their own shape; those of a Dict are flattened.
        memory = (self._transition.last_observations, self._transition.next_observations, self._acting.observations)
        self._is_dict = isinstance(model.observation_space, spaces.Dict)
        shape = (-1,) if self._is_dict else model.observation_space.shape
        self._last, self._next, self._seen = (array.reshape(buffer.n_envs, *shape) for array in memory)
        # What was requested: the arguments of `store`, and the number of updates.
        self._stored: tuple[Any, ...] | None = None
        self._updates = 0

    def begin(self) -> None:
        one_blas_thread.__enter__()

    def end(self) -> None:
        try:
            self.finish()
        finally:
            one_blas_thread.__exit__()

    def _holds(self) -> bool:
        """Whether the model is still as it was, after somebody else's code has run."""
        attributes = vars(self.model)
        return (
            _settings(attributes) == self._settings
            and (len(attributes) == self._n_attributes or _own_methods(self.model))
            and self._updater.is_as_before(self.model._networks())
            and self._updater.has_learning_rates()
        )

    def store(self, actions: np.ndarray, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: Any) -> None:
        if not self._active:
            super().store(actions, new_obs, rewards, dones, infos)
            return
        self._stored, self._counted = (actions, new_obs, rewards, dones, infos), False
        self._any_done = np.count_nonzero(dones) > 0
        if self._any_done or self._memory_saving:
            self.finish()

    def end_rollout(self) -> None:
        if not self._trusted:
            self._watched = _watches_rollouts(self._callback)
        if self._watched:
            self.finish()

    def train(self, steps: int) -> bool:
        model = self.model
        count = model.gradient_steps if model.gradient_steps >= 0 else steps
        changed = not self._trusted and _settings(vars(model)) != self._settings
        if not self._active or changed or model.num_timesteps >= model._total_timesteps or count > UPDATES_PER_CALL:
            self.finish()
            return False
        if not self._constant_rates:
            self.finish()
            if set_learning_rates(model):
                self._updater.read_learning_rates()
        self._updates = count
        if self._watched:
            self.finish()
        return True

    def act(self) -> Actions:
        if not self._own_noise:
            # Drawn after the batches, from the same generator.
            self.finish()
        if not self._active or not (self._trusted or self._still_holds()):
            return super().act()
        noise = self._draw_noise() if self._adds_noise and self.noise is not None else None
        self._perform(acts=True, noise=noise)
        if self._adds_noise:
            return self._actions.copy(), self._scaled_actions.copy()
        return explore(self.model, self.model.policy.unscale_action(self._scaled_actions), self.noise)

    def _draw_noise(self) -> np.ndarray | None:
        # The shape of our own is known.
        return self.noise() if self._own_noise else draw_noise(self.noise, self._shape[1:], self._shape[0])  # type: ignore[misc]

    def finish(self) -> None:
        if (self._stored is not None or self._updates) and self._still_holds():
            self._perform()

    def _still_holds(self) -> bool:
        """Whether what was requested can be done in one call; if not, it is done at once, and so is what follows."""
        if self._trusted or self._holds():
            return True
        self._active = False
        stored, self._stored, updates, self._updates = self._stored, None, self._updates, 0
        if stored is not None:
            super().store(*stored)
        if updates:
            self.model.train(updates, self.model.batch_size)
            self.model._updater.end_training_mode(self.model.policy)
        return False

    def _perform(self, acts: bool = False, noise: np.ndarray | None = None) -> None:
        """Do what was requested, and act, in one call."""
        model, buffer, updater = self.model, self.replay_buffer, self._updater
        if self._stored is not None and self._memory_saving:
            super().store(*self._stored)
            self._stored = None
        stored, updates, ends = self._stored, self._updates, None
        if stored is not None:
            ends = buffer.ends_of(stored[3], stored[4])
            self._place_transition(*stored)
        if updates:
            updater.expect(updates, model._n_updates)
        if self._normalizes:
            updater.place_normalization(self._env)
        if acts:
            observations = model._last_obs if stored is None else stored[1]
            if self._is_dict:
                flatten_into(self._seen, observations, model.observation_space)
            else:
                self._seen[...] = observations
            updater.frame.place_noise(self._acting, noise)
        try:
            updater.advance(buffer, None if stored is None else buffer.continuations(ends), updates, acts)
        finally:
            # Also if Ctrl-C interrupts the call: it is raised when the call returns.
            if updater.take_outcome():
                self._record(stored, ends)
        if self._stored is not None:
            self._stored, self._updates = None, 0
            check_step(model, *stored[1:])  # type: ignore[index]
        if updates and not updater.losses_are_finite():
            check_losses(model)

    def _record(self, stored: tuple[Any, ...] | None, ends: np.ndarray | None) -> None:
        """Count what has been done."""
        model = self.model
        if stored is not None:
            self.replay_buffer.move_on(ends)
            if self._env is None:
                model._last_original_obs, model._last_obs = model._last_obs, stored[1]
            else:
                advance_observations(model, stored[1])
        if self._updates:
            model._n_updates += self._updates
            model._statistics_unread = True
        self._stored, self._updates = None, 0

    def _place_transition(
        self, actions: np.ndarray, new_obs: Any, rewards: np.ndarray, dones: np.ndarray, infos: list[dict[str, Any]]
    ) -> None:
        """Place what is stored in the frame."""
        model, memory = self.model, self._transition
        last_obs, next_obs = model._last_obs, new_obs
        if self._normalizes or self._any_done:
            # Compiled code sees only what is stored: not what VecNormalize made of it, or a new episode's observation.
            check_step(model, new_obs, rewards, dones, infos)
            last_obs, next_obs, rewards = original_transition(model, new_obs, rewards, dones, infos)
        if self._statistics is not None and not self._counted:
            self._statistics.update(new_obs)
            self._counted = True
        if self._is_dict:
            flatten_into(self._last, last_obs, model.observation_space)
            flatten_into(self._next, next_obs, model.observation_space)
        else:
            self._last[...], self._next[...] = last_obs, next_obs
        memory.actions[...] = actions.reshape(memory.actions.shape)
        memory.rewards[...] = rewards
