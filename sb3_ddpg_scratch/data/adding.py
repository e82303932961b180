"""Storing logged transitions in a replay buffer, as if the model had collected them."""

import warnings
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.data.log import Log, joined, log_of
from sb3_ddpg_scratch.data.sources import Piece, of_buffer, pieces_of
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.model_file.archive import MAX_BYTES
from sb3_ddpg_scratch.observation_statistics import count_observations
from sb3_ddpg_scratch.replay import PackedReplayBuffer


class Added(NamedTuple):
    """What :meth:`~sb3_ddpg_scratch.ScratchDDPG.add_transitions` stored; as text, a sentence."""

    transitions: int
    terminated: int
    truncated: int
    left_out: int
    mean_reward: float

    def __str__(self) -> str:
        ends = f"episodes: {self.terminated:,} terminated, {self.truncated:,} cut off"
        left_out = f"; {self.left_out:,} rows without a next observation were left out" if self.left_out else ""
        return f"Stored {self.transitions:,} transitions, mean reward {self.mean_reward:.4g}; {ends}{left_out}."


def add_transitions(
    self: Any,
    data: Any = None,
    *,
    observations: Any = None,
    actions: Any = None,
    rewards: Any = None,
    terminations: Any = None,
    truncations: Any = None,
    next_observations: Any = None,
    max_bytes: int = MAX_BYTES,
) -> Added:
    """
    Store transitions that you already have in the replay buffer: logs of a controller, demonstrations, a dataset. All are
    checked first; after an error nothing is stored. Statistics of observations (the policy's, or ``VecNormalize``'s) count
    them. With ``demonstration_share`` they are stored beside the replay buffer and never overwritten.

    Without ``next_observations``, those of a transition are the next row's observations; a row that was cut off, or comes
    last, then has none and is left out, unless it terminated. An episode may have one observation more than actions.

    :param data: a dict with the names below, or a pandas table (columns ``observation_0``, ..., ``action_0``, ...,
        ``reward``, or the model's names of observations and actions); a list of dicts, one for each episode; a dataset of
        Minari or d3rlpy; a file ``.npz``, ``.csv``, ``.parquet`` or, of ``save_replay_buffer``, ``.pkl``. A dict or table may
        have ``episodes``, the number of the episode in each row, instead of ``truncations``
    :param observations: shape ``(n, ...)``, or a dict of such arrays
    :param actions: in the environment's units
    :param rewards: shape ``(n,)``
    :param terminations: where an episode ended by itself
    :param truncations: where it was cut off, as by a time limit
    :param next_observations: the observations after the actions
    :param max_bytes: limit for the memory that an unpacked file takes, in bytes
    :return: what was stored, a sentence if printed
    :raises ArgumentError: names the row of the first value that is wrong
    :raises ModelFileError: for a file that is damaged or would run code
    """
    given = (observations, actions, rewards, terminations, truncations, next_observations)
    names = ("observations", "actions", "rewards", "terminations", "truncations", "next_observations")
    columns = {name: values for name, values in zip(names, given, strict=True) if values is not None}
    if (data is not None) == bool(columns):
        problem = (
            "cannot be combined with observations, actions, ..." if columns else "or observations, actions, ... are needed"
        )
        raise ArgumentError("data", data, problem=problem)
    pieces = pieces_of(data, self, max_bytes) if data is not None else [Piece(columns)]
    if not pieces:
        raise ArgumentError("data", None, problem="has no transitions")
    given_log = joined([log_of(piece, self) for piece in pieces])
    if self.demonstration_share is None:
        log = _in_streams(given_log, self.replay_buffer)
        _fill(self.replay_buffer, log)
    else:
        log = given_log
        self.demonstrations = _with_demonstrations(self, log)
    _count(self, log)
    ends = (int(log.terminated.sum()), int(log.truncated.sum()))
    added = Added(len(log.rewards), *ends, log.left_out, float(log.rewards.mean()))
    if self.verbose:
        print(added)
    return added


