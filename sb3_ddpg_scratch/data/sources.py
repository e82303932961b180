"""What logs come in, brought into one form: a dict of columns for each episode, or for a whole log."""

import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.errors import ArgumentError, ModelFileError, UnsafeFileError, near, require
from sb3_ddpg_scratch.model_file.archive import read_members
from sb3_ddpg_scratch.model_file.buffers import checked_buffer
from sb3_ddpg_scratch.model_file.pickles import read_pickle
from sb3_ddpg_scratch.observations import flat_dim

# The names of columns, each with what others call them.
COLUMNS: dict[str, tuple[str, ...]] = {
    "observations": ("observation", "obs"),
    "actions": ("action",),
    "rewards": ("reward",),
    "terminations": ("termination", "terminated", "terminals", "terminal"),
    "truncations": ("truncation", "truncated", "timeouts", "timeout"),
    "next_observations": ("next_observation", "next_obs"),
    "episodes": ("episode", "episode_id"),
}
_CANONICAL = {other: name for name, others in COLUMNS.items() for other in (name, *others)}
_FILES = ".npz, .csv, .parquet, or .pkl as save_replay_buffer writes"


class Piece(NamedTuple):
    """Columns of transitions in their order, where they are from (for errors), and what is known of them."""

    columns: dict[str, Any]
    where: str = ""
    is_episode: bool = False
    normalized: bool = False


def pieces_of(data: Any, model: Any, max_bytes: int) -> list[Piece]:
    """The pieces of anything that :func:`~sb3_ddpg_scratch.data.adding.add_transitions` takes."""
    if isinstance(data, (str, Path)):
        data = _read(Path(data), model, max_bytes)
    if isinstance(data, ReplayBuffer):
        return of_buffer(data)
    if hasattr(data, "columns") and hasattr(data, "to_numpy"):
        return [Piece(_of_table(data, model))]
    if isinstance(data, Mapping):
        return [Piece(_renamed(data))]
    # Minari's datasets, d3rlpy's, and lists.
    episodes = data.iterate_episodes() if hasattr(data, "iterate_episodes") else getattr(data, "episodes", data)
    if isinstance(episodes, Iterable) and not isinstance(episodes, (bytes, np.ndarray)):
        return [_of_episode(episode, f"episode {number}") for number, episode in enumerate(episodes)]
    allowed = "a dict of arrays, a pandas table, a list of episodes, a dataset of Minari or d3rlpy, or a file"
    raise ArgumentError("data", type(data).__name__, allowed)


def _renamed(data: Mapping[str, Any]) -> dict[str, Any]:
    columns: dict[str, Any] = {}
    for given, values in data.items():
        # As an entry of a Dict observation is named where names are flat.
        outer, _, key = str(given).partition("/")
        name = _CANONICAL.get(outer)
        if name is None:
            advice = "'dones' does not tell terminations from time limits: give both." if outer in ("done", "dones") else ""
            raise ArgumentError("data", given, f"named {', '.join(COLUMNS)}", advice or near(outer, _CANONICAL))
        if name in columns and not key:
            raise ArgumentError("data", given, problem=f"has {name} twice")
        if key:
            columns.setdefault(name, {})[key] = values
        else:
            columns[name] = values
    return columns


def _of_episode(episode: Any, where: str) -> Piece:
    if isinstance(episode, Mapping):
        return Piece(_renamed(episode), where, is_episode=True)
    columns = {name: getattr(episode, name) for name in COLUMNS if getattr(episode, name, None) is not None}
    if "actions" not in columns:
        raise ArgumentError("data", type(episode).__name__, "episodes: dicts, or what Minari or d3rlpy have")
    if "terminations" not in columns:
        # d3rlpy says it once for an episode.
        columns["terminations"] = np.arange(1, len(columns["actions"]) + 1) == len(columns["actions"]) * episode.terminated
    return Piece(columns, where, is_episode=True)


