"""What a user does to a model has the effect that it has with SB3's DDPG: scenarios run for both, and outcomes are equal."""

import copy
import functools
import io
import itertools
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cloudpickle
import numpy as np
import pytest
import torch as th
from conftest import POLICY_OF, PointEnv, Written, same, snapshot
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize
from stable_baselines3.td3 import policies as sb3_policies
from threadpoolctl import threadpool_info
from torch import nn

from sb3_ddpg_scratch import DivergenceError, ResumableCheckpoint, ScratchDDPG, networks, policies
from tests.own_policies import OwnPolicy, PlainPolicy, ResidualActor, ResidualCritic, ResidualPolicy, TimidPolicy

UPDATERS = ["autograd", "analytic", "compiled"]
SMALL = {"buffer_size": 1000, "learning_starts": 20, "batch_size": 16, "seed": 0, "device": "cpu", "action_noise": None}
NET_ARCH = {"net_arch": [16, 12]}
# Six updates, and as many actions of the policy.
STEPS = 26


@dataclass(frozen=True)
class Side:
    """SB3's classes, or ours with one of the updaters."""

    algorithm: type
    td3: type
    policy: type
    actor: type
    critic: type
    settings: dict[str, Any] = field(default_factory=dict)
    # Arguments of ``policy``, which is of residual networks and takes the place of MlpPolicy.
    residual: dict[str, Any] | None = None

    def model(self, policy="MlpPolicy", env=None, algorithm=None, **settings):
        settings = SMALL | {"policy_kwargs": NET_ARCH} | self.settings | settings
        if self.residual is not None:
            policy = self.policy if policy == "MlpPolicy" else policy
            settings["policy_kwargs"] = self.residual | even(settings["policy_kwargs"])
        model = (algorithm or self.algorithm)(policy, env or PointEnv(), **settings)
        if self.residual is not None:
            # Biases begin at zero, where a first update's rounding is as large as they are.
            with th.no_grad():
                for parameter in model.policy.parameters():
                    parameter.add_(0.5 * values(*parameter.shape) if parameter.ndim == 1 else 0)
        return model

    def trained(self, *args, **settings):
        return self.model(*args, **settings).learn(STEPS)


SB3 = Side(DDPG, TD3, sb3_policies.TD3Policy, sb3_policies.Actor, ContinuousCritic)
OURS = {
    updater: Side(ScratchDDPG, ScratchDDPG, policies.MlpPolicy, networks.Actor, networks.Critic, {"updater": updater})
    for updater in UPDATERS
}
# Smooth: with a ReLU, a sum that rounds to the other side of 0 has another slope.
SMOOTH = {"activation_fn": nn.SiLU}
RESIDUAL_SB3 = Side(DDPG, TD3, ResidualPolicy, ResidualActor, ResidualCritic, residual=SMOOTH)
RESIDUAL = {
    updater: replace(side, policy=policies.SimbaPolicy, residual=SMOOTH | {"normalize_observations": False})
    for updater, side in OURS.items()
}
SCENARIOS = {}


def even(policy_kwargs):
    """These arguments with equal widths."""
    arch = policy_kwargs["net_arch"]
    lists = {name: [widths[0]] * len(widths) for name, widths in (arch if isinstance(arch, dict) else {"": arch}).items()}
    return policy_kwargs | {"net_arch": lists if isinstance(arch, dict) else lists[""]}


def scenario(*cases):
    """Register a function of a side, which runs once for each of these cases."""

    def register(function):
        for case in cases or [None]:
            name = function.__name__ + ("" if case is None else f"[{case}]")
            SCENARIOS[name] = function if case is None else functools.partial(function, case=case)
        return function

    return register


# --------------------------------------------------------------------------------------------------- what scenarios share


def update(model, updates=6):
    np.random.seed(1)
    th.manual_seed(1)
    model.train(gradient_steps=updates, batch_size=16)
    return model


def state(policy):
    """Every parameter, and every tensor that the optimizers keep, by name."""
    found = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    for network in ("actor", "critic"):
        for index, entry in getattr(policy, network).optimizer.state_dict()["state"].items():
            found |= {f"{network}.optimizer.{index}.{key}": value.clone() for key, value in entry.items()}
    return found


def after(model, updates=6):
    """What updates do: the parameters that move, and everything that they leave."""
    before = snapshot(model)
    update(model, updates)
    moved = [name for name, tensor in snapshot(model).items() if not th.equal(tensor, before[name])]
    return state(model.policy) | {"moved": moved}


def named(policy, prefix):
    """The parameters whose names begin like this."""
    found = [parameter for name, parameter in policy.named_parameters() if name.startswith(prefix)]
    assert found
    return found


def require_grad(policy, prefix, required):
    for parameter in named(policy, prefix):
        parameter.requires_grad_(required)


def raised(function):
    """The name of the exception that a function raises, or None."""
    try:
        function()
    except Exception as error:
        return type(error).__name__
    return None


def counted(function, calls):
    def wrapper(*args, **kwargs):
        calls.append(function)
        return function(*args, **kwargs)

    return wrapper


def counts(model, calls):
    """Calls in three updates, in ten steps of a rollout without updates, and in one prediction."""
    found = {}
    model.gradient_steps = 0
    parts = {
        "updates": lambda: update(model, 3),
        "rollout": lambda: model.learn(10, reset_num_timesteps=False),
        "predict": lambda: model.predict(np.zeros(3, np.float32)),
    }
    for name, part in parts.items():
        calls.clear()
        part()
        found[name] = len(calls)
    return found


def acted(model, steps=4):
    """The policy's actions in a rollout without updates."""
    first, model.gradient_steps = model.num_timesteps, 0
    model.learn(steps, reset_num_timesteps=False)
    model.gradient_steps = 1
    return model.replay_buffer.actions[first : first + steps].copy()


def values(*shape):
    """Small numbers, the same for both sides."""
    return 0.3 * th.sin(th.arange(1.0, 1 + np.prod(shape))).reshape(shape)


def linear(n_in, n_out):
    layer = nn.Linear(n_in, n_out)
    with th.no_grad():
        layer.weight.copy_(values(n_out, n_in))
        layer.bias.copy_(values(n_out))
    return layer


def replace_activation(layers, number, activation):
    """The first hidden layer's or block's, or the second's."""
    if isinstance(layers[1], nn.Sequential):
        layers[1 + number][2] = activation
    else:
        layers[1 + 2 * number] = activation


