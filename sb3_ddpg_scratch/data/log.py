"""Transitions as a model can store them: checked, with scaled actions, next observations, and episodes' ends told apart."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces

from sb3_ddpg_scratch.data.sources import Piece
from sb3_ddpg_scratch.environment_check import finite_in_float32
from sb3_ddpg_scratch.errors import ArgumentError, warn_user
from sb3_ddpg_scratch.names import entry

# Beyond a bound by less than this share of the range is rounding.
_ROUNDING = 1e-5
# Where bounds reach this far, actions within [-1, 1] look normalized.
_MUCH_LARGER = 5.0


class Log(NamedTuple):
    """Transitions in their order; actions are normalized, and ``left_out`` had no next observation."""

    observations: Any
    actions: np.ndarray
    rewards: np.ndarray
    next_observations: Any
    terminated: np.ndarray
    truncated: np.ndarray
    left_out: int = 0

    def taken(self, rows: Any, left_out: int = 0) -> "Log":
        observations, following = (each(lambda part: part[rows], part) for part in (self.observations, self.next_observations))
        ends = (self.terminated[rows], self.truncated[rows])
        return Log(observations, self.actions[rows], self.rewards[rows], following, *ends, left_out)


def each(function: Callable[..., Any], *observations: Any) -> Any:
    """Apply a function to arrays of observations, or to those of each entry of Dict observations."""
    if isinstance(observations[0], dict):
        return {key: function(*(part[key] for part in observations)) for key in observations[0]}
    return function(*observations)


def joined(logs: Sequence[Log]) -> Log:
    observations, next_observations = (
        each(lambda *parts: np.concatenate(parts), *(getattr(log, name) for log in logs))
        for name in ("observations", "next_observations")
    )
    actions, rewards, terminated, truncated = (
        np.concatenate([getattr(log, name) for log in logs]) for name in ("actions", "rewards", "terminated", "truncated")
    )
    left_out = sum(log.left_out for log in logs)
    return Log(observations, actions, rewards, next_observations, terminated, truncated, left_out)


def log_of(piece: Piece, model: Any) -> Log:
    """Check a piece's columns; ``ArgumentError`` names the first row that is wrong."""
    columns, where = piece.columns, piece.where
    for name in ("observations", "actions", "rewards", "terminations"):
        if name not in columns:
            raise ArgumentError(name, None, "given", f"There are: {', '.join(columns) or 'none'}.")
    actions = _numbers("actions", columns["actions"], model.action_space.shape, where)
    n = len(actions)
    if n == 0:
        raise ArgumentError("data", None, problem=f"has no transitions{_in(where)}")
    actions = _scaled(actions, model, piece)
    rewards = _numbers("rewards", columns["rewards"], (), where)
    if len(rewards) != n:
        raise ArgumentError("rewards", len(rewards), f"of the length of actions, {n}{_in(where)}")
    _check_finite("reward", rewards, None, where)
    terminated, truncated = _ends(columns, n, piece)
    observations = _observations("observations", columns, model, where)
    length = _length(observations)
    if "next_observations" in columns:
        following = _observations("next_observations", columns, model, where)
        if not length == _length(following) == n:
            raise ArgumentError("observations", length, f"of the length of next_observations and actions, {n}{_in(where)}")
        differs = _differ(each(lambda part: part[:-1], following), each(lambda part: part[1:], observations))
        truncated[:-1] |= differs & ~terminated[:-1]
        truncated[-1] |= not terminated[-1]
        return Log(observations, actions, rewards, following, terminated, truncated)
    if length == n + 1:
        inner = np.flatnonzero((terminated | truncated)[:-1])
        if len(inner):
            problem = f"has one observation more than actions, as a single episode has, and an end at {_at(where, inner[0])}"
            raise ArgumentError("data", None, problem=problem, advice="Give next_observations, or a list of episodes.")
        truncated[-1] = not terminated[-1]
        following = each(lambda part: part[1:], observations)
        return Log(each(lambda part: part[:-1], observations), actions, rewards, following, terminated, truncated)
    if length != n:
        raise ArgumentError("observations", length, f"of the length of actions, {n}{_in(where)}, or one longer for an episode")
    return _shifted(Log(observations, actions, rewards, observations, terminated, truncated))


