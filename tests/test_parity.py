"""ScratchDDPG's parameters and optimizer entries against SB3's own, bit for bit, and the command that shows it."""

import copy
import json
from functools import partial

import numpy as np
import pytest
import torch as th
from conftest import Observing, PointEnv
from gymnasium import spaces
from stable_baselines3 import DDPG, TD3, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise, OrnsteinUhlenbeckActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.td3 import policies as sb3_policies
from torch import nn
from typer.testing import CliRunner

from sb3_ddpg_scratch import OUNoise, ScratchDDPG
from sb3_ddpg_scratch.cli import app
from sb3_ddpg_scratch.parity import ParityResult, compare_models, difference, flatten, run_parity
from tests.goal_envs import Reach
from tests.own_policies import OwnPolicy, PlainPolicy, TimidPolicy

STEPS = 1000
TD3_SWITCHES = {"policy_delay": 2, "target_policy_noise": 0.2, "target_noise_clip": 0.5}


def gaussian(env):
    zeros = np.zeros(env.action_space.shape)
    return NormalActionNoise(zeros, zeros + 0.1)


def ornstein_uhlenbeck(env):
    zeros = np.zeros(env.action_space.shape)
    return OrnsteinUhlenbeckActionNoise(zeros, zeros + 0.2)


# Name: (policy, environment, number of environments, arguments, TD3)
CASES = {
    "one environment": ("MlpPolicy", "Pendulum-v1", 1, {}, False),
    "four environments": ("MlpPolicy", "Pendulum-v1", 4, {"gradient_steps": -1}, False),
    "four environments, a step of four": ("MlpPolicy", "Pendulum-v1", 4, {"gradient_steps": 3, "train_freq": 4}, False),
    "VecNormalize": ("MlpPolicy", "Pendulum-v1", 2, {"vec_normalize": True}, False),
    "n_steps": ("MlpPolicy", "Pendulum-v1", 1, {"n_steps": 3}, False),
    "Dict observations": ("MultiInputPolicy", lambda: PointEnv("dict"), 1, {"batch_size": 8, "train_freq": 4}, False),
    "images": ("CnnPolicy", lambda: PointEnv("image"), 1, {"batch_size": 8, "train_freq": 4}, False),
    "shared features": (
        "CnnPolicy",
        lambda: PointEnv("image"),
        1,
        {"batch_size": 8, "train_freq": 4, "share_features_extractor": True},
        False,
    ),
    "asymmetric actions": ("MlpPolicy", PointEnv, 1, {}, False),
    "asymmetric actions, terminations": ("MlpPolicy", lambda: PointEnv(end="terminated"), 1, {}, False),
    "episode-wise": ("MlpPolicy", "Pendulum-v1", 1, {"train_freq": (1, "episode"), "gradient_steps": -1}, False),
    "learning-rate schedule": ("MlpPolicy", "Pendulum-v1", 1, {"learning_rate": lambda left: 1e-3 * left}, False),
    "optimize_memory_usage": (
        "MlpPolicy",
        "Pendulum-v1",
        1,
        {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}},
        False,
    ),
    "hindsight": ("MultiInputPolicy", Reach, 2, {"gradient_steps": -1, "replay_buffer_class": HerReplayBuffer}, False),
    "TD3 with hindsight": ("MultiInputPolicy", Reach, 1, {"replay_buffer_class": HerReplayBuffer}, True),
    "TD3": ("MlpPolicy", "Pendulum-v1", 1, {}, True),
    "TD3, four environments": ("MlpPolicy", "Pendulum-v1", 4, {"gradient_steps": -1}, True),
}


def make_model(model_class, case, noise, **extra):
    policy, env_id, n_envs, settings, td3 = case
    settings = dict(settings)
    env = make_vec_env(env_id, n_envs=n_envs, seed=7)
    if settings.pop("vec_normalize", False):
        env = VecNormalize(env)
    policy_kwargs = {"net_arch": [32, 24], "n_critics": 2 if td3 else 1}
    if "share_features_extractor" in settings:
        policy_kwargs["share_features_extractor"] = settings.pop("share_features_extractor")
    if policy != "MlpPolicy":
        feature_size = "features_dim" if policy == "CnnPolicy" else "cnn_output_dim"
        policy_kwargs["features_extractor_kwargs"] = {feature_size: 16}
    settings = {"batch_size": 32, "buffer_size": 500, "learning_starts": 50, "seed": 5, "device": "cpu"} | settings
    return model_class(policy, env, action_noise=noise(env), policy_kwargs=policy_kwargs, **settings, **extra)


