"""Every preset has the numbers of the system it is named after, and what is special about that system really happens."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from test_zoo_manager import manager_for
from torch import nn

from sb3_ddpg_scratch import GaussianNoise, OUNoise
from sb3_ddpg_scratch.zoo import preset_file, preset_names

MILLION = 1_000_000
PEER = {
    "gamma": 0.99,
    "tau": 0.005,
    "buffer_size": MILLION,
    "steps": MILLION,
    "hidden": [256, 256],
    "noise": ("gaussian", 0.1),
}
# Written out by hand from the publications and sources that the presets are named after.
EXPECTED = {
    "tch_rs": {
        **{"hidden": [400, 300], "rates": (1e-4, 1e-3), "gamma": 0.99, "tau": 0.005, "buffer_size": 100_000},
        **{"batch_size": 100, "noise": ("ou", 0.1), "random_steps": 0, "learning_starts": 0, "steps": 20_000},
        **{"train_freq": (1, "episode"), "gradient_steps": 200},
    },
    "plotly_notebook": {
        **{"hidden": [256, 256], "rates": (1e-3, 1e-3), "gamma": 0.99, "tau": 0.005, "buffer_size": 200_000},
        **{"batch_size": 128, "noise": ("gaussian", 0.05), "random_steps": 2000, "learning_starts": 1000, "steps": 50_000},
        **{"max_grad_norm": 1.0, "masks_time_limits": True},
    },
    "simple_rl": {
        **{"hidden": [64, 64], "rates": (5e-4, 5e-3), "gamma": 0.98, "tau": 0.005, "buffer_size": 10_000},
        **{"batch_size": 64, "noise": ("gaussian", 0.005), "random_steps": 0, "learning_starts": 0, "steps": 40_000},
        **{"train_freq": (1, "episode"), "gradient_steps": 200, "masks_time_limits": True},
    },
    "blog_post": {
        **{"hidden": [256, 256], "rates": (1e-3, 1e-3), "gamma": 0.99, "tau": 0.005, "buffer_size": 100_000},
        **{"batch_size": 64, "noise": None, "random_steps": 0, "learning_starts": 64, "steps": 20_000, "action_layer": 1},
    },
    "lillicrap2015": {
        **{"hidden": [400, 300], "rates": (1e-4, 1e-3), "gamma": 0.99, "tau": 0.001, "buffer_size": MILLION},
        **{"batch_size": 64, "noise": ("ou", 0.2), "random_steps": 0, "learning_starts": 64, "steps": MILLION},
        **{"action_layer": 1, "norm": "batch", "final_init": 3e-3, "weight_decay": 1e-2},
    },
    "spinning_up": {
        **PEER,
        **{"rates": (1e-3, 1e-3), "batch_size": 100, "random_steps": 10_000, "learning_starts": 1000},
        **{"train_freq": (50, "step"), "gradient_steps": 50},
    },
    "cleanrl": {
        **PEER,
        **{"rates": (3e-4, 3e-4), "batch_size": 256, "random_steps": 25_000, "learning_starts": 25_000, "policy_delay": 2},
    },
    "our_ddpg": {
        **PEER,
        **{"rates": (3e-4, 3e-4), "batch_size": 256, "random_steps": 25_000, "learning_starts": 25_000},
    },
    "rl_zoo": {
        **{"hidden": [400, 300], "rates": (1e-3, 1e-3), "gamma": 0.98, "tau": 0.005, "buffer_size": 200_000},
        **{"batch_size": 256, "noise": ("gaussian", 0.1), "random_steps": None, "learning_starts": 10_000, "steps": 20_000},
    },
    "simba": {
        **PEER,
        **{"rates": (1e-4, 1e-4), "batch_size": 256, "random_steps": 5000, "learning_starts": 5000},
        **{"hidden": [128], "critic": [512, 512], "scale_factor": 4, "normalizes": True, "optimizer": th.optim.AdamW},
        **{"weight_decay": 1e-2, "actor_weight_decay": 1e-2, "target_policy_noise": 0.1},
    },
    "tianshou": {
        **PEER,
        **{"rates": (1e-3, 1e-3), "batch_size": 256, "random_steps": 25_000, "learning_starts": 25_000},
    },
}
ALIKE = {"action_layer": 0, "norm": None, "final_init": None, "weight_decay": 0, "max_grad_norm": None, "policy_delay": 1}
ALIKE |= {"train_freq": (1, "step"), "gradient_steps": 1, "masks_time_limits": False}
ALIKE |= {
    "scale_factor": None,
    "normalizes": False,
    "optimizer": th.optim.Adam,
    "actor_weight_decay": 0,
    "target_policy_noise": 0,
}
TINY = {"net_arch": [8, 8], "activation_fn": "relu"}


def prepare(tmp_path, preset, env_id="Pendulum-v1", **options):
    manager = manager_for(tmp_path, preset_file(preset), env_id, **options)
    return manager, manager.setup_experiment()[0]


class Watch(BaseCallback):
    """Calls a function with the model after every environment step, before the updates that may follow."""

    def __init__(self, look):
        super().__init__()
        self.look = look

    def _on_step(self):
        self.look(self.model)
        return True


def train(tmp_path, preset, steps, look=lambda model: None, prepared=lambda model: None, **params):
    """Train through the preset and the Zoo's code, on networks that are quick."""
    settings = {"policy_kwargs": TINY, **params}
    manager, model = prepare(tmp_path, preset, n_timesteps=steps, params=settings)
    prepared(model)
    manager.callbacks.append(Watch(look))
    manager.learn(model)
    return model


