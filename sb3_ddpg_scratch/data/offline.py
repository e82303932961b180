"""Learning from the replay buffer alone, without a step in an environment."""

import time
from collections import deque
from typing import Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.utils import configure_logger

from sb3_ddpg_scratch import learn_setup
from sb3_ddpg_scratch.errors import ArgumentError, warn_user
from sb3_ddpg_scratch.mixed_replay import replay_of
from sb3_ddpg_scratch.validation import check_whole_number

Model = TypeVar("Model", bound=OffPolicyAlgorithm)


class SpacesOnly(gym.Env):
    """
    Stands for the process that your data are from, where there is no environment for it: for ``add_transitions`` and
    ``learn_offline``, which take no steps.

    :param observation_space: the space of observations
    :param action_space: the space of actions, with the bounds that they have in the data
    """

    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Box) -> None:
        self.observation_space, self.action_space = observation_space, action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        advice = "learn_offline() takes no steps; to learn() or evaluate, set_env() with the process or its simulation."
        raise ArgumentError("env", self, advice=advice, problem="has spaces only")

    def step(self, action: Any) -> Any:
        return self.reset()


def learn_offline(
    self: Model,
    updates: int,
    callback: MaybeCallback = None,
    log_interval: int = 1000,
    tb_log_name: str = "ScratchDDPG",
    reset_num_timesteps: bool = True,
    progress_bar: bool = False,
) -> Model:
    """
    Learn from the transitions that were added or collected, without a step in the environment. Plain DDPG overestimates
    actions that such data lack: give the model ``bc_alpha`` (2.5 in TD3+BC).

    For callbacks, the logger, checkpoints and :meth:`resume`, an update counts as a step. Schedules stay at their beginning.
    A ``learn`` that follows takes no random actions first.

    :param updates: how many to make
    :param callback: called after every update (with n environments: n updates), as in ``learn``
    :param log_interval: updates between two logs
    :param tb_log_name: the run's name in TensorBoard
    :param reset_num_timesteps: whether steps are counted from 0
    :param progress_bar: whether to show one
    :return: the model
    :raises ArgumentError: if there are no transitions
    """
    model: Any = self
    check_whole_number("updates", updates, 1)
    if not replay_of(model).size():
        problem = "has nothing to learn from: the replay buffer is empty"
        raise ArgumentError("learn_offline", None, problem=problem, advice="Call add_transitions() first.")
    if model.bc_alpha is None:
        warn_user(
            "learn_offline() without bc_alpha: DDPG overestimates actions that are not in the data, and tries none. "
            "Give the model bc_alpha=2.5, unless the data hold all kinds of actions."
        )
    with learn_setup.learning(model, offline=True):
        begun = _begin(model, updates, callback, tb_log_name, reset_num_timesteps, progress_bar)
        _learn(model, begun, model._total_timesteps, log_interval)
    model.random_steps = 0
    return self


def _begin(
    model: Any, updates: int, callback: MaybeCallback, tb_log_name: str, reset_num_timesteps: bool, progress_bar: bool
) -> BaseCallback:
    """What SB3's ``_setup_learn`` does, apart from environment and noise."""
    learn_setup.look_at_normalization(model)
    reset_num_timesteps = reset_num_timesteps and model._interrupted_learn is None
    model.start_time = time.time_ns()
    if model.ep_info_buffer is None or reset_num_timesteps:
        model.ep_info_buffer, model.ep_success_buffer = (deque(maxlen=model._stats_window_size) for _ in range(2))
    if reset_num_timesteps:
        model.num_timesteps = model._episode_num = 0
        # A later learn() begins an episode.
        model._last_obs = None
    model._num_timesteps_at_start = model.num_timesteps
    model._total_timesteps = model.num_timesteps + updates
    model._current_progress_remaining = 1.0
    if not model._custom_logger:
        model._logger = configure_logger(model.verbose, model.tensorboard_log, tb_log_name, reset_num_timesteps)
    begun = model._init_callback(callback, progress_bar)
    learn_setup.continue_interrupted(model, updates, begun)
    return begun


def _learn(model: Any, callback: BaseCallback, total_timesteps: int, log_interval: int) -> None:
    n_envs = model.n_envs
    # What callbacks find there in ``learn``.
    rewards, dones, new_obs = np.zeros(n_envs), np.zeros(n_envs, bool), model._last_obs
    infos: list[dict[str, Any]] = [{} for _ in range(n_envs)]
    callback.on_training_start(locals(), globals())
    while model.num_timesteps < total_timesteps:
        callback.on_rollout_start()
        count = min(n_envs, total_timesteps - model.num_timesteps)
        model.train(count, model.batch_size)
        model._updater.end_training_mode(model.policy)
        model.num_timesteps += count
        callback.update_locals(locals())
        if not callback.on_step():
            break
        if model.num_timesteps // log_interval > (model.num_timesteps - count) // log_interval:
            _log(model)
        callback.on_rollout_end()
    callback.on_training_end()


def _log(model: Any) -> None:
    seconds = max((time.time_ns() - model.start_time) / 1e9, 1e-9)
    done = model.num_timesteps - model._num_timesteps_at_start
    model.logger.record("time/updates_per_second", int(done / seconds))
    model.logger.record("time/time_elapsed", int(seconds), exclude="tensorboard")
    model.logger.record("time/total_updates", model.num_timesteps, exclude="tensorboard")
    model.logger.dump(step=model.num_timesteps)
