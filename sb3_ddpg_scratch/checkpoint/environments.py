"""
The state of environments, including all of their wrappers, in any process.

An environment or wrapper whose attributes are all data is captured automatically, as is MuJoCo's physics. One with other
attributes (a physics engine's objects, a connection) can provide two methods:

``get_training_state()`` returns everything its next steps depend on, as numbers, strings, arrays, lists, tuples and dicts;
``set_training_state(state)`` puts a fresh environment into that state.

State outside attributes (closures, modules, objects in C, a MuJoCo model that changes during training) is not captured: such
an environment needs the methods too. Random generators (``np_random``, the spaces') are always captured and need not be in
the state. An environment with other attributes and without these methods is reset when training is resumed.
"""

import functools
import signal
from contextlib import suppress
from typing import Any

import gymnasium as gym
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecEnv, VecEnvWrapper

from sb3_ddpg_scratch.checkpoint.object_state import capture_attributes, qualified_name, restore_attributes
from sb3_ddpg_scratch.errors import CheckpointError

_CAPTURE, _RESTORE = "_capture_training_state", "_restore_training_state"
_GENERATOR = ("_np_random", "_np_random_seed")
# Attributes of a VecEnv that it continues from; its others are settings, or the last step's output.
_VEC_ENV_MEMORY: tuple[str, ...] = ("reset_infos", "_seeds", "_options", "buf_obs", "buf_dones", "buf_rews")
_VEC_ENV_MEMORY += ("observation_space", "action_space")


def capture_env(env: gym.Env) -> dict[str, Any]:
    """The state of each layer, outermost first; ``obstacle`` is what could not be captured."""
    layers, obstacle = [], None
    for layer in _layers(env):
        if hasattr(type(layer), "get_training_state"):
            captured, _ = capture_attributes(layer, skipped=("env", _CAPTURE, _RESTORE))
            captured = _without_values(captured) | {"own": layer.get_training_state()}
        else:
            captured, problem = capture_attributes(layer, skipped=("env", _CAPTURE, _RESTORE))
            obstacle = obstacle or problem
        layers.append({"class": qualified_name(layer)} | captured)
    if obstacle is not None:
        layers = [_before_reset(layer, captured) for layer, captured in zip(_layers(env), layers, strict=True)]
    return {"layers": layers, "obstacle": obstacle}


def restore_env(env: gym.Env, state: dict[str, Any]) -> str | None:
    """Restore an environment's layers; returns how they differ from the checkpoint's, if they do."""
    layers = _layers(env)
    names, expected = [qualified_name(layer) for layer in layers], [entry["class"] for entry in state["layers"]]
    if names != expected:
        return f"it is made of {' of '.join(names)}, and the checkpoint's was of {' of '.join(expected)}"
    for layer, captured in zip(layers, state["layers"], strict=True):
        restore_attributes(layer, captured)
        if "own" in captured:
            layer.set_training_state(captured["own"])
        if isinstance(layer, Monitor):
            _rewrite_monitor_file(layer)
    return None


def _layers(env: Any) -> list[Any]:
    layers = [env]
    while isinstance(layers[-1], gym.Wrapper):
        layers.append(layers[-1].env)
    return layers


def _without_values(captured: dict[str, Any]) -> dict[str, Any]:
    generators = {name: value for name, value in captured["values"].items() if name in _GENERATOR}
    return captured | {"values": generators, "opened": {}, "physics": {}}