def hidden_layers(network):
    """The widths of hidden layers, or of residual blocks."""
    blocks = [layer[-1].out_features for layer in network if isinstance(layer, nn.Sequential)]
    return blocks or [layer.out_features for layer in network if isinstance(layer, nn.Linear)][:-1]


def test_every_preset_is_expected_here():
    assert preset_names() == sorted(EXPECTED)


@pytest.mark.parametrize("preset", EXPECTED)
def test_numbers(tmp_path, preset):
    expected = ALIKE | EXPECTED[preset]
    manager, model = prepare(tmp_path, preset)
    optimizers = model.actor.optimizer, model.critic.optimizer
    found = {
        "hidden": hidden_layers(model.actor.mu),
        "critic": hidden_layers(model.critic.qf0),
        "scale_factor": model.policy.scale_factor,
        "normalizes": model.policy.observation_statistics is not None,
        "actor_weight_decay": optimizers[0].param_groups[0]["weight_decay"],
        "target_policy_noise": model.target_policy_noise,
        "rates": tuple(optimizer.param_groups[0]["lr"] for optimizer in optimizers),
        "noise": None,
        "steps": manager.n_timesteps,
        "train_freq": (model.train_freq.frequency, model.train_freq.unit.value),
        "action_layer": sum(isinstance(layer, nn.Linear) for layer in list(model.critic.qf0)[: model.critic.action_joins_at]),
        "weight_decay": optimizers[1].param_groups[0]["weight_decay"],
        "masks_time_limits": not model.replay_buffer.handle_timeout_termination,
    }
    for name in ("gamma", "tau", "batch_size", "gradient_steps", "learning_starts", "max_grad_norm", "policy_delay"):
        found[name] = getattr(model, name)
    for name in ("norm", "final_init"):
        found[name] = getattr(model.policy, name)
    found["random_steps"], found["buffer_size"] = model.random_steps, model.replay_buffer.buffer_size
    if isinstance(model.action_noise, NormalActionNoise):
        found["noise"] = ("gaussian", model.action_noise._sigma.item())
    elif model.action_noise is not None:
        found["noise"] = (
            {OUNoise: "ou", GaussianNoise: "gaussian"}[type(model.action_noise)],
            model.action_noise.sigma.item(),
        )
    found["optimizer"] = type(optimizers[0])
    assert found == {"critic": expected["hidden"]} | expected
    assert type(optimizers[1]) is expected["optimizer"]
    assert model.critic.n_critics == 1
    assert all(
        isinstance(layer, nn.ReLU)
        for layer in model.actor.mu.modules()
        if "torch.nn.modules.activation" in type(layer).__module__ and not isinstance(layer, nn.Tanh)
    )


@pytest.mark.parametrize("preset", ["tch_rs", "lillicrap2015"])
def test_ou_numbers(tmp_path, preset):
    noise = prepare(tmp_path, preset)[1].action_noise
    assert (noise.theta, noise.dt, noise.mean.item()) == (0.15, 1.0, 0.0)
    assert noise.initial_noise.item() == (1.0 if preset == "tch_rs" else 0.0)


@pytest.mark.parametrize("preset", [name for name in EXPECTED if name not in ("tch_rs", "simple_rl")])
def test_preset_without_an_environment_of_its_own_fits_any(tmp_path, preset):
    _, model = prepare(tmp_path, preset, "Point-v0", params={"buffer_size": 100})
    assert model.actor.mu[-2].out_features == 2


