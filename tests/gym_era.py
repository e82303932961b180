"""
Files as SB3 1.x wrote them under Python 3.6 to 3.8, when spaces were gym's: pickles that name classes and functions of that
time, none of which has to be installed.
"""

import json
import zipfile
from collections import OrderedDict, deque
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from hostile import pickled
from pickle_writer import Filled, Made, Named, dumps, instance
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

SB3_UTILS = "stable_baselines3.common.utils"


def random_state(seed: int, form: str = "1.17") -> Made:
    """NumPy's old generator, as these versions of NumPy wrote it."""
    state = np.random.RandomState(seed).get_state(legacy=False)
    if form == "1.16":
        return Made(Named("numpy.random", "__RandomState_ctor"), (), np.random.RandomState(seed).get_state())
    return Made(Named("numpy.random._pickle", "__randomstate_ctor"), ("MT19937",), state)


def box(space: Any, generator: Any = None, shape: str = "shape") -> Made:
    bounds = {"low": space.low, "high": space.high, "bounded_below": space.low > -np.inf, "bounded_above": space.high < np.inf}
    return instance("gym.spaces.box", "Box", dtype=space.dtype, **{shape: space.shape}, **bounds, _np_random=generator)


def function(form: str, module: str, maker: str, **variables: Any) -> Made:
    """
    The function ``func`` that a function of a module returned, as cloudpickle stored it: ``1.6`` under Python 3.7 (as in the
    collection of RL Zoo), ``1.3`` under Python 3.6, or ``2.2``. The instructions are invalid: nobody may run them.
    """
    here, names = "cloudpickle.cloudpickle", tuple(sorted(variables))
    kind = {name: Made(Named(here, "_builtin_type"), (name,)) for name in ("CodeType", "LambdaType")}
    position_only = () if form in ("1.3", "1.6") else (0,)
    code = (1, *position_only, 0, 1, 1, 19, b"\xff\xff", (None,), (), ("_",), "utils.py", "func", 124, b"", names, ())
    code = Made(kind["CodeType"], code)
    values, name = [variables[variable] for variable in names], f"{maker}.<locals>.func"
    if form == "1.3":
        skeleton = Made(Named(here, "_make_skel_func"), (code, len(values), {"__name__": module}))
        state = {"globals": {}, "defaults": None, "dict": {}, "closure_values": values, "module": module, "name": "func"}
        return Made(Named(here, "_fill_function"), (skeleton, state | {"doc": None, "qualname": name}))
    empty = tuple(Made(Named(here, "_make_empty_cell")) for _ in names)
    made = Made(kind["LambdaType"] if form == "1.6" else Named(here, "_make_function"), (code, {}, None, None, empty))
    cells = tuple(Made(Named(here, "_make_cell"), (value,)) for value in values)
    state = {
        "__name__": "func",
        "__qualname__": name,
        "__module__": module,
        "__doc__": None,
        "__closure__": cells,
        "__annotations__": {"progress_remaining": Named("builtins", "float")},
    }
    return Filled(made, state | {"__globals__": {}, "_cloudpickle_submodules": []})


def normal_noise(mean: Any, sigma: Any) -> Made:
    return instance("stable_baselines3.common.noise", "NormalActionNoise", _mu=np.asarray(mean), _sigma=np.asarray(sigma))


def write_model(path: Any, model: Any, **changes: Any) -> None:
    """Write a model of SB3's DDPG as SB3 1.0 did, with its weights; ``changes`` replace settings."""
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    schedule = function("1.6", SB3_UTILS, "constant_fn", val=1e-3)
    action_space = box(model.action_space, random_state(5))
    size = model.action_space.shape[0]
    settings: dict[str, Any] = {
        "policy_class": Named("stable_baselines3.td3.policies", "TD3Policy"),
        "observation_space": box(model.observation_space),
        "action_space": action_space,
        "action_noise": normal_noise(np.zeros(size), np.full(size, 0.1)),
        "learning_rate": schedule,
        "lr_schedule": schedule,
        "_last_obs": np.zeros((1, *model.observation_space.shape), np.float32),
        "_last_dones": np.array([False]),
        "_last_original_obs": None,
        "ep_info_buffer": deque([{"r": -1.5, "l": 200, "t": 1.0}], maxlen=100),
        "ep_success_buffer": deque(maxlen=100),
        "train_freq": TrainFreq(1, TrainFrequencyUnit.EPISODE),
        "gradient_steps": -1,
    }
    plain = ("verbose", "n_envs", "num_timesteps", "seed", "start_time", "tensorboard_log", "buffer_size", "batch_size")
    plain += ("learning_starts", "tau", "gamma", "policy_kwargs", "_n_updates", "_total_timesteps")
    plain += ("use_sde", "sde_sample_freq", "_current_progress_remaining", "optimize_memory_usage", "use_sde_at_warmup")
    plain += ("policy_delay", "target_noise_clip", "target_policy_noise", "_episode_num")
    data = {name: getattr(model, name) for name in plain} | {"remove_time_limit_termination": False}
    pickles = {name: value for name, value in (settings | changes).items() if not _is_json(value)}
    data |= {name: value for name, value in (settings | changes).items() if _is_json(value)}
    members["data"] = json.dumps(data | {name: pickled(dumps(value)) for name, value in pickles.items()}).encode()
    members.pop("system_info.txt", None)
    members["_stable_baselines3_version"] = b"1.0"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def _is_json(value: Any) -> bool:
    return type(value) in (int, float, str, bool, type(None), dict, list)


def statistics(env: Any, mean: Any, variance: Any) -> Made:
    """What ``VecNormalize`` of one environment saved."""
    rms = "stable_baselines3.common.running_mean_std"
    return instance(
        "stable_baselines3.common.vec_env.vec_normalize",
        "VecNormalize",
        num_envs=1,
        observation_space=box(env.observation_space),
        action_space=box(env.action_space, random_state(1)),
        obs_keys=None,
        obs_spaces=None,
        obs_rms=instance(rms, "RunningMeanStd", mean=np.asarray(mean), var=np.asarray(variance), count=100.0),
        ret_rms=instance(rms, "RunningMeanStd", mean=0.0, var=1.0, count=1e-4),
        **{"clip_obs": 10.0, "clip_reward": 10.0, "gamma": 0.99, "epsilon": 1e-8, "training": False, "norm_obs": True},
        **{"norm_reward": False, "old_obs": np.zeros((1, 3)), "old_reward": np.zeros(1)},
    )


def write_agent(folder: Path, model: Any, mean: Any, variance: Any, **changes: Any) -> None:
    """An agent in the layout of RL Zoo's public collection, trained with normalized observations."""
    env_id = model.env.envs[0].spec.id
    settings = folder / "ddpg" / f"{env_id}_1" / env_id
    settings.mkdir(parents=True)
    write_model(settings.parent / f"{env_id}.zip", model, **changes)
    (settings / "vecnormalize.pkl").write_bytes(dumps(statistics(model.env, mean, variance)))
    args = OrderedDict(algo="ddpg", env=env_id, env_kwargs=None, gym_packages=[], hyperparams=None, seed=3, uuid=True)
    noise = {"noise_std": 0.1, "noise_type": "normal", "policy": "MlpPolicy", "train_freq": [1, "episode"]}
    config = OrderedDict(normalize="dict(norm_obs=True, norm_reward=False)", n_timesteps=2e4, **noise)
    config["policy_kwargs"] = "dict(net_arch=[400, 300])"
    for name, content in (("args", args), ("config", config)):
        (settings / f"{name}.yml").write_text(yaml.dump(content))
