"""The YAML that RL Zoo writes beside an agent, read as data."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import yaml

from sb3_ddpg_scratch.errors import ArgumentError

CHECKPOINTS = "checkpoints"
"""The folder of a run's checkpoints, in the run's folder."""


class SavedYamlLoader(yaml.SafeLoader):
    """Plain YAML, and the two Python containers that the Zoo writes."""


def _ordered_dict(loader: yaml.SafeLoader, node: Any) -> OrderedDict[Any, Any]:
    arguments = loader.construct_sequence(node, deep=True)
    return OrderedDict((key, value) for pairs in arguments for key, value in pairs)


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


SavedYamlLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
SavedYamlLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def saved_file(run: Path, name: str) -> Path:
    """``args.yml`` or ``config.yml`` of a run, in the folder that is named after the environment."""
    found = sorted(run.glob(f"*/{name}"))
    if not found:
        raise ArgumentError("--resume", str(run), f"a run's folder, with {name} in a folder named after the environment")
    return found[0]


def read_saved(path: Path) -> dict[str, Any]:
    try:
        content = yaml.load(path.read_text(), SavedYamlLoader)  # a SafeLoader
    except (OSError, yaml.YAMLError, TypeError, ValueError, IndexError) as error:
        raise ArgumentError("--resume", str(path), f"a file that RL Zoo wrote ({error})") from error
    if not isinstance(content, dict):
        raise ArgumentError("--resume", str(path), "a file that RL Zoo wrote")
    return content
