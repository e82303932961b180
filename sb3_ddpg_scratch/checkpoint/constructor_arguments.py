"""A model's constructor arguments, as data, and its action noise."""

import inspect
import sys
from typing import Any

import numpy as np
import stable_baselines3.common.noise as sb3_noise
import torch as th
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.type_aliases import TrainFreq

from sb3_ddpg_scratch import noise as our_noise
from sb3_ddpg_scratch.checkpoint.serialization import Encoder, NotDataError

# Settings may name classes of these kinds from these packages, but no classes of the user's own.
_NAMED = (th.nn.Module, th.optim.Optimizer, ReplayBuffer)
_PACKAGES = ("torch", "stable_baselines3", "sb3_ddpg_scratch")
_NOT_SETTINGS = ("env", "_init_setup_model")


def capture_settings(model: Any) -> tuple[dict[str, Any], dict[str, str]]:
    """The constructor's arguments except ``env``, and those that cannot be stored as data, each with the reason."""
    # The arguments of the class that defines resume(), not those of a subclass.
    algorithm = [cls for cls in type(model).__mro__ if "resume" in vars(cls)][-1]
    names = [name for name in inspect.signature(algorithm).parameters if name not in _NOT_SETTINGS]
    kept_otherwise = {
        "policy": model.policy_class,
        "device": str(model.device),
        "stats_window_size": model._stats_window_size,
        "action_noise": None,
    }
    values = kept_otherwise | {name: getattr(model, name) for name in names if name not in kept_otherwise}
    if isinstance(model.train_freq, TrainFreq):
        values["train_freq"] = (model.train_freq.frequency, model.train_freq.unit.value)
    _leave_out_derived_buffer(model, values)
    settings: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name, value in values.items():
        try:
            settings[name] = _named(value)
            Encoder().encode(settings[name], name)
        except NotDataError as problem:
            settings.pop(name, None)
            missing[name] = str(problem)
    try:
        settings["action_noise"] = capture_noise(model.action_noise)
        if model.action_noise is not None and _noise_class(type(model.action_noise).__name__) is not type(model.action_noise):
            raise NotDataError("action_noise", model.action_noise)
    except NotDataError as problem:
        settings.pop("action_noise", None)
        missing["action_noise"] = str(problem)
    return settings, missing


def _leave_out_derived_buffer(model: Any, values: dict[str, Any]) -> None:
    """Leave out the buffer class where SB3 chose it and the user gave none."""
    chosen: type = NStepReplayBuffer if model.n_steps > 1 else ReplayBuffer
    if isinstance(model.replay_buffer, DictReplayBuffer):
        chosen = DictReplayBuffer
    if model.replay_buffer_class is chosen and (model.updater == "autograd" or chosen is DictReplayBuffer):
        values["replay_buffer_class"] = None
        if chosen is NStepReplayBuffer:
            derived = ("n_steps", "gamma")
            values["replay_buffer_kwargs"] = {k: v for k, v in model.replay_buffer_kwargs.items() if k not in derived}


def settings_from(captured: dict[str, Any]) -> dict[str, Any]:
    return {name: make_noise_from(value) if name == "action_noise" else _resolved(value) for name, value in captured.items()}


def _named(value: Any) -> Any:
    """Replace classes of known kinds by their names."""
    if isinstance(value, dict):
        return {key: _named(item) for key, item in value.items()}
    if isinstance(value, type) and issubclass(value, _NAMED) and value.__module__.partition(".")[0] in _PACKAGES:
        return {"class": f"{value.__module__}:{value.__qualname__}"}
    return value


def _resolved(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if set(value) != {"class"}:
        return {key: _resolved(item) for key, item in value.items()}
    module, _, name = str(value["class"]).partition(":")
    found = getattr(sys.modules.get(module), name, None)
    if module.partition(".")[0] not in _PACKAGES or not (isinstance(found, type) and issubclass(found, _NAMED)):
        raise ValueError(f"{value['class']} is not a class that a setting may name")
    return found


def capture_noise(noise: ActionNoise | None) -> dict[str, Any] | None:
    """A noise's class and all its attributes; a user's own class may provide ``get_training_state()``."""
    if noise is None:
        return None
    captured: dict[str, Any] = {"class": type(noise).__name__}
    if hasattr(noise, "get_training_state"):
        return captured | {"own": noise.get_training_state()}
    attributes: dict[str, Any] = {}
    for name, value in vars(noise).items():
        if isinstance(value, ActionNoise):
            attributes[name] = {"noise": capture_noise(value)}
        elif isinstance(value, list) and value and all(isinstance(item, ActionNoise) for item in value):
            attributes[name] = {"noises": [capture_noise(item) for item in value]}
        elif isinstance(value, type) and issubclass(value, np.generic):
            attributes[name] = {"dtype": np.dtype(value).str}
        else:
            Encoder().encode(value, f"{type(noise).__name__}.{name}")
            attributes[name] = {"value": value}
    return captured | {"attributes": attributes}


def make_noise_from(captured: dict[str, Any] | None) -> Any:
    """Rebuild a captured noise; ``ValueError`` if its class is the user's own."""
    if captured is None:
        return None
    found = _noise_class(captured["class"])
    if found is None:
        raise ValueError(f"{captured['class']} is not a noise of this package or SB3")
    noise = object.__new__(found)
    restore_noise(noise, captured)
    return noise


def _noise_class(name: str) -> type[ActionNoise] | None:
    found = (getattr(module, name, None) for module in (our_noise, sb3_noise))
    return next((cls for cls in found if isinstance(cls, type) and issubclass(cls, ActionNoise)), None)


def restore_noise(noise: Any, captured: dict[str, Any]) -> None:
    if "own" in captured:
        noise.set_training_state(captured["own"])
        return
    for name, content in captured["attributes"].items():
        kind, value = next(iter(content.items()))
        if kind == "noise":
            value = make_noise_from(value)
        elif kind == "noises":
            value = [make_noise_from(item) for item in value]
        elif kind == "dtype":
            value = np.dtype(value).type
        vars(noise)[name] = value
