"""VecNormalize's statistics, read without running code from their file."""

from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.errors import ModelFileError
from sb3_ddpg_scratch.model_file.pickles import read_pickle


def load_vec_normalize(path: str | Path, venv: VecEnv | None, trusted: bool = False) -> VecNormalize:
    """
    ``VecNormalize.load`` without running code from the file.

    :param path: what ``VecNormalize.save`` wrote
    :param venv: the environments to wrap; ``None`` for the statistics alone
    :param trusted: read anything it contains, and run code from it
    :return: the wrapper with its statistics
    :raises ModelFileError: if it holds anything else, or is damaged
    """
    statistics = read_pickle(path, trusted=trusted)
    if not isinstance(statistics, VecNormalize):
        raise ModelFileError(path, f"it holds {type(statistics).__name__} and no VecNormalize")
    if not trusted:
        try:
            _check(statistics)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ModelFileError(path, f"its statistics are not those of its spaces ({error})") from error
    if venv is not None:
        statistics.set_venv(venv)
    return statistics


def _check(statistics: VecNormalize) -> None:
    space: Any = statistics.observation_space
    for name in ("clip_obs", "clip_reward", "gamma", "epsilon"):
        _check_numbers(getattr(statistics, name), ())
    moments: list[tuple[Any, Any]] = [(statistics.ret_rms, ())]
    if statistics.norm_obs:
        rms: Any = statistics.obs_rms
        moments += [(rms[key], space[key].shape) for key in rms] if isinstance(rms, dict) else [(rms, space.shape)]
    for running, shape in moments:
        if type(running) is not RunningMeanStd:
            raise TypeError(f"{type(running).__name__} in the place of a mean and a variance")
        _check_numbers(running.mean, shape)
        _check_numbers(running.var, shape, lowest=0)
        _check_numbers(running.count, (), lowest=0)


def _check_numbers(value: Any, shape: Any, lowest: float = -np.inf) -> None:
    array = np.asarray(value)
    if array.dtype.kind not in "iuf" or array.shape != shape or not np.all(np.isfinite(array) & (array >= lowest)):
        raise ValueError(f"{array.dtype} of shape {array.shape} in the place of finite numbers of shape {shape}")
