"""Names of the numbers of observations and actions, with their units, as in ``"temperature [K]"``."""

from collections.abc import Mapping, Sequence
from typing import Any

from gymnasium import spaces

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.observations import flat_dim

Names = Sequence[str] | Mapping[str, Sequence[str]] | None


def names_of(model: Any) -> dict[str, Any]:
    """``observation_names`` and ``action_names`` of a model: its own, or in its environment's metadata; checked."""
    found = {}
    for source, space in (("observation_names", model.observation_space), ("action_names", model.action_space)):
        given, shown = getattr(model, source, None), source
        if given is None and model.env is not None:
            given, shown = _metadata(model.env).get(source), f"env.metadata[{source!r}]"
        found[source] = None if given is None else _checked(shown, given, space)
    return found


def _metadata(env: Any) -> Mapping[str, Any]:
    try:
        return env.get_attr("metadata", 0)[0] or {}
    except (AttributeError, NotImplementedError):
        return {}


def _checked(source: str, given: Any, space: Any) -> Any:
    if isinstance(space, spaces.Dict):
        if not isinstance(given, Mapping) or not given.keys() <= space.spaces.keys():
            raise ArgumentError(source, given, f"a dict with keys among {list(space.spaces)} and lists of names")
        return {key: _checked(f"{source}[{key!r}]", names, space[key]) for key, names in given.items()}
    count = flat_dim(space)
    listed = isinstance(given, Sequence) and not isinstance(given, str)
    if not listed or len(given) != count or not all(isinstance(name, str) for name in given):
        raise ArgumentError(source, given, f"a list of {count} names, one for each number")
    return list(given)


def entry(part: str, key: str, place: Any, index: int, names: Any) -> str:
    """A number of an observation in words, as in ``observation['tank'][1] (pressure [Pa])``."""
    own = names.get(key) if isinstance(names, Mapping) else names
    words = f" ({own[index]})" if own else ""
    return f"{part}{f'[{key!r}]' if key else ''}{place if place else ''}{words}"
