"""A step of the environments: faster ones of ``DummyVecEnv`` and ``VecNormalize``, and a check of their outputs."""

from copy import deepcopy
from typing import Any, TypeGuard

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv, VecNormalize
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ddpg_scratch.environment_check import checked_outputs

_DUMMY_METHODS = frozenset({"step", "step_async", "step_wait", "_save_obs", "_obs_from_buf"})
_STEP_WAIT = DummyVecEnv.step_wait
_NORMALIZE_METHODS = frozenset({"step", "step_async", "step_wait", "_update_reward"})
_STATISTICS = (VecNormalize.step_wait, VecNormalize._update_reward, RunningMeanStd.update)
# Copying one of these returns the same object.
_IMMUTABLE = frozenset({bool, int, float, str, type(None), np.float64, np.float32, np.int64, np.bool_})


def step(env: VecEnv, actions: np.ndarray, outputs_checked: bool = True) -> VecEnvStepReturn:
    """``env.step(actions)``, with a check of its outputs unless they have been checked already."""
    if not outputs_checked:
        with checked_outputs(env, "step"):
            observations, rewards, dones, infos = env.step(actions)
    elif _is_plain_dummy(env):
        return _step_dummy(env, actions)
    elif (
        type(env) is VecNormalize
        and _is_plain_dummy(env.venv)
        and (VecNormalize.step_wait, VecNormalize._update_reward, RunningMeanStd.update) == _STATISTICS
        and vars(env).keys().isdisjoint(_NORMALIZE_METHODS)
    ):
        return _step_normalized(env, actions)
    else:
        observations, rewards, dones, infos = env.step(actions)
    # Some return lists.
    return observations, np.asarray(rewards), np.asarray(dones), infos


def _is_plain_dummy(env: VecEnv) -> TypeGuard[DummyVecEnv]:
    """Whether this is an unmodified SB3 DummyVecEnv."""
    return type(env) is DummyVecEnv and DummyVecEnv.step_wait is _STEP_WAIT and vars(env).keys().isdisjoint(_DUMMY_METHODS)


def _step_dummy(env: DummyVecEnv, actions: np.ndarray) -> VecEnvStepReturn:
    """Same as ``DummyVecEnv.step``, whose ``deepcopy`` of small arrays and infos takes as long as everything else."""
    env.actions = actions
    buffers: dict[Any, np.ndarray] = env.buf_obs
    rewards, dones, infos = env.buf_rews, env.buf_dones, env.buf_infos
    for index, one in enumerate(env.envs):
        observation, rewards[index], terminated, truncated, info = one.step(actions[index])
        infos[index] = info
        dones[index] = terminated or truncated
        info["TimeLimit.truncated"] = truncated and not terminated
        if dones[index]:
            info["terminal_observation"] = observation
            observation, env.reset_infos[index] = one.reset()
        if None in buffers:
            buffers[None][index] = observation
        else:
            env._save_obs(index, observation)
    copies = [info.copy() if _IMMUTABLE.issuperset(map(type, info.values())) else deepcopy(info) for info in infos]
    if None in buffers:
        return buffers[None].copy(), rewards.copy(), dones.copy(), copies
    parts = type(buffers)((key, buffer.copy()) for key, buffer in buffers.items())
    return dict_to_obs(env.observation_space, parts), rewards.copy(), dones.copy(), copies


def _step_normalized(env: Any, actions: np.ndarray) -> VecEnvStepReturn:
    """Same as ``VecNormalize.step`` over such environments."""
    observations: Any
    observations, rewards, dones, infos = _step_dummy(env.venv, actions)
    env.old_obs, env.old_reward = observations, rewards
    if env.training and env.norm_obs:
        if isinstance(observations, dict):
            for key, statistics in env.obs_rms.items():
                _update(statistics, observations[key])
        else:
            _update(env.obs_rms, observations)
    observations = env.normalize_obs(observations)
    if env.training:
        env.returns = env.returns * env.gamma + rewards
        _update(env.ret_rms, env.returns)
    rewards = env.normalize_reward(rewards)
    for index in np.flatnonzero(dones):
        infos[index]["terminal_observation"] = env.normalize_obs(infos[index]["terminal_observation"])
        env.returns[index] = 0
    return observations, rewards, dones, infos


def _update(statistics: RunningMeanStd, batch: np.ndarray) -> None:
    if len(batch) > 1 or type(statistics) is not RunningMeanStd:
        statistics.update(batch)
    else:
        # The mean of one is itself, its variance 0, or NaN.
        statistics.update_from_moments(batch[0], batch[0] - batch[0], 1)
