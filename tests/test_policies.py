"""Networks and policies: what they compute, how they are initialized, and that every combination trains, saves and loads."""

import copy
import itertools
from functools import partial

import numpy as np
import pytest
import torch as th
from conftest import POLICY_OF, PointEnv, same, snapshot
from gymnasium import spaces
from stable_baselines3.td3.policies import TD3Policy
from torch import nn

from sb3_ddpg_scratch import ArgumentError, MlpPolicy, ScratchDDPG, SimbaPolicy
from sb3_ddpg_scratch.policies import ACTIVATIONS

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (5,), np.float32)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


def make_policy(**kwargs) -> MlpPolicy:
    return MlpPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **{"net_arch": [16, 12]} | kwargs)


def make_model(observation: str, **policy_kwargs) -> ScratchDDPG:
    policy = POLICY_OF[observation]
    small = {"vector": {}, "dict": {"cnn_output_dim": 8}, "image": {"features_dim": 8}}[observation]
    return ScratchDDPG(
        policy,
        PointEnv(observation),
        buffer_size=200,
        learning_starts=20,
        batch_size=8,
        train_freq=4,
        seed=0,
        device="cpu",
        policy_kwargs={"net_arch": [16, 12], "features_extractor_kwargs": small} | policy_kwargs,
    )


COMBINATIONS = list(itertools.product(("vector", "dict", "image"), (None, "layer", "batch"), (0, 1), (1, 2)))


@pytest.mark.parametrize(("observation", "norm", "action_layer", "n_critics"), COMBINATIONS)
def test_every_combination_trains_saves_loads_and_predicts_the_same(tmp_path, observation, norm, action_layer, n_critics):
    model = make_model(observation, norm=norm, action_layer=action_layer, n_critics=n_critics)
    before = snapshot(model)
    model.learn(60)
    after = snapshot(model)
    assert not any(th.equal(before[name], after[name]) for name in before if name.endswith("weight") and "norm" not in name)

    env = PointEnv(observation)
    observations = [env.reset(seed=seed)[0] for seed in range(4)]
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=env, device="cpu")
    assert same(snapshot(loaded), after)
    for observation_ in observations:
        np.testing.assert_array_equal(model.predict(observation_)[0], loaded.predict(observation_)[0])
    loaded.learn(40, reset_num_timesteps=False)
    assert loaded.num_timesteps == 100
    assert not same(snapshot(loaded), after)


@pytest.mark.parametrize(("norm", "action_layer"), [(None, 0), ("layer", 1), ("batch", 1)])
def test_policy_and_actor_save_and_load_by_themselves(tmp_path, norm, action_layer):
    policy = make_policy(norm=norm, action_layer=action_layer, final_init=3e-3, critic_weight_decay=0.01)
    policy.save(tmp_path / "policy")
    policy.actor.save(tmp_path / "actor")
    loaded, actor = MlpPolicy.load(tmp_path / "policy"), type(policy.actor).load(tmp_path / "actor")
    observation = np.ones(5, np.float32)
    for other in (loaded, actor):
        np.testing.assert_array_equal(policy.predict(observation)[0], other.predict(observation)[0])
    assert (loaded.norm, loaded.action_layer, loaded.final_init, loaded.critic_weight_decay) == (
        norm,
        action_layer,
        3e-3,
        0.01,
    )


@pytest.mark.parametrize("n_critics", [1, 2])
@pytest.mark.parametrize("activation_fn", [nn.ReLU, partial(nn.PReLU, init=0.5), lambda: nn.Sequential(nn.Linear(8, 8))])
@pytest.mark.parametrize("net_arch", [None, [], [np.int64(7)], {"pi": [8], "qf": [6, 5]}, {"pi": [8], "qf": [8], "vf": [3]}])
def test_initial_weights_and_names_are_sb3s(net_arch, n_critics, activation_fn):
    kwargs = {"net_arch": net_arch, "n_critics": n_critics, "activation_fn": activation_fn}
    th.manual_seed(0)
    theirs = TD3Policy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **kwargs)
    th.manual_seed(0)
    ours = MlpPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, **kwargs)
    expected, got = theirs.state_dict(), ours.state_dict()
    assert list(expected) == list(got)
    assert all(th.equal(expected[name], got[name]) for name in expected)