def _before_reset(layer: gym.Env, captured: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an environment that will be reset: generators, and the monitor's list of episodes."""
    if isinstance(layer, Monitor):
        return captured | {"values": captured["values"] | {"needs_reset": True, "rewards": []}}
    return {name: value for name, value in _without_values(captured).items() if name != "own"}


def _rewrite_monitor_file(monitor: Monitor) -> None:
    """Write the rows of completed episodes to a monitor's new file."""
    writer = monitor.results_writer
    if writer is None or writer.logger is None:
        return
    if "a" in writer.file_handler.mode:
        # The user asked to append to a file, which already has those rows.
        return
    episodes = zip(monitor.episode_returns, monitor.episode_lengths, monitor.episode_times, strict=True)
    for episode_return, length, time in episodes:
        writer.write_row({"r": round(episode_return, 6), "l": length, "t": round(time, 6)})


class _Installer:
    """Passed to ``env_is_wrapped`` as a class, to attach functions to environments in other processes."""

    def __instancecheck__(self, env: Any) -> bool:
        setattr(env, _CAPTURE, functools.partial(capture_env, env))
        setattr(env, _RESTORE, functools.partial(restore_env, env))
        return True


def capture_vec_env(vec_env: VecEnv) -> dict[str, Any]:
    """The states of environments, in any process, and of their wrappers; ``obstacle`` as in :func:`capture_env`."""
    wrappers, base = _vec_layers(vec_env)
    obstacle = None
    captured_wrappers = []
    for wrapper in wrappers:
        captured, problem = capture_attributes(wrapper, skipped=("venv", "class_attributes"))
        obstacle = obstacle or problem
        captured_wrappers.append({"class": qualified_name(wrapper)} | captured)
    others = tuple(name for name in vars(base) if name not in _VEC_ENV_MEMORY)
    captured_base, _ = capture_attributes(base, skipped=others)
    envs, problem = _capture_envs(base)
    obstacle = obstacle or problem
    obstacle = next((env["obstacle"] for env in envs if env["obstacle"] is not None), obstacle)
    state = {"wrappers": captured_wrappers, "class": qualified_name(base), "base": captured_base, "envs": envs}
    return state | {"obstacle": obstacle}


def _capture_envs(base: Any) -> tuple[list[dict[str, Any]], str | None]:
    """The states of the environments themselves, and why they cannot be reached, if so."""
    if hasattr(base, "envs"):
        return [capture_env(env) for env in base.envs], None
    try:
        if all(base.env_is_wrapped(_Installer())):
            return base.env_method(_CAPTURE), None
    except (AttributeError, NotImplementedError):
        return [], f"The environments of {type(base).__name__} cannot be reached"
    return [], "Environments in other processes can only be reached through a wrapper, as make_vec_env's Monitor is"


def restore_vec_env(vec_env: VecEnv, state: dict[str, Any]) -> None:
    wrappers, base = _vec_layers(vec_env)
    names = [*map(qualified_name, wrappers), qualified_name(base)]
    expected = [*(entry["class"] for entry in state["wrappers"]), state["class"]]
    if names != expected:
        raise CheckpointError("env", f"is made of {' of '.join(names)}, and the checkpoint's was of {' of '.join(expected)}")
    for wrapper, captured in zip(wrappers, state["wrappers"], strict=True):
        restore_attributes(wrapper, captured)
    restore_attributes(base, state["base"])
    if not state["envs"]:
        return
    if hasattr(base, "envs"):
        problems = [restore_env(env, captured) for env, captured in zip(base.envs, state["envs"], strict=True)]
    else:
        base.env_is_wrapped(_Installer())
        problems = [base.env_method(_RESTORE, captured, indices=index)[0] for index, captured in enumerate(state["envs"])]
    for index, problem in enumerate(problems):
        if problem is not None:
            raise CheckpointError(f"environment {index}", f"is another than the checkpoint's: {problem}")


class _TerminationHandler:
    """Sent like :class:`_Installer`, to set a process's SIGTERM handler."""

    def __init__(self, handler: signal.Handlers) -> None:
        self.handler = handler

    def __instancecheck__(self, env: Any) -> bool:
        signal.signal(signal.SIGTERM, self.handler)
        return True


def outlive_termination(vec_env: VecEnv, outlive: bool) -> None:
    """Make environments' processes ignore SIGTERM, which schedulers send to whole process groups, or end on it again."""
    base = vec_env.unwrapped
    if isinstance(base, SubprocVecEnv) and not base.closed:
        handler = signal.SIG_IGN if outlive else signal.SIG_DFL
        with suppress(OSError, EOFError):
            base.env_is_wrapped(_TerminationHandler(handler))  # type: ignore[arg-type]


def _vec_layers(vec_env: VecEnv) -> tuple[list[VecEnvWrapper], Any]:
    wrappers: list[VecEnvWrapper] = []
    while isinstance(vec_env, VecEnvWrapper):
        wrappers.append(vec_env)
        vec_env = vec_env.venv
    return wrappers, vec_env
