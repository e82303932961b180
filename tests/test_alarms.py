"""What a training warns of by itself, once; and that looking for it changes nothing."""

import warnings

import numpy as np
import pytest
import torch as th
from conftest import Observing, same, snapshot
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_ddpg_scratch import ScratchDDPG, alarms
from sb3_ddpg_scratch.model_file import load_vec_normalize

SMALL = {"buffer_size": 500, "learning_starts": 20, "batch_size": 8, "seed": 0, "device": "cpu"}


class Process(Observing):
    """A concentration beside a pressure; ``sizes`` are those of the observations."""

    def __init__(self, sizes=(0.5, 3e5), keys=()):
        box = spaces.Box(-np.inf, np.inf, (len(sizes),), np.float32)
        super().__init__(spaces.Dict({key: box for key in keys}) if keys else box)
        self.sizes, self.keys = np.array(sizes), keys

    def _observe(self):
        seen = (self.sizes * self.np_random.uniform(0.9, 1.1, len(self.sizes))).astype(np.float32)
        return dict.fromkeys(self.keys, seen) if self.keys else seen

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self._observe(), {}

    def step(self, action):
        return self._observe(), -float(np.square(action).mean()), False, self.np_random.random() > 0.9, {}


def make(env, policy="MlpPolicy", **settings):
    return ScratchDDPG(policy, env, **SMALL | {"policy_kwargs": {"net_arch": [16]}} | settings)


def warned(act):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        act()
    assert all(warning.filename == __file__ for warning in caught), "a warning names the user's line"
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize(
    ("noise", "converted"),
    [
        ({"type": "ou", "sigma": 20}, "here 13.3, 16"),
        ({"type": "gaussian", "sigma": 1.5, "final_sigma": 0.1, "decay_steps": 10}, "here 1, 1.2"),
        (NormalActionNoise(np.zeros(2), np.array([0.1, 3.0])), "here 0.0667, 2.4"),
        ({"type": "ou", "sigma": 1}, None),
        (None, None),
    ],
)
def test_a_sigma_above_one_is_named_once_with_what_it_is_in_normalized_units(noise, converted):
    # Half the widths of the actions' ranges are 1.5 and 1.25.
    model = make(Observing(spaces.Box(-1, 1, (2,))), action_noise=noise)
    said = [warned(lambda: model.learn(30)), warned(lambda: model.learn(30))]
    assert [len(texts) for texts in said] == [int(converted is not None), 0]
    assert converted is None or converted in said[0][0]


@pytest.mark.parametrize("updater", ["autograd", "compiled"])
@pytest.mark.parametrize("keys", [(), ("a", "b")])
def test_observations_spread_over_six_magnitudes_are_named_once(updater, keys):
    model = make(Process(keys=keys), "MultiInputPolicy" if keys else "MlpPolicy", updater=updater)
    (text,) = (text for text in warned(lambda: model.learn(400)) if text.startswith("Observations"))
    name = "observation['a']" if keys else "observation"
    assert f"{name}[0] is of size 0.5 where {name}[1] is of size 3e+05" in text
    assert "VecNormalize(" in text
    model._alarms.next_look = 0
    assert not any(text.startswith("Observations") for text in warned(lambda: model.learn(100)))


@pytest.mark.parametrize("sizes", [(0.5, 3e5, 0.0), (2e4, 3e4)])
def test_normalized_or_moderate_observations_are_no_reason(sizes):
    for env in (VecNormalize(make_vec_env(lambda: Process(sizes), seed=0)), Process((0.01, 5.0)), Process((0.0, 1e-9, 1.0))):
        assert not any(text.startswith("Observations") for text in warned(lambda env=env: make(env).learn(300)))
    assert any(text.startswith("Observations") for text in warned(lambda: make(Process(sizes)).learn(300)))
    own = {"policy_kwargs": {"net_arch": [16], "normalize_observations": True}}
    for keys, policy in (((), "MlpPolicy"), (("a", "b"), "MultiInputPolicy")):
        texts = warned(lambda keys=keys, policy=policy: make(Process(sizes, keys), policy, **own).learn(300))
        assert not any(text.startswith("Observations") for text in texts)


def push(model, bias):
    """An actor whose every action is tanh(bias)."""
    with th.no_grad():
        model.actor.mu[-2].weight.zero_()
        model.actor.mu[-2].bias.fill_(bias)
    return model


@pytest.mark.parametrize("updater", ["autograd", "analytic", "compiled"])
def test_saturated_actions_and_a_gradient_of_exactly_0(updater):
    env = Observing(spaces.Box(-1, 1, (3,)))
    # tanh(3.1) is 0.996, and 1 - tanh(20)^2 is 0 in float32.
    texts = warned(lambda: push(make(env, updater=updater, learning_rate=1e-9), 3.1).learn(600))
    assert [text[:4] for text in texts] == ["100%"]
    texts = warned(lambda: push(make(env, updater=updater), 20.0).learn(600))
    assert sorted(text[:12] for text in texts) == ["100% of the ", "The actor's "]
    assert warned(lambda: make(env, updater=updater).learn(600)) == []


