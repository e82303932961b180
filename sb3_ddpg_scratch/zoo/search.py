"""The search space of ``train --algo scratch_ddpg -optimize``."""

import json
from collections.abc import Callable, Mapping
from copy import deepcopy
from math import log2
from typing import Any

import optuna
import torch as th

from sb3_ddpg_scratch.errors import ArgumentError

NET_ARCHS: dict[str, Any] = {"small": [64, 64], "medium": [256, 256], "big": [400, 300], "large": [256, 256, 256]}
# Widths of residual blocks, which have a normalization of their own, and what goes with them.
SIMBA_ARCHS = {"simba": {"pi": [64], "qf": [128]}, "large simba": {"pi": [128], "qf": [256, 256]}}
_SIMBA = {"norm": None, "action_layer": 0, "scale_factor": 4, "optimizer_class": th.optim.AdamW}
SCALES = ("log", "linear")
_SPACE_FORM = "a range like [1e-4, 1e-2, log] or [1, 8, linear], or a list of choices"
_Draw = Callable[[optuna.Trial, str, int], Any]


def _log(low: float, high: float) -> _Draw:
    return lambda trial, name, budget: trial.suggest_float(name, low, high, log=True)


def _one_of(*choices: Any) -> _Draw:
    return lambda trial, name, budget: trial.suggest_categorical(name, choices)


def _batch_size_pow(trial: optuna.Trial, name: str, budget: int) -> int:
    return trial.suggest_int(name, 4, min(max(int(log2(budget / 20)), 5), 10))