def test_action_joins_the_second_layer():
    """The first layer sees the observation alone: its sums, by hand, then the action appended."""
    critic = make_policy(action_layer=1).critic
    first, _, second, _, last = critic.q_networks[0]
    assert (first.in_features, second.in_features) == (5, 16 + 2)
    s, a = th.randn(3, 5), th.rand(3, 2)
    hidden = (s @ first.weight.T + first.bias).clamp(min=0)
    hidden = (th.cat([hidden, a], 1) @ second.weight.T + second.bias).clamp(min=0)
    th.testing.assert_close(critic(s, a)[0], hidden @ last.weight.T + last.bias)
    assert make_policy(action_layer=0).critic.q_networks[0][0].in_features == 7


def test_action_joins_at_the_output_of_a_single_layer():
    critic = make_policy(net_arch=[4], action_layer=1).critic
    assert [layer.in_features for layer in critic.q_networks[0] if isinstance(layer, nn.Linear)] == [5, 6]
    assert critic(th.zeros(2, 5), th.zeros(2, 2))[0].shape == (2, 1)


def test_where_batch_norm_is_applied():
    """On the state, on the actor's hidden layers, and in the critic before the action joins (Lillicrap et al. 2015)."""
    names = lambda network: [type(layer).__name__ for layer in network]  # noqa: E731
    hidden = ["Linear", "BatchNorm1d", "ReLU"]
    policy = make_policy(norm="batch", action_layer=1)
    assert names(policy.actor.mu) == ["BatchNorm1d", *hidden, *hidden, "Linear", "Tanh"]
    assert names(policy.critic.q_networks[0]) == ["BatchNorm1d", *hidden, "Linear", "ReLU", "Linear"]
    policy = make_policy(norm="batch", action_layer=0)
    assert names(policy.critic.q_networks[0]) == ["BatchNorm1d", "Linear", "ReLU", "Linear", "ReLU", "Linear"]
    assert policy.critic.q_networks[0][0].num_features == 5


def test_where_layer_norm_is_applied():
    policy = make_policy(norm="layer", action_layer=1)
    for network in (policy.actor.mu, policy.critic.q_networks[0]):
        assert [type(layer).__name__ for layer in network][:6] == ["Linear", "LayerNorm", "ReLU"] * 2


def test_batch_norm_statistics_reach_the_targets():
    model = make_model("vector", norm="batch", action_layer=1).learn(60)
    for trained, target in ((model.actor, model.actor_target), (model.critic, model.critic_target)):
        statistics = {name: value for name, value in trained.state_dict().items() if "running_" in name}
        assert len(statistics) >= 4
        for name, value in statistics.items():
            assert th.equal(value, target.state_dict()[name])
            assert not th.equal(value, th.zeros_like(value))
            assert not th.equal(value, th.ones_like(value))
    assert not th.equal(model.actor.mu[1].weight, model.actor_target.mu[1].weight)


def test_targets_are_normalized_by_each_batch():
    """Whatever the running statistics are, which stay untouched; after loading and copying too."""
    model = make_model("vector", norm="batch", action_layer=1).learn(60)
    observations = th.randn(16, 3) * 5 + 2
    for policy in (model.policy, copy.deepcopy(model.policy)):
        target = policy.actor_target
        before = {name: value.clone() for name, value in target.state_dict().items()}
        x = observations
        for layer in target.mu:
            if isinstance(layer, nn.BatchNorm1d):
                x = (x - x.mean(dim=0)) / (x.var(dim=0, unbiased=False) + layer.eps).sqrt() * layer.weight + layer.bias
            else:
                x = layer(x)
        th.testing.assert_close(target(observations), x)
        assert not th.allclose(target(observations), target(observations[:8]).repeat(2, 1))
        assert all(th.equal(value, target.state_dict()[name]) for name, value in before.items())


def test_batch_norm_acts_by_its_running_statistics():
    """Acting neither moves the statistics nor lets one observation of a batch change another's action."""
    model = make_model("vector", norm="batch").learn(60)
    before = snapshot(model)
    rows = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    together, alone = model.predict(rows)[0], np.concatenate([model.predict(row[None])[0] for row in rows])
    np.testing.assert_allclose(together, alone, rtol=1e-5)
    assert same(snapshot(model), before)


