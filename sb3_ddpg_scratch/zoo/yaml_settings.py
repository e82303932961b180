"""YAML files of settings: those shipped with the package, those of trained agents, and reading and checking any."""

import ast
import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch as th
import yaml
from rl_zoo3.utils import get_class_by_name
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import DictReplayBuffer, ReplayBuffer
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import ArgumentError, near
from sb3_ddpg_scratch.policies import ACTIVATIONS, ScratchDDPGPolicy
from sb3_ddpg_scratch.priorities import PrioritizedReplayBuffer
from sb3_ddpg_scratch.validation import check_whole_number, near_argument
from sb3_ddpg_scratch.zoo.search import check_search

ALGO = "scratch_ddpg"
CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the run's folder."""
REPLAY_BUFFERS: dict[str, type[ReplayBuffer]] = {
    kind.__name__: kind for kind in (ReplayBuffer, DictReplayBuffer, HerReplayBuffer, PrioritizedReplayBuffer)
}

# Read by RL Zoo's experiment manager, not passed on to the algorithm.
_ZOO_KEYS = (
    *("n_timesteps", "n_envs", "env_kwargs", "env_wrapper", "vec_env_wrapper", "monitor_kwargs", "frame_stack", "normalize"),
    *("noise_type", "noise_std", "callback", "search", "failure_key"),
)
# Arguments of ScratchDDPG that the manager sets itself, each with the option of `train` for it.
_SET_BY_OPTION = {
    "env": "--env",
    "seed": "--seed",
    "verbose": "--verbose",
    "device": "--device",
    "tensorboard_log": "--tensorboard-log",
}
_LEARNING_RATES = ("learning_rate", "qf_learning_rate")
_MAPPINGS = ("policy_kwargs", "replay_buffer_kwargs", "normalize", "monitor_kwargs", "env_kwargs")
_LARGEST = 100_000
_SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")


def hyperparams_folder() -> Path:
    """The folder of the YAML files: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package / "hyperparams", package.parent / "hyperparams"):
        if (folder / f"{ALGO}.yml").is_file():
            return folder
    raise FileNotFoundError(f"{package / 'hyperparams' / ALGO}.yml is missing: install sb3-ddpg-scratch again")


def default_file() -> Path:
    return hyperparams_folder() / f"{ALGO}.yml"


def preset_names() -> list[str]:
    """Names of the presets, each of which is a known DDPG configuration."""
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


def read_mapping(
    path: Path, name: str, allowed: str, advice: str = "", loader: type[yaml.SafeLoader] = yaml.SafeLoader
) -> dict[str, Any]:
    """The mapping in a YAML file, read without running code; the other arguments are for the error."""
    problem: object = "no mapping"
    try:
        content = yaml.load(path.read_text(), loader)  # a SafeLoader
        check_size(content)
        if isinstance(content, dict):
            return content
    except (OSError, yaml.YAMLError, TypeError, ValueError, IndexError, RecursionError) as error:
        problem = error
    raise ArgumentError(name, str(path), f"{allowed} ({problem})", advice)


def check_size(content: Any) -> None:
    """Raise ``ValueError`` for references that repeat one part a great many times, or that lead back to themselves."""
    sizes: dict[int, float] = {}

    def size(value: Any) -> float:
        if not isinstance(value, (dict, list, tuple, set)):
            return 1
        if id(value) not in sizes:
            sizes[id(value)] = math.inf
            sizes[id(value)] = 1 + sum(map(size, [*value, *(value.values() if isinstance(value, dict) else ())]))
        return sizes[id(value)]

    if size(content) > _LARGEST:
        raise ValueError("its references repeat themselves")


def read_settings(path: Path) -> dict[str, dict[str, Any]]:
    """The settings of each environment, and of ``default``, in a YAML file."""
    allowed = "YAML without code in it, a mapping from environments to mappings of settings"
    content = read_mapping(path, "--conf-file", allowed)
    for env_id, settings in content.items():
        if not isinstance(settings, dict):
            raise ArgumentError("--conf-file", str(path), f"{allowed} ({env_id}: {settings!r})")
    return content


def section_for(content: Mapping[str, Any], env_id: str, path: Path | str) -> str:
    """The key whose settings apply: the environment's own, else ``default``. ``path`` is for the error."""
    if env_id in content:
        return env_id
    if "default" in content:
        return "default"
    allowed = f"an environment that {path} has settings for: {', '.join(map(str, content))}"
    raise ArgumentError("--env", env_id, allowed, near(env_id, map(str, content)))


