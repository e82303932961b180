"""The user's own environments, and the modules that register them, which commands import."""

import importlib
import sys
import traceback
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import gymnasium as gym

from sb3_ddpg_scratch.errors import ArgumentError, near

# Registers its environments only when it is imported; their names begin with these words.
_ROBOTICS = "gymnasium_robotics"
_ROBOTICS_IDS = ("Fetch", "Hand", "Adroit", "FrankaKitchen", "PointMaze", "AntMaze")


class RegisteredEnv(NamedTuple):
    """The id of a registered environment, and the modules to import wherever it is created."""

    env_id: str
    packages: tuple[str, ...]


def registered_env(env_id: str, packages: Sequence[str] = ()) -> RegisteredEnv:
    """The environment that an id or Gymnasium's ``module:Id`` names; raises ArgumentError if no module registers it."""
    module, colon, own_id = env_id.rpartition(":")
    needed = tuple(dict.fromkeys([*packages, *([module] if colon else [])]))
    import_modules(packages)
    if colon:
        import_modules([module], "--env")
    if own_id not in gym.registry and own_id.startswith(_ROBOTICS_IDS):
        if find_spec(_ROBOTICS) is None:
            advice = "Gymnasium-Robotics has it: pip install 'sb3-ddpg-scratch[robotics]'."
            raise ArgumentError("--env", env_id, "a registered environment", advice)
        import_modules([_ROBOTICS])
        needed = (*needed, _ROBOTICS)
    if own_id not in gym.registry:
        advice = near(own_id, gym.registry) or "--gym-packages imports the modules that register yours, as does module:Id."
        raise ArgumentError("--env", env_id, "a registered environment", advice)
    return RegisteredEnv(own_id, needed)


def import_modules(names: Iterable[str], option: str = "--gym-packages") -> None:
    """Import modules by name; on failure, an ArgumentError says where."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:
            advice = f"It is looked for in {Path.cwd()} and among the installed packages."
            missing = isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}.")
            if not missing:
                last = traceback.extract_tb(error.__traceback__)[-1]
                advice = f"The error is in {last.filename}, line {last.lineno}."
            if isinstance(error, SyntaxError):
                advice = f"The error is in {error.filename}, line {error.lineno}."
            problem = f"{type(error).__name__}: {error}"
            raise ArgumentError(option, name, f"a module that can be imported ({problem})", advice) from error


def add_current_folder() -> None:
    """Make modules in the current folder importable, after everything installed, like ``python -m``."""
    here = str(Path.cwd())
    if not {"", here} & set(sys.path):
        sys.path.append(here)