@pytest.mark.parametrize("final_init", [3e-3, 0.5])
def test_final_init_is_uniform_in_the_output_layers_alone(final_init):
    policy = make_policy(net_arch=[400, 300], final_init=final_init, n_critics=2)
    outputs = [policy.actor.mu[-2], *(q_network[-1] for q_network in policy.critic.q_networks)]
    values = th.cat([tensor.flatten() for layer in outputs for tensor in (layer.weight, layer.bias)]).detach()
    assert values.abs().max() <= final_init
    assert values.std().item() == pytest.approx(final_init / np.sqrt(3), rel=0.1)
    # Hidden layers: torch's U(-1/sqrt(fan_in), 1/sqrt(fan_in)), which is the paper's.
    hidden = policy.actor.mu[2].weight.detach()
    assert hidden.std().item() == pytest.approx(1 / np.sqrt(3 * 400), rel=0.05)
    assert th.equal(policy.actor_target.mu[-2].weight, policy.actor.mu[-2].weight)


def test_weight_decay_is_the_critics_alone():
    policy = make_policy(critic_weight_decay=0.01, optimizer_kwargs={"eps": 1e-5})
    assert policy.critic.optimizer.param_groups[0]["weight_decay"] == 0.01
    assert policy.actor.optimizer.param_groups[0]["weight_decay"] == 0
    assert {optimizer.param_groups[0]["eps"] for optimizer in (policy.actor.optimizer, policy.critic.optimizer)} == {1e-5}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_by_name(name):
    policy = make_policy(activation_fn=name)
    assert type(policy.actor.mu[1]) is ACTIVATIONS[name]
    x = th.linspace(-2, 2, 9)
    function = getattr(nn.functional, name) if hasattr(nn.functional, name) else getattr(th, name)
    th.testing.assert_close(policy.critic.q_networks[0][1](x), function(x))


def test_shared_features_are_trained_by_the_actor_alone():
    model = make_model("image", share_features_extractor=True).learn(30)
    assert model.actor.features_extractor is model.critic.features_extractor
    assert model.actor_target.features_extractor is model.critic_target.features_extractor
    batch = model.replay_buffer.sample(8)
    model.critic.optimizer.zero_grad()
    model.critic(batch.observations, batch.actions)[0].sum().backward()
    assert all(parameter.grad is None for parameter in model.critic.features_extractor.parameters())


def test_frozen_critic_features_get_no_gradient_from_the_actor():
    model = make_model("image")
    model.learn(30)
    batch = model.replay_buffer.sample(8)
    q = model.critic.q1_forward(batch.observations, batch.actions.requires_grad_())
    assert th.autograd.grad(q.sum(), batch.actions)[0].abs().sum() > 0
    assert all(p.grad is None or not p.requires_grad for p in model.critic_target.parameters())