def _of_table(table: Any, model: Any) -> dict[str, Any]:
    """Columns ``observation_0``, ... or the model's names for them, and the others by their names."""
    if isinstance(model.observation_space, spaces.Dict):
        raise ArgumentError("data", "a table", "a dict of arrays or a list of episodes where observations are dicts")
    columns: dict[str, Any] = {}
    there = list(map(str, table.columns))
    for name in COLUMNS:
        is_action = name == "actions"
        if is_action or name.endswith("observations"):
            space, own = (
                (model.action_space, model.action_names) if is_action else (model.observation_space, model.observation_names)
            )
            found = _numbered(name, there, flat_dim(space), own)
        else:
            found = [column for column in (name, *COLUMNS[name]) if column in there][:1]
        if found:
            values = table[found].to_numpy()
            columns[name] = values if name in ("observations", "actions", "next_observations") else values[:, 0]
    return columns


def _numbered(name: str, there: Sequence[str], count: int, own: Sequence[str] | None) -> list[str]:
    before = "next " if name.startswith("next") else ""
    choices = [[f"{name.removesuffix('s')}_{index}" for index in range(count)], [f"{before}{one}" for one in own or ()]]
    choices += [[name.removesuffix("s")]] if count == 1 else []
    found = next((wanted for wanted in choices if wanted and set(wanted) <= set(there)), None)
    if found is None and not before:
        wanted = " or ".join(", ".join(choice) for choice in choices if choice)
        raise ArgumentError("data", there, f"a table with the columns {wanted}")
    return found or []


def _read(path: Path, model: Any, max_bytes: int) -> Any:
    if path.suffix == ".npz":
        with path.open("rb") as file:
            members = read_members(file, path, lambda name: name.endswith(".npy"), max_bytes, any_ratio=True)
        return {name.removesuffix(".npy"): _array(content, path, name) for name, content in members.items()}
    if path.suffix == ".pkl":
        return checked_buffer(read_pickle(path), model, path)
    if path.suffix not in (".csv", ".parquet"):
        raise ArgumentError("data", str(path), f"a file of {_FILES}")
    require(f"reading {path.suffix}", "plots", "pandas")
    import pandas as pd

    if path.stat().st_size > max_bytes:
        raise UnsafeFileError(path, f"it has more than {max_bytes} bytes", advice="If you know it, raise max_bytes.")
    try:
        return pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except (ValueError, UnicodeError) as error:
        raise ModelFileError(path, f"it is not a table ({error})") from error


def _array(content: bytes, path: Path, name: str) -> np.ndarray:
    try:
        return np.load(io.BytesIO(content), allow_pickle=False)
    except (ValueError, EOFError, MemoryError, OSError) as error:
        if "pickle" in str(error):
            reason = "it holds objects, which only running code from it could restore"
            raise UnsafeFileError(path, reason, name, advice="Save arrays of numbers.") from error
        raise ModelFileError(path, f"it is not an array as NumPy writes it ({error})", name) from error


def of_buffer(buffer: ReplayBuffer) -> list[Piece]:
    """Each environment's transitions in a replay buffer, the oldest first."""
    if isinstance(buffer, HerReplayBuffer):
        raise ArgumentError("data", type(buffer).__name__, "loaded by load_replay_buffer: it changes goals when it samples")
    size, first = buffer.size(), buffer.pos if buffer.full else 0
    order = (first + np.arange(size)) % buffer.buffer_size
    theirs_saves_memory = not hasattr(buffer, "next_observations")
    whole: dict[str, Any] = {"observations": buffer.observations, "actions": buffer.actions, "rewards": buffer.rewards}
    if not theirs_saves_memory:
        whole["next_observations"] = buffer.next_observations
    whole["terminations"] = buffer.dones * (1 - buffer.timeouts)
    whole["truncations"] = buffer.timeouts
    pieces = []
    for env in range(buffer.n_envs):
        columns = {
            name: {key: part[order, env] for key, part in values.items()} if isinstance(values, dict) else values[order, env]
            for name, values in whole.items()
        }
        pieces.append(Piece(columns, f"environment {env}" if buffer.n_envs > 1 else "", normalized=True))
    return pieces