def settings_for(path: Path, env_id: str) -> tuple[str, dict[str, Any]]:
    """The section of a YAML file that applies (the environment's, or ``default``), and its settings."""
    content = read_settings(path)
    section = section_for(content, env_id, path)
    return section, plain_numbers(content[section])


def allowed_keys(algorithm: type[BaseAlgorithm] = ScratchDDPG) -> set[str]:
    """The keys allowed in an environment's settings: the algorithm's arguments, and what RL Zoo reads."""
    arguments = set(inspect.signature(algorithm.__init__).parameters) - {"self", "_init_setup_model", *_SET_BY_OPTION}
    if algorithm is not ScratchDDPG:
        arguments -= {"action_noise"}  # takes instances only; the Zoo makes one from noise_type and noise_std
    return arguments | set(_ZOO_KEYS)


def allowed_policy_keys(policy: type = ScratchDDPGPolicy) -> set[str]:
    given = {"self", "observation_space", "action_space", "lr_schedule"}
    return set(inspect.signature(policy.__init__).parameters) - given  # type: ignore[misc]


def check_settings(settings: Mapping[str, Any], where: str, algorithm: type[BaseAlgorithm] = ScratchDDPG) -> None:
    """Reject unknown and missing keys up front; ``where``, file and environment, is for the error."""
    for key in settings:
        if key in _SET_BY_OPTION:
            problem = f"is not a setting: give the option {_SET_BY_OPTION[key]} instead"
            raise ArgumentError(f"{where}: {key}", settings[key], problem=problem)
    _check_keys(settings, allowed_keys(algorithm), where, f"a setting of {algorithm.__name__} or of RL Zoo")
    for key in ("policy", "n_timesteps"):
        if key not in settings:
            raise ArgumentError(f"{where}: {key}", None, "given")
    _check_kinds(settings, where)
    if settings.get("normalize") and settings.get("frame_stack") and issubclass(algorithm, OffPolicyAlgorithm):
        wrapper = f"stable_baselines3.common.vec_env.VecFrameStack: {{n_stack: {settings['frame_stack']}}}"
        problem = "cannot be combined with frame_stack, which RL Zoo puts above it: the replay buffer needs it below"
        advice = f"Instead of frame_stack give vec_env_wrapper: [{{{wrapper}}}]."
        raise ArgumentError(f"{where}: normalize", settings["normalize"], advice=advice, problem=problem)
    if settings.get("noise_type") is not None and "action_noise" in settings:
        raise ArgumentError(f"{where}: noise_type", settings["noise_type"], problem="cannot be combined with action_noise")
    if "search" in settings:
        check_search(settings["search"], f"{where}: search")
        tuned = allowed_keys(algorithm) - set(_ZOO_KEYS)
        _check_keys(
            {key.partition(".")[0]: None for key in settings["search"]}, tuned, f"{where}: search", "a setting to tune"
        )
    policy_kwargs = settings.get("policy_kwargs")
    # A user's own policy may take other arguments.
    policy = algorithm.policy_aliases.get(settings["policy"])
    if isinstance(policy_kwargs, Mapping) and policy is not None:
        _check_keys(policy_kwargs, allowed_policy_keys(policy), f"{where}: policy_kwargs", "an argument of the policy")


def _check_kinds(settings: Mapping[str, Any], where: str) -> None:
    """Check what the Zoo reads, and the constructor therefore cannot check."""
    for key in ("n_envs", "n_timesteps", "frame_stack"):
        value = settings.get(key)
        if value is not None:
            check_whole_number(f"{where}: {key}", int(value) if isinstance(value, float) and value.is_integer() else value, 1)
    for key in _MAPPINGS:
        value = settings.get(key)
        if value is not None and not isinstance(value, Mapping) and not (key == "normalize" and isinstance(value, bool)):
            raise ArgumentError(f"{where}: {key}", value, "a mapping")
    if not isinstance(settings.get("failure_key", ""), str):
        raise ArgumentError(f"{where}: failure_key", settings["failure_key"], "a key of the environment's infos")
    if not isinstance(settings["policy"], (str, type)):
        raise ArgumentError(f"{where}: policy", settings["policy"], "the name of a policy")


