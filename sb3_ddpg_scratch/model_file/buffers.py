"""
Replay buffers in files: what they may hold follows from the model. Every member is checked for type, dtype, shape, contiguity
and range before it replaces anything, and what others decide (columns, shapes, spaces) is made anew.
"""

from collections.abc import Mapping
from itertools import combinations
from math import inf, isfinite
from numbers import Integral, Real
from typing import Any, NoReturn

import numpy as np
import psutil
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.episodes import NO_EPISODE, NONE
from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError
from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from sb3_ddpg_scratch.observations import flat_dim
from sb3_ddpg_scratch.priorities import PrioritizedDictReplayBuffer, PrioritizedReplayBuffer
from sb3_ddpg_scratch.replay import _TRUNCATED, PackedNStepReplayBuffer, PackedReplayBuffer

_PACKED: tuple[type[ReplayBuffer], ...] = (PrioritizedDictReplayBuffer, PrioritizedReplayBuffer)
_PACKED += (PackedHerReplayBuffer, PackedDictReplayBuffer, PackedNStepReplayBuffer, PackedReplayBuffer)
KNOWN: tuple[type[ReplayBuffer], ...] = (*_PACKED, HerReplayBuffer, NStepReplayBuffer, DictReplayBuffer, ReplayBuffer)
_MOST_STEPS = 2**62
_LARGEST_ALPHA, _LARGEST_PRIORITY = 100.0, 1e200


class Members:
    """What a file holds of a buffer; each member is checked when it is taken."""

    def __init__(self, values: Any, path: Any, within: str = "") -> None:
        self.path, self.within = path, within
        self.values: dict[str, Any] = values
        if type(values) is not dict:
            raise ModelFileError(path, f"it is {type(values).__name__} and not a dict", key=within.rstrip("/"))

    def refuse(self, name: str, reason: str) -> NoReturn:
        raise ModelFileError(self.path, reason, key=self.within + name)

    def get(self, name: str) -> Any:
        if name not in self.values:
            self.refuse(name, "it is missing")
        return self.values[name]

    def number(self, name: str, low: float, high: float, kind: Any = Real, what: str = "number") -> float:
        value: Any = self.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or not low <= value <= high:
            self.refuse(name, f"it must be a {what} from {low} to {high}, and is {value!r:.60}")
        return float(value) if kind is Real else value

    def whole(self, name: str, low: int, high: int) -> int:
        return int(self.number(name, low, high, Integral, "whole number"))

    def flag(self, name: str) -> bool:
        value = self.get(name)
        if not isinstance(value, (bool, np.bool_)):
            self.refuse(name, f"it must be True or False, and is {value!r:.60}")
        return bool(value)

    def array(self, name: str, dtype: Any, shape: tuple[int | None, ...], low: float = -inf, high: float = inf) -> np.ndarray:
        """A contiguous array whose numbers are finite and within these limits; ``None`` stands for any length."""
        value, dtype = self.get(name), np.dtype(dtype)
        is_array = type(value) is np.ndarray
        if not is_array or value.dtype != dtype or not _has_shape(value, shape):
            found = f"is {value.dtype} of shape {value.shape}" if is_array else f"is {type(value).__name__}"
            wanted = ", ".join("any" if length is None else str(length) for length in shape)
            self.refuse(name, f"it must be an array of {dtype}, shape ({wanted}), and {found}")
        if not (value.flags.c_contiguous and value.flags.aligned):
            self.refuse(name, "its memory must be contiguous and aligned")
        if not dtype.hasobject and value.size:
            lowest, highest = value.min().item(), value.max().item()
            if not (low <= lowest and highest <= high and isfinite(lowest) and isfinite(highest)):
                place = tuple(map(int, np.argwhere(~((value >= low) & (value <= high) & np.isfinite(value)))[0]))
                limits = "finite" if high == inf else f"from {low} to {high}"
                self.refuse(name, f"its numbers must be {limits}, and at {place} is {value[place]}")
        return value if value.flags.writeable else value.copy()


def _has_shape(value: np.ndarray, shape: tuple[int | None, ...]) -> bool:
    return value.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, value.shape, strict=True))