def own_step(policy):
    """A step of the actor in a loop of the user's own."""
    observations = values(4, 3)
    loss = -policy.critic.q1_forward(observations, policy.actor(observations)).mean()
    policy.actor.optimizer.zero_grad()
    loss.backward()
    policy.actor.optimizer.step()


# -------------------------------------------------------------------------------------------------- 1. touching parameters


@scenario("actor.", "actor.mu.0.weight", "actor.mu.2.", "actor.mu.4.bias", "critic.qf0.0.weight", "critic.qf0.2.")
@scenario("critic.qf0.4.bias", "actor_target.", "critic_target.")
def frozen(side, case):
    model = side.trained()
    require_grad(model.policy, case, False)
    return after(model)


@scenario("actor.", "actor.mu.2.weight", "critic.qf0.0.")
def frozen_before_training(side, case):
    model = side.model()
    require_grad(model.policy, case, False)
    return state(model.learn(STEPS).policy)


@scenario("actor.", "actor.mu.0.weight", "critic.qf0.2.bias", "critic.qf0.4.")
def frozen_for_a_while(side, case):
    model = side.trained()
    require_grad(model.policy, case, False)
    update(model, 4)
    require_grad(model.policy, case, True)
    return after(model)


@scenario("critic.", "")
def frozen_critic(side, case):
    model = side.trained()
    require_grad(model.policy, case, False)
    before = snapshot(model)
    error = raised(lambda: update(model))
    untouched = same(snapshot(model), before)
    require_grad(model.policy, case, True)
    return after(model) | {"raised": error, "untouched": untouched}


LAYERS = ["actor.mu", "actor_target.mu", "critic.qf0", "critic_target.qf0"]


@scenario(*map(".".join, itertools.product(LAYERS, ["0.weight", "2.weight", "4.weight", "4.bias"])))
def assigned_data(side, case):
    model = side.trained()
    parameter = model.policy.get_parameter(case)
    old, parameter.data = parameter.data, values(*parameter.shape)
    return {"actions": acted(model)} | after(model) | {"old": old}


@scenario("actor.mu.2.weight", "critic.qf0.0.weight", "critic_target.qf0.2.weight")
def data_that_is_not_contiguous(side, case):
    model = side.trained()
    parameter = model.policy.get_parameter(case)
    old, parameter.data = parameter.data, values(*parameter.shape[::-1]).T
    return after(model) | {"contiguous": parameter.is_contiguous(), "old": old}


@scenario("actor.", "critic.", "critic_target.")
def data_in_one_vector(side, case):
    """As ``vector_to_parameters`` leaves it: each parameter is a view."""
    model = side.trained()
    parameters = named(model.policy, case)
    old = {f"old {index}": parameter.data for index, parameter in enumerate(parameters)}
    vector = 0.9 * nn.utils.parameters_to_vector(parameters).detach()
    nn.utils.vector_to_parameters(vector, parameters)
    return {"actions": acted(model)} | after(model) | old | {"vector": vector}


@scenario(*[f"{network}.{index}" for network in LAYERS for index in (0, 4)])
def edited_in_place(side, case):
    model = side.trained()
    with th.no_grad():
        model.policy.get_submodule(case).weight.mul_(0.5)
    return after(model)


@scenario("actor.mu.0", "actor.mu.2", "critic.qf0.2", "critic_target.qf0.0")
def replaced_layer(side, case):
    """The optimizer still holds the old parameters, so that only targets move."""
    model = side.trained()
    parent, name = case.rsplit(".", 1)
    old = model.policy.get_submodule(case)
    model.policy.get_submodule(parent)[int(name)] = linear(old.in_features, old.out_features)
    return after(model)


@scenario("actor.mu.2", "critic.qf0.0")
def replaced_layer_and_optimizer(side, case):
    model = side.trained()
    parent, index = case.rsplit(".", 1)
    module = getattr(model, case.split(".")[0])
    old = model.policy.get_submodule(case)
    model.policy.get_submodule(parent)[int(index)] = linear(old.in_features, old.out_features)
    module.optimizer = th.optim.Adam(module.parameters(), lr=1e-3)
    return after(model)


@scenario("actor.mu.0.weight", "critic.qf0.4.bias", "actor_target.mu.2.weight")
def replaced_parameter(side, case):
    model = side.trained()
    module, name = case.rsplit(".", 1)
    old = model.policy.get_parameter(case)
    setattr(model.policy.get_submodule(module), name, nn.Parameter(values(*old.shape)))
    return after(model)


@scenario()
def replaced_activation(side):
    model = side.trained()
    replace_activation(model.actor.mu, 0, nn.Tanh())
    replace_activation(model.critic_target.qf0, 1, nn.ELU())
    return after(model) | {"actions": acted(model)}


@scenario()
def replaced_networks(side):
    """Of other sizes, in actor and target, with an optimizer of their own."""
    model = side.trained()
    for actor in (model.actor, model.actor_target):
        actor.mu = nn.Sequential(linear(3, 9), nn.Tanh(), linear(9, 2), nn.Tanh())
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-3)
    return after(model) | {"actions": acted(model)}


@scenario("mu.2")
def parametrized_layer(side, case):
    model = side.trained()
    for actor in (model.actor, model.actor_target):
        nn.utils.parametrizations.weight_norm(actor.get_submodule(case))
    model.actor.optimizer = th.optim.Adam(model.actor.parameters(), lr=1e-3)
    return after(model)


@scenario("policy", "actor", "critic", "critic_target")
def loaded_state_dict(side, case):
    model, other = side.trained(), side.model(seed=7)
    target, source = (m.policy if case == "policy" else getattr(m, case) for m in (model, other))
    target.load_state_dict(source.state_dict())
    return after(model)


@scenario("actor", "critic_target")
def loaded_state_dict_that_is_assigned(side, case):
    model, other = side.trained(), side.model(seed=7)
    getattr(model, case).load_state_dict(getattr(other, case).state_dict(), assign=True)
    return after(model)


@scenario("trained", "model")
def set_parameters(side, case):
    model, other = side.trained(), getattr(side, case)(seed=7)
    model.set_parameters(other.get_parameters())
    return after(model)


@scenario()
def policy_to_float64_and_back(side):
    model = side.trained()
    model.policy.to(th.float64)
    errors = [raised(lambda: update(model)), raised(lambda: model.predict(np.zeros(3, np.float32)))]
    model.policy.to(th.float32)
    return after(model) | {"raised": errors}