def _in_streams(log: Log, buffer: ReplayBuffer) -> Log:
    """The log for the environments of a buffer: a part for each, one behind the other, each cut off at its end."""
    n_envs = buffer.n_envs
    steps = len(log.rewards) // n_envs
    if steps == 0:
        raise ArgumentError("data", len(log.rewards), f"at least {n_envs} transitions, one for each environment")
    if steps > buffer.buffer_size:
        advice = f"Give the model a buffer_size of at least {steps * n_envs}."
        problem = f"has {steps * n_envs} transitions, and buffer_size is {buffer.buffer_size * n_envs}"
        raise ArgumentError("data", None, problem=problem, advice=advice)
    used = slice(steps * n_envs)
    log = log.taken(used, log.left_out)
    log.truncated[steps - 1 :: steps] |= ~log.terminated[steps - 1 :: steps]
    longest = int(np.diff(np.flatnonzero(log.terminated | log.truncated), prepend=-1).max())
    if isinstance(buffer, HerReplayBuffer) and longest >= buffer.buffer_size:
        allowed = f"larger than the longest episode, {longest} steps, in each environment"
        raise ArgumentError("buffer_size", buffer.buffer_size * n_envs, allowed)
    return log


def _with_demonstrations(model: Any, log: Log) -> ReplayBuffer:
    """A buffer for earlier demonstrations and these."""
    if model.demonstrations is not None:
        log = joined([*(log_of(piece, model) for piece in of_buffer(model.demonstrations)), log])
    buffer = empty_like(model.replay_buffer, len(log.rewards))
    _fill(buffer, _in_streams(log, buffer))
    return buffer


def empty_like(buffer: ReplayBuffer, size: int) -> ReplayBuffer:
    """An empty buffer with the same settings, for so many transitions of one environment, which do not fill it."""
    # A full memory-saving buffer never draws its oldest.
    size += 1
    if isinstance(buffer, PackedReplayBuffer):
        made: PackedReplayBuffer = object.__new__(type(buffer))
        vars(made).update(vars(buffer) | {"buffer_size": size, "n_envs": 1, "pos": 0, "full": False})
        made._allocate()
        return made
    names: tuple[str, ...] = ("optimize_memory_usage", "handle_timeout_termination", "n_steps", "gamma", "env")
    names += ("n_sampled_goal", "goal_selection_strategy", "copy_info_dict")
    settings = {name: getattr(buffer, name) for name in names if hasattr(buffer, name)}
    return type(buffer)(size, buffer.observation_space, buffer.action_space, buffer.device, 1, **settings)


def _fill(buffer: ReplayBuffer, log: Log) -> None:
    if isinstance(buffer, (PackedReplayBuffer, HerReplayBuffer)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The last trajectory in the replay buffer will be truncated")
            buffer.truncate_last_trajectory()
    elif buffer.size():
        # SB3's n-step returns stop there, without a done.
        buffer.timeouts[buffer.pos - 1] = 1 - buffer.dones[buffer.pos - 1]
    steps = len(log.rewards) // buffer.n_envs
    for step in range(steps):
        # One of each environment.
        now = log.taken(slice(step, None, steps))
        infos = [{"TimeLimit.truncated": bool(cut)} for cut in now.truncated]
        buffer.add(now.observations, now.next_observations, now.actions, now.rewards, now.terminated | now.truncated, infos)


def _count(model: Any, log: Log) -> None:
    """Count the observations in the running statistics and, as VecNormalize does, the discounted sums of rewards."""
    count_observations(model.policy, log.observations)
    normalizer: VecNormalize | None = model.get_vec_normalize_env()
    if normalizer is None or not normalizer.training:
        return
    if normalizer.norm_obs:
        parts = log.observations if isinstance(log.observations, dict) else {"": log.observations}
        statistics: Any = normalizer.obs_rms if isinstance(normalizer.obs_rms, dict) else {"": normalizer.obs_rms}
        for key, one in statistics.items():
            one.update(parts[key])
    if normalizer.norm_reward:
        total, sums = 0.0, np.zeros(len(log.rewards))
        for row, (reward, end) in enumerate(zip(log.rewards, log.terminated | log.truncated, strict=True)):
            sums[row] = total = total * normalizer.gamma + reward
            total *= not end
        normalizer.ret_rms.update(sums)