@pytest.mark.parametrize("name", CASES)
def test_equals_sb3_bit_for_bit(name):
    case = CASES[name]
    noise = ornstein_uhlenbeck if name == "one environment" else gaussian
    td3 = case[-1]
    theirs = make_model(TD3 if td3 else DDPG, case, noise).learn(STEPS)
    ours = make_model(ScratchDDPG, case, noise, updater="autograd", **(TD3_SWITCHES if td3 else {})).learn(STEPS)
    assert ours._n_updates == theirs._n_updates > 100
    differences = compare_models(theirs, ours)
    assert any("exp_avg_sq" in entry for entry in differences)
    assert {entry: value for entry, value in differences.items() if value != 0} == {}


def test_equals_sb3_with_our_own_noise():
    """The noise is an SB3 ActionNoise: both sides may explore with it, and see the same numbers for the same seed."""
    make = lambda env: OUNoise(np.zeros(1), 0.2, seed=11)  # noqa: E731
    theirs = make_model(DDPG, CASES["one environment"], make).learn(300)
    ours = make_model(ScratchDDPG, CASES["one environment"], make, updater="autograd").learn(300)
    assert max(compare_models(theirs, ours).values()) == 0


@pytest.mark.parametrize("td3", [False, True])
def test_torchs_generator_is_where_sb3_leaves_it(td3):
    """DDPG draws a target noise of size 0 too: what else draws from torch, in or beside the networks, gets SB3's numbers."""
    states = []
    for model_class, extra in (
        (TD3 if td3 else DDPG, {}),
        (ScratchDDPG, {"updater": "autograd"} | (TD3_SWITCHES if td3 else {})),
    ):
        make_model(model_class, CASES["TD3" if td3 else "one environment"], gaussian, **extra).learn(100)
        states.append(th.get_rng_state())
    assert th.equal(*states)


# ------------------------------------------------------------------------------------------------------- random settings


def random_part(rng, scale=20):
    """A space that SB3's features extractors flatten, or make one-hot."""
    n = int(rng.integers(1, 4))
    whole = [(np.int8, -9, 9), (np.int32, 0, scale), (np.int64, -scale, scale), (np.uint8, 0, 255), (np.uint16, 3, 9)]
    kind, low, high = whole[rng.integers(len(whole))]
    return [
        lambda: spaces.Box(-1, 1, (n,), [np.float32, np.float64, np.float16][rng.integers(3)]),
        lambda: spaces.Box(-3, 2, (n, 2), np.float32),
        lambda: spaces.Box(low, high, (n,), kind),
        lambda: spaces.Box(low, high, (2, 1, n), kind) if kind != np.uint8 else spaces.Box(0, 255, (2, n), kind),
        lambda: spaces.MultiBinary(n if rng.random() < 0.7 else [n, 2]),
        lambda: spaces.Discrete(n + 1),
        lambda: spaces.MultiDiscrete([n + 1, 3]),
    ][rng.integers(7)]()


class Alternating:
    """Makes one kind of activation after another."""

    made = 0

    def __call__(self):
        self.made += 1
        return (nn.Tanh, nn.ELU)[self.made % 2]()


ACTIVATIONS = [nn.ReLU, nn.Softsign, partial(nn.LeakyReLU, negative_slope=0.2), partial(nn.SiLU), lambda: nn.Tanh()]
ACTIVATIONS += [nn.Dropout, nn.PReLU, partial(nn.ELU, alpha=1.0), Alternating()]
NET_ARCHS = [
    [8],
    [],
    [12, 8],
    {"pi": [8], "qf": [9, 7]},
    {"pi": [], "qf": [6], "vf": [5]},
    {"qf": (6,), "pi": (8, 8), "shared": 1},
]


