"""A model's file in SB3's format, read as data: settings, weights and optimizer states."""

import base64
import binascii
import inspect
import io
import json
import re
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import TrainFreq
from stable_baselines3.common.utils import FloatSchedule, get_device

from sb3_ddpg_scratch.errors import ModelFileError, UnsafeFileError
from sb3_ddpg_scratch.model_file.allowlist import Handle, is_own
from sb3_ddpg_scratch.model_file.archive import MAX_BYTES, read_members
from sb3_ddpg_scratch.model_file.pickles import TRUST, texts_in, unpickle_value
from sb3_ddpg_scratch.model_file.tensors import read_tensors

_DATA, _SYSTEM_INFO = "data", "system_info.txt"
_VARIABLES = ("pytorch_variables.pth", "tensors.pth")
# Recomputed from other settings on loading, so they need not be read. In SB3 before 2.7, one of them is a function.
_RECOMPUTED = (
    "lr_schedule",
    "qf_lr_schedule",
    *(f"{net}_batch_norm_stats{of}" for net in ("actor", "critic") for of in ("", "_target")),
)
# Models never save these: in a file, they would replace parts of the loaded model.
_SB3_NOT_SAVED: tuple[str, ...] = ("policy", "device", "env", "rollout_buffer", "_vec_normalize_env", "_episode_storage")
_SB3_NOT_SAVED += ("_logger", "_custom_logger")
# What this package's models do not save either.
NOT_SAVED = (
    *("actor", "critic", "actor_target", "critic_target", "_updater", "_statistics_unread", "_outputs_checked"),
    "_buffer_loaded",
    *("_alarms", "_other_statistics", "demonstrations"),
    *("last_checkpoint", "_interrupted_learn", "_resumed_from", "_after_learn", "_work", "is_learning", "learns_offline"),
)
# Modules of other algorithms' policies; PPO's and A2C's are in ``common``.
_POLICIES = re.compile(r"(stable_baselines3|sb3_contrib|sbx)\.(\w+)\.policies")
_HOLD_CLASSES = ("policy_class", "policy_kwargs", "replay_buffer_class", "replay_buffer_kwargs")
_NEEDED = ("policy_class", "observation_space", "action_space")

_NUMBERS = (int, float, np.number)
_OBSERVATIONS = (np.ndarray, dict, type(None))
# Types of settings that are not just numbers or strings.
_TYPES: dict[str, tuple[type, ...]] = {
    "observation_space": (spaces.Space,),
    "action_space": (spaces.Space,),
    "action_noise": (ActionNoise, dict, str, type(None)),
    "statistics_id": (str, type(None)),
    "policy_class": (type,),
    "policy_kwargs": (dict,),
    "normalized_within": (dict,),
    "replay_buffer_class": (type, type(None)),
    "replay_buffer_kwargs": (dict,),
    "replay_buffer": (ReplayBuffer, type(None)),
    "train_freq": (TrainFreq, int, list),
    "ep_info_buffer": (deque, type(None)),
    "ep_success_buffer": (deque, type(None)),
    "_last_obs": _OBSERVATIONS,
    "_last_original_obs": _OBSERVATIONS,
    "_last_episode_starts": _OBSERVATIONS,
}
_COUNTS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates", "n_envs", "verbose")
_TYPES |= dict.fromkeys(_COUNTS, (int, np.integer)) | dict.fromkeys(("_current_progress_remaining", "start_time"), _NUMBERS)
# These may hold instances of the user's own classes, which their other settings and their own attributes may too.
_HOLD_OWN = (*_HOLD_CLASSES, "action_noise", "replay_buffer")
_SCHEDULES = ("learning_rate", "qf_learning_rate")
_SCHEDULE_NAMES = ("ConstantSchedule", "LinearSchedule", "SimpleLinearSchedule")
# What the classes must derive from.
_BASES: dict[str, type] = {
    "policy_class": BasePolicy,
    "replay_buffer_class": ReplayBuffer,
    "features_extractor_class": BaseFeaturesExtractor,
    "optimizer_class": th.optim.Optimizer,
    "activation_fn": th.nn.Module,
}