def _check_keys(settings: Mapping[str, Any], allowed: set[str], where: str, what: str) -> None:
    for key in settings:
        if key not in allowed:
            advice = near_argument(str(key), allowed) or f"There are: {', '.join(sorted(allowed))}."
            raise ArgumentError(f"{where}: key", key, what, advice)


def plain_numbers(value: Any) -> Any:
    """Convert text like ``1e-3``, which YAML 1.1 does not read as a number since it has no decimal point."""
    if isinstance(value, str) and _SCIENTIFIC.fullmatch(value):
        return float(value)
    if isinstance(value, dict):
        return {key: plain_numbers(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain_numbers(entry) for entry in value]
    return value


def as_data(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Convert text that the Zoo would evaluate to plain data, or reject it; ``where`` is for the error."""
    settings = plain_numbers(settings)
    for key in _MAPPINGS:
        if isinstance(settings.get(key), str):
            settings[key] = mapping_from_text(f"{where}: {key}", settings[key])
    for key in _LEARNING_RATES:
        value = settings.get(key)
        if isinstance(value, str) and not _is_linear(value):
            raise ArgumentError(f"{where}: {key}", value, "a number, or like lin_1e-3: linear from 1e-3 to 0")
    return settings


def _is_linear(text: str) -> bool:
    kind, _, number = text.partition("_")
    try:
        return kind == "lin" and float(number) >= 0
    except ValueError:
        return False


def mapping_from_text(name: str, text: str) -> dict[str, Any]:
    """Parse text like ``"dict(net_arch=[64, 64])"``, as in the Zoo's own files, without running it."""
    try:
        call = ast.parse(text.strip(), mode="eval").body
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "dict" and not call.args:
            return {str(item.arg): _literal(item.value) for item in call.keywords if item.arg}
        value = ast.literal_eval(call)
        if isinstance(value, dict):
            return value
    except (SyntaxError, ValueError):
        pass
    raise ArgumentError(
        name, text, "a YAML mapping like {net_arch: [64, 64], activation_fn: relu}", "Text is never run as code."
    )


def _literal(node: ast.expr) -> Any:
    if isinstance(node, ast.Call):
        return mapping_from_text("dict(...)", ast.unparse(node))
    if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("nn", "th.nn", "torch.nn"):
        return {module.__name__: name for name, module in ACTIVATIONS.items()}.get(node.attr, node.attr)
    return ast.literal_eval(node)


def replay_buffer_class(name: str) -> type:
    if name in REPLAY_BUFFERS:
        return REPLAY_BUFFERS[name]
    if "." in name and all(part.isidentifier() for part in name.split(".")):
        return get_class_by_name(name)
    allowed = f"one of {', '.join(REPLAY_BUFFERS)}, or a class with its module, as in my_package.buffers.MyBuffer"
    raise ArgumentError("replay_buffer_class", name, allowed)


class SavedYamlLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain YAML, plus what the Zoo writes: two Python containers, activation functions and optimizers."""


def _ordered_dict(loader: yaml.SafeLoader, node: Any) -> OrderedDict[Any, Any]:
    arguments = loader.construct_sequence(node, deep=True)
    return OrderedDict((key, value) for pairs in arguments for key, value in pairs)


SavedYamlLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
SavedYamlLoader.add_constructor(
    "tag:yaml.org,2002:python/tuple", lambda loader, node: tuple(loader.construct_sequence(node, deep=True))
)
_NAMED = {
    f"{kind.__module__}.{kind.__name__}": kind
    for kind in (*ACTIVATIONS.values(), th.optim.Adam, th.optim.AdamW, th.optim.RMSprop, th.optim.SGD)
}


def _named_class(loader: yaml.SafeLoader, name: str, node: Any) -> type:
    if name in _NAMED:
        return _NAMED[name]
    raise yaml.constructor.ConstructorError(
        problem=f"{name} is not a class that settings may name", problem_mark=node.start_mark
    )


SavedYamlLoader.add_multi_constructor("tag:yaml.org,2002:python/name:", _named_class)


def saved_file(run: Path, name: str) -> Path:
    """A run's ``args.yml`` or ``config.yml``, in the folder named after the environment."""
    found = sorted(run.glob(f"*/{name}"))
    if not found:
        raise ArgumentError("--resume", str(run), f"a run's folder, with {name} in a folder named after the environment")
    return found[0]


def read_saved(path: Path) -> dict[str, Any]:
    return read_mapping(path, "--resume", "a file that RL Zoo wrote", loader=SavedYamlLoader)
