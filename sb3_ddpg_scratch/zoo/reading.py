"""What the Zoo's scripts read of a trained agent's folder, read as data: YAML, VecNormalize's statistics, gathered results."""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import yaml
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import UnsafeFileError
from sb3_ddpg_scratch.model_file import load_vec_normalize
from sb3_ddpg_scratch.model_file.allowlist import own_class
from sb3_ddpg_scratch.zoo.manager import mapping_from_text
from sb3_ddpg_scratch.zoo.saved_yaml import SavedYamlLoader

ADVICE = "If you trust whoever made the folder, give --trusted, which reads as the Zoo does and runs code from files."
# Where the wrappers are that an agent's settings may name without being trusted.
_WRAPPERS = ("gymnasium.wrappers.", "rl_zoo3.wrappers.", "sb3_contrib.common.wrappers.", "stable_baselines3.common.")


def trusted(parsed: list[argparse.Namespace]) -> bool:
    """
    :param parsed: a script's arguments, once they are parsed
    :return: whether ``--trusted`` was given
    """
    return bool(parsed and getattr(parsed[0], "trusted", False))


@contextmanager
def safe_reading(parsed: list[argparse.Namespace]) -> Iterator[None]:
    """
    Have the Zoo's scripts read settings and statistics as data, and our models, unless ``--trusted`` is given.

    :param parsed: the script's arguments, once they are parsed
    """
    load_yaml, load_model, load_statistics, load_buffer = (
        yaml.load,
        ScratchDDPG.load.__func__,  # type: ignore[attr-defined]
        VecNormalize.load,
        ScratchDDPG.load_replay_buffer,
    )

    def read_yaml(stream: Any, Loader: Any) -> Any:  # noqa: N803  # yaml's own name
        if trusted(parsed) or Loader is not yaml.UnsafeLoader:
            return load_yaml(stream, Loader)
        path = getattr(stream, "name", "YAML")
        try:
            return _without_code(load_yaml(stream, SavedYamlLoader), path)
        except (yaml.YAMLError, AssertionError, TypeError, ValueError) as error:
            if isinstance(error, UnsafeFileError):
                raise
            raise UnsafeFileError(path, f"it is not plain YAML ({error})", advice=ADVICE) from error

    def read_model(cls: type, *args: Any, **kwargs: Any) -> Any:
        return load_model(cls, *args, **({"trusted": trusted(parsed)} | kwargs))

    def read_statistics(path: str, venv: VecEnv) -> VecNormalize:
        return load_statistics(path, venv) if trusted(parsed) else load_vec_normalize(path, venv)

    def read_buffer(self: ScratchDDPG, *args: Any, **kwargs: Any) -> None:
        load_buffer(self, *args, **({"trusted": trusted(parsed)} | kwargs))

    with ExitStack() as stack:
        for owner, name, replacement in (
            (yaml, "load", read_yaml),
            (ScratchDDPG, "load", classmethod(read_model)),
            (ScratchDDPG, "load_replay_buffer", read_buffer),
            (VecNormalize, "load", staticmethod(read_statistics)),
        ):
            stack.enter_context(mock.patch.object(owner, name, replacement))
        yield


def _without_code(settings: Any, path: str) -> Any:
    if not isinstance(settings, dict):
        return settings
    if isinstance(settings.get("normalize"), str):
        # The Zoo would evaluate it.
        settings["normalize"] = mapping_from_text(f"{path}: normalize", settings["normalize"])
    for key in ("env_wrapper", "vec_env_wrapper"):
        for name in _class_names(settings.get(key)):
            module, _, kind = name.rpartition(".")
            if not name.startswith(_WRAPPERS) and own_class(module, kind) is None:
                reason = f"it names {name}, which is neither one of the known wrappers nor imported already"
                raise UnsafeFileError(path, reason, key=key, advice=ADVICE)
    return settings


def _class_names(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [name for item in value for name in _class_names(item)]
    return [str(name) for name in value] if isinstance(value, Mapping) else [str(value)] if value else []
