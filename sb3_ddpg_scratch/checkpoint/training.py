"""The complete state of a training: captured from a model for a checkpoint, and restored into a new one."""

import platform
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch as th
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import GymEnv

from sb3_ddpg_scratch.checkpoint.callback_states import capture_callbacks, restore_callbacks
from sb3_ddpg_scratch.checkpoint.constructor_arguments import (
    capture_noise,
    capture_settings,
    make_noise_from,
    restore_noise,
    settings_from,
)
from sb3_ddpg_scratch.checkpoint.environments import capture_vec_env, restore_vec_env
from sb3_ddpg_scratch.checkpoint.object_state import capture_generators, restore_generators, restore_space, space_generators
from sb3_ddpg_scratch.checkpoint.replay_segments import FOLDER, Segment, head_of, layout_of, restore_buffer
from sb3_ddpg_scratch.checkpoint.storage import Checkpoint, newest_whole
from sb3_ddpg_scratch.data.adding import empty_like
from sb3_ddpg_scratch.errors import ArgumentError, CheckpointError, ModelFileError
from sb3_ddpg_scratch.learn_setup import InterruptedLearn
from sb3_ddpg_scratch.machine import processor_fingerprint
from sb3_ddpg_scratch.model_file.loading import folder_within
from sb3_ddpg_scratch.model_file.tensors import check_module

Model = TypeVar("Model", bound=OffPolicyAlgorithm)
_COUNTERS = (
    *("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_episode_num", "_n_updates"),
    *("_current_progress_remaining", "_last_obs", "_last_original_obs", "_last_episode_starts"),
    *("ep_info_buffer", "ep_success_buffer"),
)


def _capture_buffer(buffer: ReplayBuffer, written: int) -> dict[str, Any]:
    return {"written": written, "layout": layout_of(buffer), "head": head_of(buffer)}


def capture_training(model: Any, callback: BaseCallback, written: int, n_demonstrated: int = 0) -> dict[str, Any]:
    """A model's state between an update and the next step, as data, without the replay buffer's rows."""
    assert model.env is not None
    assert model.replay_buffer is not None
    settings, missing = capture_settings(model)
    held = model.demonstrations
    # The property reads the latest training's numbers for the log, which changes no parameter.
    logger = model.logger
    return {
        "machine": machine(),
        "updater": model.updater_in_use,
        "settings": settings,
        "missing_settings": missing,
        "policy": dict(model.policy.state_dict()),
        "optimizers": {name: getattr(model.policy, name).optimizer.state_dict() for name in ("actor", "critic")},
        "counters": {name: getattr(model, name) for name in _COUNTERS},
        "elapsed_ns": time.time_ns() - model.start_time,
        "noise": capture_noise(model.action_noise),
        "generators": capture_generators(model.device),
        "spaces": [space_generators(space) for space in (model.observation_space, model.action_space)],
        "env": capture_vec_env(model.env),
        "buffer": _capture_buffer(model.replay_buffer, written),
        "offline": model.learns_offline,
        "demonstrations": held and _capture_buffer(held, held.size()) | {"n_segments": n_demonstrated},
        "log": _pending_log(logger),
        "callbacks": capture_callbacks(callback),
    }


def _pending_log(logger: Any) -> dict[str, Any]:
    values = {name: value for name, value in logger.name_to_value.items() if isinstance(value, (int, float, str, np.generic))}
    excluded = {name: logger.name_to_excluded[name] for name in values}
    return {"values": values, "counts": dict(logger.name_to_count), "excluded": excluded}


def machine() -> dict[str, Any]:
    """What the last bits of results depend on, besides what a checkpoint restores."""
    return {
        "torch": str(th.__version__),
        "numpy": np.__version__,
        "threads": th.get_num_threads(),
        "processor": processor_fingerprint(),
        "system": platform.system(),
    }


def restore_training(model: Any, checkpoint: Checkpoint) -> None:
    """Restore a checkpoint into a new model, made with the same settings, and into its environments."""
    state = checkpoint.state
    try:
        _restore(model, checkpoint)
    except CheckpointError:
        raise
    except ModelFileError as error:
        problem = f"does not fit into this model: of {error.key}, {error.reason}"
        raise CheckpointError(checkpoint.folder, problem, "Make it with the settings that it was trained with.") from error
    except (KeyError, ValueError, TypeError, AttributeError, RuntimeError, IndexError) as error:
        problem = f"does not fit into this model and its environment ({type(error).__name__}: {error})"
        raise CheckpointError(checkpoint.folder, problem, "Make them with the settings that it was trained with.") from error
    _warn_of_differences(model, checkpoint)
    obstacle = state["env"]["obstacle"]
    if obstacle is not None:
        warnings.warn(f"{obstacle}: every environment begins a new episode.", stacklevel=2)
        model._last_obs = None
        if model.action_noise is not None:
            model.action_noise.reset()