class ModelContents(NamedTuple):
    data: dict[str, Any]
    params: dict[str, Any]


def read_model(
    path: str | Path | io.BufferedIOBase,
    model_class: type,
    device: th.device | str = "auto",
    custom_objects: dict[str, Any] | None = None,
    print_system_info: bool = False,
    load_data: bool = True,
    max_bytes: int = MAX_BYTES,
) -> ModelContents:
    """Read a model's file, or only its weights, without running code from it."""
    if not (custom_objects is None or isinstance(custom_objects, dict)):
        raise ValueError("custom_objects argument must be a dict or None")
    wanted = {_SYSTEM_INFO} if print_system_info else set()
    wanted |= {_DATA} if load_data else set()
    file: Any = open_path(path, "r", suffix="zip")
    try:
        members = read_members(file, path, lambda name: name in wanted or name.endswith(".pth"), max_bytes)
    finally:
        if isinstance(path, (str, Path)):
            file.close()
    if _SYSTEM_INFO in members:
        print("== SAVED MODEL SYSTEM INFO ==")
        print(members[_SYSTEM_INFO].decode(errors="replace"))
    data = {}
    if load_data:
        if _DATA not in members:
            raise ModelFileError(path, "it has no settings, so it is not a model's file", _DATA)
        data = _read_settings(members[_DATA], path, model_class, custom_objects or {})
    torch_device = get_device(device)
    tensors = {
        name: read_tensors(content, path, name, torch_device, max_bytes)
        for name, content in members.items()
        if name.endswith(".pth")
    }
    variables = [value for name in _VARIABLES if isinstance(value := tensors.pop(name, None), dict)]
    for key in sorted(str(key) for value in variables for key in value):
        raise UnsafeFileError(path, f"it sets {key}, which is not a network of a DDPG", _VARIABLES[0])
    return ModelContents(data, {name.removesuffix(".pth"): value for name, value in tensors.items()})


def read_settings(path: Path, model_class: type) -> dict[str, Any]:
    with path.open("rb") as file:
        members = read_members(file, path, lambda name: name == _DATA, MAX_BYTES)
    return _read_settings(members[_DATA], path, model_class, {})


def _read_settings(content: bytes, path: Any, model_class: type, custom_objects: dict[str, Any]) -> dict[str, Any]:
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(path, f"it is not JSON ({str(error)[:200]})", _DATA) from error
    if not isinstance(entries, dict):
        raise ModelFileError(path, "it is not a mapping of settings", _DATA)
    if "policy_class" not in custom_objects:
        _check_algorithm(entries, path, model_class)
    settings = {}
    arguments = set(inspect.signature(model_class).parameters)
    for key, entry in entries.items():
        if key in custom_objects:
            settings[key] = custom_objects[key]
        elif key not in _RECOMPUTED:
            _check_name(key, path, model_class)
            settings[key] = _read_setting(key, entry, path, arguments)
    for key in _NEEDED:
        if key not in settings:
            raise ModelFileError(path, "it lacks this setting", _DATA, key, f"Give custom_objects={{{key!r}: ...}}.")
    return settings


def _check_algorithm(entries: dict[str, Any], path: Any, model_class: type) -> None:
    """Reject another algorithm's model, recognized by the module of its policy class."""
    entry = entries.get("policy_class")
    serialized = entry.get(":serialized:") if isinstance(entry, dict) else None
    texts: list[str] = []
    with suppress(binascii.Error, ValueError):
        texts = texts_in(base64.b64decode(serialized)) if isinstance(serialized, str) else []
    found = _POLICIES.fullmatch(texts[0]) if texts else None
    if found is None or found[0] == "stable_baselines3.td3.policies":
        return
    package, name = found[1], found[2].upper()
    if name == "COMMON":
        name = "PPO" if "clip_range" in entries else "A2C"
    raise ModelFileError(
        path, f"this is a {name} model of {package}", advice=f"{model_class.__name__} loads DDPG's and TD3's."
    )


