"""Acting and storing: SB3's ``collect_rollouts`` with minimal overhead around the environment's step."""

from typing import Any

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.environment_check import check_finite, check_outputs, stop_if_not_finite
from sb3_ddpg_scratch.goals import check_goal_rewards
from sb3_ddpg_scratch.known_code import only_known_code, watches_rollouts
from sb3_ddpg_scratch.learning_rates import are_constant, set_learning_rates
from sb3_ddpg_scratch.noise import GaussianNoise, OUNoise, check_noise_sample
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.training_log import check_losses
from sb3_ddpg_scratch.updates.blas_threads import one_blas_thread
from sb3_ddpg_scratch.updates.steady_step import SteadyStep
from sb3_ddpg_scratch.vec_env_step import step

# For all environments, in environment units and normalized.
Actions = tuple[np.ndarray, np.ndarray]


def collect_rollouts(
    self: Any,
    env: VecEnv,
    callback: BaseCallback,
    train_freq: TrainFreq,
    replay_buffer: ReplayBuffer,
    action_noise: ActionNoise | None = None,
    learning_starts: int = 0,
    log_interval: int | None = None,
) -> RolloutReturn:
    """See SB3's ``OffPolicyAlgorithm``. Callbacks get the same calls in the same order, and the same local variables."""
    self._updater.set_training_mode(self.policy, False)
    assert isinstance(env, VecEnv), "You must pass a VecEnv"
    assert train_freq.frequency > 0, "Should at least collect one step or episode."
    if env.num_envs > 1:
        assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
    if self._updater.trusted is None:
        self._updater.trust(only_known_code(self, env, callback))
    callback.on_rollout_start()
    steady = begin_steadily(self, train_freq, replay_buffer, action_noise, learning_starts)
    if steady is not None:
        with one_blas_thread:
            return collect_steadily(self, env, callback, train_freq, replay_buffer, action_noise, log_interval, steady)
    return _collect(self, env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval)


def _collect(
    self: Any,
    env: VecEnv,
    callback: BaseCallback,
    train_freq: TrainFreq,
    replay_buffer: ReplayBuffer,
    action_noise: ActionNoise | None,
    learning_starts: int,
    log_interval: int | None,
) -> RolloutReturn:
    num_collected_steps, num_collected_episodes, continue_training = 0, 0, True
    while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
        actions, buffer_actions = self._sample_action(learning_starts, action_noise, env.num_envs)
        new_obs, rewards, dones, infos = step(env, actions, self._outputs_checked)
        self.num_timesteps += env.num_envs
        num_collected_steps += 1
        callback.update_locals(locals())
        if not callback.on_step():
            return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)
        self._update_info_buffer(infos, dones)
        self._store_transition(replay_buffer, buffer_actions, new_obs, rewards, dones, infos)
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        self._on_step()
        for idx, done in enumerate(dones):
            if done:
                num_collected_episodes += 1
                self._episode_num += 1
                if action_noise is not None:
                    kwargs = {"indices": [idx]} if env.num_envs > 1 else {}
                    action_noise.reset(**kwargs)
                if log_interval is not None and self._episode_num % log_interval == 0:
                    self.dump_logs()
    callback.on_rollout_end()
    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)


# -------------------------------------------------------------------------------------------------------------- Acting


def _methods(model: Any, policy: Any) -> tuple[Any, ...]:
    """The methods that ``predict`` calls before the actor, and those that scale its actions."""
    own = (policy.predict, policy._predict, policy.obs_to_tensor, policy.set_training_mode)
    return (model.predict, *own, policy.scale_action, policy.unscale_action)


# If a class overrides one of them, or was patched, its own methods are called.
_METHODS = _methods(BaseAlgorithm, ScratchDDPGPolicy)
_POLICY_METHODS = frozenset({"predict", "_predict", "obs_to_tensor", "set_training_mode", "scale_action", "unscale_action"})