def test_tch_rs_noise_begins_at_one_and_goes_on_through_episodes(tmp_path):
    states, generators, first_actor = [], [], []

    def prepared(model):
        generators.append(pickle.loads(pickle.dumps(model.action_noise.generator)))
        first_actor.append(copy.deepcopy(model.actor))

    model = train(tmp_path, "tch_rs", 600, lambda model: states.append(model.action_noise.state.item()), prepared)
    expected, x = [], 1.0
    for draw in generators[0].standard_normal(600):
        x = 0.85 * x + 0.1 * draw
        expected.append(x)
    assert np.allclose(states, expected, rtol=0, atol=1e-12)
    assert abs(states[0] - 0.85) < 0.5

    # And that is what the actions of the first episode, before any update, have been explored with: from step one on.
    with th.no_grad():
        policy = first_actor[0](th.as_tensor(model.replay_buffer.observations[:200, 0])).numpy()
    explored = np.clip(policy[:, 0] + np.array(states[:200]), -1, 1)
    assert np.allclose(model.replay_buffer.actions[:200, 0, 0], explored, atol=1e-6)


@pytest.mark.parametrize("preset", ["tch_rs", "simple_rl"])
def test_two_hundred_updates_after_each_episode(tmp_path, preset):
    counts = []
    train(tmp_path, preset, 600, lambda model: counts.append(model._n_updates))
    assert counts == [0] * 200 + [200] * 200 + [400] * 200


@pytest.mark.parametrize("preset", ["tch_rs", "plotly_notebook", "simple_rl", "blog_post"])
def test_time_limits_in_the_targets(tmp_path, preset):
    quiet = {"gradient_steps": 1, "train_freq": 100}
    buffer = train(tmp_path, preset, 400, **quiet).replay_buffer
    dones = buffer._get_samples(np.arange(400)).dones.numpy().ravel()
    ends = [199, 399] if preset in ("plotly_notebook", "simple_rl") else []
    assert np.flatnonzero(dones).tolist() == ends


def test_plotly_notebook_acts_at_random_for_a_thousand_steps_after_the_first_update(tmp_path):
    updates, policy_from = {}, []

    def prepared(model):
        predict = model.policy.predict

        def spy(*args, **kwargs):
            policy_from.append(model.num_timesteps)
            return predict(*args, **kwargs)

        model.policy.predict = spy

    def look(model):
        updates[model.num_timesteps] = model._n_updates

    model = train(tmp_path, "plotly_notebook", 2020, look, prepared, batch_size=8)
    assert policy_from == list(range(2000, 2020))
    assert [updates[step] for step in (1000, 1001, 1002, 1003, 2020)] == [0, 0, 1, 2, 1019]
    # Pendulum's random actions fill [-1, 1] evenly: variance a third, none of the two halves preferred.
    random_actions = model.replay_buffer.actions[:2000, 0, 0]
    assert abs(random_actions.var() - 1 / 3) < 0.02
    assert abs(random_actions.mean()) < 0.05


def test_plotly_notebook_clips_the_gradient_of_each_network_by_itself(tmp_path):
    norms = {"actor": [], "critic": []}

    def prepared(model):
        for name in norms:
            network = getattr(model, name)

            def watched(step=network.optimizer.step, network=network, name=name):
                gradients = [parameter.grad.flatten() for parameter in network.parameters()]
                norms[name].append(th.cat(gradients).norm().item())
                return step()

            network.optimizer.step = watched

    model = train(tmp_path, "plotly_notebook", 150, prepared=prepared, learning_starts=50, random_steps=0, updater="autograd")
    assert len(norms["actor"]) == len(norms["critic"]) == model._n_updates == 100
    for values in norms.values():
        assert max(values) <= 1 + 1e-5
    # Pendulum's first TD errors are large: the critic's gradient is at its limit, whatever the actor's is.
    assert sum(value > 1 - 1e-4 for value in norms["critic"]) > 50
    assert min(norms["actor"]) < 1 - 1e-4


@pytest.mark.parametrize(("preset", "scale"), [("plotly_notebook", 0.1), ("simple_rl", 0.01)])
def test_noise_in_environment_units_is_the_sources(tmp_path, preset, scale):
    _, model = prepare(tmp_path, preset)
    noise = np.array([model.action_noise() for _ in range(20_000)])
    in_env_units = model.policy.unscale_action(noise) - model.policy.unscale_action(np.zeros(1))
    assert abs(in_env_units.std() / scale - 1) < 0.03


@pytest.mark.parametrize("preset", ["blog_post", "lillicrap2015"])
def test_action_joins_at_the_second_layer(tmp_path, preset):
    _, model = prepare(tmp_path, preset)
    first, second = [layer for layer in model.critic.qf0 if isinstance(layer, nn.Linear)][:2]
    assert (first.in_features, second.in_features) == (3, first.out_features + 1)
    # An action that the second layer does not look at is of no influence; at the input it would still be.
    model.critic.set_training_mode(False)
    observations, actions = th.randn(5, 3), th.tensor([[-1.0], [-0.5], [0.0], [0.5], [1.0]])
    same = observations[:1].expand(5, 3)
    with th.no_grad():
        influence = model.critic.q1_forward(same, actions).std()
        second.weight[:, -1] = 0
        assert model.critic.q1_forward(same, actions).std() < 1e-4 * influence
        assert model.critic.q1_forward(observations, actions).std() > 0