class AtStep(BaseCallback):
    def __init__(self, step, action):
        super().__init__()
        self.step, self.action = step, action

    def _on_step(self):
        if self.num_timesteps == self.step:
            self.action(self.model)
        return True


def _halve(model):
    with th.no_grad():
        model.actor.mu[4].weight.mul_(0.5)


def _assign(model):
    for network in (model.actor, model.critic):
        for parameter in network.parameters():
            parameter.data = values(*parameter.shape)


def _load(model):
    model.actor.load_state_dict(model.actor_target.state_dict())


def _freeze(model):
    require_grad(model.policy, "actor.mu.0", False)


EDITS = {function.__name__[1:]: function for function in (_halve, _assign, _load, _freeze)}


@scenario(*EDITS)
def edited_while_learning(side, case):
    model = side.model().learn(40, callback=AtStep(30, EDITS[case]))
    return state(model.policy) | {"actions": model.replay_buffer.actions[:40].copy()}


# -------------------------------------------------------------------------------------------------- 2. touching optimizers


class CountingAdam(th.optim.Adam):
    """An optimizer of a user's own."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.calls = []

    def step(self, closure=None):
        self.calls.append(len(self.param_groups))
        return super().step(closure)


OPTIMIZERS = {
    "Adam": functools.partial(th.optim.Adam, lr=0.1, betas=(0.7, 0.9)),
    "amsgrad": functools.partial(th.optim.Adam, amsgrad=True),
    "AdamW": functools.partial(th.optim.AdamW, weight_decay=0.5),
    "SGD": functools.partial(th.optim.SGD, momentum=0.9),
    "RMSprop": th.optim.RMSprop,
    "CountingAdam": CountingAdam,
}


@scenario(*map(" ".join, itertools.product(["actor", "critic"], OPTIMIZERS)))
def replaced_optimizer(side, case):
    model = side.trained()
    network, name = case.split()
    module = getattr(model, network)
    module.optimizer = OPTIMIZERS[name](module.parameters())
    outcome = after(model)
    return outcome | {"calls": getattr(module.optimizer, "calls", None), "lr": module.optimizer.param_groups[0]["lr"]}


@scenario("SGD", "CountingAdam", "amsgrad")
def optimizer_class(side, case):
    optimizer = OPTIMIZERS[case]
    cls, kwargs = (optimizer.func, optimizer.keywords) if isinstance(optimizer, functools.partial) else (optimizer, {})
    model = side.trained(policy_kwargs=NET_ARCH | {"optimizer_class": cls, "optimizer_kwargs": kwargs})
    return after(model) | {"calls": getattr(model.critic.optimizer, "calls", None)}


CHANGES = {"betas": (0.5, 0.8), "eps": 1e-2, "weight_decay": 0.3, "lr": 0.5, "maximize": True, "foreach": False}


@scenario(*CHANGES)
def changed_groups(side, case):
    model = side.trained()
    for network in (model.actor, model.critic):
        network.optimizer.param_groups[0][case] = CHANGES[case]
    outcome = after(model)
    return outcome | {"groups": [network.optimizer.state_dict()["param_groups"] for network in (model.actor, model.critic)]}


@scenario()
def amsgrad_that_comes_too_late(side):
    """Adam's state has no maximum then."""
    model = side.trained()
    model.critic.optimizer.param_groups[0]["amsgrad"] = True
    return {"raised": raised(lambda: update(model))}


@scenario("actor", "critic")
def two_groups(side, case):
    model = side.trained()
    module = getattr(model, case)
    weights = [parameter for parameter in module.parameters() if parameter.ndim == 2]
    biases = [parameter for parameter in module.parameters() if parameter.ndim == 1]
    module.optimizer = th.optim.Adam([{"params": weights, "weight_decay": 0.5}, {"params": biases, "betas": (0.5, 0.9)}])
    return after(model)


@scenario("actor.mu.4.", "critic.qf0.2.")
def optimizer_of_some_parameters(side, case):
    model = side.trained()
    module = getattr(model, case.split(".")[0])
    module.optimizer = th.optim.Adam(named(model.policy, case), lr=1e-3)
    return after(model)


@scenario()
def added_group(side):
    """A parameter that no network has is in the optimizer, and stays as it is."""
    model = side.trained()
    extra = nn.Parameter(values(3))
    model.actor.optimizer.add_param_group({"params": [extra]})
    return after(model) | {"extra": extra.detach().clone()}


@scenario("model", "trained")
def read_state(side, case):
    model = getattr(side, case)()
    outcome = {}
    for network in ("actor", "critic"):
        optimizer, parameters = getattr(model, network).optimizer, list(getattr(model, network).parameters())
        entries = [optimizer.state[parameter] for parameter in parameters if parameter in optimizer.state]
        kinds = [sorted((key, str(value.dtype), tuple(value.shape)) for key, value in entry.items()) for entry in entries]
        outcome |= {f"{network} entries": kinds, f"{network} others": len(optimizer.state) - len(entries)}
        outcome |= {f"{network} groups": optimizer.state_dict()["param_groups"]}
    return outcome | state(model.policy)


def _zero(optimizer, parameter):
    optimizer.state[parameter]["exp_avg"].zero_()


def _replace(optimizer, parameter):
    optimizer.state[parameter]["exp_avg"] = values(*parameter.shape)
    optimizer.state[parameter]["exp_avg_sq"] = values(*parameter.shape).square()


def _restart(optimizer, parameter):
    optimizer.state[parameter]["step"] = th.tensor(1.0)


def _forget(optimizer, parameter):
    del optimizer.state[parameter]


def _clear(optimizer, _):
    optimizer.state.clear()


def _renew(optimizer, _):
    """What ``load_state_dict`` does, with half of each moment."""
    saved = copy.deepcopy(optimizer.state_dict())
    for entry in saved["state"].values():
        entry["exp_avg"] *= 0.5
    optimizer.load_state_dict(saved)


WRITES = {function.__name__[1:]: function for function in (_zero, _replace, _restart, _forget, _clear, _renew)}


@scenario(*map(" ".join, itertools.product(["actor", "critic"], WRITES, "2")), "actor replace 5", "critic replace 5")
def written_state(side, case):
    model = side.trained()
    network, write, number = case.split()
    module = getattr(model, network)
    entries = [dict(entry) for entry in module.optimizer.state.values()]
    WRITES[write](module.optimizer, list(module.parameters())[int(number)])
    return after(model) | {f"old {index} {key}": entry[key] for index, entry in enumerate(entries) for key in entry}