def _check_name(key: str, path: Any, model_class: type) -> None:
    in_the_way = key in (*_SB3_NOT_SAVED, *NOT_SAVED) or callable(getattr(model_class, key, None))
    if in_the_way or not key.isidentifier() or key.startswith("__"):
        reason = "it would take the place of a part of the algorithm, which no model saves"
        raise UnsafeFileError(path, reason, _DATA, key, TRUST.format("pass trusted=True"))


def _read_setting(key: str, entry: Any, path: Any, arguments: set[str]) -> Any:
    pickled = isinstance(entry, dict) and ":serialized:" in entry
    value = entry
    if pickled:
        try:
            content = base64.b64decode(entry[":serialized:"], validate=True)
        except (binascii.Error, ValueError, TypeError, AttributeError) as error:
            raise ModelFileError(path, f"it is not in base64 ({error})", _DATA, key) from error
        allowed = (key in _HOLD_CLASSES, key not in _TYPES or key in _HOLD_OWN)
        value = unpickle_value(content, allowed, path, _DATA, key)
    _check_classes(key, value, path)
    _check_type(key, value, pickled and key in arguments, path)
    return value


def _check_type(key: str, value: Any, pickled_argument: bool, path: Any) -> None:
    if key in _SCHEDULES:
        fits = value is None or _is_schedule(vars(value).get("value_schedule") if isinstance(value, FloatSchedule) else value)
    elif key in _TYPES:
        fits = isinstance(value, _TYPES[key]) and not isinstance(value, bool)
        if isinstance(value, spaces.Space):
            fits = fits and _is_whole_space(value)
        elif _is_vectorized(value):
            noises = [vars(value).get("_base_noise"), *vars(value).get("_noises", [None])]
            fits = all(isinstance(one, ActionNoise) and not _is_vectorized(one) for one in noises)
    else:
        # Any other argument is a number or a string, from JSON or NumPy; other attributes are not checked.
        fits = not pickled_argument or isinstance(value, np.generic)
    if not fits:
        raise ModelFileError(path, f"it is {_described(value)}, which this setting cannot be", _DATA, key)


def _is_whole_space(space: Any) -> bool:
    try:
        if isinstance(space, spaces.Dict):
            return all(map(_is_whole_space, space.spaces.values()))
        return isinstance(space, spaces.Space) and bool(space == space)
    # Attributes may be missing, or of any type.
    except Exception:
        return False


def _is_vectorized(noise: Any) -> bool:
    return type(noise).__name__ == "VectorizedActionNoise"


def _is_schedule(value: Any) -> bool:
    """Whether this is a number, a schedule of numbers, or an instance of a user's class that is called with one number."""
    kind = type(value)
    if isinstance(value, _NUMBERS):
        return kind is not bool
    if not is_own(kind):
        return kind.__name__ in _SCHEDULE_NAMES and all(isinstance(number, _NUMBERS) for number in vars(value).values())
    code = getattr(kind.__call__, "__code__", None) if callable(value) else None
    return code is not None and code.co_argcount == 2 and not code.co_flags & (inspect.CO_VARARGS | inspect.CO_VARKEYWORDS)


def _check_classes(key: str, value: Any, path: Any) -> None:
    settings = {key: value} | (value if key == "policy_kwargs" and isinstance(value, dict) else {})
    for name in _BASES.keys() & settings.keys():
        given, base = settings[name], _BASES[name]
        named = given is None or (name == "activation_fn" and isinstance(given, str))
        if not named and not (isinstance(given, type) and issubclass(given, base)):
            raise UnsafeFileError(path, f"{name} is {_described(given)}, which is not a {base.__name__}", _DATA, key)


def _described(value: Any) -> str:
    kind = value.kind if isinstance(value, Handle) else value
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else type(kind).__name__
