"""
What the YAML of an agent may ask for that others trained. RL Zoo builds the wrappers and callbacks that it names, with the
arguments that it gives, and some of them write files: without trust, only those below are built, and nothing gets a path.
"""

import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import gymnasium as gym
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import VecEnvWrapper

from sb3_ddpg_scratch.errors import UnsafeFileError
from sb3_ddpg_scratch.model_file.allowlist import is_own_module, own_class
from sb3_ddpg_scratch.zoo.yaml_settings import mapping_from_text

ADVICE = "If you trust whoever made the folder, give --trusted, which reads as the Zoo does and runs code from files."
_WRAPPERS = {
    "gymnasium.wrappers": "AddRenderObservation AddWhiteNoise AtariPreprocessing ClipAction ClipReward DelayObservation "
    "DiscretizeAction DiscretizeObservation DtypeObservation FilterObservation FlattenObservation FrameStackObservation "
    "GrayscaleObservation MaxAndSkipObservation NormalizeObservation NormalizeReward ObstructView RecordEpisodeStatistics "
    "RepeatAction RescaleAction RescaleObservation ReshapeObservation ResizeObservation StickyAction TimeAwareObservation "
    "TimeLimit",
    "rl_zoo3.wrappers": "ActionNoiseWrapper ActionSmoothingWrapper DelayedRewardWrapper FrameSkip HistoryWrapper "
    "HistoryWrapperObsDict MaskVelocityWrapper TimeFeatureWrapper TruncatedOnSuccessWrapper YAMLCompatResizeObservation",
    "sb3_contrib.common.wrappers": "TimeFeatureWrapper",
    "stable_baselines3.common.atari_wrappers": "AtariWrapper ClipRewardEnv EpisodicLifeEnv FireResetEnv MaxAndSkipEnv "
    "NoopResetEnv StickyActionEnv WarpFrame",
    "stable_baselines3.common.monitor": "Monitor",
}
_VEC_WRAPPERS = {
    "stable_baselines3.common.vec_env": "VecCheckNan VecExtractDictObs VecFrameStack VecMonitor VecNormalize "
    "VecTransposeImage",
}
_CALLBACKS = {
    "rl_zoo3.callbacks": "RawStatisticsCallback",
    "stable_baselines3.common.callbacks": "LogEveryNTimesteps ProgressBarCallback StopTrainingOnMaxEpisodes",
}
_BUILT: dict[str, tuple[dict[str, str], type]] = {
    "env_wrapper": (_WRAPPERS, gym.Wrapper),
    "vec_env_wrapper": (_VEC_WRAPPERS, VecEnvWrapper),
    "callback": (_CALLBACKS, BaseCallback),
}
# Options of `train` that write elsewhere than to the run's folder.
_ELSEWHERE = ("optimization_log_path", "optimize_hyperparameters", "storage", "study_name", "tensorboard_log", "track")
_MOST_FRAMES = 1000
_SHORT = reprlib.Repr()
_ENV_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


class _RefusedError(Exception):
    pass


def check_saved(content: Any, path: str | Path) -> Any:
    """Raise :class:`UnsafeFileError` for an agent's ``config.yml`` or ``args.yml`` that asks for more than is harmless."""
    of_arguments = Path(path).name == "args.yml"
    content = _checked(content, path, _CHECKS_OF_ARGUMENTS if of_arguments else _CHECKS)
    return {"env_kwargs": None} | content if of_arguments else content  # which the Zoo requires


def check_run(settings: Any, path: str | Path) -> None:
    """The same for the settings of a run to resume, which may also name classes in the user's own modules."""
    _checked(settings, path, {key: partial(_check_classes, resumed=True) for key in _BUILT})


def check_run_arguments(arguments: dict[str, Any], path: str | Path) -> None:
    """The same for the arguments of a run to resume, which may also name modules of environments."""
    _checked(arguments, path, {"env": _check_name} | dict.fromkeys(_ELSEWHERE, _check_unused))


def _checked(content: Any, path: str | Path, checks: dict[str, Callable[[str, Any], Any]]) -> dict[str, Any]:
    key = ""
    try:
        if not isinstance(content, dict):
            raise _RefusedError("it is not a mapping of settings")
        content = {name: value for name, value in content.items() if value is not None or name not in checks}
        for key in checks.keys() & content.keys():
            content[key] = checks[key](key, content[key])
    except _RefusedError as error:
        raise UnsafeFileError(path, str(error), key=key, advice=ADVICE) from error
    return content