def checked_buffer(given: Any, model: Any, path: Any) -> ReplayBuffer:
    """
    The buffer that was read from a file, whose attributes were not looked at yet, for this model.

    :raises ModelFileError: if a member does not fit; its ``key`` is the member's name
    """
    if not isinstance(given, ReplayBuffer):
        raise ModelFileError(path, f"it holds {type(given).__name__} and no replay buffer")
    members = Members(vars(given), path)
    try:
        return _checked(type(given), members, model)
    except ModelFileError:
        raise
    # A forged space or number can cause any error where it is compared.
    except Exception as error:
        raise ModelFileError(path, f"it is not a whole replay buffer ({type(error).__name__}: {str(error)[:200]})") from error


def _checked(kind: type[ReplayBuffer], members: Members, model: Any) -> ReplayBuffer:
    for name in ("observation_space", "action_space"):
        if getattr(model, name) != members.get(name):
            members.refuse(name, f"its {name} is not the model's")
    size, n_envs = (members.whole(name, 1, _MOST_STEPS) for name in ("buffer_size", "n_envs"))
    known = next(base for base in kind.__mro__ if base in KNOWN)
    if "handle_timeout_termination" not in members.values and known not in _PACKED:
        # Written by SB3 before 2.1.
        added = {"handle_timeout_termination": False, "timeouts": np.zeros_like(members.get("dones"))}
        members.values = members.values | added
    template = _template(known, members, model)
    beside = members
    if isinstance(template, PackedHerReplayBuffer):
        beside = Members(members.get("_table"), members.path, "_table/")
    if isinstance(template, PackedReplayBuffer):
        needed, memory = template.nbytes * size * n_envs, psutil.virtual_memory().total
        if needed > memory:
            members.refuse("buffer_size", f"{size} steps of {n_envs} environments need {needed} bytes; there are {memory}")
    state = checked_state(members, beside, template, size, n_envs)
    for (one, a), (other, b) in combinations(_arrays_in(state), 2):
        if a.size and b.size and np.may_share_memory(a, b):
            members.refuse(one, f"it shares its memory with {other}")
    # Of a user's own class, the attributes that it adds.
    extra = {} if kind is known else {name: value for name, value in members.values.items() if name not in vars(template)}
    state = extra | vars(template) | state
    state.pop("env", None)
    made: Any = object.__new__(kind)
    if hasattr(made, "__setstate__"):
        made.__setstate__(state)
    else:
        vars(made).update(state)
    return made


def _template(kind: type[ReplayBuffer], members: Members, model: Any) -> ReplayBuffer:
    """A buffer for a single transition, as the model and the file's flags make it; the file's other settings are its."""
    flags = {name: members.flag(name) for name in ("optimize_memory_usage", "handle_timeout_termination")}
    settings: dict[str, Any] = {}
    if issubclass(kind, HerReplayBuffer):
        settings = {"env": None, "n_sampled_goal": members.whole("n_sampled_goal", 0, _MOST_STEPS)}
        settings["goal_selection_strategy"] = strategy = members.get("goal_selection_strategy")
        if not isinstance(strategy, GoalSelectionStrategy):
            members.refuse("goal_selection_strategy", f"it must be a GoalSelectionStrategy, and is {strategy!r:.60}")
        settings["copy_info_dict"] = members.flag("copy_info_dict")
    if issubclass(kind, (NStepReplayBuffer, PackedHerReplayBuffer)):
        members.whole("n_steps", 1, max(members.get("buffer_size"), model.n_steps))
        members.number("gamma", 0, 1)
        # Rows are single transitions: how many make a return is the model's matter.
        own = model.replay_buffer
        settings |= {"n_steps": getattr(own, "n_steps", model.n_steps), "gamma": getattr(own, "gamma", model.gamma)}
    if issubclass(kind, PrioritizedReplayBuffer):
        # The file's priorities are powers of alpha; beta is the model's matter.
        settings |= {"alpha": members.number("alpha", 0, _LARGEST_ALPHA), "beta": getattr(model.replay_buffer, "beta", 0.4)}
    try:
        made = kind(1, model.observation_space, model.action_space, device=model.device, **flags, **settings)
    except (ArgumentError, AssertionError, NotImplementedError, TypeError, ValueError) as error:
        key = error.name if isinstance(error, ArgumentError) else "optimize_memory_usage" * flags["optimize_memory_usage"]
        raise ModelFileError(members.path, f"no {kind.__name__} for this model has its settings ({error})", key=key) from error
    if "her_ratio" in members.values:
        vars(made)["her_ratio"] = members.number("her_ratio", 0, 1)
    derived = {"obs_shape", "action_dim", "columns", "_row_width", *settings} - {"env", "n_steps", "gamma", "alpha", "beta"}
    for name in derived & vars(made).keys() & members.values.keys():
        if not _equal(members.values[name], vars(made)[name]):
            members.refuse(name, f"it must be {vars(made)[name]!r} for this model, and is {members.values[name]!r:.60}")
    return made


