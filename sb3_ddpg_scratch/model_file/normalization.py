"""VecNormalize's statistics: read without running code from their file, and found beside the model that they belong to."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.errors import ModelFileError
from sb3_ddpg_scratch.model_file.archive import read_members
from sb3_ddpg_scratch.model_file.pickles import read_pickle
from sb3_ddpg_scratch.observations import statistics_id

STATISTICS = "vecnormalize.pkl"
_CHECKPOINT = re.compile(r"(.*)_(\d+_steps)\.zip")


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


def statistics_of(model: Path, trusted: bool = False) -> Path | None:
    """
    The file beside a model with the statistics that the model says it was saved with; for models that do not say, where
    SB3's CheckpointCallback, ``train`` and RL Zoo put them. ``None`` if there is none.

    :raises ModelFileError: if there are only those of another model
    """
    checkpoint = _CHECKPOINT.fullmatch(model.name)
    own = [model.with_name(f"{checkpoint[1]}_vecnormalize_{checkpoint[2]}.pkl")] if checkpoint else []
    beside = [model.with_name(STATISTICS), model.with_suffix("") / STATISTICS]
    # Beside it are the best model's; those of the end of training are in the folder of its name.
    beside = beside if model.name == "best_model.zip" else beside[::-1]
    found = [path for path in [*own, *beside, *sorted(model.parent.glob(f"*/{STATISTICS}"))] if path.is_file()]
    recorded = _recorded_id(model)
    if not found or recorded is None:
        return next(iter(found), None)
    for path in found:
        if statistics_id(load_vec_normalize(path, None, trusted)) == recorded:
            return path
    problem = f"it was saved with other statistics of VecNormalize than those in {', '.join(map(str, dict.fromkeys(found)))}"
    raise ModelFileError(model, problem, advice="Put the file that was saved together with it there.")


def _recorded_id(model: Path) -> Any:
    # Loading the model will say what is wrong with its file.
    with suppress(ValueError, KeyError, AttributeError), model.open("rb") as file:
        return json.loads(read_members(file, model, lambda name: name == "data")["data"]).get("statistics_id")
    return None