def select_actions(model: Any, learning_starts: int, action_noise: ActionNoise | None, n_envs: int) -> Actions:
    """The next actions, ``mu(s) + N`` or random in the warm-up: in environment units, and normalized for the replay buffer."""
    random_steps = learning_starts if model.random_steps is None else model.random_steps
    action_shape = model.action_space.shape or ()
    if model.num_timesteps < random_steps:
        actions = np.array([model.action_space.sample() for _ in range(n_envs)])
        scaled_actions = model.policy.scale_action(actions)
    elif _acts_compiled(model):
        return model._updater.compiled_actor.act(model._last_obs, _noise(action_noise, action_shape, n_envs))
    else:
        # To environment units and back, as in SB3, whose results include this rounding.
        assert model._last_obs is not None, "no observation yet: call learn()"
        actions, _ = model.predict(model._last_obs, deterministic=False)
        scaled_actions = model.policy.scale_action(actions)
    if action_noise is not None:
        scaled_actions = np.maximum(np.minimum(scaled_actions + _noise(action_noise, action_shape, n_envs), 1), -1)
    return model.policy.unscale_action(scaled_actions), scaled_actions


def _noise(action_noise: ActionNoise | None, action_shape: tuple[int, ...], n_envs: int) -> np.ndarray | None:
    if action_noise is None:
        return None
    noise = action_noise()
    check_noise_sample(noise, action_shape, n_envs)
    return noise


def _acts_compiled(model: Any) -> bool:
    """Whether the compiled actor acts as ``predict`` would."""
    if model._updater.compiled_actor.inspected:
        return True
    policy = model.policy
    return (
        isinstance(model.replay_buffer, PackedReplayBuffer)
        and _methods(type(model), type(policy)) == _METHODS
        and "predict" not in vars(model)
        and vars(policy).keys().isdisjoint(_POLICY_METHODS)
        and model.action_space.dtype == np.float32
        and model._updater.may_act(policy._modules["actor"])
    )


# ------------------------------------------------------------------------------------------------------------- Storing


def store_packed(
    model: Any,
    replay_buffer: ReplayBuffer,
    buffer_action: np.ndarray,
    new_obs: Any,
    reward: np.ndarray,
    dones: np.ndarray,
    infos: list[dict[str, Any]],
) -> bool:
    """
    Check and store a transition of every environment, with the last observations of ended episodes. Returns whether it was
    stored: normalized observations and other kinds of buffers need SB3's own method.
    """
    if not model._outputs_checked:
        observations, rewards, normalizer = new_obs, reward, model._vec_normalize_env
        if normalizer is not None:
            # Normalized observations are float32, whatever the environment's space.
            observations, rewards = normalizer.get_original_obs(), normalizer.get_original_reward()
        check_outputs(model.observation_space, observations, rewards, model.n_envs)
        if isinstance(replay_buffer, HerReplayBuffer):
            check_goal_rewards(replay_buffer, model.env, observations, infos[0])
        model._outputs_checked = True
    any_done = np.count_nonzero(dones) > 0
    outputs, normalizer = (new_obs, reward), model._vec_normalize_env
    check_finite(outputs, infos, bool(any_done), normalizer, model.num_timesteps, model.last_checkpoint)
    if model._vec_normalize_env is not None or not isinstance(replay_buffer, PackedReplayBuffer):
        return False
    next_obs = last_observations(new_obs, dones, infos) if any_done else new_obs
    replay_buffer.add(model._last_obs, next_obs, buffer_action, reward, dones, infos)
    model._last_original_obs = model._last_obs
    model._last_obs = new_obs
    return True


def last_observations(new_obs: Any, dones: np.ndarray, infos: list[dict[str, Any]]) -> Any:
    """A copy of the new observations, with those of ended episodes replaced by their last."""
    is_dict = isinstance(new_obs, dict)
    next_obs = {key: part.copy() for key, part in new_obs.items()} if is_dict else new_obs.copy()
    for index in np.flatnonzero(dones):
        last = infos[index].get("terminal_observation")
        if last is not None and is_dict:
            for key, part in next_obs.items():
                part[index] = last[key]
        elif last is not None:
            next_obs[index] = last
    return next_obs


# ------------------------------------------------------------------------------------------------------------ Steadily