def _shifted(log: Log) -> Log:
    """With each next row's observation as the next one; rows that have none are left out, unless terminated."""
    last = log.terminated | log.truncated
    last[-1] = True
    kept = ~last | log.terminated
    # What comes before such a row ends there.
    log.truncated[:-1] |= ~kept[1:] & ~last[:-1]
    following = each(lambda part: np.concatenate([part[1:], part[-1:]]), log.observations)
    if not kept.any():
        raise ArgumentError(
            "data", None, problem="has no next observation of any transition", advice="Give next_observations."
        )
    return log._replace(next_observations=following).taken(kept, int((~kept).sum()))


def _in(where: str) -> str:
    return where and f" in {where}"


def _at(where: str, row: int) -> str:
    return f"{where}, row {row}" if where else f"row {row}"


def _length(observations: Any) -> int:
    return len(next(iter(observations.values())) if isinstance(observations, dict) else observations)


def _differ(a: Any, b: Any) -> np.ndarray:
    parts = zip(a.values(), b.values(), strict=True) if isinstance(a, dict) else [(a, b)]
    return np.logical_or.reduce([(x != y).reshape(len(x), -1).any(axis=1) for x, y in parts])


def _numbers(name: str, given: Any, shape: tuple[int, ...], where: str) -> np.ndarray:
    """An array of numbers with one more axis than ``shape``, which is added where it has a single number."""
    try:
        array = np.asarray(given)
    except ValueError as error:
        raise ArgumentError(name, type(given).__name__, problem=f"has rows of different lengths{_in(where)}") from error
    if array.dtype.kind not in "fiub":
        raise ArgumentError(name, str(array.dtype), f"numbers{_in(where)}")
    if array.shape[1:] != shape and array.ndim and array.shape[1:] in ((), (1,)) and int(np.prod(shape)) == 1:
        array = array.reshape(-1, *shape)
    if not array.ndim or array.shape[1:] != shape:
        problem = f"has rows of shape {array.shape[1:]}{_in(where)}, and the space has shape {shape}"
        raise ArgumentError(name, None, problem=problem)
    return array


def _check_finite(part: str, array: np.ndarray, names: Any, where: str, key: str = "") -> None:
    if array.dtype.kind != "f" or (good := finite_in_float32(array)).all():
        return
    row, *place = (int(number) for number in np.argwhere(~good)[0])
    flat = int(np.ravel_multi_index(place, array.shape[1:])) if place else 0
    named = entry(part, key, place, flat, names)
    advice = "Leave such rows out, and end the episode before them."
    raise ArgumentError("data", None, problem=f"has {named} = {array[(row, *place)]} at {_at(where, row)}", advice=advice)


def _observations(name: str, columns: dict[str, Any], model: Any, where: str) -> Any:
    space, given = model.observation_space, columns[name]
    if not isinstance(space, spaces.Dict):
        return _observation(name, given, space, model.observation_names, where)
    if not isinstance(given, dict) or given.keys() != space.spaces.keys():
        found = list(given) if isinstance(given, dict) else type(given).__name__
        raise ArgumentError(name, found, f"a dict with arrays for {list(space.spaces)}{_in(where)}")
    parts = {
        key: _observation(name, given[key], part, model.observation_names, where, key) for key, part in space.spaces.items()
    }
    if len(set(map(len, parts.values()))) > 1:
        raise ArgumentError(name, {key: len(part) for key, part in parts.items()}, f"arrays of the same length{_in(where)}")
    return parts