def random_case(seed):
    """Policy, environments and settings, as a function that makes them for an algorithm."""
    rng = np.random.default_rng(seed)
    pick = lambda options: options[rng.integers(len(options))]  # noqa: E731
    is_dict = rng.random() < 0.4
    space = spaces.Dict({key: random_part(rng) for key in "bca"[: rng.integers(1, 4)]}) if is_dict else random_part(rng)
    actions = spaces.Box(np.float32([-1, 0.5]), np.float32([2, 0.75])) if rng.random() < 0.5 else spaces.Box(-2, 2, (1,))
    policies = ["MultiInputPolicy", sb3_policies.MultiInputPolicy] if is_dict else ["MlpPolicy", sb3_policies.TD3Policy]
    own = [OwnPolicy, PlainPolicy, TimidPolicy]
    policy = pick(own) if rng.random() < 0.4 else pick(policies)
    kwargs = {"net_arch": pick(NET_ARCHS), "activation_fn": pick(ACTIVATIONS)}
    if is_dict and policy in own:
        kwargs["features_extractor_class"] = CombinedExtractor
    if policy is OwnPolicy and rng.random() < 0.5:
        kwargs["dropout"] = 0.5
    settings = {"gradient_steps": pick([1, 2, -1]), "train_freq": pick([1, 3]), "n_steps": 1 if is_dict else pick([1, 3])}
    n_envs, normalize = pick([1, 1, 3]), isinstance(space, spaces.Box) and rng.random() < 0.3

    def make(model_class, **extra):
        env = make_vec_env(lambda: Observing(copy.deepcopy(space), copy.deepcopy(actions)), n_envs, seed=seed)
        env = VecNormalize(env) if normalize else env
        common = {"seed": seed, "device": "cpu", "buffer_size": 90, "learning_starts": 30, "batch_size": 16}
        return model_class(
            policy, env, action_noise=gaussian(env), policy_kwargs=copy.deepcopy(kwargs), **common, **settings, **extra
        )

    return f"{space} {policy} {kwargs} {settings} x {n_envs} {normalize}", make


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(24))
def test_random_settings_equal_sb3(seed):
    """Spaces, policies, activations and layers of all kinds: the reference equals SB3, and the fast updaters nearly."""
    said, make = random_case(seed)
    theirs, ours = make(DDPG).learn(120), make(ScratchDDPG, updater="autograd").learn(120)
    assert theirs._n_updates == ours._n_updates > 8
    differences = compare_models(theirs, ours)
    assert {entry: value for entry, value in differences.items() if value != 0} == {}, said
    fast = make(ScratchDDPG).learn(120)
    expected, found = theirs.policy.state_dict(), fast.policy.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        tolerance = 1e-3 * max(float(tensor.abs().max()), 0.1)
        assert float((tensor - found[name]).abs().max()) <= tolerance, f"{name} {fast.updater_in_use} {said}"


def test_difference_by_hand():
    assert difference(th.tensor([1.0, 2.0]), th.tensor([1.0, 2.5])) == 0.5
    assert difference(th.tensor([np.nan]), th.tensor([np.nan])) == 0
    assert difference(th.tensor([np.nan]), th.tensor([1.0])) == np.inf
    assert difference(th.tensor([np.inf]), th.tensor([np.inf])) == 0
    assert difference(th.zeros(2), th.zeros(3)) == np.inf
    assert difference(1e-3, 1e-3) == 0
    assert difference(None, None) == 0
    assert difference(True, False) == np.inf
    assert flatten({"a": {"b": 1, "c": [2, 3]}}) == {"a/b": 1, "a/c/0": 2, "a/c/1": 3}


def test_parity_sees_a_difference():
    """A single weight changed by the smallest step of float32 is found, and named."""
    theirs = make_model(DDPG, CASES["one environment"], gaussian)
    ours = make_model(ScratchDDPG, CASES["one environment"], gaussian)
    assert max(compare_models(theirs, ours).values()) == 0
    weight = ours.actor.mu[0].weight
    with th.no_grad():
        weight[3, 1] = th.nextafter(weight[3, 1], th.tensor(10.0))
    different = {entry for entry, value in compare_models(theirs, ours).items() if value > 0}
    assert different == {"policy/actor.mu.0.weight"}


def test_result_without_updates_is_not_called_equal():
    result = run_parity("Pendulum-v1", steps=2, net_arch=(8,))
    assert result.updates > 0
    assert not ParityResult(result.settings, 0, result.differences).equal


@pytest.mark.parametrize(
    "arguments",
    [["--n-envs", "2"], ["--algo", "td3", "--noise", "ou"], ["--env", "Point-v0"], ["--env", "tests.goal_envs:Reach-v0"]],
)
def test_command(tmp_path, arguments):
    path = tmp_path / "deep" / "parity.json"
    result = CliRunner().invoke(app, ["parity", "--steps", "200", "--net-arch", "16,16", "--json", str(path), *arguments])
    assert result.exit_code == 0, result.output
    assert "Equal bit for bit." in result.output
    content = json.loads(path.read_text())
    assert content["equal"] is True
    assert content["largest_difference"] == 0
    assert content["updates"] > 0
    assert content["hindsight"] is (arguments[-1] == "tests.goal_envs:Reach-v0")


@pytest.mark.parametrize("arguments", [["--steps", "10"], ["--steps", "40", "--n-envs", "8"]])
def test_command_with_fewer_steps_than_an_episode_of_goals(arguments):
    result = CliRunner().invoke(app, ["parity", "--net-arch", "16", "--env", "tests.goal_envs:Limited-v0", *arguments])
    assert result.exit_code == 1
    assert "No updates were made, so nothing was compared" in " ".join(result.output.split())


def test_command_fails_on_a_difference(monkeypatch):
    monkeypatch.setattr("sb3_ddpg_scratch.updates.autograd.soft_update", lambda *_: None)
    result = CliRunner().invoke(app, ["parity", "--steps", "150", "--net-arch", "16"])
    assert result.exit_code == 1
    assert "Different: " in result.output
