"""The updaters with hand-written gradients against the reference: one update, a hundred, and in float64."""

import copy
import pickle
from contextlib import contextmanager

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, same
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ScratchDDPG
from sb3_ddpg_scratch.networks import Actor, Critic
from sb3_ddpg_scratch.parity import compare_models
from sb3_ddpg_scratch.policies import ACTIVATIONS, MlpPolicy
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater, td_target
from sb3_ddpg_scratch.updates.compiled import UPDATES_PER_CALL, CompiledUpdater
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings
from sb3_ddpg_scratch.updates.team import Team


class Trio(Team):
    @staticmethod
    def count_for(batch_size, n_values, limit):
        return 3


class SharedUpdater(CompiledUpdater):
    """Compiled updates that three threads share, however small they are."""

    team_type = Trio


BY_HAND = [AnalyticUpdater, CompiledUpdater, SharedUpdater]
BY_NAME = ["analytic", "compiled"]


def make_policy(observation_dim=3, action_dim=2, seed=0, **kwargs) -> MlpPolicy:
    th.manual_seed(seed)
    observations = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float32)
    actions = spaces.Box(-1, 1, (action_dim,), np.float32)
    policy = MlpPolicy(observations, actions, lambda _: 1e-3, **{"net_arch": [16, 12]} | kwargs)
    if policy.scale_factor is not None:
        # Not all zero, as residual networks' biases begin: after one update, such would be nothing but that update.
        with th.no_grad():
            for parameter in policy.parameters():
                parameter.add_(0.1 * th.randn_like(parameter) if parameter.ndim == 1 else 0)
    return policy


def networks_of(policy) -> Networks:
    return Networks(policy.actor, policy.critic, policy.actor_target, policy.critic_target)


