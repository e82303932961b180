"""The state of an object, restored into a new one made in the same way, and the process's random generators."""

import functools
import os
import random
import types
import warnings
from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from gymnasium.wrappers.utils import RunningMeanStd as GymnasiumRunningMeanStd
from stable_baselines3.common.monitor import ResultsWriter
from stable_baselines3.common.running_mean_std import RunningMeanStd
from stable_baselines3.common.vec_env.stacked_observations import StackedObservations

from sb3_ddpg_scratch.checkpoint.serialization import Encoder, NotDataError
from sb3_ddpg_scratch.model_file.arrays import set_random_state

# Gymnasium's names for constructor arguments and the render mode.
_MADE_WITH = ("_saved_kwargs", "_ezpickle_args", "_ezpickle_kwargs", "render_mode")
_FUNCTIONS = (types.FunctionType, types.BuiltinFunctionType, types.MethodType, functools.partial, np.ufunc)
_CODE = (*_FUNCTIONS, types.ModuleType, type, EnvSpec, ResultsWriter)
_DISPLAYS = ("pygame", "gymnasium.envs.mujoco.mujoco_rendering")
# Tables of a MuJoCo model's names, which are rebuilt with it.
_NAMES = ("gymnasium_robotics.utils.mujoco_utils",)
_OPENED = (RunningMeanStd, GymnasiumRunningMeanStd, StackedObservations)


def qualified_name(value: Any) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


def capture_attributes(holder: Any, skipped: tuple[str, ...] = ()) -> tuple[dict[str, Any], str | None]:
    """The values of an object's attributes, and which of them cannot be saved, if any."""
    values: dict[str, Any] = {}
    opened: dict[str, Any] = {}
    generators: dict[str, Any] = {}
    physics: dict[str, Any] = {}
    obstacle = None
    for name, value in vars(holder).items():
        made_with = name in _MADE_WITH or type(value).__module__.startswith((*_DISPLAYS, *_NAMES))
        if name in skipped or made_with or isinstance(value, _CODE):
            continue
        if _is_of(spaces.Space, value):
            generators[name] = space_generators(value)
        elif _is_of(_OPENED, value):
            opened[name] = _open(value)
        elif type(value).__module__.startswith("mujoco"):
            # The model defines the physics; the data is its current state.
            if type(value).__name__ == "MjData" and hasattr(holder, "model"):
                physics[name] = _capture_physics(holder.model, value)
            elif type(value).__name__ != "MjModel":
                obstacle = obstacle or f"{type(holder).__name__}{NotDataError(f'.{name}', value)}"
        else:
            try:
                Encoder().encode(value, f".{name}")
            except NotDataError as problem:
                obstacle = obstacle or f"{type(holder).__name__}{problem}"
            else:
                values[name] = value
    return {"values": values, "opened": opened, "spaces": generators, "physics": physics}, obstacle


def restore_attributes(holder: Any, captured: dict[str, Any]) -> None:
    attributes = vars(holder)
    for name, value in captured["values"].items():
        # A file must not redirect what an environment writes.
        if isinstance(value, str) and {"/", os.sep} & set(value) and value != attributes.get(name):
            kept = f"which may be a path: it stays {attributes.get(name)!r}, and resuming may not be exact"
            warnings.warn(f"{type(holder).__name__}.{name} was {value!r}, {kept}.", stacklevel=2)
        else:
            attributes[name] = value
    for name, content in captured["opened"].items():
        _close(getattr(holder, name), content)
    for name, generators in captured["spaces"].items():
        restore_space(getattr(holder, name), generators)
    for name, arrays in captured["physics"].items():
        _restore_physics(holder.model, getattr(holder, name), arrays)


def _is_of(kinds: type | tuple[type, ...], value: Any) -> bool:
    """Whether a value is of one of these kinds, or a dict of such values."""
    if type(value) is dict:
        return bool(value) and all(isinstance(part, kinds) for part in value.values())
    return isinstance(value, kinds)


def _open(value: Any) -> dict[str, Any]:
    if isinstance(value, dict):
        return {"parts": {key: _open(part) for key, part in value.items()}}
    return {"attributes": {name: item for name, item in vars(value).items() if _is_data(item)}}


def _close(value: Any, content: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, part in content["parts"].items():
            _close(value[key], part)
    else:
        vars(value).update(content["attributes"])


def _is_data(value: Any) -> bool:
    try:
        Encoder().encode(value)
    except NotDataError:
        return False
    return True


def space_generators(space: spaces.Space[Any] | dict[str, spaces.Space[Any]]) -> list[np.random.Generator | None]:
    """The generators of a space and its subspaces."""
    return [part._np_random for part in _parts_of(space)]


def restore_space(
    space: spaces.Space[Any] | dict[str, spaces.Space[Any]], generators: list[np.random.Generator | None]
) -> None:
    for part, generator in zip(_parts_of(space), generators, strict=True):
        vars(part)["_np_random"] = generator


def _parts_of(space: spaces.Space[Any] | dict[str, spaces.Space[Any]]) -> list[spaces.Space[Any]]:
    if isinstance(space, dict):
        return [part for child in space.values() for part in _parts_of(child)]
    inner: Any = getattr(space, "spaces", ())
    inner = inner.values() if isinstance(inner, dict) else inner
    return [space, *(part for child in inner for part in _parts_of(child))]


def _capture_physics(model: Any, data: Any) -> dict[str, np.ndarray]:
    """MuJoCo's integration state, and the last step's results, which environments read before the next step."""
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    state = np.zeros(mujoco.mj_stateSize(model, kind))
    mujoco.mj_getState(model, data, state, kind)
    blank = mujoco.MjData(model)
    arrays = {name: getattr(data, name).copy() for name in dir(blank) if _has_lasting_memory(getattr(blank, name, None))}
    return {"integration": state} | arrays


def _has_lasting_memory(value: Any) -> bool:
    # Arrays of constraints and contacts are empty at first and get new memory in every step.
    return isinstance(value, np.ndarray) and value.size > 0 and value.flags.writeable


def _restore_physics(model: Any, data: Any, captured: dict[str, np.ndarray]) -> None:
    import mujoco

    kind = int(mujoco.mjtState.mjSTATE_INTEGRATION)
    mujoco.mj_setState(model, data, captured["integration"], kind)
    # Recompute contacts, which no lasting array holds, for these positions.
    mujoco.mj_forward(model, data)
    mujoco.mj_setState(model, data, captured["integration"], kind)
    for name, array in captured.items():
        if name != "integration":
            getattr(data, name)[...] = array


def capture_generators(device: th.device) -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": th.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Any], device: th.device) -> None:
    random.setstate(states["python"])
    set_random_state(np.random.mtrand._rand, states["numpy"])
    th.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        th.cuda.set_rng_state(states["cuda"], device)