def test_residual_networks_by_hand():
    """Embedding, blocks x + W2 relu(W1 norm(x) + b1) + b2, a last normalization, the output."""
    policy = SimbaPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, {"pi": [6], "qf": [8, 8]}, scale_factor=3)
    with th.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1 * th.randn_like(parameter))

    def normalized(layer, x):
        return (x - x.mean(1, True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt() * layer.weight + layer.bias

    def passed(layers, x):
        embedding, *blocks, norm, output = layers
        x = x @ embedding.weight.T + embedding.bias
        for first, wide, _, narrow in blocks:
            assert (wide.weight.shape[0], narrow.weight.shape[1]) == (3 * x.shape[1],) * 2
            hidden = (normalized(first, x) @ wide.weight.T + wide.bias).clamp(min=0)
            x = x + hidden @ narrow.weight.T + narrow.bias
        return normalized(norm, x) @ output.weight.T + output.bias

    s, a = th.randn(5, 5), th.rand(5, 2)
    statistics = policy.observation_statistics
    statistics.mean += 0.3
    statistics.var *= 2
    seen = ((s - 0.3) / 2**0.5).float()
    assert (len(policy.actor.mu), len(policy.critic.q_networks[0])) == (5, 5)
    th.testing.assert_close(policy.actor(s), passed(policy.actor.mu[:-1], seen).tanh())
    th.testing.assert_close(policy.critic(s, a)[0], passed(policy.critic.q_networks[0], th.cat([seen, a], 1)))


def test_residual_networks_begin_as_published():
    policy = SimbaPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, {"pi": [64], "qf": [96, 96]})
    for layers in (policy.actor.mu[:-1], policy.critic.q_networks[0]):
        embedding, *blocks, _, output = layers
        th.testing.assert_close(embedding.weight.T @ embedding.weight, th.eye(embedding.in_features), rtol=0, atol=1e-5)
        th.testing.assert_close(output.weight @ output.weight.T, th.eye(output.out_features), rtol=0, atol=1e-5)
        for _, wide, _, narrow in blocks:
            assert wide.out_features == 4 * wide.in_features
            for layer in (wide, narrow):
                assert layer.weight.std().item() == pytest.approx((2 / layer.in_features) ** 0.5, rel=0.03)
        biases = [value for name, value in layers.named_parameters() if name.endswith("bias")]
        assert all(th.equal(bias, th.zeros_like(bias)) for bias in biases)
    for network in (policy.actor, policy.critic):
        assert type(network.optimizer) is th.optim.AdamW
        assert network.optimizer.param_groups[0]["weight_decay"] == 1e-2
    policy = SimbaPolicy(OBSERVATIONS, ACTIONS, lambda _: 1e-3, final_init=3e-3)
    assert policy.actor.mu[-2].weight.abs().max() <= 3e-3


@pytest.mark.parametrize("observation", ["vector", "dict"])
def test_residual_networks_train_and_load(tmp_path, observation):
    env = PointEnv(observation)
    model = ScratchDDPG("SimbaPolicy", env, learning_starts=20, batch_size=8, policy_kwargs={"net_arch": [8]}, device="cpu")
    before = snapshot(model)
    after = snapshot(model.learn(40))
    assert not any(th.equal(before[name], after[name]) for name in before if name.endswith("weight"))
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=env)
    assert (type(loaded.policy), loaded.policy.scale_factor) == (SimbaPolicy, 4)
    assert same(snapshot(loaded), after)
    seen = env.reset(seed=1)[0]
    np.testing.assert_array_equal(model.predict(seen)[0], loaded.predict(seen)[0])


@pytest.mark.parametrize(
    ("policy_kwargs", "words"),
    [
        ({"norm": "instance"}, ["norm must be", "got 'instance'", "'layer'", "'batch'"]),
        ({"action_layer": 3}, ["action_layer must be", "got 3", "0", "2"]),
        ({"action_layer": -1}, ["action_layer must be", "got -1"]),
        ({"action_layer": 0.5}, ["action_layer"]),
        ({"n_critics": 0}, ["n_critics must be", "got 0", "at least 1"]),
        ({"net_arch": [64, 0]}, ["net_arch"]),
        ({"net_arch": [64, -1]}, ["net_arch"]),
        ({"net_arch": "64"}, ["net_arch"]),
        ({"net_arch": {"pi": [3]}}, ["net_arch", "'qf'"]),
        ({"net_arch": [3.5]}, ["net_arch"]),
        ({"activation_fn": "rellu"}, ["rellu", "Did you mean 'relu'"]),
        ({"activation_fn": 7}, ["activation_fn must be", "got 7"]),
        ({"activation_fn": dict}, ["activation_fn must be", "makes a module", "dict"]),
        ({"net_arch": {"pi": [3], "vf": [3]}}, ["net_arch", "'qf'"]),
        ({"final_init": 0}, ["final_init must be", "got 0"]),
        ({"critic_weight_decay": -1}, ["critic_weight_decay must be", "got -1"]),
        ({"scale_factor": 0}, ["scale_factor must be", "got 0"]),
        ({"scale_factor": 4, "net_arch": [16, 12]}, ["net_arch must be", "equal widths", "got [16, 12]"]),
        ({"scale_factor": 4, "net_arch": {"pi": [], "qf": [8]}}, ["net_arch must be", "one or more"]),
        ({"scale_factor": 4, "net_arch": [8], "norm": "layer"}, ["norm", "residual"]),
        ({"scale_factor": 4, "net_arch": [8], "action_layer": 1}, ["action_layer", "residual"]),
    ],
)
def test_invalid_settings_are_rejected_at_construction(policy_kwargs, words):
    with pytest.raises(ArgumentError) as error:
        make_model("vector", **policy_kwargs)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_unknown_setting_is_named():
    with pytest.raises(TypeError, match="net_archs"):
        make_model("vector", net_archs=[3])