def test_a_frozen_actor_has_no_gradient_and_needs_no_warning():
    model = make(Observing(spaces.Box(-1, 1, (3,))), updater="autograd")
    model.actor.requires_grad_(False)
    assert alarms.look(model, {"actor_grad_norm": 0.0}) is None
    model.actor.requires_grad_(True)
    assert len(warned(lambda: alarms.look(model, {"actor_grad_norm": 0.0}))) == 1


class Drawing(nn.Tanh):
    """A layer that draws random numbers, and is in training mode."""

    def forward(self, x):
        assert self.training or th.rand(1) < 1
        return super().forward(x) + 0 * th.rand(1)


def test_looking_changes_no_training(monkeypatch):
    def trained():
        return make(Process((0.5, 0.7)), policy_kwargs={"net_arch": [16], "activation_fn": Drawing}).learn(900)

    looked = trained()
    assert looked._alarms.next_look > 400
    monkeypatch.setattr(alarms, "look", lambda *_: None)
    assert same(snapshot(looked), snapshot(trained()))


def test_a_model_of_normalized_observations_warns_of_raw_ones(tmp_path):
    env = VecNormalize(make_vec_env(Process, seed=0), clip_obs=5.0)
    model = make(env).learn(60)
    raw = env.unwrapped.envs[0].reset(seed=1)[0]
    assert warned(lambda: [model.predict(env.normalize_obs(raw)), model.predict(np.full(2, -5.0, np.float32))]) == []
    assert warned(lambda: model.predict(np.full(2, np.nan, np.float32))) == []
    (text,) = warned(lambda: [model.predict(raw), model.predict(raw)])
    assert "within ±5" in text
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model")
    assert len(warned(lambda: loaded.predict(raw))) == 1
    np.testing.assert_array_equal(loaded.predict(raw)[0], model.predict(raw)[0])
    # Without VecNormalize, raw observations are the right ones.
    loaded = ScratchDDPG.load(tmp_path / "model", env=Process((0.5, 0.7)))
    loaded.learn(30)
    assert warned(lambda: loaded.predict(raw)) == []
    # SB3 reads the file all the same.
    assert DDPG.load(tmp_path / "model", custom_objects={"action_noise": None}).predict(raw)[0].shape == (2,)


def test_only_the_normalized_parts_of_a_dict_are_looked_at():
    env = VecNormalize(make_vec_env(lambda: Process(keys=("raw", "scaled")), seed=0), norm_obs_keys=["scaled"])
    model = make(env, "MultiInputPolicy")
    texts = warned(lambda: model.learn(300))
    assert any("observation['raw'][0] is of size 0.5 where observation['raw'][1] is of size 3e+05" in text for text in texts)
    big, small = np.full(2, 1e6, np.float32), np.zeros(2, np.float32)
    assert warned(lambda: model.predict({"raw": big, "scaled": small})) == []
    assert len(warned(lambda: model.predict({"raw": small, "scaled": big}))) == 1


def test_observations_that_are_no_arrays_get_sb3s_own_error():
    model = make(VecNormalize(make_vec_env(Process, seed=0))).learn(30)
    with pytest.raises(ValueError, match="tuple"):
        model.predict((np.zeros(2, np.float32), {}))


def test_statistics_that_are_not_the_loaded_models_own(tmp_path):
    def env(statistics=None, **settings):
        venv = make_vec_env(Process, 1, seed=1)
        if statistics is not None:
            return load_vec_normalize(statistics, venv)
        return VecNormalize(venv, **settings) if settings else venv

    trained = make(env(clip_obs=9.0)).learn(40)
    trained.save(tmp_path / "model")
    trained.get_vec_normalize_env().save(tmp_path / "own.pkl")
    make(env()).learn(40).save(tmp_path / "raw")

    def said(path, given, act, later=False):
        model = ScratchDDPG.load(tmp_path / path, None if later else given, device="cpu", learning_starts=1000)
        model.set_env(given)
        texts = warned(lambda: act(model)) + warned(lambda: act(model))
        return [text for text in texts if text.startswith("The model was trained on")]

    learns, predicts = lambda model: model.learn(2), lambda model: model.predict(np.zeros((1, 2), np.float32))
    for act, later in ((learns, False), (learns, True), (predicts, False)):
        (text,) = said("model", env(clip_obs=9.0), act, later)
        assert "that VecNormalize normalized, and its environment normalizes them by other statistics" in text
        assert "load_vec_normalize(path" in text
        (text,) = said("model", env(), act, later)
        assert "its environment does not" in text
        (text,) = said("raw", env(clip_obs=9.0), act, later)
        assert "as they are, and its environment normalizes them" in text
        # Its own, also where a step was made since; and those that no longer matter.
        own = env(tmp_path / "own.pkl")
        assert not said("model", own, lambda model, act=act: (model.get_env().reset(), act(model)), later and act is predicts)
        assert not said("raw", env(norm_obs=False), act, later)
        assert not said("raw", env(), act, later)
    # Files of other versions do not say.
    DDPG("MlpPolicy", env(clip_obs=9.0), **SMALL).learn(30).save(tmp_path / "model")
    assert not said("model", env(clip_obs=9.0), learns)