@scenario()
def restored_optimizer(side):
    """An earlier state is loaded again."""
    model = side.trained()
    saved = [copy.deepcopy(network.optimizer.state_dict()) for network in (model.actor, model.critic)]
    update(model)
    for network, earlier in zip((model.actor, model.critic), saved, strict=True):
        network.optimizer.load_state_dict(earlier)
    return after(model)


@scenario(*map(" ".join, itertools.product(["actor", "critic"], ["step_pre_hook", "step_post_hook"])))
def optimizer_hook(side, case):
    model, calls = side.trained(), []
    network, kind = case.split()
    register = getattr(getattr(model, network).optimizer, f"register_{kind}")
    handle = register(lambda *_: calls.append(1))
    update(model, 3)
    handle.remove()
    return after(model) | {"calls": len(calls)}


@scenario(*map(".".join, itertools.product(["actor", "critic"], ["step", "zero_grad"])))
def optimizer_method(side, case):
    model, calls = side.trained(), []
    network, method = case.split(".")
    optimizer = getattr(model, network).optimizer
    setattr(optimizer, method, counted(getattr(optimizer, method), calls))
    return counts(model, calls)


@scenario("actor", "critic")
def learning_rate_scheduler(side, case):
    """Torch warns where ``step`` of the optimizer was not called before that of the scheduler."""
    model = side.trained()
    optimizer = getattr(model, case).optimizer
    scheduler = th.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.1)
    outcome = after(model)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scheduler.step()
    warned = sum("optimizer.step()" in str(warning.message) for warning in said)
    return outcome | after(model) | {"warned": warned, "lr": optimizer.param_groups[0]["lr"]}


@scenario()
def own_step_between(side):
    model = side.trained()
    for _ in range(3):
        own_step(model.policy)
        update(model, 2)
    return after(model)


SCHEDULES = {"function": lambda progress: 1e-3 * progress, "sb3": LinearSchedule(1e-3, 1e-4, 0.5)}


@scenario(*SCHEDULES)
def assigned_schedule(side, case):
    model = side.model()
    model.lr_schedule = SCHEDULES[case]
    return state(model.learn(STEPS).policy)


@scenario()
def overridden_learning_rates(side):
    class Held(side.algorithm):
        def _update_learning_rate(self, optimizers):
            seen.append(len(optimizers))

    seen = []
    model = side.model(algorithm=Held)
    model.critic.optimizer.param_groups[0]["lr"] = 0.02
    model.learn(STEPS)
    return state(model.policy) | {"seen": seen, "lr": model.critic.optimizer.param_groups[0]["lr"]}


@scenario()
def another_optimizer_follows_the_schedule(side):
    model = side.trained(learning_rate=lambda progress: 1e-3 * progress)
    own = th.optim.SGD([values(3).requires_grad_()], lr=0.5)
    model._update_learning_rate(own)
    return {"lr": own.param_groups[0]["lr"], "logged": float(model.logger.name_to_value["train/learning_rate"])}


# ---------------------------------------------------------------------------------------------------- 3. touching behavior


HOOKS = ["forward_hook", "forward_pre_hook", "full_backward_hook", "full_backward_pre_hook"]
MODULES = ["actor", "actor.mu.0", "critic", "critic.qf0.0", "actor_target.mu.2"]


@scenario(*map(" ".join, itertools.product(HOOKS, MODULES)))
@scenario("forward_hook actor.features_extractor", "forward_hook critic.features_extractor", "forward_hook actor.mu.4")
@scenario("forward_hook actor.mu.1", "forward_hook critic.qf0", "full_backward_hook critic.qf0", "forward_hook critic_target")
@scenario("forward_hook critic_target.qf0.4", "forward_hook policy")
def module_hook(side, case):
    model, calls = side.trained(), []
    kind, name = case.split()
    module = model.policy if name == "policy" else model.policy.get_submodule(name)
    handle = getattr(module, f"register_{kind}")(lambda *_: calls.append(1))
    outcome = counts(model, calls)
    handle.remove()
    calls.clear()
    return after(model) | outcome | {"removed": len(calls)}


@scenario("register_module_forward_hook", "register_module_full_backward_hook")
def hook_of_all_modules(side, case):
    model, calls = side.trained(), []
    handle = getattr(nn.modules.module, case)(lambda *_: calls.append(1))
    try:
        return counts(model, calls)
    finally:
        handle.remove()


@scenario("actor", "actor.mu.0", "critic.qf0.0", "actor_target", "critic_target.qf0.4")
def hook_that_changes_the_output(side, case):
    model = side.trained()
    handle = model.policy.get_submodule(case).register_forward_hook(lambda module, inputs, output: -output)
    outcome = after(model) | {"actions": acted(model)}
    handle.remove()
    return outcome | {f"{name} without": value for name, value in after(model).items()} | {"actions without": acted(model)}


@scenario("actor.mu.2", "critic.qf0.0")
def hook_that_changes_the_input(side, case):
    model = side.trained()
    model.policy.get_submodule(case).register_forward_pre_hook(lambda module, inputs: (-inputs[0],))
    return after(model)


@scenario("actor.mu.2", "critic.qf0.2")
def hook_that_changes_a_gradient(side, case):
    model = side.trained()
    module = model.policy.get_submodule(case)
    module.register_full_backward_hook(lambda module, inputs, outputs: (-inputs[0],))
    return after(model)


TRAINED = ["actor.mu.0.weight", "actor.mu.4.bias", "critic.qf0.0.weight", "critic.qf0.4.bias"]


@scenario(*map(" ".join, itertools.product(["hook", "post_accumulate_grad_hook"], TRAINED)))
def tensor_hook(side, case):
    """The actor's loss flows into the critic too, so that its hooks are called twice in an update."""
    model, grads = side.trained(), []
    kind, name = case.split()
    parameter = model.policy.get_parameter(name)
    handle = getattr(parameter, f"register_{kind}")(
        lambda tensor: grads.append((tensor.grad if kind != "hook" else tensor).clone())
    )
    outcome = counts(model, grads)
    grads.clear()
    update(model, 2)
    handle.remove()
    return after(model) | outcome | {f"grad {number}": grad for number, grad in enumerate(grads)}


@scenario(*TRAINED)
def tensor_hook_that_changes_a_gradient(side, case):
    model = side.trained()
    handle = model.policy.get_parameter(case).register_hook(lambda grad: -grad)
    outcome = after(model)
    handle.remove()
    return outcome | {f"{name} without": value for name, value in after(model).items()}