def _check_classes(key: str, value: Any, resumed: bool = False) -> Any:
    modules, base = _BUILT[key]
    for item in value if isinstance(value, list) else [value]:
        ((name, arguments),) = item.items() if isinstance(item, Mapping) and len(item) == 1 else [(item, {})]
        if not isinstance(name, str) or not isinstance(arguments, Mapping):
            raise _RefusedError(f"{_SHORT.repr(item)} is neither a name nor a name with arguments")
        kind: Any = _listed(modules, name)
        if kind is None:
            if resumed and _is_own_module(name):
                continue
            kind = _imported(name, base)
            if kind is None:
                raise _RefusedError(f"it names {name}, which is neither on the list of harmless classes nor imported already")
            _check_texts(name, arguments)
        if "filename" in arguments:
            raise _RefusedError(f"{name} would write a file, {arguments['filename']!r}")
        try:
            inspect.signature(kind).bind(*([] if key == "callback" else [None]), **arguments)
        except (TypeError, ValueError) as error:
            raise _RefusedError(f"{name} does not take these arguments ({error})") from error
    return value


def _listed(modules: dict[str, str], name: str) -> type | None:
    """The class, in the module on the list or a part of it."""
    module, _, short = name.rpartition(".")
    for package, names in modules.items():
        if short in names.split() and f"{module}.".startswith(f"{package}."):
            with suppress(ImportError, gym.error.Error):
                return getattr(importlib.import_module(module), short, None)
    return None


def _is_own_module(name: str) -> bool:
    package = name.partition(".")[0]
    spec = find_spec(package) if package.isidentifier() and package != name else None
    return spec is not None and spec.has_location and is_own_module(package, spec.origin)


def _imported(name: str, base: type) -> type | None:
    module, _, short = name.rpartition(".")
    kind = own_class(module, short)
    return kind if kind is not None and issubclass(kind, base) else None


def _check_texts(key: str, value: Any) -> Any:
    """Plain data without paths."""
    parts = [*value, *value.values()] if isinstance(value, Mapping) else value
    for part in parts if isinstance(parts, (list, tuple)) else ():
        _check_texts(key, part)
    if isinstance(value, str) and (set("/\\") & set(value) or value.startswith("~")):
        raise _RefusedError(f"{key} has {value!r}, which may be a path")
    return value


def _check_arguments(key: str, value: Any) -> Any:
    if not (isinstance(value, dict) and all(isinstance(name, str) for name in value)):
        raise _RefusedError(f"{_SHORT.repr(value)} is not a mapping of arguments")
    return _check_texts(key, value)


def _check_monitor(key: str, value: Any) -> Any:
    value = mapping_from_text(key, value) if isinstance(value, str) else value
    _check_classes("env_wrapper", {f"{Monitor.__module__}.Monitor": value})
    return value


def _check_normalize(key: str, value: Any) -> Any:
    if isinstance(value, str):  # the Zoo would evaluate it
        value = mapping_from_text(key, value)
    if not isinstance(value, (bool, dict)):
        raise _RefusedError(f"{_SHORT.repr(value)} is neither true, false nor a mapping")
    return value


def _check_frames(key: str, value: Any) -> Any:
    if type(value) is not int or not 0 <= value <= _MOST_FRAMES:
        raise _RefusedError(f"{_SHORT.repr(value)} is not a number of frames")
    return value


def _check_unused(key: str, value: Any) -> Any:
    outside = key != "tensorboard_log" or not (isinstance(value, str) and Path(value).resolve().is_relative_to(Path.cwd()))
    if value and outside:
        raise _RefusedError(f"it would write elsewhere than to the run's folder, for {_SHORT.repr(value)}")
    return value


def _check_name(key: str, value: Any) -> Any:
    if not isinstance(value, str) or (key == "env" and not _ENV_ID.fullmatch(value)):
        raise _RefusedError(f"{_SHORT.repr(value)} is not a name")
    return value


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "env_wrapper": _check_classes,
    "vec_env_wrapper": _check_classes,
    "env_kwargs": _check_arguments,
    "frame_stack": _check_frames,
    "monitor_kwargs": _check_monitor,
    "normalize": _check_normalize,
    "replay_buffer_class": _check_name,
}
_CHECKS_OF_ARGUMENTS: dict[str, Callable[[str, Any], Any]] = {
    "env": _check_name,
    "env_kwargs": _check_arguments,
    "eval_env_kwargs": _check_arguments,
}
