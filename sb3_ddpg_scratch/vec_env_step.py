"""A step of the environments: a faster ``DummyVecEnv.step``, and a check of its outputs."""

from copy import deepcopy
from typing import Any

import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn
from stable_baselines3.common.vec_env.util import dict_to_obs

from sb3_ddpg_scratch.environment_check import checked_outputs

_DUMMY_METHODS = frozenset({"step", "step_async", "step_wait", "_save_obs", "_obs_from_buf"})
_STEP_WAIT = DummyVecEnv.step_wait
# Copying one of these returns the same object.
_IMMUTABLE = frozenset({bool, int, float, str, type(None), np.float64, np.float32, np.int64, np.bool_})


def step(env: VecEnv, actions: np.ndarray, outputs_checked: bool = True) -> VecEnvStepReturn:
    """``env.step(actions)``, with a check of its outputs unless they have been checked already."""
    if not outputs_checked:
        with checked_outputs(env, "step"):
            observations, rewards, dones, infos = env.step(actions)
    # An unmodified SB3 DummyVecEnv.
    elif type(env) is DummyVecEnv and DummyVecEnv.step_wait is _STEP_WAIT and vars(env).keys().isdisjoint(_DUMMY_METHODS):
        return _step_dummy(env, actions)
    else:
        observations, rewards, dones, infos = env.step(actions)
    # Some return lists.
    return observations, np.asarray(rewards), np.asarray(dones), infos


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
    parts = {key: buffer.copy() for key, buffer in buffers.items()}
    return dict_to_obs(env.observation_space, parts), rewards.copy(), dones.copy(), copies