def make_buffer(policy, n_steps=1, n_envs=1, seed=0):
    rng = np.random.default_rng(seed)
    arguments = (500, policy.observation_space, policy.action_space, "cpu", n_envs)
    buffer = (
        PackedReplayBuffer(*arguments) if n_steps == 1 else PackedNStepReplayBuffer(*arguments, n_steps=n_steps, gamma=0.9)
    )
    o, a = policy.observation_space.shape[0], policy.action_space.shape[0]
    for _ in range(200 // n_envs):
        buffer.add(
            rng.normal(size=(n_envs, o)),
            rng.normal(size=(n_envs, o)),
            rng.uniform(-1, 1, (n_envs, a)),
            rng.normal(size=n_envs),
            rng.random(n_envs) < 0.2,
            [{}] * n_envs,
        )
    return buffer


def train(updater_class, policy, updates, batch_size=16, at_once=1, buffer=None, **numbers):
    buffer = make_buffer(policy) if buffer is None else buffer
    updater, networks = updater_class(), networks_of(policy)
    settings = UpdateSettings(**{"gamma": 0.95, "tau": 0.01} | numbers)
    th.manual_seed(1)
    np.random.seed(1)
    for done in range(0, updates, at_once):
        assert updater.objection(networks) is None
        updater.train(networks, buffer, min(at_once, updates - done), batch_size, settings, done)
    return updater


def state_of(policy) -> dict[str, th.Tensor]:
    """Parameters and optimiser entries by name."""
    entries = dict(policy.state_dict())
    for network in ("actor", "critic"):
        for index, entry in getattr(policy, network).optimizer.state_dict()["state"].items():
            entries |= {f"{network}.optimizer.{index}.{name}": value for name, value in entry.items()}
    return {name: value.clone() for name, value in entries.items()}


def largest_difference(a, b, optimizers=True) -> float:
    """Largest difference of any entry, relative to the largest value of its tensor."""
    assert a.keys() == b.keys()
    names = [name for name in a if optimizers or "optimizer" not in name]
    return max(((a[n] - b[n]).abs().max() / b[n].abs().max().clamp(min=1e-8)).item() for n in names)


CASES = {
    "plain": ({}, {}),
    "tanh": ({"activation_fn": "tanh"}, {}),
    "one layer": ({"net_arch": [8]}, {}),
    "no hidden layer": ({"net_arch": []}, {}),
    "three layers": ({"net_arch": {"pi": [8, 9, 10], "qf": [11, 7, 5]}}, {}),
    "two critics": ({"n_critics": 2}, {}),
    "TD3": ({"n_critics": 2}, {"policy_delay": 2, "target_policy_noise": 0.2, "target_noise_clip": 0.3}),
    "three critics, delay 3": ({"n_critics": 3}, {"policy_delay": 3}),
    "clipping": ({}, {"max_grad_norm": 0.05}),
    "no clipping needed": ({}, {"max_grad_norm": 1e6}),
    "AdamW": ({"optimizer_class": th.optim.AdamW}, {}),
    "weight decay": ({"critic_weight_decay": 0.05}, {}),
    "Adam's own numbers": ({"optimizer_kwargs": {"betas": (0.8, 0.95), "eps": 1e-4}}, {}),
    "late action": ({"action_layer": 1}, {}),
    "late action, two critics, tanh": ({"action_layer": 1, "n_critics": 2, "activation_fn": "tanh"}, {}),
    "action at the output": ({"action_layer": 2}, {}),
    "late action, one layer": ({"action_layer": 1, "net_arch": [8]}, {}),
    "tau 1": ({}, {"tau": 1.0}),
    "gamma 0": ({}, {"gamma": 0.0}),
    "penalized actions": ({}, {"action_l2": 0.5}),
    "penalized actions, late, TD3": ({"action_layer": 1, "n_critics": 2}, {"action_l2": 2.0, "policy_delay": 2}),
    "layer norm": ({"norm": "layer"}, {}),
    "layer norm, late action, two critics": ({"norm": "layer", "action_layer": 1, "n_critics": 2}, {}),
    "layer norm, action at the output": ({"norm": "layer", "action_layer": 2, "activation_fn": "tanh"}, {}),
    "layer norm, of the critic alone": ({"norm": "layer", "net_arch": {"pi": [], "qf": [8]}}, {}),
    "layer norm, z is kept": ({"norm": "layer", "activation_fn": "gelu"}, {"max_grad_norm": 0.05}),
    "z is kept, late action": ({"activation_fn": "silu", "action_layer": 1}, {}),
} | {name: ({"activation_fn": name}, {}) for name in ACTIVATIONS}
CHILDREN = ("actor", "actor_target", "critic", "critic_target")
RESIDUAL = {
    "one block": ({"net_arch": [12], "scale_factor": 4}, {}),
    "three blocks, tanh": ({"net_arch": [9] * 3, "scale_factor": 2, "activation_fn": "tanh"}, {}),
    "residual TD3": (
        {"net_arch": {"pi": [8], "qf": [12, 12]}, "scale_factor": 3, "n_critics": 2, "optimizer_class": th.optim.AdamW},
        {"target_policy_noise": 0.2, "target_noise_clip": 0.3, "max_grad_norm": 0.5, "action_l2": 0.1},
    ),
}


@pytest.mark.parametrize("kind", [{"norm": "layer"}, {"net_arch": [8], "scale_factor": 2}])
def test_eps_of_normalizations_may_be_changed(kind):
    """The compiled updater has one eps for all, and gives its reason if they differ."""
    reference, policy, critics_own = (make_policy(**kind) for _ in range(3))
    for changed, names in ((reference, CHILDREN), (policy, CHILDREN), (critics_own, ("critic", "critic_target"))):
        for layer in (layer for name in names for layer in getattr(changed, name).modules()):
            if isinstance(layer, th.nn.LayerNorm):
                layer.eps = 0.3
    train(AutogradUpdater, reference, 3)
    train(CompiledUpdater, policy, 3)
    assert largest_difference(state_of(policy), state_of(reference), optimizers=False) < 1e-5
    assert CompiledUpdater().objection(networks_of(critics_own)) == "layers have different eps"


@pytest.mark.parametrize("updater_class", BY_HAND)
@pytest.mark.parametrize("name", CASES | RESIDUAL)
def test_is_the_reference_but_for_rounding(name, updater_class):
    """One update equal within 1e-6, a hundred within 1e-4; moments, sums that nearly cancel, within fifty times that."""
    policy_kwargs, numbers = (CASES | RESIDUAL)[name]
    for updates, tolerance in ((numbers.get("policy_delay", 1), 1e-6), (102, 1e-4)):
        reference, policy = make_policy(**policy_kwargs), make_policy(**policy_kwargs)
        expected = train(AutogradUpdater, reference, updates, **numbers)
        updater = train(updater_class, policy, updates, **numbers)
        assert largest_difference(state_of(policy), state_of(reference), optimizers=False) < tolerance
        assert largest_difference(state_of(policy), state_of(reference)) < 50 * tolerance
        for ours, theirs in (
            (updater.read_losses(), expected.read_losses()),
            (updater.read_statistics(), expected.read_statistics()),
        ):
            assert ours.keys() == theirs.keys()
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("updater_class", BY_HAND)
@pytest.mark.parametrize("activation_fn", ACTIVATIONS)
def test_gradients_of_saturated_units(activation_fn, updater_class):
    """Adam makes whole steps of the smallest gradients: they must be the reference's where an activation is nearly flat."""
    policies = [make_policy(net_arch=[8], activation_fn=activation_fn) for _ in range(2)]
    for policy, updater in zip(policies, (AutogradUpdater, updater_class), strict=True):
        with th.no_grad():
            for layers in (policy.actor.mu, policy.critic.q_networks[0]):
                layers[0].bias.fill_(-14.0)
        train(updater, policy, 1)
    expected, found = (policy.critic.optimizer.state_dict()["state"][0]["exp_avg"] for policy in policies)
    assert expected.abs().max() > 1e-9 or activation_fn in ("relu", "gelu", "tanh")
    th.testing.assert_close(found, expected, rtol=0, atol=1e-3 * float(expected.abs().max()) + 1e-20)


@contextmanager
def float64_by_default():
    th.set_default_dtype(th.float64)
    try:
        yield
    finally:
        th.set_default_dtype(th.float32)


@settings(max_examples=60, deadline=None)
@given(
    layers=st.lists(st.integers(1, 9), max_size=3),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(2, 9)),
    n_critics=st.integers(1, 3),
    late=st.integers(0, 3),
    activation_fn=st.sampled_from(sorted(ACTIVATIONS)),
    norm=st.sampled_from([None, "layer", "residual"]),
    smoothing=st.sampled_from([0.0, 0.3]),
    action_l2=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 10**6),
)
def test_gradients_in_float64_are_autograds(layers, sizes, n_critics, late, activation_fn, norm, smoothing, action_l2, seed):
    """Random shapes: in float64 what is written by hand and what autograd derives agree to twelve digits."""
    observation_dim, action_dim, batch_size = sizes
    # SB3's preprocessing rounds observations to float32.
    with pytest.MonkeyPatch.context() as patch, float64_by_default():
        for network in (Actor, Critic):
            patch.setattr(network, "extract_features", lambda self, observations, extractor: observations)
        kind = {"net_arch": layers, "action_layer": min(late, len(layers)), "norm": norm}
        if norm == "residual":
            # With zero biases, and so layer normalization of zeros at width 1: its derivative is not defined there.
            kind = {"net_arch": [1 + max(layers, default=1)] * max(len(layers), 1), "scale_factor": 1 + late}
        policy = make_policy(observation_dim, action_dim, seed, n_critics=n_critics, activation_fn=activation_fn, **kind)
        with th.no_grad():
            for target in (policy.actor_target, policy.critic_target):
                for parameter in target.parameters():
                    parameter.add_(0.1 * th.randn_like(parameter))
        updater = AnalyticUpdater()
        s, s_next = th.randn(2, batch_size, observation_dim)
        a, r, c = th.rand(batch_size, action_dim) * 2 - 1, th.randn(batch_size, 1), (th.rand(batch_size, 1) > 0.2).double()
        batch = ReplayBufferSamples(s, a, s_next, 1 - c, r, None)

        th.manual_seed(seed)
        a_next = policy.actor_target.mu(s_next)
        if smoothing:
            a_next = (a_next + th.empty_like(a).normal_(0, smoothing).clamp(-0.5, 0.5)).clamp(-1, 1)
        q_next = th.cat(policy.critic_target(s_next, a_next), 1).min(1, keepdim=True).values
        y = (r + 0.9 * c * q_next).detach()
        loss = sum(((q - y) ** 2).mean() for q in policy.critic(s, a))
        critic_grads = th.autograd.grad(loss, list(policy.critic.parameters()))

        th.manual_seed(seed)
        numbers = UpdateSettings(gamma=0.9, tau=0.1, target_policy_noise=smoothing, action_l2=action_l2)
        th.testing.assert_close(td_target(batch, policy.actor_target, policy.critic_target, numbers), y)
        th.testing.assert_close(updater.critic_gradient(policy.critic, batch, y), loss.detach(), rtol=1e-12, atol=1e-12)
        for parameter, derived in zip(policy.critic.parameters(), critic_grads, strict=True):
            th.testing.assert_close(parameter.grad, derived, rtol=1e-10, atol=1e-12)

        chosen = policy.actor(s)
        loss = -policy.critic.q1_forward(s, chosen).mean() + action_l2 * (chosen**2).mean()
        actor_grads = th.autograd.grad(loss, list(policy.actor.parameters()))
        th.testing.assert_close(updater.actor_gradient(policy.actor, policy.critic, batch, numbers), loss.detach())
        for parameter, derived in zip(policy.actor.parameters(), actor_grads, strict=True):
            th.testing.assert_close(parameter.grad, derived, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("updater_class", BY_HAND)
@pytest.mark.parametrize("at_once", [3, UPDATES_PER_CALL + 7, 200])
def test_many_updates_at_once_are_the_same_updates(updater_class, at_once):
    numbers = {"policy_delay": 2, "target_policy_noise": 0.2}
    one, many = make_policy(n_critics=2), make_policy(n_critics=2)
    by_one = train(updater_class, one, 200, **numbers)
    by_many = train(updater_class, many, 200, at_once=at_once, **numbers)
    assert same(state_of(one), state_of(many))
    assert by_many.read_losses() == pytest.approx(by_one.read_losses())


@pytest.mark.parametrize("updater_class", BY_HAND)
def test_losses_are_means_over_all_updates(updater_class):
    kwargs = {"n_critics": 2}
    statistics = []
    for chosen in (AutogradUpdater, updater_class):
        updater = train(chosen, make_policy(**kwargs), 150, at_once=150, policy_delay=2)
        statistics.append(updater.read_statistics())
    assert statistics[1] == pytest.approx(statistics[0], rel=1e-3)


@pytest.mark.parametrize("updater_class", BY_HAND)
@pytest.mark.parametrize(("n_steps", "n_envs"), [(1, 3), (3, 1), (3, 2)])
def test_n_step_returns_and_several_environments(updater_class, n_steps, n_envs):
    reference, policy = make_policy(), make_policy()
    train(AutogradUpdater, reference, 20, buffer=make_buffer(policy, n_steps, n_envs))
    train(updater_class, policy, 20, buffer=make_buffer(policy, n_steps, n_envs), at_once=5)
    assert largest_difference(state_of(policy), state_of(reference)) < 1e-4


@pytest.mark.parametrize("updater_class", BY_HAND)
def test_batch_size_may_change(updater_class):
    reference, policy = make_policy(), make_policy()
    for sizes in (16, 5, 64, 5):
        train(AutogradUpdater, reference, 2, sizes)
        train(updater_class, policy, 2, sizes)
    assert largest_difference(state_of(policy), state_of(reference)) < 1e-4


# ---------------------------------------------------------------------------------------------- inside the algorithm

SMALL = {"policy_kwargs": {"net_arch": [16, 12]}, "buffer_size": 1000, "learning_starts": 20, "batch_size": 16, "seed": 0}


def make_model(updater, env="Pendulum-v1", **settings):
    return ScratchDDPG("MlpPolicy", env, updater=updater, device="cpu", **SMALL | settings)


@pytest.mark.parametrize("updater", BY_NAME)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_steps": 3},
        {"n_steps": 3},
        {"n_envs": 4, "gradient_steps": -1},
        {"vec_normalize": True},
        {"vec_normalize": True, "n_steps": 3, "n_envs": 2},
        {"train_freq": (1, "episode"), "gradient_steps": -1},
        {"max_grad_norm": 0.5, "qf_learning_rate": 3e-3},
        {"optimize_memory_usage": True},
    ],
    ids=lambda settings: "-".join(settings) or "plain",
)
def test_trains_as_the_reference(updater, settings):
    """A whole training on packed rows, with its own acting, stays near the reference's on SB3's buffer."""
    models = []
    settings = dict(settings)
    normalize, n_envs = settings.pop("vec_normalize", False), settings.pop("n_envs", 1)
    for name in ("autograd", updater):
        env = make_vec_env(PointEnv, n_envs=n_envs, seed=0)
        env = VecNormalize(env) if normalize else env
        # SB3's memory-saving buffer cannot tell time limits: the reference keeps every observation twice.
        saving = {} if name == updater else {"optimize_memory_usage": False}
        models.append(make_model(name, env, **settings | saving).learn(80))
    assert models[0]._n_updates == models[1]._n_updates > 15
    assert type(models[1].replay_buffer).__name__.startswith("Packed")
    assert largest_difference(state_of(models[1].policy), state_of(models[0].policy)) < 0.02
    observation = PointEnv().reset(seed=1)[0]
    np.testing.assert_allclose(models[0].predict(observation)[0], models[1].predict(observation)[0], atol=1e-3)