def begin_steadily(
    model: Any, train_freq: TrainFreq, replay_buffer: ReplayBuffer, noise: ActionNoise | None, learning_starts: int
) -> SteadyStep | None:
    """
    Prepare :func:`collect_steadily`. ``None`` if that is not possible: actions are still random, a noise draws from the
    generator that batches are drawn from, or the updater needs more than a single call of compiled code.
    """
    random_steps = learning_starts if model.random_steps is None else model.random_steps
    if (
        train_freq.unit is not TrainFrequencyUnit.STEP
        or model.num_timesteps < max(random_steps, learning_starts + 1)
        or not model._outputs_checked
        or model._vec_normalize_env is not None
        or type(noise) not in (type(None), GaussianNoise, OUNoise)
        or any(getattr(type(model), method.__name__) is not method for method in model._replaced_while_steady)
        or not _acts_compiled(model)
    ):
        return None
    count = model.gradient_steps if model.gradient_steps >= 0 else train_freq.frequency * model.n_envs
    return model._updater.steady_step(model._networks(), replay_buffer, model.batch_size, count, model._update_settings())


def _count_episodes(model: Any, dones: np.ndarray, action_noise: ActionNoise | None, log_interval: int | None) -> int:
    ended = np.flatnonzero(dones)
    for idx in ended:
        model._episode_num += 1
        if action_noise is not None:
            kwargs = {"indices": [idx]} if len(dones) > 1 else {}
            action_noise.reset(**kwargs)
        if log_interval is not None and model._episode_num % log_interval == 0:
            model.dump_logs()
    return len(ended)


def collect_steadily(
    self: Any,
    env: VecEnv,
    callback: BaseCallback,
    train_freq: TrainFreq,
    replay_buffer: ReplayBuffer,
    action_noise: ActionNoise | None,
    log_interval: int | None,
    steady: SteadyStep,
) -> RolloutReturn:
    """
    Perform all rollouts until training ends, and the updates between them, with one compiled call per step. SB3's loop is
    left only the last ``train``. Callbacks get the same calls in the same order as from :func:`collect_rollouts`; the work
    between them is deferred to one call unless one of them watches rollouts.
    """
    num_collected_steps, num_collected_episodes, continue_training = 0, 0, True
    watched, rates_change = watches_rollouts(callback), not are_constant(self)
    steady.act(None if action_noise is None else action_noise(), self._last_obs)
    steady.run()
    while True:
        actions, buffer_actions = steady.actions()
        new_obs: Any
        new_obs, rewards, dones, infos = step(env, actions)
        self.num_timesteps += env.num_envs
        num_collected_steps += 1
        callback.update_locals(locals())
        if not callback.on_step():
            return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)
        self._update_info_buffer(infos, dones)
        self._update_current_progress_remaining(self.num_timesteps, self._total_timesteps)
        next_obs = new_obs
        if np.count_nonzero(dones):
            stop_if_not_finite(new_obs, rewards, infos, self.num_timesteps, self.last_checkpoint)
            next_obs = last_observations(new_obs, dones, infos)
            num_collected_episodes += _count_episodes(self, dones, action_noise, log_interval)
        steady.store(new_obs, next_obs, rewards, dones, infos)
        ends_rollout = num_collected_steps == train_freq.frequency
        ends_training = ends_rollout and self.num_timesteps >= self._total_timesteps
        if watched or ends_training:
            _run(self, steady, new_obs, rewards, infos)
        if ends_rollout:
            callback.on_rollout_end()
            if ends_training:
                return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)
            if rates_change and set_learning_rates(self):
                steady.read_learning_rates()
            steady.update(self._n_updates)
            num_collected_steps, num_collected_episodes = 0, 0
            if watched:
                _run(self, steady, new_obs, rewards, infos)
                callback.on_rollout_start()
        steady.act(None if action_noise is None else action_noise())
        _run(self, steady, new_obs, rewards, infos)


def _run(model: Any, steady: SteadyStep, new_obs: np.ndarray, rewards: np.ndarray, infos: list[dict[str, Any]]) -> None:
    """Do the requested work, and record it in the model."""
    stores, updates = steady.stores, steady.updates
    if not steady.run():
        stop_if_not_finite(new_obs.astype(np.float32), rewards, infos, model.num_timesteps, model.last_checkpoint)
    if stores:
        model._last_original_obs, model._last_obs = model._last_obs, new_obs
    if updates:
        model._n_updates += updates
        model._statistics_unread = True
        if not steady.losses_are_finite():
            check_losses(model)