OVERRIDDEN = ["actor.forward", "actor.mu.forward", "actor.mu.0.forward", "actor.extract_features", "actor_target.forward"]
OVERRIDDEN += ["critic.forward", "critic.q1_forward", "critic.qf0.2.forward", "critic_target.forward"]


@scenario(*OVERRIDDEN, "policy._predict", "policy.predict", "policy.forward", "model.predict")
def instance_override(side, case):
    model, calls = side.trained(), []
    name, method = case.rsplit(".", 1)
    owner = {"model": model, "policy": model.policy}.get(name) or model.policy.get_submodule(name)
    setattr(owner, method, counted(getattr(owner, method), calls))
    outcome = counts(model, calls)
    delattr(owner, method)
    return after(model) | outcome


@scenario("actor.forward", "critic.forward", "critic.q1_forward", "policy._predict")
def patched_class(side, case):
    model, calls = side.trained(), []
    name, method = case.split(".")
    owner = getattr(side, name)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, method, counted(getattr(owner, method), calls))
        return counts(model, calls)


@scenario("_predict", "predict", "forward", "obs_to_tensor", "set_training_mode")
def policy_subclass(side, case):
    calls = []
    mine = type("Mine", (side.policy,), {case: counted(getattr(side.policy, case), calls)})
    return counts(side.trained(mine), calls)


def policy_with(side, network, methods):
    """A policy whose actors or critics have other methods."""
    mine = type("Mine", (getattr(side, network),), methods)

    def make(self, features_extractor=None):
        kwargs = self._update_features_extractor(getattr(self, f"{network}_kwargs"), features_extractor)
        return mine(**kwargs).to(self.device)

    return type("Policy", (side.policy,), {f"make_{network}": make})


@scenario("actor.forward", "actor._predict", "actor.extract_features", "critic.forward", "critic.q1_forward")
def network_subclass(side, case):
    calls = []
    network, method = case.split(".")
    policy = policy_with(side, network, {method: counted(getattr(getattr(side, network), method), calls)})
    return counts(side.trained(policy), calls)


@scenario("actor", "critic")
def network_subclass_that_computes_something_else(side, case):
    base = getattr(side, case).forward
    forwards = {
        "actor": lambda self, obs: 0.5 * base(self, obs),
        "critic": lambda self, obs, actions: tuple(q_values - 1 for q_values in base(self, obs, actions)),
    }
    model = side.trained(policy_with(side, case, {"forward": forwards[case]}))
    return after(model) | {"actions": model.replay_buffer.actions[:STEPS].copy()}


@scenario()
def network_subclass_with_an_act_method(side):
    calls = []
    policy = policy_with(side, "actor", {"act": lambda self, observations: calls.append(observations)})
    return counts(side.trained(policy), calls)


@scenario("predict", "_sample_action", "_store_transition", "train", "_on_step")
def algorithm_subclass(side, case):
    calls = []
    mine = type("Mine", (side.algorithm,), {case: counted(getattr(side.algorithm, case), calls)})
    return counts(side.trained(algorithm=mine), calls)


@scenario()
def algorithm_subclass_that_acts_otherwise(side):
    def predict(self, *args, **kwargs):
        actions, states = side.algorithm.predict(self, *args, **kwargs)
        return 0.5 * actions + 0.5 * self.action_space.high, states

    model = side.trained(algorithm=type("Mine", (side.algorithm,), {"predict": predict}))
    return after(model) | {"actions": model.replay_buffer.actions[:STEPS].copy()}


@scenario("actor.")
def gradients_that_stay(side, case):
    parameters = named(update(side.trained()).policy, case)
    return {f"grad {index}": parameter.grad.clone() for index, parameter in enumerate(parameters)}


class Recorder(nn.ReLU):
    """Remembers whether it was in training mode."""

    def __init__(self):
        super().__init__()
        self.modes = []

    def forward(self, x):
        self.modes.append(self.training)
        return super().forward(x)


@scenario()
def mode_of_a_replaced_layer(side):
    model = side.trained()
    recorder = Recorder()
    replace_activation(model.actor.mu, 0, recorder)
    model.learn(3, reset_num_timesteps=False)
    return {"modes": recorder.modes}


@scenario()
def own_features_extractor(side):
    calls = []
    mine = type("Mine", (FlattenExtractor,), {"forward": counted(FlattenExtractor.forward, calls)})
    return counts(side.trained(policy_kwargs=NET_ARCH | {"features_extractor_class": mine}), calls)


# ---------------------------------------------------------------------------------------------------- 4. copies and files


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
}


@scenario(*COPIES)
def copied_model(side, case):
    model = side.trained()
    twin, before = COPIES[case](model), state(model.policy)
    outcome = after(twin)
    outcome["original is untouched"] = same(state(model.policy), before)
    after(model)
    outcome["original does the same"] = same(state(model.policy), state(twin.policy))
    twin.learn(10, reset_num_timesteps=False)
    return outcome | {f"{name} later": value for name, value in state(twin.policy).items()}


@scenario(*COPIES)
def copied_untrained_model(side, case):
    model = side.model()
    twin = COPIES[case](model).learn(STEPS)
    return state(twin.policy) | {"original": same(snapshot(model), snapshot(side.model()))}


@scenario(*COPIES)
def copied_policy(side, case):
    model = side.trained()
    twin, before = COPIES[case](model.policy), state(model.policy)
    own_step(twin)
    outcome, untouched = state(twin), same(state(model.policy), before)
    update(model)
    return outcome | {"original is untouched": untouched, "copy is untouched": same(state(twin), outcome)}


@scenario(*COPIES)
def copied_actor(side, case):
    model = side.trained()
    twin = COPIES[case](model.actor)
    update(model)
    held = {id(parameter) for group in twin.optimizer.param_groups for parameter in group["params"]}
    outcome = {name: tensor.clone() for name, tensor in twin.state_dict().items()}
    return outcome | {"actions": twin(values(4, 3)).detach(), "optimizer": held == set(map(id, twin.parameters()))}


@scenario(*COPIES)
def copied_optimizer(side, case):
    model = side.trained()
    before = snapshot(model)
    twin = COPIES[case](model.critic.optimizer)
    for parameter in twin.param_groups[0]["params"]:
        parameter.grad = th.ones_like(parameter)
    twin.step()
    outcome = {f"parameter {number}": tensor.detach() for number, tensor in enumerate(twin.param_groups[0]["params"])}
    for number, entry in twin.state_dict()["state"].items():
        outcome |= {f"{number} {key}": value.clone() for key, value in entry.items()}
    return outcome | {"untouched": same(snapshot(model), before)}


