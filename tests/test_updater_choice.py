"""Which updater a model trains by: a rule, the same on every machine, and a warning where it cannot be followed."""

import subprocess
import sys
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from conftest import Observing
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.torch_layers import FlattenExtractor

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.updates import inspection


def make_model(env="Pendulum-v1", **settings):
    settings = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 100, "learning_starts": 4, "batch_size": 4} | settings
    return ScratchDDPG("MlpPolicy", env, device="cpu", **settings)


def name_of(model) -> str:
    return model._updater.pick(model._networks()).name


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setattr(inspection, "compiler_installed", lambda: False)


def test_auto_compiles_whatever_the_size():
    for net_arch, batch_size in (([8], 4), ([64, 64], 64), ([400, 300], 256), ([1024, 1024], 1024)):
        assert name_of(make_model(policy_kwargs={"net_arch": net_arch}, batch_size=batch_size)) == "compiled"
    assert name_of(make_model(updater="analytic")) == "analytic"
    assert name_of(make_model(updater="autograd")) == "autograd"


@pytest.mark.usefixtures("without_compiler")
def test_auto_is_analytic_where_nothing_compiles():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model().learn(10)
    assert name_of(model) == "analytic"
    with pytest.warns(UserWarning, match=r"pip install numba scipy"):
        assert name_of(make_model(updater="compiled").learn(10)) == "analytic"


@pytest.mark.parametrize(
    ("policy_kwargs", "word", "instead"),
    [
        ({"norm": "batch"}, "BatchNorm", "autograd"),
        ({"activation_fn": th.nn.Softsign}, "Softsign", "autograd"),
        # Whatever the optimizer is, the analytic updater leaves the step to it.
        ({"optimizer_class": th.optim.SGD}, "Adam", "analytic"),
        ({"optimizer_kwargs": {"amsgrad": True}}, "amsgrad", "analytic"),
    ],
)
def test_what_cannot_be_compiled_falls_back_or_says_why(policy_kwargs, word, instead, capsys):
    policy_kwargs = {"net_arch": [8]} | policy_kwargs
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = make_model(policy_kwargs=policy_kwargs).learn(8)
    assert name_of(model) == instead
    assert "updater" not in capsys.readouterr().out
    with pytest.warns(UserWarning, match=word):
        make_model(policy_kwargs=policy_kwargs, updater="compiled").learn(8)


def one_after_another(*kinds):
    made = iter(kinds)
    return lambda: next(made)()