def _equal(found: Any, expected: Any) -> bool:
    try:
        return type(found) is type(expected) and bool(found == expected)
    # Arrays within it.
    except ValueError:
        return False


def _arrays_in(state: Mapping[str, Any], within: str = "") -> list[tuple[str, np.ndarray]]:
    found = []
    for name, value in state.items():
        if isinstance(value, np.ndarray):
            found.append((within + name, value))
        elif isinstance(value, dict):
            found += _arrays_in(value, f"{within}{name}/")
    return found


def checked_state(members: Members, beside: Members, template: ReplayBuffer, size: int, n_envs: int) -> dict[str, Any]:
    """The arrays and counters of a buffer like ``template``, for so many steps of so many environments."""
    pos, full = members.whole("pos", 0, size - 1), members.flag("full")
    state: dict[str, Any] = {"pos": pos, "full": full, "buffer_size": size, "n_envs": n_envs}
    if isinstance(template, PackedReplayBuffer):
        return state | _packed_state(members, beside, template, state)
    limits: dict[str, tuple[float, float]] = {"dones": (0, 1), "timeouts": (0, 1)}
    if isinstance(template, HerReplayBuffer):
        limits |= {"ep_start": (0, size - 1), "ep_length": (0, size), "_current_ep_start": (0, size - 1)}
    for name, own in vars(template).items():
        lead = (n_envs,) if name == "_current_ep_start" else (size, n_envs)
        if isinstance(own, np.ndarray):
            state[name] = members.array(name, own.dtype, lead + own.shape[len(lead) :], *limits.get(name, ()))
        elif name in ("observations", "next_observations"):
            parts = Members(members.get(name), members.path, f"{name}/")
            state[name] = {key: parts.array(key, part.dtype, lead + part.shape[2:]) for key, part in own.items()}
    if isinstance(template, HerReplayBuffer):
        since = (np.arange(size)[:, None] - state["ep_start"]) % size
        if ((since >= state["ep_length"]) & (state["ep_length"] > 0)).any():
            members.refuse("ep_start", "a transition is not within its episode")
        for index, start in enumerate(state["_current_ep_start"]):
            under_way = np.arange(start, start + (pos - start) % size) % size
            if (state["ep_start"][under_way, index] != start).any():
                members.refuse("_current_ep_start", "the transitions since then are not of one episode")
    return state


def _packed_state(members: Members, beside: Members, template: PackedReplayBuffer, sizes: Mapping[str, Any]) -> dict[str, Any]:
    size, n_envs, columns = sizes["buffer_size"], sizes["n_envs"], template.columns
    rows = members.array("rows", np.float32, (None, template._row_width))
    total = size * n_envs
    written = total if sizes["full"] else min((sizes["pos"] + 1) * n_envs, total)
    count = len(rows)
    if count not in (written, total):
        members.refuse("rows", f"it must have {total} rows, or the {written} that were written, and has {count}")
    state: dict[str, Any] = {"rows": rows, "_ends": members.array("_ends", np.uint8, (count,), 0, _TRUNCATED)}
    if isinstance(template, PackedHerReplayBuffer):
        return state | _episodes(members, beside, template, sizes, state["_ends"])
    continuation = rows[:, columns.continuation]
    if not np.isin(continuation, (0, 1)).all():
        members.refuse("rows", f"column {columns.continuation}, the continuation, must be 0 or 1")
    last = beside.array("_last_observations", np.float32, (None, columns.observation_dim))
    length = count if template.optimize_memory_usage else 0
    aside, free = members.array("_aside", np.int32, (length,), 0, len(last)), beside.get("_free_places")
    if type(free) is not list or not all(type(place) is int and 0 <= place < len(last) for place in free):
        beside.refuse("_free_places", f"it must be a list of whole numbers from 0 to {len(last) - 1}")
    taken = [*free, *(aside[aside > 0] - 1).tolist()]
    if len(set(taken)) != len(taken):
        beside.refuse("_free_places", "a place is used twice")
    if isinstance(template, PrioritizedReplayBuffer):
        state["_priorities"] = beside.array("_priorities", np.float64, (None,), 0, _LARGEST_PRIORITY)
        state["_largest"] = beside.number("_largest", 0, _LARGEST_PRIORITY)
        if len(state["_priorities"]) != written:
            beside.refuse("_priorities", f"it must have {written} numbers, and has {len(state['_priorities'])}")
    return state | {"_aside": aside, "_last_observations": last, "_free_places": free}