@pytest.mark.parametrize("updater", BY_NAME)
def test_state_dict_is_sb3s_in_names_and_shapes(updater):
    theirs = DDPG("MlpPolicy", "Pendulum-v1", **SMALL).learn(60)
    ours = make_model(updater).learn(60)
    for name, state in theirs.get_parameters().items():
        other = ours.get_parameters()[name]
        if name == "policy":
            assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in other.items()}
        else:
            assert state["param_groups"] == other["param_groups"]
            shapes = [
                {(i, n): (v.shape, v.dtype) for i, e in s["state"].items() for n, v in e.items()} for s in (state, other)
            ]
            assert shapes[0] == shapes[1]
            assert {e["step"].item() for e in other["state"].values()} == {40.0}


@pytest.mark.parametrize("updater", BY_NAME)
def test_parameters_pass_to_sb3_and_back(updater):
    ours, theirs = make_model(updater).learn(60), DDPG("MlpPolicy", "Pendulum-v1", **SMALL)
    theirs.set_parameters(ours.get_parameters())
    assert max(compare_models(ours, theirs).values()) == 0
    theirs.learn(60)
    other = make_model(updater, seed=3).learn(40)
    # torch's load_state_dict takes moments as they are: a copy, or both models would train the same ones.
    other.set_parameters(copy.deepcopy(theirs.get_parameters()))
    assert max(compare_models(other, theirs).values()) == 0
    # What was loaded is what goes on, first and second moments and step counts included.
    twin = make_model("autograd", seed=3)
    twin.set_parameters(theirs.get_parameters())
    for model in (other, twin):
        model._setup_learn(10)
        model.replay_buffer = make_buffer_for(model)
        np.random.seed(0)
        model.train(10, 16)
    assert largest_difference(state_of(other.policy), state_of(twin.policy)) < 0.02