@scenario(*COPIES)
def losses_of_a_copy(side, case):
    twin = COPIES[case](side.trained())
    logged = {key: twin.logger.name_to_value[f"train/{key}"] for key in ("actor_loss", "critic_loss", "learning_rate")}
    return {key: float(value) for key, value in logged.items()} | {"n_updates": twin.logger.name_to_value["train/n_updates"]}


@scenario()
def pickled_while_learning(side):
    pickles = []
    side.model().learn(40, callback=AtStep(30, lambda model: pickles.append(pickle.dumps(model))))
    return after(pickle.loads(pickles[0]))


@scenario("trained", "model")
def saved_and_loaded(side, case):
    file = io.BytesIO()
    getattr(side, case)().save(file)
    file.seek(0)
    model = side.algorithm.load(file, env=PointEnv(), device="cpu")
    outcome = state(model.policy)
    model.learn(STEPS)
    return after(model) | {f"{name} as loaded": value for name, value in outcome.items()}


def _saved(model):
    file = io.BytesIO()
    model.save(file)
    return file.getvalue()


def _torch_saved(thing):
    file = io.BytesIO()
    th.save(thing, file)
    return file.getvalue()


FORMS = {
    "pickled model": pickle.dumps,
    "pickled policy": lambda model: pickle.dumps(model.policy),
    "pickled actor": lambda model: pickle.dumps(model.actor),
    "pickled optimizer": lambda model: pickle.dumps(model.critic.optimizer),
    "cloudpickled policy": lambda model: cloudpickle.dumps(model.policy),
    "policy of a copied model": lambda model: pickle.dumps(copy.deepcopy(model).policy),
    "zip": _saved,
    "actor's state_dict": lambda model: _torch_saved(model.actor.state_dict()),
    "policy's state_dict": lambda model: _torch_saved(model.policy.state_dict()),
    "actor": lambda model: _torch_saved(model.actor),
}


@functools.lru_cache
def large_model(updater):
    side = SB3 if updater is None else OURS[updater]
    return side.trained(policy_kwargs={"net_arch": [400, 300]}, buffer_size=50)


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("form", FORMS)
def test_size(updater, form):
    theirs, ours = (len(FORMS[form](large_model(name))) for name in (None, updater))
    assert ours <= 1.05 * theirs


# ---------------------------------------------------------------------------------- environments and the replay buffer


class Integers(PointEnv):
    """Observations of whole numbers."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-10, 10, (3,), np.int64)

    def _observe(self):
        return np.round(10 * super()._observe()).clip(-10, 10).astype(np.int64)


class DoublePrecision(PointEnv):
    """Takes actions within its bounds alone, which single precision cannot represent."""

    def __init__(self):
        super().__init__()
        self.action_space = spaces.Box(-0.1, 0.1, (2,), np.float64)
        self.seen = []

    def step(self, action):
        self.seen.append(self.action_space.contains(action))
        return super().step(action / 2)


@scenario()
def normalized_integers(side):
    return state(side.trained(env=VecNormalize(DummyVecEnv([Integers]))).policy)


@scenario()
def actions_of_double_precision(side):
    env = DoublePrecision()
    noise = NormalActionNoise(np.zeros(2), np.full(2, 3.0))
    model = side.trained(env=env, action_noise=noise)
    return state(model.policy) | {"within bounds": all(env.seen), "steps": len(env.seen)}


@scenario()
def patched_get_samples(side):
    model = side.trained()
    get_samples = model.replay_buffer._get_samples
    model.replay_buffer._get_samples = lambda indices, env=None: get_samples(0 * indices, env)
    return after(model)


TRANSITIONS = {
    "number as reward": ([[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]], np.ones((1, 2)), 1.5, False),
    "one environment": (np.arange(3.0), np.arange(3.0), np.ones(2), 2.0, True),
    "lists": ([1, 2, 3], [4, 5, 6], np.ones(2), [1.5], [True]),
}


@scenario(*TRANSITIONS)
def transition_added_by_hand(side, case):
    buffer = side.model().replay_buffer
    observation, following, action, reward, done = TRANSITIONS[case]
    buffer.add(np.array(observation), np.array(following), np.array(action), np.array(reward), np.array(done), [{}])
    buffer.add(observation, following, action, reward, done, [{"TimeLimit.truncated": bool(np.all(done))}])
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    return {name: getattr(buffer, name)[:2].copy() for name in names}


# ------------------------------------------------------------------------------------------------------------- 5. loading


def run_alone(code, *arguments):
    """What a new process prints, as JSON."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    for updater in ("auto", "compiled"):
        OURS[updater if updater in OURS else "autograd"].trained(env="Pendulum-v1", updater=updater).save(folder / updater)
    return folder


@pytest.fixture(scope="module")
def in_a_new_process(files):
    """What loading, and then training, leaves in a process that has done nothing before."""
    code = """
import json, sys
sys.path.insert(0, sys.argv[2])
import numpy as np
from test_drop_in import OURS, ScratchDDPG, global_state
before = global_state()
for updater in ("auto", "compiled"):
    ScratchDDPG.load(f"{sys.argv[1]}/{updater}", device="cpu").predict(np.zeros(3, np.float32))
imported = sorted({"numba", "llvmlite"} & set(sys.modules))
for side in OURS.values():
    side.trained()
now = global_state()
print(json.dumps({"imported": imported, "changed": [name for name in before if now[name] != before[name]]}))
"""
    return run_alone(code, files, Path(__file__).parent)


def test_loading_to_predict_imports_no_numba(in_a_new_process):
    assert in_a_new_process["imported"] == []


def test_the_first_training_leaves_the_global_state(in_a_new_process):
    assert in_a_new_process["changed"] == []


def test_compiled_loads_and_trains_where_numba_is_not(files):
    code = """
import json, sys, warnings
sys.modules["numba"] = None
import gymnasium as gym
import numpy as np
from sb3_ddpg_scratch import ScratchDDPG
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    model = ScratchDDPG.load(f"{sys.argv[1]}/compiled", env=gym.make("Pendulum-v1"), device="cpu")
    model.predict(np.zeros(3, np.float32))
    model.learn(30)
    model.learn(10, reset_num_timesteps=False)
said = [str(warning.message) for warning in said if "numba" in str(warning.message).lower()]
print(json.dumps({"said": len(said), "updates": model._n_updates}))
"""
    # Six before it was saved.
    assert run_alone(code, files) == {"said": 1, "updates": 6 + 10 + 10}