def _episodes(
    members: Members, beside: Members, template: PackedHerReplayBuffer, sizes: Mapping[str, Any], ends: np.ndarray
) -> dict[str, Any]:
    """The table of episodes, and each transition's episode in it."""
    size, n_envs, observation_dim = sizes["buffer_size"], sizes["n_envs"], template.columns.observation_dim
    time = beside.whole("time", 0, _MOST_STEPS)
    if (time % size, time >= size) != (sizes["pos"], sizes["full"]):
        beside.refuse("time", f"after {time} steps, pos and full are not {sizes['pos']} and {sizes['full']}")
    goals = beside.array("goals", np.float32, (None, flat_dim(template.observation_space["desired_goal"])))
    table: dict[str, Any] = {
        "spans": beside.array("spans", np.int64, (3, len(goals)), NONE, max(time, n_envs)),
        "goals": goals,
        "lasts": beside.array("lasts", np.float32, (len(goals), observation_dim)),
        "newest": beside.array("newest", np.float32, (n_envs, observation_dim)),
        "time": time,
    }
    episode = members.array("_episode", np.int32, (len(ends),), NO_EPISODE, len(goals) - 1)
    reason = _why_no_episodes(table["spans"], episode, ends, size, n_envs, time)
    if reason:
        beside.refuse("spans", reason)
    state: dict[str, Any] = {"_episode": episode, "_table": table}
    if template.copy_info_dict:
        state["infos"] = members.array("infos", object, (size, n_envs))
    return state


def _why_no_episodes(
    spans: np.ndarray, episode: np.ndarray, ends: np.ndarray, size: int, n_envs: int, time: int
) -> str | None:
    """Why these spans are not the episodes of a buffer after ``time`` steps, one behind the other in each environment."""
    env, start, stop = spans
    if not len(env) or env[NO_EPISODE] != NONE or env.max() >= n_envs:
        return f"an episode's environment is not below {n_envs}, or the first entry is not empty"
    first, is_open = max(time - size, 0), stop == NONE
    end = np.where(is_open, time, stop)
    used = np.flatnonzero(env != NONE)
    used = used[np.lexsort((end[used], start[used], env[used]))]
    if (start[used] < first).any() or (start[used] >= end[used]).any():
        return f"an episode does not lie between the steps {first} and {time}"
    before, after = used[:-1], used[1:]
    same = (start[before] == start[after]) & (stop[before] == stop[after])
    follows = (end[before] == start[after]) & ~is_open[before]
    other = env[before] != env[after]
    newest = used[np.append(other, True)] if len(used) else used
    if not (other | same | follows).all() or (end[newest] != time).any():
        return "the episodes of an environment do not follow each other"
    oldest = np.full(n_envs, time)
    np.minimum.at(oldest, env[used], start[used])
    if time and (oldest == time).any():
        return "an environment has no episode"
    times = np.arange(oldest.min(), time)[:, None]
    rows = times % size * n_envs + np.arange(n_envs)
    of, ended = episode[rows], ends[rows] != 0
    inside = (env[of] == np.arange(n_envs)) & (start[of] <= times) & (times < end[of])
    if not ((inside & (ended == (times == stop[of] - 1))) | (times < oldest)).all():
        return "a transition is not within its episode"
    return None