def make_buffer_for(model):
    rng = np.random.default_rng(0)
    buffer = PackedReplayBuffer(100, model.observation_space, model.action_space, "cpu")
    for _ in range(50):
        row = (rng.normal(size=(1, 3)), rng.normal(size=(1, 3)), rng.uniform(-1, 1, (1, 1)))
        buffer.add(*row, rng.normal(size=1), np.array([False]), [{}])
    return buffer


@pytest.mark.parametrize("updater", BY_NAME)
def test_saves_loads_and_goes_on(tmp_path, updater):
    model = make_model(updater).learn(60)
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=make_vec_env("Pendulum-v1"), device="cpu")
    assert loaded._updater.pick(loaded._networks()).name == updater
    assert same(state_of(loaded.policy), state_of(model.policy))
    buffer = make_buffer_for(model)
    for other in (model, loaded):
        other.replay_buffer = buffer
        np.random.seed(0)
        other._setup_learn(10)
        other.train(5, 16)
    assert same(state_of(loaded.policy), state_of(model.policy))


@pytest.mark.parametrize("updater", BY_NAME)
@pytest.mark.parametrize("way", ["deepcopy", "pickle the policy", "to"])
def test_views_are_rebuilt(updater, way):
    """Copies and moves leave no parameter behind: training goes on in the networks that one sees, and in them alone."""
    model = make_model(updater).learn(60)
    original = state_of(model.policy)
    if way == "deepcopy":
        other = copy.deepcopy(model)
    elif way == "pickle the policy":
        other = model
        weights = pickle.loads(pickle.dumps(model.policy.state_dict()))
        other.policy.load_state_dict(weights)
    else:
        other = model
        other.policy.to(th.float64).to(th.float32)
    other.replay_buffer = make_buffer_for(model)
    other.train(3, 16)
    twin = make_model("autograd", seed=5)
    twin.policy.load_state_dict({name: value for name, value in original.items() if "optimizer" not in name})
    assert not same(state_of(other.policy), original)
    if way == "deepcopy":
        assert same(state_of(model.policy), original)
        model.replay_buffer = other.replay_buffer
        np.random.seed(7)
        model.train(2, 16)
        assert not same(state_of(model.policy), original)
    observation = np.ones(3, np.float32)
    other._last_obs, other.action_noise, other.num_timesteps = observation[None], None, 10**6
    acted, _ = other._sample_action(0)
    np.testing.assert_allclose(other.predict(observation)[0], acted[0], atol=1e-5)


