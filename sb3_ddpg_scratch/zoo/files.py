"""The YAML files that ship with the package: where they are, what they may hold, and reading them."""

import difflib
import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy

ALGO = "scratch_ddpg"

# What RL Zoo's experiment manager reads, and keeps from the algorithm.
_ZOO_KEYS = (
    "callback",
    "env_kwargs",
    "env_wrapper",
    "frame_stack",
    "monitor_kwargs",
    "n_envs",
    "n_timesteps",
    "noise_std",
    "noise_type",
    "normalize",
    "vec_env_wrapper",
)
# Arguments of ScratchDDPG that the manager gives it by itself, each with the option of `train` that sets it.
_SET_BY_OPTION = {
    "env": "--env",
    "seed": "--seed",
    "verbose": "--verbose",
    "device": "--device",
    "tensorboard_log": "--tensorboard-log",
}
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def hyperparams_folder() -> Path:
    """
    :return: the folder of the YAML files: inside an installed package, beside it in a checkout
    :raises FileNotFoundError: if the package was installed without them
    """
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if (folder / f"{ALGO}.yml").is_file():
            return folder
    raise FileNotFoundError(f"{package / 'hyperparams' / ALGO}.yml is missing: install sb3-ddpg-scratch again")


def default_file() -> Path:
    """
    :return: the YAML file with settings for each environment
    """
    return hyperparams_folder() / f"{ALGO}.yml"


def preset_names() -> list[str]:
    """
    :return: names of the presets, each of which is a known DDPG
    """
    return sorted(path.stem for path in hyperparams_folder().glob("*.yml") if path.stem != ALGO)


def preset_file(name: str) -> Path:
    """
    :param name: a preset's name
    :return: its YAML file
    :raises ArgumentError: if there is no such preset
    """
    names = preset_names()
    if name not in names:
        raise ArgumentError("--preset", name, f"one of {', '.join(names)}", near(name, names))
    return hyperparams_folder() / f"{name}.yml"


def near(name: str, names: Iterable[str]) -> str:
    """
    :param name: a name that does not exist
    :param names: those that do
    :return: a sentence with up to five that resemble it, whatever their case; empty if none does
    """
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=5)]
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else ""


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """
    Read a YAML file of settings, as data.

    :param path: the file
    :return: for each environment (and ``default``) its settings
    :raises ArgumentError: if it cannot be read, or is no mapping of mappings
    """
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ArgumentError("--conf-file", str(path), f"a file that can be read ({error.strerror})") from error
    except yaml.YAMLError as error:
        raise ArgumentError("--conf-file", str(path), f"YAML without code in it ({error})") from error
    if not isinstance(content, dict) or not all(isinstance(settings, dict) for settings in content.values()):
        raise ArgumentError("--conf-file", str(path), "a mapping from environments to mappings of settings")
    return content


def section_for(content: Mapping[str, Any], env_id: str, path: Path | str) -> str:
    """
    :param content: what a file holds for each environment
    :param env_id: the environment
    :param path: the file, for the error
    :return: the key whose settings apply: the environment's own, else ``default``
    :raises ArgumentError: if there is neither
    """
    if env_id in content:
        return env_id
    if "default" in content:
        return "default"
    allowed = f"an environment that {path} has settings for: {', '.join(map(str, content))}"
    raise ArgumentError("--env", env_id, allowed, near(env_id, map(str, content)))


def settings_for(path: Path, env_id: str) -> tuple[str, dict[str, Any]]:
    """
    :param path: a YAML file of settings
    :param env_id: the environment
    :return: the section that applies (the environment's, or ``default``), and what it holds
    :raises ArgumentError: if the file cannot be read, or has nothing for that environment
    """
    content = read_settings(path)
    section = section_for(content, env_id, path)
    return section, plain_numbers(content[section])


def allowed_keys(algorithm: type[BaseAlgorithm] = ScratchDDPG) -> set[str]:
    """
    :param algorithm: class of the algorithm
    :return: what an environment's settings may hold: the algorithm's arguments, and what RL Zoo reads
    """
    arguments = set(inspect.signature(algorithm.__init__).parameters) - {"self", "_init_setup_model", *_SET_BY_OPTION}
    if algorithm is not ScratchDDPG:
        arguments -= {"action_noise"}  # takes objects only; the Zoo makes one of noise_type and noise_std
    return arguments | set(_ZOO_KEYS)


def allowed_policy_keys(policy: type = ScratchDDPGPolicy) -> set[str]:
    """
    :param policy: class of the policy
    :return: what ``policy_kwargs`` may hold
    """
    given = {"self", "observation_space", "action_space", "lr_schedule"}
    return set(inspect.signature(policy.__init__).parameters) - given  # type: ignore[misc]


def check_settings(settings: Mapping[str, Any], where: str, algorithm: type[BaseAlgorithm] = ScratchDDPG) -> None:
    """
    Refuse what neither the algorithm nor RL Zoo knows, before anything is made.

    :param settings: an environment's settings
    :param where: file and environment, for the error
    :param algorithm: class of the algorithm
    :raises ArgumentError: for an unknown key, or one that is missing
    """
    for key in settings:
        if key in _SET_BY_OPTION:
            raise ArgumentError(f"{where}: {key}", settings[key], "left out here", f"Give {_SET_BY_OPTION[key]} instead.")
    _check_keys(settings, allowed_keys(algorithm), where, f"a setting of {algorithm.__name__} or of RL Zoo")
    for key in ("policy", "n_timesteps"):
        if key not in settings:
            raise ArgumentError(f"{where}: {key}", None, "given")
    if settings.get("noise_type") is not None and "action_noise" in settings:
        raise ArgumentError(
            f"{where}: noise_type", settings["noise_type"], "left out beside action_noise", "Keep one of the two."
        )
    policy_kwargs = settings.get("policy_kwargs")
    # A policy of the user's own may take arguments of its own.
    policy = algorithm.policy_aliases.get(settings["policy"])
    if isinstance(policy_kwargs, Mapping) and policy is not None:
        _check_keys(policy_kwargs, allowed_policy_keys(policy), f"{where}: policy_kwargs", "an argument of the policy")


def _check_keys(settings: Mapping[str, Any], allowed: set[str], where: str, what: str) -> None:
    for key in settings:
        if key not in allowed:
            advice = near(str(key), allowed) or f"There are: {', '.join(sorted(allowed))}."
            raise ArgumentError(f"{where}: key", key, what, advice)


def plain_numbers(value: Any) -> Any:
    """
    YAML 1.1 takes ``1e-3`` for text, since it has no decimal point; users mean a number.

    :param value: what YAML gave: a scalar, list or dict
    :return: the same, with such texts as numbers
    """
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    if isinstance(value, dict):
        return {key: plain_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain_numbers(entry) for entry in value]
    return value