# What is drawn: its name, the setting that it stands for, and how, given the steps of a trial.
_SPACE: dict[str, tuple[str, _Draw]] = {
    "one_minus_gamma": ("gamma", _log(1e-4, 0.03)),
    "learning_rate": ("learning_rate", _log(1e-5, 2e-3)),
    "qf_learning_rate": ("qf_learning_rate", _log(1e-5, 1e-2)),
    "tau": ("tau", _log(1e-3, 0.08)),
    "batch_size_pow": ("batch_size", _batch_size_pow),
    "train_freq": ("train_freq", lambda trial, name, budget: trial.suggest_int(name, 1, 10)),
    "max_grad_norm": ("max_grad_norm", _one_of(None, 0.5, 1.0, 10.0)),
    "net_arch": ("policy_kwargs.net_arch", _one_of(*NET_ARCHS, *SIMBA_ARCHS)),
    "norm": ("policy_kwargs.norm", _one_of(None, "layer", "batch")),
    "action_layer": ("policy_kwargs.action_layer", lambda trial, name, budget: trial.suggest_int(name, 0, 1)),
    "normalize_observations": ("policy_kwargs.normalize_observations", _one_of(False, True)),
    # Always sample all of the noise, even if unused: the Zoo's TPE sampler draws parameters jointly only if every trial
    # has the same ones.
    "noise_kind": ("action_noise", _one_of(None, "gaussian", "ou", "pink")),
    "noise_sigma": ("action_noise", _log(0.01, 0.5)),
    "noise_schedule": ("action_noise", _one_of("constant", "linear")),
    "noise_final_share": ("action_noise", lambda trial, name, budget: trial.suggest_float(name, 0.0, 1.0)),
    "noise_decay_steps": (
        "action_noise",
        lambda trial, name, budget: trial.suggest_int(name, max(budget // 10, 1), max(budget, 1), log=True),
    ),
}
_HINDSIGHT: dict[str, tuple[str, _Draw]] = {
    "n_sampled_goal": ("replay_buffer_kwargs.n_sampled_goal", lambda trial, name, budget: trial.suggest_int(name, 1, 5)),
    "goal_selection_strategy": ("replay_buffer_kwargs.goal_selection_strategy", _one_of("final", "episode", "future")),
}
# Instead of networks and normalization, where the policy has residual blocks anyway.
_RESIDUAL: dict[str, tuple[str, _Draw]] = {"residual_net_arch": ("policy_kwargs.net_arch", _one_of(*SIMBA_ARCHS))}
_KEYS = {name: key for name, (key, _) in (_SPACE | _HINDSIGHT | _RESIDUAL).items()}
_ALSO_FIXED_BY = {"action_noise": {"noise_type"}, "train_freq": {"gradient_steps"}}


def sample_scratch_ddpg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample settings of ScratchDDPG; the signature is RL Zoo's. Each value is a named number, string or ``None``, from
    which :func:`convert_scratch_ddpg_params` rebuilds the settings of a stored trial. ``additional_args`` may also have the
    settings that are ``fixed``, the user's ``search`` space, the ``budget`` in steps, ``dict_observations``, whether networks
    are ``residual`` anyway, and whether the policy ``may_normalize`` observations.
    """
    search = additional_args.get("search")
    if search:
        return convert_scratch_ddpg_params({key: _suggest(trial, key, space) for key, space in search.items()})
    fixed, budget = additional_args.get("fixed", {}), additional_args.get("budget", 1_000_000)
    space = {name: entry for name, entry in _space_for(additional_args).items() if not _is_fixed(entry[0], fixed)}
    drawn = {name: draw(trial, name, budget) for name, (_, draw) in space.items()}
    return convert_scratch_ddpg_params(drawn, additional_args["her_kwargs"])


def _space_for(known: Mapping[str, Any]) -> dict[str, tuple[str, _Draw]]:
    space = dict(_SPACE)
    if known["using_her_replay_buffer"]:
        space |= _HINDSIGHT
    elif not known.get("dict_observations", False):
        # SB3 has no n-step returns for Dict observations.
        space["n_steps"] = ("n_steps", _one_of(1, 3, 5))
    if not known.get("may_normalize", True):
        del space["normalize_observations"]
    if known.get("residual", False):
        for name in ("net_arch", "norm", "action_layer"):
            del space[name]
        space |= _RESIDUAL
    elif (known.get("fixed", {}).get("policy_kwargs") or {}).keys() & _SIMBA.keys():
        space["net_arch"] = (_SPACE["net_arch"][0], _one_of(*NET_ARCHS))
    return space


def _is_fixed(key: str, fixed: Mapping[str, Any]) -> bool:
    if fixed.keys() & _ALSO_FIXED_BY.get(key, set()):
        return True
    group, _, part = key.partition(".")
    return part in (fixed.get(group) or {}) if part else group in fixed


def check_search(search: Any, where: str) -> None:
    """Check the form of a search space; the settings that it names are checked with all others."""
    if not isinstance(search, Mapping) or not search:
        raise ArgumentError(where, search, f"a mapping from settings to what is searched: {_SPACE_FORM}")
    for key, space in search.items():
        is_range = isinstance(space, list) and len(space) == 3 and space[2] in SCALES
        ends = space[:2] if is_range else []
        numbers = all(isinstance(end, (int, float)) and not isinstance(end, bool) for end in ends)
        fits = numbers and ends[0] < ends[1] and (ends[0] > 0 or space[2] == "linear") if is_range else bool(space)
        if not isinstance(space, list) or not fits:
            raise ArgumentError(f"{where}: {key}", space, _SPACE_FORM)


def _suggest(trial: optuna.Trial, key: str, space: list[Any]) -> Any:
    if len(space) == 3 and space[2] in SCALES:
        suggest: Any = trial.suggest_int if all(isinstance(end, int) for end in space[:2]) else trial.suggest_float
        return suggest(key, *space[:2], log=space[2] == "log")
    # Optuna's choices are numbers and text alone.
    return trial.suggest_categorical(key, list(map(json.dumps, space)))


def convert_scratch_ddpg_params(sampled_params: dict[str, Any], her_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of ScratchDDPG from a trial's parameters; the signature is RL Zoo's."""
    given, settings = dict(sampled_params), dict[str, Any]()
    if "one_minus_gamma" in given:
        settings["gamma"] = 1 - given.pop("one_minus_gamma")
    if "batch_size_pow" in given:
        settings["batch_size"] = 2 ** given.pop("batch_size_pow")
    if "train_freq" in given:
        # As many updates as transitions since the last training, for any number of environments.
        settings["gradient_steps"] = -1
    if "noise_kind" in given:
        settings["action_noise"] = _noise({name: given.pop(name) for name in list(given) if name.startswith("noise_")})
    policy_kwargs = _SIMBA if given.get("net_arch") in SIMBA_ARCHS else {}
    for name in given.keys() & {"net_arch", "residual_net_arch"}:
        given[name] = deepcopy((NET_ARCHS | SIMBA_ARCHS)[given[name]])
    if "n_sampled_goal" in given or "goal_selection_strategy" in given:
        settings["replay_buffer_kwargs"] = dict(her_kwargs or {})
    for name, value in given.items():
        key = _KEYS.get(name, name)
        group, _, part = key.partition(".")
        chosen = json.loads(value) if name == key and isinstance(value, str) else value
        if part:
            settings.setdefault(group, {})[part] = chosen
        else:
            settings[group] = chosen
    if policy_kwargs:
        settings["policy_kwargs"] |= policy_kwargs
    return settings


def _noise(given: dict[str, Any]) -> dict[str, Any] | None:
    if given["noise_kind"] is None:
        return None
    noise = {"type": given["noise_kind"], "sigma": given["noise_sigma"]}
    if given["noise_schedule"] == "linear":
        noise["final_sigma"] = given["noise_sigma"] * given["noise_final_share"]
        noise["decay_steps"] = given["noise_decay_steps"]
    return noise