@pytest.mark.parametrize("updater", BY_NAME)
def test_other_buffers_are_read_as_well(updater):
    from stable_baselines3.common.buffers import ReplayBuffer

    models = [make_model(name, replay_buffer_class=ReplayBuffer).learn(60) for name in ("autograd", updater)]
    assert type(models[1].replay_buffer) is ReplayBuffer
    assert largest_difference(state_of(models[1].policy), state_of(models[0].policy)) < 0.02


@pytest.mark.parametrize("updater", BY_NAME)
def test_a_buffer_may_give_other_batches_than_asked_for(updater):
    from stable_baselines3.common.buffers import ReplayBuffer

    class Whole(ReplayBuffer):
        def sample(self, batch_size, env=None):
            return self._get_samples(np.arange(self.size()), env)

    models = [make_model(name, replay_buffer_class=Whole, gradient_steps=2).learn(40) for name in ("autograd", updater)]
    assert largest_difference(state_of(models[1].policy), state_of(models[0].policy)) < 0.01


@pytest.mark.parametrize("updater", BY_NAME)
def test_actions_are_those_of_predict(updater):
    model = make_model(updater, random_steps=0, action_noise=None, env=PointEnv()).learn(30)
    sent = []
    step = model.env.step
    model.env.step = lambda actions: sent.append((model._last_obs.copy(), actions.copy())) or step(actions)
    model.learning_starts = 10**6
    model.learn(20, reset_num_timesteps=False)
    for observation, actions in sent:
        np.testing.assert_allclose(model.predict(observation)[0], actions, rtol=1e-6, atol=1e-6)