def test_blog_post_acts_without_noise(tmp_path):
    acted = []

    def prepared(model):
        acted.append(copy.deepcopy(model.actor))

    model = train(tmp_path, "blog_post", 64, prepared=prepared, policy_kwargs={**TINY, "action_layer": 1})
    with th.no_grad():
        policy = acted[0](th.as_tensor(model.replay_buffer.observations[:64, 0])).numpy()
    assert np.allclose(model.replay_buffer.actions[:64, 0], policy, atol=1e-6)


PAPER = {"norm": "batch", "action_layer": 1, "final_init": 3e-3, "critic_weight_decay": 1e-2}


def test_paper_normalizes_batches(tmp_path):
    model = train(tmp_path, "lillicrap2015", 80, policy_kwargs={**TINY, **PAPER})
    _, full = prepare(tmp_path, "lillicrap2015")
    for network in (model, full):
        actor = [type(layer).__name__ for layer in network.actor.mu]
        critic = [type(layer).__name__ for layer in network.critic.qf0]
        hidden = ["Linear", "BatchNorm1d", "ReLU"]
        assert actor == ["BatchNorm1d", *hidden, *hidden, "Linear", "Tanh"]
        assert critic == ["BatchNorm1d", *hidden, "Linear", "ReLU", "Linear"]
    for network in (model.actor, model.critic):
        for layer in network.modules():
            if isinstance(layer, nn.BatchNorm1d):
                assert layer.num_batches_tracked >= model._n_updates > 0
                assert layer.running_mean.abs().max() > 0
    assert th.equal(model.actor_target.mu[0].running_mean, model.actor.mu[0].running_mean)


def test_paper_decays_the_critics_weights_alone(tmp_path):
    _, model = prepare(tmp_path, "lillicrap2015")
    for network, shrinks in ((model.critic, True), (model.actor, False)):
        before = [parameter.detach().clone() for parameter in network.parameters()]
        for parameter in network.parameters():
            parameter.grad = th.zeros_like(parameter)
        network.optimizer.step()
        norms = [(old.norm().item(), new.norm().item()) for old, new in zip(before, network.parameters(), strict=True)]
        assert all((new < old) if shrinks and old > 0 else new == old for old, new in norms)


def test_paper_begins_with_small_last_layers(tmp_path):
    _, model = prepare(tmp_path, "lillicrap2015")
    for network in (model.actor.mu, model.critic.qf0):
        linear = [layer for layer in network if isinstance(layer, nn.Linear)]
        for layer in linear:
            bound = 3e-3 if layer is linear[-1] else 1 / math.sqrt(layer.in_features)
            largest = layer.weight.abs().max().item()
            assert 0.95 * bound < largest <= bound * (1 + 1e-6)
            assert layer.bias.abs().max() <= bound
            assert abs(layer.weight.std().item() / (bound / math.sqrt(3)) - 1) < 0.1


def test_spinning_up_updates_in_blocks_of_fifty_while_it_still_acts_at_random(tmp_path):
    counts = []

    def prepared(model):
        model.predict = lambda *_, **__: pytest.fail("the policy acted before step 10,000")

    train(tmp_path, "spinning_up", 1200, lambda model: counts.append(model._n_updates), prepared, batch_size=8)
    assert counts == [0] * 1050 + [50] * 50 + [100] * 50 + [150] * 50


def test_cleanrl_moves_actor_and_targets_with_every_second_update(tmp_path):
    groups = ("actor", "actor_target", "critic_target", "critic")
    seen = {name: [] for name in groups}

    def look(model):
        for name in groups:
            network = getattr(model, name)
            seen[name].append(th.cat([parameter.detach().flatten() for parameter in network.parameters()]).clone())

    model = train(tmp_path, "cleanrl", 60, look, learning_starts=20, random_steps=20, batch_size=16)
    assert model._n_updates == 40
    # Looked at before the updates of steps 21 to 60: update k (from 1) changes what is seen between steps 20+k, 21+k.
    for name in groups:
        moved = [not th.equal(*seen[name][19 + update : 21 + update]) for update in range(1, 40)]
        expected = [True] * 39 if name == "critic" else [update % 2 == 0 for update in range(1, 40)]
        assert moved == expected