@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("observation", ["image", "dict"])
def test_other_policies_of_td3_load(updater, observation):
    file = io.BytesIO()
    TD3(POLICY_OF[observation], PointEnv(observation), buffer_size=50, device="cpu").save(file)
    seen, _ = PointEnv(observation).reset(seed=0)
    actions = []
    for algorithm, settings in ((TD3, {}), (ScratchDDPG, {"updater": updater})):
        file.seek(0)
        actions.append(algorithm.load(file, device="cpu", **settings).predict(seen)[0])
    np.testing.assert_array_equal(*actions)


@scenario()
def buffer_larger_than_free_memory(side):
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        patch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1000))
        model = side.model()
    warned = sum("memory" in str(warning.message) for warning in said)
    return state(model.learn(STEPS).policy) | {"warned": warned}


# ------------------------------------------------------------------------------------- policies of a user's own, from SB3's


OWN_POLICIES = {policy.__name__: policy for policy in (OwnPolicy, PlainPolicy, TimidPolicy)}


def acting(model):
    return {"acts": model.predict(values(5, 3).numpy())[0]}


@scenario(*OWN_POLICIES)
def own_policy(side, case):
    model = side.trained(OWN_POLICIES[case])
    return after(model) | acting(model) | {"critics": model.critic.n_critics}


@scenario("TD3Policy", "MlpPolicy")
def sb3s_policy_itself(side, case):
    return after(side.trained(getattr(sb3_policies, case)))


@scenario("Registered", "MlpPolicy")
def own_policy_registered_with_td3(side, case):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TD3.policy_aliases, case, OwnPolicy)
        model = side.trained(case, policy_kwargs=NET_ARCH | {"dropout": 0.5})
    return after(model) | {"class": model.policy_class}


@scenario(*itertools.product(OWN_POLICIES, ("DDPG", "TD3")))
def own_policy_from_a_file_of_sb3s(side, case):
    policy, algorithm = OWN_POLICIES[case[0]], {"DDPG": DDPG, "TD3": TD3}[case[1]]
    file = io.BytesIO()
    SB3.trained(policy, algorithm=algorithm).save(file)
    file.seek(0)
    model = (side.td3 if algorithm is TD3 else side.algorithm).load(file, env=PointEnv(), device="cpu", **side.settings)
    return state(model.policy) | acting(model) | ({} if algorithm is TD3 else after(model.learn(STEPS)))


@scenario("copy", "pickle", "zip", "parameters")
def own_policy_taken_along(side, case):
    model, file = side.trained(OwnPolicy), io.BytesIO()
    if case == "copy":
        model = copy.deepcopy(model)
    elif case == "pickle":
        model.policy = pickle.loads(pickle.dumps(model.policy))
    elif case == "zip":
        model.save(file)
        file.seek(0)
        model = side.algorithm.load(file, env=PointEnv(), device="cpu")
    else:
        model.set_parameters(SB3.trained(OwnPolicy, seed=3).get_parameters())
    return state(model.policy) | acting(model)


class StaysInEvaluation(FlattenExtractor):
    """Dropout that a user has switched off for good."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.dropout = nn.Dropout()

    def forward(self, observations):
        return self.dropout(super().forward(observations))

    def train(self, mode=True):
        return super().train(False)


class Running(FlattenExtractor):
    """A layer whose name SB3 takes for running statistics, which it copies to the target networks."""

    def __init__(self, observation_space):
        super().__init__(observation_space)
        self.running_mean_of = nn.Linear(3, 3)

    def forward(self, observations):
        return self.running_mean_of(super().forward(observations))


@scenario(StaysInEvaluation, Running)
def own_extractor(side, case):
    return after(side.trained(env="Pendulum-v1", policy_kwargs=NET_ARCH | {"features_extractor_class": case}))


ACTIVATIONS = {
    "partial": functools.partial(nn.LeakyReLU, negative_slope=0.2),
    "function": lambda: nn.Tanh(),
    "dropout": nn.Dropout,
    "with parameters": nn.PReLU,
}


@scenario(*ACTIVATIONS)
def activations_of_all_kinds(side, case):
    return after(
        side.trained(policy_kwargs={"net_arch": {"pi": [8], "qf": [7, 6], "vf": [3]}, "activation_fn": ACTIVATIONS[case]})
    )


# -------------------------------------------------------------------------------------------------------- 6. global state


def global_state():
    return {
        "threads of torch": th.get_num_threads(),
        "precision of oneDNN": th.backends.mkldnn.matmul.fp32_precision if hasattr(th.backends, "fp32_precision") else None,
        "precision of torch": th.get_float32_matmul_precision(),
        "dtype": th.get_default_dtype(),
        "gradients": th.is_grad_enabled(),
        "deterministic": th.are_deterministic_algorithms_enabled(),
        "NumPy's errors": np.geterr(),
        "environment": dict(os.environ),
        "switch interval": sys.getswitchinterval(),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        **{library["filepath"]: library["num_threads"] for library in threadpool_info()},
    }


@scenario([16, 12], [128, 96])
def global_state_after_training_in_two_threads(side, case):
    side.trained()
    models = [side.model(policy_kwargs={"net_arch": case}, batch_size=64, learning_starts=60, seed=seed) for seed in (0, 1)]
    inside = []

    def work(model):
        before = np.geterr(), th.is_grad_enabled(), th.get_num_threads()
        model.learn(100)
        inside.append(before == (np.geterr(), th.is_grad_enabled(), th.get_num_threads()))

    before = global_state()
    threads = [threading.Thread(target=work, args=(model,)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    now = global_state()
    updates = [model._n_updates for model in models]
    return {"changed": [name for name in before if now[name] != before[name]], "inside": inside, "updates": updates}


@scenario(0, 1, STEPS)
def copy_of_the_environment(side, case):
    env = PointEnv()
    model = side.model(env=env)
    model.learn(case)
    twin, vec_env = copy.deepcopy(env), copy.deepcopy(model.get_env())
    twin.step(env.action_space.low)
    vec_env.step(env.action_space.low[None])
    attributes = [sorted(vars(thing)) for thing in (env, model.get_env(), model.get_env().envs[0])]
    return {"clocks": [env.clock, twin.clock, vec_env.envs[0].unwrapped.clock], "attributes": attributes}


# ------------------------------------------------------------------------------------------------------ 7. small promises


@scenario()
def no_updates(side):
    model = side.trained()
    before = state(model.policy)
    np.random.seed(1)
    drawn = np.random.get_state()[1].tolist()
    model.train(gradient_steps=0, batch_size=16)
    untouched = same(state(model.policy), before), np.random.get_state()[1].tolist() == drawn
    return after(model) | {"untouched": untouched}


@scenario()
def no_updates_before_anything_is_stored(side):
    model = side.model(learning_starts=100).learn(3)
    model.train(0)
    return snapshot(model)


@scenario()
def tau_of_zero(side):
    model = side.trained(tau=0.0)
    return after(model)


@scenario()
def tau_of_one(side):
    model = side.trained(tau=1.0)
    return after(model)


@scenario(1, 7, (1, "episode"))
def logged_numbers(side, case):
    written = Written()
    model = side.model(env=PointEnv(length=12), learning_rate=lambda left: 1e-4 + 1e-3 * left, train_freq=case)
    model.set_logger(Logger(folder=None, output_formats=[written]))
    model.learn(100, log_interval=1)
    exact = ("train/learning_rate", "train/n_updates", "time/total_timesteps", "time/episodes")
    outcome = {name: [row.get(name) for row in written.rows] for name in exact}
    losses = [[row.get(f"train/{name}", np.nan) for name in ("actor_loss", "critic_loss")] for row in written.rows]
    return outcome | {"losses": np.array(losses, float)}


@scenario(2, 7)
def logged_losses_with_a_policy_delay(side, case):
    written, settings = Written(), {"policy_delay": case, "target_policy_noise": 0.2, "target_noise_clip": 0.5}
    critics = NET_ARCH | {"n_critics": 2}
    model = side.model(env=PointEnv(length=12), algorithm=side.td3, policy_kwargs=critics, **settings)
    model.set_logger(Logger(folder=None, output_formats=[written]))
    model.learn(100, log_interval=1)
    losses = [[row.get(f"train/{name}", np.nan) for name in ("actor_loss", "critic_loss")] for row in written.rows]
    return {"losses": np.array(losses, float)}


@scenario()
def action_noise(side):
    model = side.trained(action_noise=NormalActionNoise(np.zeros(2), np.full(2, 0.3)))
    return state(model.policy) | {"actions": model.replay_buffer.actions[:STEPS].copy()}


@scenario()
def smoothing_far_beyond_the_bounds(side):
    """TD3, whose smoothed actions are nearly all clipped to [-1, 1]."""
    settings = {"policy_delay": 2, "target_policy_noise": 5.0, "target_noise_clip": 5.0}
    model = side.trained(algorithm=side.td3, policy_kwargs=NET_ARCH | {"n_critics": 2}, **settings)
    return after(model, 12)


# ---------------------------------------------------------------------------------------------------------- the comparison


@functools.lru_cache
def sb3s_outcome(name):
    return SCENARIOS[name](SB3)


def residual_outcome(name, side):
    """Where an MLP's second layer is, a residual network has a block, whose second layer is linear."""
    function = SCENARIOS[name]
    case = getattr(function, "keywords", {}).get("case")
    if isinstance(case, str):
        function = functools.partial(function, case=re.sub(r"\b(mu|qf0)\.2\b", r"\1.2.1", case))
    return function(side)