def test_an_updater_may_go_on_with_networks_of_another_kind():
    """The settings are the same; the tables are not."""
    updater, settings = CompiledUpdater(), UpdateSettings(gamma=0.95, tau=0.01)
    for changes in ({}, {"activation_fn": "tanh"}, {"net_arch": [16], "n_critics": 2}):
        policy, reference = make_policy(**changes), make_policy(**changes)
        results = []
        for one, trained in ((updater, policy), (AutogradUpdater(), reference)):
            np.random.seed(1)
            networks = networks_of(trained)
            assert one.objection(networks) is None
            one.train(networks, make_buffer(trained), 3, 16, settings, 0)
            results.append(th.cat([value.flatten() for value in trained.state_dict().values()]))
        th.testing.assert_close(*results, rtol=1e-4, atol=1e-5)


def test_whole_numbers_do_not_compile_anew():
    from sb3_ddpg_scratch.updates.kernels import advance

    train(CompiledUpdater, make_policy(), 2)
    known = len(advance.signatures)
    for policy_kwargs, numbers in (({"critic_weight_decay": 0.1}, {"tau": 1, "gamma": 0}), ({}, {"max_grad_norm": 1})):
        train(CompiledUpdater, make_policy(**policy_kwargs), 2, target_noise_clip=1, **numbers)
    assert len(advance.signatures) == known
