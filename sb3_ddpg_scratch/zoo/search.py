"""The search space of ``train --algo scratch_ddpg -optimize``."""

from typing import Any

import optuna
import torch as th

NET_ARCHS: dict[str, list[int]] = {"small": [64, 64], "medium": [256, 256], "big": [400, 300], "large": [256, 256, 256]}
# Widths of residual blocks, with which layers are normalized and the action joins at the input.
SIMBA_ARCHS = {"simba": {"pi": [64], "qf": [128]}, "large simba": {"pi": [128], "qf": [256, 256]}}


def sample_scratch_ddpg_params(
    trial: optuna.Trial, n_actions: int, n_envs: int, additional_args: dict[str, Any]
) -> dict[str, Any]:
    """
    Sample settings of ScratchDDPG; the signature is RL Zoo's. Each value is a named number, string or ``None``, from
    which :func:`convert_scratch_ddpg_params` rebuilds the settings of a stored trial.
    """
    params: dict[str, Any] = {
        "one_minus_gamma": trial.suggest_float("one_minus_gamma", 1e-4, 0.03, log=True),
        "learning_rate": trial.suggest_float("learning_rate", 1e-5, 2e-3, log=True),
        "qf_learning_rate": trial.suggest_float("qf_learning_rate", 1e-5, 1e-2, log=True),
        "tau": trial.suggest_float("tau", 1e-3, 0.08, log=True),
        "batch_size_pow": trial.suggest_int("batch_size_pow", 4, 10),
        "train_freq": trial.suggest_int("train_freq", 1, 10),
        "max_grad_norm": trial.suggest_categorical("max_grad_norm", [None, 0.5, 1.0, 10.0]),
        "net_arch": trial.suggest_categorical("net_arch", [*NET_ARCHS, *SIMBA_ARCHS]),
        "norm": trial.suggest_categorical("norm", [None, "layer", "batch"]),
        "action_layer": trial.suggest_int("action_layer", 0, 1),
        # Always sample all of the noise, even if unused: the Zoo's TPE sampler draws parameters jointly only if every
        # trial has the same ones.
        "noise_kind": trial.suggest_categorical("noise_kind", [None, "gaussian", "ou", "pink"]),
        "noise_sigma": trial.suggest_float("noise_sigma", 0.01, 0.5, log=True),
        "noise_schedule": trial.suggest_categorical("noise_schedule", ["constant", "linear"]),
        "noise_final_share": trial.suggest_float("noise_final_share", 0.0, 1.0),
        "noise_decay_steps": trial.suggest_int("noise_decay_steps", 1_000, 1_000_000, log=True),
    }
    if trial.user_attrs.get("may_normalize", True):
        params["normalize_observations"] = trial.suggest_categorical("normalize_observations", [False, True])
    if additional_args["using_her_replay_buffer"]:
        params["n_sampled_goal"] = trial.suggest_int("n_sampled_goal", 1, 5)
        strategies = ["final", "episode", "future"]
        params["goal_selection_strategy"] = trial.suggest_categorical("goal_selection_strategy", strategies)
    elif not trial.user_attrs.get("dict_observations", False):
        # SB3 has no n-step returns for Dict observations.
        params["n_steps"] = trial.suggest_categorical("n_steps", [1, 3, 5])

    trial.set_user_attr("gamma", 1 - params["one_minus_gamma"])
    trial.set_user_attr("batch_size", 2 ** params["batch_size_pow"])
    return convert_scratch_ddpg_params(params, additional_args["her_kwargs"])


def convert_scratch_ddpg_params(sampled_params: dict[str, Any], her_kwargs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Arguments of ScratchDDPG from a trial's parameters; the signature is RL Zoo's."""
    given = dict(sampled_params)
    settings: dict[str, Any] = {
        "gamma": 1 - given["one_minus_gamma"],
        "batch_size": 2 ** given["batch_size_pow"],
        # As many updates as transitions since the last training, for any number of environments.
        "gradient_steps": -1,
        "action_noise": _noise(given),
        "policy_kwargs": _policy_kwargs(given),
    }
    for name in ("learning_rate", "qf_learning_rate", "tau", "train_freq", "max_grad_norm", "n_steps"):
        if name in given:
            settings[name] = given[name]
    if "n_sampled_goal" in given:
        goals = {name: given[name] for name in ("n_sampled_goal", "goal_selection_strategy")}
        settings["replay_buffer_kwargs"] = (her_kwargs or {}) | goals
    return settings


def _policy_kwargs(given: dict[str, Any]) -> dict[str, Any]:
    kind, normalizes = given["net_arch"], {"normalize_observations": given.get("normalize_observations", False)}
    if kind in SIMBA_ARCHS:
        return normalizes | {"net_arch": SIMBA_ARCHS[kind].copy(), "scale_factor": 4, "optimizer_class": th.optim.AdamW}
    return normalizes | {"net_arch": NET_ARCHS[kind].copy(), "norm": given["norm"], "action_layer": given["action_layer"]}


def _noise(given: dict[str, Any]) -> dict[str, Any] | None:
    if given["noise_kind"] is None:
        return None
    noise = {"type": given["noise_kind"], "sigma": given["noise_sigma"]}
    if given["noise_schedule"] == "linear":
        noise["final_sigma"] = given["noise_sigma"] * given["noise_final_share"]
        noise["decay_steps"] = given["noise_decay_steps"]
    return noise
