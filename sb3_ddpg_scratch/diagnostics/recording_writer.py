"""
The file that a run's diagnostics are recorded in: its contents, and how it is written.

``diagnostics.jsonl`` is a text file of JSON objects, one per line. The first is the header; each of the others has a
``kind`` (``episode``, ``update``, ``evaluation``, ``probes``, ``plane``, ``snapshot``, ``warning``, ``resumed``, ``end``)
and the environment step at which it was made. Lines are only ever appended, and each is handed to the operating system at
once, so that a killed process loses at most the line it was writing. Numbers that are not finite, which JSON cannot
represent, are written as the strings ``NaN``, ``Infinity`` and ``-Infinity``.
"""

import json
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import stable_baselines3
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch.errors import warn_user
from sb3_ddpg_scratch.json_values import plain
from sb3_ddpg_scratch.names import names_of

FORMAT = "sb3_ddpg_scratch.diagnostics"
VERSION = 1
RECORDING_FILE = "diagnostics.jsonl"
PROBES_FILE = "probe_states.npz"
POLICY_FILE = "policy.pth"
# What the names of the statistics by which a policy normalizes observations begin with, beside the actor's parameters.
STATISTICS = "observation_statistics."
SETTINGS = ("gamma", "tau", "batch_size", "learning_starts", "seed", "policy_delay", "target_policy_noise", "gradient_steps")


def encode(record: dict[str, Any]) -> bytes:
    return json.dumps(plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"


class RecordingWriter:
    """Appends to a folder's recording from ``resume_at`` on, or starts a new one and renames an earlier one."""

    def __init__(self, folder: Path, header: dict[str, Any], resume_at: int | None = None) -> None:
        self.path = folder / RECORDING_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and resume_at is None:
            _keep_aside(self.path, folder / POLICY_FILE)
        begins = not self.path.exists() or self.path.stat().st_size == 0
        # Unbuffered: a completed write survives the end of the process, however it ends.
        self._file = self.path.open("ab", buffering=0)
        if begins:
            self._file.write(encode({"format": FORMAT, "version": VERSION} | header))
        else:
            self._file.write(b"\n")  # The last line may be torn; empty lines are skipped.
            self.write("resumed", step=resume_at)

    def write(self, kind: str, **values: Any) -> None:
        self._file.write(encode({"kind": kind} | values))

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _keep_aside(recording: Path, policy: Path) -> None:
    """Add the first free number to the names of an earlier run's recording and policy."""
    number = 1
    while (kept := recording.with_name(f"{recording.stem}.{number}{recording.suffix}")).exists():
        number += 1
    recording.rename(kept)
    if policy.exists():
        policy.rename(policy_of(kept))
    warn_user(f"{recording.parent} has the diagnostics of another run, which are now {kept.name}; the new run takes over.")


def policy_of(recording: Path) -> Path:
    """The weights recorded with a recording, whose number they share."""
    return recording.with_name(recording.name.replace("diagnostics", "policy").replace(".jsonl", ".pth"))


def describe(model: BaseAlgorithm) -> dict[str, Any]:
    """The header's entries; ``None`` for what has no JSON form."""
    space: Any = model.action_space
    normalize = model.get_vec_normalize_env()
    return {
        "algorithm": type(model).__name__,
        "environment": _environment_of(model),
        "policy": _policy_of(model),
        "n_envs": model.n_envs,
        "settings": {name: _in_json(getattr(model, name, None)) for name in SETTINGS},
        "noise": None if model.action_noise is None else repr(model.action_noise),
        **names_of(model),
        "actions": {"low": np.asarray(space.low).ravel(), "high": np.asarray(space.high).ravel()},
        "normalized": None if normalize is None else {"observations": normalize.norm_obs, "rewards": normalize.norm_reward},
        "versions": {
            "python": platform.python_version(),
            "torch": th.__version__,
            "stable_baselines3": stable_baselines3.__version__,
        },
    }


def _environment_of(model: BaseAlgorithm) -> dict[str, Any] | None:
    """``id`` and ``kwargs`` for ``gymnasium.make``; ``None`` if the environment was not made from an id."""
    assert model.env is not None
    try:
        spec = model.env.get_attr("spec")[0]
    except AttributeError:
        return None
    if spec is None:
        return None
    return {"id": spec.id, "kwargs": _in_json({key: value for key, value in spec.kwargs.items() if key != "render_mode"})}


def _policy_of(model: BaseAlgorithm) -> dict[str, Any] | None:
    """What is needed to build a policy of the same shape without running code; ``None`` if it has custom parts."""
    names = {policy: name for name, policy in model.policy_aliases.items()}
    name = names.get(model.policy_class)
    kwargs: dict[str, Any] = {}
    for key, value in model.policy_kwargs.items():
        class_name = value.__name__ if isinstance(value, type) else ""
        if class_name and value is getattr(th.nn, class_name, None):
            kwargs[key] = {"torch.nn": class_name}
        elif _in_json(value) is None and value is not None:
            return None
        else:
            kwargs[key] = value
    q_networks = getattr(getattr(model, "critic", None), "q_networks", None)
    if q_networks is not None:
        kwargs["n_critics"] = len(q_networks)
    return None if name is None else {"name": name, "kwargs": kwargs}


def observation_statistics(normalize: VecNormalize | None) -> dict[str, Any] | None:
    """VecNormalize's mean and variance for each part of the observation (``""`` if it is not a Dict)."""
    if normalize is None or not normalize.norm_obs:
        return None
    statistics = normalize.obs_rms
    parts = {"": statistics} if isinstance(statistics, RunningMeanStd) else dict(statistics)
    return {
        "parts": {key: {"mean": th.tensor(part.mean), "var": th.tensor(part.var)} for key, part in parts.items()},
        "epsilon": float(normalize.epsilon),
        "limit": float(normalize.clip_obs),
    }


def _in_json(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return None
