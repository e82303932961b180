"""The loop over the environments' steps, in SB3's order."""

from typing import Any

from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import RolloutReturn, TrainFreq, TrainFrequencyUnit
from stable_baselines3.common.utils import should_collect_more_steps
from stable_baselines3.common.vec_env import VecEnv

from sb3_ddpg_scratch.known_code import only_known_code
from sb3_ddpg_scratch.rollout.gathered import work_for
from sb3_ddpg_scratch.vec_env_step import step


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
    """
    See SB3's ``OffPolicyAlgorithm``. Callbacks get the same calls in the same order, and the same local variables. Where the
    work between two steps is gathered, the rollouts that follow are collected as well, with the updates between them.
    """
    assert isinstance(env, VecEnv), "You must pass a VecEnv"
    assert train_freq.frequency > 0, "Should at least collect one step or episode."
    if env.num_envs > 1:
        assert train_freq.unit == TrainFrequencyUnit.STEP, "You must use only one env when doing episodic training."
    if self._updater.trusted is None:
        self._updater.trust(only_known_code(self, env, callback))
    self._updater.end_training_mode(self.policy)
    self._work = work_for(self, callback, replay_buffer, action_noise, learning_starts)
    self._work.begin()
    try:
        while True:
            rollout = _collect(self, env, callback, train_freq, replay_buffer, action_noise, learning_starts, log_interval)
            if not rollout.continue_training or not self._work.train(rollout.episode_timesteps):
                return rollout
    finally:
        self._work.end()


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
    callback.on_rollout_start()
    while should_collect_more_steps(train_freq, num_collected_steps, num_collected_episodes):
        actions, buffer_actions = self._work.act()
        new_obs, rewards, dones, infos = step(env, actions, self._outputs_checked)
        self.num_timesteps += env.num_envs
        num_collected_steps += 1
        callback.update_locals(locals())
        if not callback.on_step():
            return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training=False)
        self._update_info_buffer(infos, dones)
        self._work.store(buffer_actions, new_obs, rewards, dones, infos)
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
    self._work.end_rollout()
    callback.on_rollout_end()
    return RolloutReturn(num_collected_steps * env.num_envs, num_collected_episodes, continue_training)