def close(found, expected, exact, rounding=1e-4):
    """Whether arrays are equal: to the last bit, or but for rounding, of the largest value."""
    found, expected = np.asarray(found), np.asarray(expected)
    if exact or not np.issubdtype(expected.dtype, np.floating):
        return found.dtype == expected.dtype and np.array_equal(found, expected, equal_nan=True)
    tolerance = rounding * np.nanmax(np.abs(expected), initial=1e-12)
    return found.shape == expected.shape and np.allclose(found, expected, rtol=0, atol=tolerance, equal_nan=True)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("name", SCENARIOS)
def test_same_outcome_as_sb3(name, updater):
    check_same(sb3s_outcome(name), SCENARIOS[name](OURS[updater]), updater)


@functools.lru_cache
def residual_outcome_of_sb3(name):
    return residual_outcome(name, RESIDUAL_SB3)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@pytest.mark.parametrize("updater", UPDATERS)
@pytest.mark.parametrize("name", [name for name in SCENARIOS if not name.startswith(("own_policy", "sb3s_policy"))])
def test_same_outcome_with_residual_networks(name, updater):
    # Layer normalization takes differences of sums, whose rounding it enlarges.
    check_same(residual_outcome_of_sb3(name), residual_outcome(name, RESIDUAL[updater]), updater, rounding=1e-3)


def check_same(expected, found, updater, rounding=1e-4):
    assert found.keys() == expected.keys()
    numbers = [key for key, value in expected.items() if isinstance(value, (th.Tensor, np.ndarray, float))]
    for key in expected.keys() - set(numbers):
        assert found[key] == expected[key], key
    different = [key for key in numbers if not close(found[key], expected[key], updater == "autograd", rounding)]
    assert not different


# ------------------------------------------------------------------------------------------------------- ours alone


@pytest.mark.parametrize(("updater", "times"), [("autograd", 0), ("analytic", 1), ("compiled", 1)])
def test_one_warning_names_the_reason(updater, times):
    model = OURS[updater].trained()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        handle = model.actor.mu[0].register_forward_hook(lambda *_: None)
        for _ in range(3):
            update(model)
        model.learn(5, reset_num_timesteps=False)
        handle.remove()
        update(model)
    assert sum("hook" in str(warning.message) for warning in said) == times


@pytest.mark.parametrize("updater", UPDATERS)
def test_divergence_of_the_actor_alone(updater):
    """The actor is broken, and its target is not: the critic's loss is finite in the first update."""
    model = OURS[updater].trained()
    with th.no_grad():
        model.actor.mu[4].bias.fill_(np.nan)
    with pytest.raises(DivergenceError, match="actor_loss=nan"):
        update(model, 1)


@pytest.mark.parametrize("updater", UPDATERS)
def test_time_of_the_interrupted_training_counts(tmp_path, updater):
    def begin_an_hour_ago(model):
        model.start_time -= 3600 * 10**9

    seen = []
    model = OURS[updater].model()
    model.learn(60, callback=[AtStep(1, begin_an_hour_ago), ResumableCheckpoint(tmp_path, every=40, keep=9)])
    resumed = ScratchDDPG.resume(tmp_path / "step_000000000040", PointEnv())
    resumed.learn(60, callback=AtStep(50, lambda model: seen.append((time.time_ns() - model.start_time) / 1e9)))
    assert 3600 <= seen[0] < 3660