def _observation(name: str, given: Any, space: Any, names: Any, where: str, key: str = "") -> np.ndarray:
    array = _numbers(f"{name}[{key!r}]" if key else name, given, space.shape, where)
    _check_finite(name.removesuffix("s").replace("_", " "), array, names, where, key)
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        raise ArgumentError(name, str(array.dtype), f"of {space.dtype}, as in {space}{_in(where)}")
    return array.astype(space.dtype)


def _scaled(actions: np.ndarray, model: Any, piece: Piece) -> np.ndarray:
    """Actions within [-1, 1], from the environment's units unless they are so already."""
    space = model.action_space
    low, high = (np.full_like(space.low, -1), np.full_like(space.high, 1)) if piece.normalized else (space.low, space.high)
    _check_finite("action", actions, model.action_names, piece.where)
    slack = _ROUNDING * (high - low)
    if (outside := (actions < low - slack) | (actions > high + slack)).any():
        row, *place = (int(number) for number in np.argwhere(outside)[0])
        named = entry("action", "", place, int(np.ravel_multi_index(place, space.shape)), model.action_names)
        bounds, at = f"[{low[tuple(place)]:g}, {high[tuple(place)]:g}]", tuple(place)
        problem = f"has {named} = {actions[(row, *at)]:g} at {_at(piece.where, row)}, outside of {bounds}"
        raise ArgumentError("data", None, problem=problem, advice="Give actions as the environment's step takes them.")
    large = np.maximum(np.abs(low), np.abs(high)) >= _MUCH_LARGER
    if large.any() and (np.abs(actions[:, large]) <= 1).all() and (actions[:, large] != 0).any():
        warn_user(
            f"All actions are within [-1, 1], and {space} is much larger: are they normalized already? Then give "
            "model.policy.unscale_action(actions), since they are taken in the environment's units."
        )
    scaled = actions if piece.normalized else model.policy.scale_action(actions)
    return np.clip(scaled, -1, 1).astype(np.float32)


def _ends(columns: dict[str, Any], n: int, piece: Piece) -> tuple[np.ndarray, np.ndarray]:
    """Where episodes terminated and where they were cut off; a termination counts as such alone."""
    terminated = _flags("terminations", columns["terminations"], n, piece.where)
    truncated = np.zeros(n, bool)
    if "truncations" in columns:
        truncated = _flags("truncations", columns["truncations"], n, piece.where)
    elif "episodes" not in columns and not piece.is_episode:
        advice = "Time limits are no terminations: learning goes on beyond them. If there were none, give np.zeros(n)."
        raise ArgumentError("truncations", None, "given", advice)
    if "episodes" in columns:
        truncated |= _ends_of_episodes(np.asarray(columns["episodes"]), n)
    return terminated, truncated & ~terminated


def _flags(name: str, given: Any, n: int, where: str) -> np.ndarray:
    values = _numbers(name, given, (), where)
    if len(values) != n:
        raise ArgumentError(name, len(values), f"of the length of actions, {n}{_in(where)}")
    if (wrong := (values != 0) & (values != 1)).any():
        row = int(np.argmax(wrong))
        raise ArgumentError(name, values[row].item(), f"0 or 1 at {_at(where, row)}")
    return values.astype(bool)


def _ends_of_episodes(numbers: np.ndarray, n: int) -> np.ndarray:
    """The last row of each episode, by its number in each row."""
    if numbers.shape != (n,):
        raise ArgumentError("episodes", numbers.shape, f"one number or name for each action, shape ({n},)")
    last = np.append(numbers[1:] != numbers[:-1], True)
    starts = [0, *(np.flatnonzero(last[:-1]) + 1).tolist()]
    met: set[Any] = set()
    for start in starts:
        number = numbers[start].item() if hasattr(numbers[start], "item") else numbers[start]
        if number in met:
            problem = f"has episode {number!r} again in row {start}, after another one"
            raise ArgumentError("data", None, problem=problem, advice="Sort the rows by episode, and by time within it.")
        met.add(number)
    return last