def _restore(model: Any, checkpoint: Checkpoint) -> None:
    state = checkpoint.state
    assert model.env is not None
    assert model.replay_buffer is not None
    recorded = len(state["env"]["envs"])
    if recorded and recorded != model.env.num_envs:
        raise CheckpointError(checkpoint.folder, f"has {recorded} environments, and here are {model.env.num_envs}")
    check_module(model.policy, state["policy"], checkpoint.folder, "policy", exact=True)
    folder = checkpoint.folder.parent / FOLDER
    of_replay, of_demonstrations = segments_of(checkpoint)
    restore_buffer(model.replay_buffer, folder, of_replay, **state["buffer"])
    if of_demonstrations:
        # No larger than its files, whose sizes were checked.
        held = empty_like(model.replay_buffer, sum(segment.stop - segment.start for segment in of_demonstrations))
        kept = {name: value for name, value in state["demonstrations"].items() if name != "n_segments"}
        restore_buffer(held, folder, of_demonstrations, **kept)
        model.demonstrations = held
    model.policy.load_state_dict(state["policy"])
    for name, optimizer in state["optimizers"].items():
        getattr(model.policy, name).optimizer.load_state_dict(optimizer)
    restore_vec_env(model.env, state["env"])
    _restore_noise(model, state["noise"], checkpoint)
    for name, value in state["counters"].items():
        setattr(model, name, value)
    for space, generators in zip((model.observation_space, model.action_space), state["spaces"], strict=True):
        restore_space(space, generators)
    counters = state["counters"]
    model._interrupted_learn = InterruptedLearn(
        total_timesteps=counters["_total_timesteps"],
        first_timestep=counters["_num_timesteps_at_start"],
        offline=state.get("offline", False),
        elapsed_ns=state["elapsed_ns"],
        restore=partial(_restore_when_learning, model, state),
    )
    model._resumed_from = checkpoint.folder


def segments_of(checkpoint: Checkpoint) -> tuple[list[Segment], list[Segment]]:
    """Those of the replay buffer, and those of the demonstrations."""
    n = len(checkpoint.segments) - ((checkpoint.state.get("demonstrations") or {}).get("n_segments", 0))
    return checkpoint.segments[:n], checkpoint.segments[n:]


def _restore_when_learning(model: Any, state: dict[str, Any], callback: BaseCallback) -> None:
    """Restore what starting ``learn`` changes: the log, the callbacks and the random generators."""
    logger = model.logger
    logger.name_to_value.update(state["log"]["values"])
    logger.name_to_count.update(state["log"]["counts"])
    logger.name_to_excluded.update(state["log"]["excluded"])
    restore_callbacks(callback, state["callbacks"])
    restore_generators(state["generators"], model.device)


def _restore_noise(model: Any, captured: dict[str, Any] | None, checkpoint: Checkpoint) -> None:
    noise = model.action_noise
    if captured is not None and noise is not None and type(noise).__name__ == captured["class"]:
        restore_noise(noise, captured)
        return
    try:
        # SB3 copies its noise for each environment only when training begins.
        model.action_noise = make_noise_from(captured)
    except ValueError as error:
        advice = "Give a noise of that class as action_noise."
        raise CheckpointError(checkpoint.folder, f"was trained with {captured['class']}", advice) from error  # type: ignore[index]


def _warn_of_differences(model: Any, checkpoint: Checkpoint) -> None:
    then, now = checkpoint.state["machine"], machine()
    changes = [f"{name} was {then.get(name)!r} and is {now[name]!r}" for name in now if then.get(name) != now[name]]
    updater = model.updater_in_use
    if updater != checkpoint.state["updater"]:
        changes.append(f"the updater was {checkpoint.state['updater']!r} and is {updater!r}")
    if changes:
        text = "Training continues, but not bit for bit as it would have without the interruption"
        warnings.warn(f"{text}: {'; '.join(changes)}.", stacklevel=2)


def read_newest(path: str | Path) -> Checkpoint:
    """The newest intact checkpoint in a folder, with a warning about those that were skipped."""
    checkpoint, problems = newest_whole(Path(path))
    for problem in problems:
        warnings.warn(f"Skipped a checkpoint that is not whole. {problem}", stacklevel=2)
    return checkpoint


def resume_model(model_class: type[Model], path: str | Path, env: GymEnv | str, **settings: Any) -> Model:
    """See ``ScratchDDPG.resume``."""
    checkpoint = read_newest(path)
    for name, reason in checkpoint.state["missing_settings"].items():
        if name not in settings:
            advice = f"Its value is not in the checkpoint: {reason}."
            raise ArgumentError(name, None, "given to resume() as it was given to the interrupted training", advice)
    try:
        saved = settings_from(checkpoint.state["settings"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(checkpoint.folder, f"has settings that are not understood ({error})") from error
    if "tensorboard_log" not in settings:
        saved["tensorboard_log"] = folder_within(saved.get("tensorboard_log"), checkpoint.folder)
    model = model_class(env=env, **saved | settings)
    restore_training(model, checkpoint)
    return model
