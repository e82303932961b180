"""The YAML that RL Zoo writes beside an agent, read as data."""

from collections import OrderedDict
from typing import Any

import yaml


class SavedYamlLoader(yaml.SafeLoader):
    """Plain YAML, and the two containers of Python's that the Zoo writes."""


def _ordered_dict(loader: yaml.SafeLoader, node: Any) -> OrderedDict[Any, Any]:
    arguments = loader.construct_sequence(node, deep=True)
    return OrderedDict((key, value) for pairs in arguments for key, value in pairs)


def _tuple(loader: yaml.SafeLoader, node: Any) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


SavedYamlLoader.add_constructor("tag:yaml.org,2002:python/object/apply:collections.OrderedDict", _ordered_dict)
SavedYamlLoader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)
