"""Checks of constructor arguments, before training starts."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from numbers import Integral, Real
from typing import Any, TypeVar, cast

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import TrainFreq, TrainFrequencyUnit

from sb3_ddpg_scratch.errors import ActionSpaceError, ArgumentError, UnknownArgumentError, near

POLICIES_ALLOWED = "a policy's name, or a class derived from ScratchDDPGPolicy or SB3's TD3Policy"


def check_action_space(action_space: spaces.Space[Any]) -> None:
    """Require a Box with finite bounds; they may differ between dimensions."""
    if not isinstance(action_space, spaces.Box):
        raise ActionSpaceError(
            "action_space", action_space, "a gymnasium.spaces.Box", "For discrete actions use SB3's DQN or PPO."
        )
    if not np.issubdtype(action_space.dtype, np.floating):
        advice = "Declare a Box of float32 with these bounds, and round the action in the environment's step()."
        raise ActionSpaceError("action_space", action_space, "of floating-point numbers", advice)
    if not np.all(np.isfinite(action_space.low) & np.isfinite(action_space.high)):
        advice = (
            "Declare the actuators' real bounds, as in self.action_space = Box(-2.0, 2.0, (1,)), and remove gymnasium's "
            "ClipAction, which makes the space unbounded: actions never leave the bounds anyway."
        )
        raise ActionSpaceError("action_space", action_space, advice=advice, problem=f"{action_space} is unbounded")
    if not np.all(action_space.low < action_space.high):
        problem = f"{action_space} has dimensions without any choice, whose low is not below their high"
        raise ActionSpaceError("action_space", action_space, advice="Leave those out of the actions.", problem=problem)


def check_observation_space(observation_space: spaces.Space[Any]) -> None:
    """Reject single numbers without an axis, which no features extractor takes."""
    parts = observation_space.spaces if isinstance(observation_space, spaces.Dict) else {None: observation_space}
    for key, part in parts.items():
        if isinstance(part, spaces.Box) and part.shape == ():
            name = "observation_space" if key is None else f"observation_space[{key!r}]"
            advice = "Declare the shape (1,), or wrap the environment in gymnasium.wrappers.FlattenObservation."
            raise ArgumentError(name, part, "of at least one axis", advice)


def check_whole_number(name: str, value: Any, minimum: int) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < minimum:
        raise ArgumentError(name, value, f"a whole number, at least {minimum}")


def check_number(name: str, value: Any, low: float, high: float = np.inf, low_allowed: bool = True) -> None:
    """Require a finite number from ``low`` (itself only if ``low_allowed``) to ``high``."""
    fits = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or not low <= value <= high or (value == low and not low_allowed):
        interval = f"{'[' if low_allowed else '('}{low:g}, {high:g}{']' if np.isfinite(high) else ')'}"
        raise ArgumentError(name, value, f"a number in {interval}")


def check_device(name: str, value: Any) -> None:
    if value != "auto":
        try:
            th.device(value)
        except RuntimeError as error:
            raise ArgumentError(name, value, "auto, cpu, cuda, cuda:1, or another device of PyTorch") from error


def check_learning_rate(name: str, value: Any) -> None:
    if callable(value):
        return
    if isinstance(value, str):
        allowed = "a number or a function of the progress remaining (1 to 0)"
        raise ArgumentError(name, value, allowed, "Strings like 'lin_1e-3' belong in YAML files.")
    check_number(name, value, 0)


def check_train_freq(train_freq: Any) -> None:
    units = [unit.value for unit in TrainFrequencyUnit]
    if isinstance(train_freq, TrainFreq):
        frequency, unit = train_freq.frequency, train_freq.unit.value
    elif isinstance(train_freq, (tuple, list)) and len(train_freq) == 2:
        frequency, unit = train_freq
    else:
        frequency, unit = train_freq, "step"
    if not isinstance(frequency, Integral) or isinstance(frequency, bool) or frequency < 1 or unit not in units:
        raise ArgumentError("train_freq", train_freq, "a whole number of steps, at least 1, or like (1, 'episode')")


def check_choice(name: str, value: Any, choices: tuple[str | None, ...]) -> None:
    if value not in choices:
        raise ArgumentError(name, value, "one of " + ", ".join(map(repr, choices)))


Constructor = TypeVar("Constructor", bound=Callable[..., None])
# Other libraries' words for what our arguments, and SB3's, call differently.
_SYNONYMS = {"lr": "learning_rate", "critic": "qf", "actor": "", "discount": "gamma", "polyak": "tau", "replay": "buffer"}


def near_argument(name: str, names: Iterable[str]) -> str:
    """:func:`near`, also for an argument that other libraries call differently."""
    return near("_".join(filter(None, (_SYNONYMS.get(word, word) for word in name.split("_")))), names)


def check_keywords(function: Callable[..., Any], given: Iterable[str], owner: str, elsewhere: str = "") -> None:
    """Reject unknown keywords; ``elsewhere`` is the advice if no known one is similar."""
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    for name in given:
        if name not in parameters:
            raise UnknownArgumentError(name, owner, near_argument(name, parameters.keys() - {"self"}) or elsewhere)


def with_hints_for_keywords(init: Constructor) -> Constructor:
    """Make a constructor suggest a similar argument for an unknown keyword; its signature is unchanged."""

    @wraps(init)
    def checked(self: Any, *arguments: Any, **named: Any) -> None:
        check_keywords(init, named, type(self).__name__, "Arguments of the policy go into policy_kwargs.")
        init(self, *arguments, **named)

    return cast("Constructor", checked)


def check_arguments(model: Any, updaters: tuple[str, ...]) -> None:
    """Check the arguments given to a ``ScratchDDPG``, or loaded into it."""
    check_action_space(model.action_space)
    check_observation_space(model.observation_space)
    check_whole_number("stats_window_size", model._stats_window_size, 1)
    check_learning_rate("learning_rate", model.learning_rate)
    if model.qf_learning_rate is not None:
        check_learning_rate("qf_learning_rate", model.qf_learning_rate)
    least = {"buffer_size": 1, "batch_size": 1, "n_steps": 1, "policy_delay": 1, "learning_starts": 0, "gradient_steps": -1}
    for name, minimum in (least if model.random_steps is None else least | {"random_steps": 0}).items():
        check_whole_number(name, getattr(model, name), minimum)
    check_train_freq(model.train_freq)
    for name, largest in {"tau": 1, "gamma": 1}.items():
        check_number(name, getattr(model, name), 0, largest)
    for name in ("target_policy_noise", "target_noise_clip", "action_l2"):
        check_number(name, getattr(model, name), 0)
    if model.bc_alpha is not None:
        check_number("bc_alpha", model.bc_alpha, 0)
    if model.bc_weight is not None and not callable(model.bc_weight):
        check_number("bc_weight", model.bc_weight, 0)
    if model.demonstration_share is not None:
        check_number("demonstration_share", model.demonstration_share, 0, 1, low_allowed=False)
    if model.max_grad_norm is not None:
        check_number("max_grad_norm", model.max_grad_norm, 0, low_allowed=False)
    check_choice("updater", model.updater, updaters)
    if not isinstance(model.policy_class, type) or not issubclass(model.policy_class, BasePolicy):
        raise ArgumentError("policy", model.policy_class, POLICIES_ALLOWED)
    check_keywords(model.policy_class.__init__, model.policy_kwargs, "policy_kwargs")
    if not isinstance(model.replay_buffer_kwargs, Mapping):
        raise ArgumentError("replay_buffer_kwargs", model.replay_buffer_kwargs, "a dict of the replay buffer's arguments")
    if model.policy_kwargs.get("norm") == "batch" and model.batch_size < 2:
        raise ArgumentError("batch_size", model.batch_size, "at least 2 with norm='batch', which needs a spread")