# Functions that return an ``activation_fn``, hidden layers, and the updater that supports both.
ACTIVATIONS = {
    "partial": (lambda: partial(th.nn.Tanh), [8], "compiled"),
    "function": (lambda: lambda: th.nn.SiLU(), [8, 8], "compiled"),
    "constants": (lambda: partial(th.nn.LeakyReLU, negative_slope=0.2), [8], "analytic"),
    # Of the actor, its target, the critic and its target.
    "two": (lambda: one_after_another(th.nn.Tanh, th.nn.Tanh, th.nn.ELU, th.nn.ELU), [8], "analytic"),
    "critic's": (lambda: th.nn.Tanh, {"pi": [], "qf": [8]}, "compiled"),
    "none": (lambda: th.nn.Softsign, [], "compiled"),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_activation_is_what_the_function_made(name):
    activation_fn, net_arch, updater = ACTIVATIONS[name]
    settings = {"buffer_size": 100, "learning_starts": 10, "batch_size": 8, "seed": 0, "device": "cpu", "action_noise": None}

    def trained(model_class):
        policy_kwargs = {"net_arch": net_arch, "activation_fn": activation_fn()}
        return model_class("MlpPolicy", "Pendulum-v1", policy_kwargs=policy_kwargs, **settings).learn(60)

    expected, model = trained(DDPG).policy.state_dict(), trained(ScratchDDPG)
    assert model.updater_in_use == updater
    for key, tensor in model.policy.state_dict().items():
        th.testing.assert_close(tensor, expected[key], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("space", "cure"),
    [
        (spaces.Box(0, 200, (2,), np.int32), None),
        (spaces.Box(0, 255, (5,), np.uint8), None),
        (spaces.MultiBinary([2, 3]), None),
        (spaces.Dict(obs=spaces.Box(-1, 1, (2,)), time=spaces.Box(0, 100, (1,), np.int32)), None),
        (spaces.Discrete(3), "FlattenObservation"),
        (spaces.Dict(a=spaces.MultiDiscrete([3, 2]), b=spaces.MultiBinary(2)), "FlattenObservation"),
        (spaces.Box(0, 2**30, (2,), np.int64), "closer bounds"),
    ],
)
def test_whole_numbers_are_compiled_or_say_what_to_do(space, cure):
    def make(env, **settings):
        policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
        given = {
            "policy_kwargs": {"net_arch": [8]},
            "buffer_size": 100,
            "learning_starts": 4,
            "batch_size": 4,
            "device": "cpu",
        }
        return ScratchDDPG(policy, env, **given | settings)

    env = Observing(space)
    if cure is None:
        assert make(env).learn(10).updater_in_use == "compiled"
        return
    assert make(env).learn(10).updater_in_use == "analytic"
    with pytest.warns(UserWarning, match=cure):
        make(env, updater="compiled").learn(10)
    if cure == "FlattenObservation":
        assert make(gym.wrappers.FlattenObservation(env)).learn(10).updater_in_use == "compiled"


def said_by(model, capsys):
    """What ``learn`` says about the updater."""
    capsys.readouterr()
    model.learn(8)
    return [line for line in capsys.readouterr().out.splitlines() if "updater" in line]


class OwnExtractor(FlattenExtractor):
    pass


def test_the_first_training_says_which_updater_it_is_and_every_reason(tmp_path, capsys):
    policy_kwargs = {
        "net_arch": [8],
        "norm": "batch",
        "activation_fn": th.nn.Softsign,
        "features_extractor_class": OwnExtractor,
    }
    policy_kwargs |= {"optimizer_class": th.optim.SGD}
    model = make_model(policy_kwargs=policy_kwargs, verbose=1)
    assert model.updater_in_use == "autograd"
    (line,) = said_by(model, capsys)
    start = "Training with the 'autograd' updater, about 15 x slower than 'compiled': "
    assert line.startswith(start)
    reasons = {"norm='batch'", "activation Softsign", "features extractor OwnExtractor"}
    reasons |= {f"{name}.optimizer is not a plain Adam or AdamW" for name in ("actor", "critic")}
    assert set(line.removeprefix(start).removesuffix(".").split(", ")) == reasons
    assert said_by(model, capsys) == []
    model.save(tmp_path / "model")
    ScratchDDPG.load(tmp_path / "model").predict(model.observation_space.sample())
    assert "updater" not in capsys.readouterr().out


def test_the_fast_updater_needs_no_reason(capsys):
    model = make_model(verbose=1)
    assert model.updater_in_use == "compiled"
    assert said_by(model, capsys) == ["Training with the 'compiled' updater."]
    model.actor.mu[0].weight.requires_grad_(False)
    assert model.updater_in_use == "autograd"


@pytest.mark.usefixtures("without_compiler")
def test_without_a_compiler_the_first_training_says_so(capsys):
    (line,) = said_by(make_model(verbose=1), capsys)
    assert line.startswith(
        "Training with the 'analytic' updater, about 15 x slower than 'compiled': Numba and SciPy cannot be"
    )


def test_a_warning_names_what_was_changed_once(recwarn):
    model = make_model().learn(10)
    for _ in range(2):
        model.actor.mu[0].weight.requires_grad_(False)
        model.train(1, 4)
        model.train(1, 4)
        model.actor.mu[0].weight.requires_grad_(True)
        model.train(1, 4)
    said = [str(warning.message) for warning in recwarn if "Using the" in str(warning.message)]
    assert len(said) == 1
    assert "'autograd'" in said[0]
    assert "actor.mu.0.weight is frozen" in said[0]
    assert name_of(model) == "compiled"


def test_a_file_that_names_an_updater_loads_without_it(tmp_path, monkeypatch):
    make_model(updater="compiled").learn(10).save(tmp_path / "model")
    monkeypatch.setattr(inspection, "compiler_installed", lambda: False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loaded = ScratchDDPG.load(tmp_path / "model", env=make_model().env, device="cpu")
        loaded.learn(20)
    said = [str(warning.message) for warning in caught if "Using the" in str(warning.message)]
    assert len(said) == 1
    assert "Numba" in said[0]
    assert loaded.updater == "compiled"
    assert loaded._n_updates > 0


def test_predicting_imports_no_compiler(tmp_path):
    make_model().learn(10).save(tmp_path / "model")
    code = f"""
import sys
from sb3_ddpg_scratch import ScratchDDPG
model = ScratchDDPG.load({str(tmp_path / "model")!r}, device="cpu")
model.predict(model.observation_space.sample())
assert not {{"numba", "scipy"}} & sys.modules.keys()
"""
    subprocess.run([sys.executable, "-c", code], check=True)
