"""The reference update: its TD target, losses and steps against numbers worked out by hand."""

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from test_handwritten import networks_of

from sb3_ddpg_scratch.policies import MlpPolicy
from sb3_ddpg_scratch.updates import UpdateSettings
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater, actor_loss, critic_loss, descend, td_target

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (1,), np.float32)
ACTIONS = spaces.Box(-1, 1, (1,), np.float32)


def linear_policy(n_critics: int = 1, learning_rate: float = 0.1, **kwargs) -> MlpPolicy:
    """mu(s) = tanh(s), mu'(s) = tanh(2 s), Q_i(s, a) = s + (2 + i) a, Q_i'(s, a) = 3 s + (1 - i) a + 0.5."""
    kwargs = {"optimizer_class": th.optim.SGD} | kwargs
    policy = MlpPolicy(OBSERVATIONS, ACTIONS, lambda _: learning_rate, net_arch=[], n_critics=n_critics, **kwargs)
    with th.no_grad():
        for actor, slope in ((policy.actor, 1.0), (policy.actor_target, 2.0)):
            actor.mu[0].weight.fill_(slope)
            actor.mu[0].bias.zero_()
        for index in range(n_critics):
            policy.critic.q_networks[index][0].weight.copy_(th.tensor([[1.0, 2.0 + index]]))
            policy.critic.q_networks[index][0].bias.zero_()
            policy.critic_target.q_networks[index][0].weight.copy_(th.tensor([[3.0, 1.0 - index]]))
            policy.critic_target.q_networks[index][0].bias.fill_(0.5)
    return policy


def batch_of(observations, actions, rewards, next_observations, dones, discounts=None) -> ReplayBufferSamples:
    column = lambda values: th.tensor(values, dtype=th.float32).reshape(-1, 1)  # noqa: E731
    return ReplayBufferSamples(
        column(observations),
        column(actions),
        column(next_observations),
        column(dones),
        column(rewards),
        None if discounts is None else column(discounts),
    )


BATCH = batch_of([1.0, 2.0], [0.5, -0.5], [1.0, -1.0], [0.5, 1.0], [0.0, 1.0])


def target(batch, policy, **settings):
    settings = UpdateSettings(**{"gamma": 0.9, "tau": 0.5} | settings)
    return td_target(batch, policy.actor_target, policy.critic_target, settings)


def test_td_target_by_hand():
    """y = 1 + 0.9 (3 * 0.5 + tanh(1) + 0.5) where the episode goes on; the reward alone where it terminated."""
    y = target(BATCH, linear_policy())
    assert y.shape == (2, 1)
    assert y[0].item() == pytest.approx(1 + 0.9 * (2.0 + np.tanh(1.0)))
    assert y[1].item() == -1.0
    assert not y.requires_grad


def test_td_target_takes_the_smaller_of_two_critics():
    """Q_2' ignores the action: 3 s + 0.5, which is smaller where the action is positive."""
    y = target(BATCH, linear_policy(n_critics=2))
    assert y[0].item() == pytest.approx(1 + 0.9 * 2.0)


def test_td_target_of_n_steps_uses_the_batchs_discounts():
    batch = batch_of([1.0], [0.0], [2.0], [0.5], [0.0], discounts=[0.5])
    assert target(batch, linear_policy())[0].item() == pytest.approx(2 + 0.5 * (2.0 + np.tanh(1.0)))


def test_target_policy_smoothing_is_clipped_twice():
    """With much noise the smoothed action is mu'(s') plus or minus the clip, and never leaves [-1, 1]."""
    n = 1000
    batch = batch_of([0.0] * n, [0.0] * n, [0.0] * n, [0.0] * (n // 2) + [0.5] * (n // 2), [0.0] * n)
    y = target(batch, linear_policy(), gamma=1.0, target_policy_noise=1e6, target_noise_clip=0.3)
    at_zero, at_half = y[: n // 2].squeeze() - 0.5, y[n // 2 :].squeeze() - 2.0
    assert set(np.round(at_zero.tolist(), 5)) == {-0.3, 0.3}
    low = round(float(np.tanh(1.0)) - 0.3, 5)
    assert set(np.round(at_half.tolist(), 5)) == {low, 1.0}


def test_the_noise_is_drawn_first_and_without_smoothing_too():
    """As in SB3's TD3: by ``normal_`` in the actions' shape and dtype, before the target actor may draw."""
    policy, drawn = linear_policy(), []
    policy.actor_target.register_forward_pre_hook(lambda *_: drawn.append(th.get_rng_state()))
    for size in (0.0, 0.1):
        th.manual_seed(3)
        target(BATCH, policy, target_policy_noise=size)
        th.manual_seed(3)
        th.zeros(2, 1).normal_(0, size)
        assert th.equal(drawn[-1], th.get_rng_state())


def test_critic_loss_by_hand():
    y = th.tensor([[1.0], [2.0]])
    assert critic_loss((th.tensor([[2.0], [4.0]]),), y).item() == 2.5
    assert critic_loss((th.tensor([[2.0], [4.0]]), y), y).item() == 2.5
    assert critic_loss((y + 1, y - 3), y).item() == 10.0


def test_actor_loss_by_hand():
    """-mean(s + 2 tanh(s)), and half of mean(tanh(s)^2)."""
    policy = linear_policy()
    expected = -np.mean([1 + 2 * np.tanh(1), 2 + 2 * np.tanh(2)])
    assert actor_loss(BATCH, policy.actor, policy.critic).item() == pytest.approx(expected)
    expected += 0.5 * np.mean([np.tanh(1) ** 2, np.tanh(2) ** 2])
    assert actor_loss(BATCH, policy.actor, policy.critic, action_l2=0.5).item() == pytest.approx(expected)


def test_one_update_by_hand():
    """Every parameter after one update with plain gradient descent (rate 0.1, gamma 0.9, tau 0.5)."""
    policy = linear_policy()
    AutogradUpdater().update(networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=0.5), update_policy=True)

    y = np.array([1 + 0.9 * (2.0 + np.tanh(1.0)), -1.0])
    s, a = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    error = s + 2 * a - y
    w_s, w_a, b = 1 - 0.1 * np.mean(2 * error * s), 2 - 0.1 * np.mean(2 * error * a), -0.1 * np.mean(2 * error)
    # The actor climbs the new critic: dQ/da = w_a, dmu/dx = 1 - tanh(s)^2.
    slope = w_a * (1 - np.tanh(s) ** 2)
    v, c = 1 + 0.1 * np.mean(slope * s), 0.1 * np.mean(slope)

    critic, actor = policy.critic.q_networks[0][0], policy.actor.mu[0]
    np.testing.assert_allclose(critic.weight.detach().numpy(), [[w_s, w_a]], rtol=1e-6)
    np.testing.assert_allclose(critic.bias.item(), b, rtol=1e-6)
    np.testing.assert_allclose([actor.weight.item(), actor.bias.item()], [v, c], rtol=1e-6)
    target_critic, target_actor = policy.critic_target.q_networks[0][0], policy.actor_target.mu[0]
    np.testing.assert_allclose(target_critic.weight.detach().numpy(), [[(w_s + 3) / 2, (w_a + 1) / 2]], rtol=1e-6)
    np.testing.assert_allclose(target_critic.bias.item(), (b + 0.5) / 2, rtol=1e-6)
    np.testing.assert_allclose([target_actor.weight.item(), target_actor.bias.item()], [(v + 2) / 2, c / 2], rtol=1e-6)


def test_delayed_update_moves_the_critic_alone():
    policy = linear_policy()
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    AutogradUpdater().update(networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=0.5), update_policy=False)
    changed = {name for name, tensor in policy.state_dict().items() if not th.equal(tensor, before[name])}
    assert changed == {"critic.qf0.0.weight", "critic.qf0.0.bias"}


def test_clipping_by_hand():
    """The gradient of 3 x + 4 y is (3, 4), of norm 5: limited to 1 it is (0.6, 0.8); limited to 10 it stays."""
    for limit, step in ((1.0, [0.6, 0.8]), (10.0, [3.0, 4.0])):
        parameters = [th.zeros(1, requires_grad=True), th.zeros(1, requires_grad=True)]
        optimizer = th.optim.SGD(parameters, lr=1.0)
        (3 * parameters[0] + 4 * parameters[1]).sum().backward()
        norm = descend(parameters, optimizer, limit)
        assert norm.item() == pytest.approx(5.0)
        np.testing.assert_allclose([-p.item() for p in parameters], step, rtol=1e-5)


def test_each_network_is_clipped_by_itself():
    policy = linear_policy(learning_rate=1.0)
    before = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    AutogradUpdater().update(
        networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=1e-9, max_grad_norm=0.01), update_policy=True
    )
    for network in ("actor.mu", "critic.qf0"):
        moves = [tensor - before[name] for name, tensor in policy.state_dict().items() if name.startswith(network)]
        assert th.cat([move.flatten() for move in moves]).norm().item() == pytest.approx(0.01, rel=1e-3)


def test_statistics_by_hand():
    policy = linear_policy()
    updater = AutogradUpdater()
    updater.begin()
    updater.update(networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=0.5), update_policy=True)
    y = np.array([1 + 0.9 * (2.0 + np.tanh(1.0)), -1.0])
    s, a = np.array([1.0, 2.0]), np.array([0.5, -0.5])
    error = s + 2 * a - y
    gradient = [np.mean(2 * error * s), np.mean(2 * error * a), np.mean(2 * error)]
    read = updater.read_statistics()
    assert read["critic_loss"] == pytest.approx(np.mean(error**2))
    assert read["q_mean"] == pytest.approx(np.mean(s + 2 * a))
    assert read["target_q_mean"] == pytest.approx(y.mean())
    assert read["critic_grad_norm"] == pytest.approx(np.linalg.norm(gradient))
    assert read["actor_loss"] == pytest.approx(updater.read_losses()["actor_loss"])
    clipped = AutogradUpdater()
    clipped.begin()
    clipped.update(
        networks_of(linear_policy()), BATCH, UpdateSettings(gamma=0.9, tau=0.5, max_grad_norm=0.1), update_policy=True
    )
    assert clipped.read_statistics()["critic_grad_norm"] == pytest.approx(np.linalg.norm(gradient))


def test_mean_losses_are_of_all_updates_since_begin():
    policy = linear_policy()
    updater = AutogradUpdater()
    losses = []
    for _ in range(2):
        updater.begin()
        losses = []
        for _ in range(3):
            updater.update(networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=0.5), update_policy=True)
            losses.append(updater.read_losses()["critic_loss"])
        assert updater.read_statistics()["critic_loss"] == pytest.approx(np.mean(losses))


def test_weights_decay_in_the_critic_alone():
    """With a gradient of zero (rewards that the critic predicts), only L2 moves the critic: w <- w - rate * decay * w."""
    policy = linear_policy(critic_weight_decay=0.1, learning_rate=0.5)
    batch = batch_of([1.0], [0.5], [2.0], [0.0], [1.0])
    actor_before = [parameter.detach().clone() for parameter in policy.actor.parameters()]
    AutogradUpdater().update(networks_of(policy), batch, UpdateSettings(gamma=0.9, tau=0.5), update_policy=False)
    np.testing.assert_allclose(policy.critic.q_networks[0][0].weight.detach().numpy(), [[0.95, 1.9]], rtol=1e-6)
    assert all(th.equal(a, b) for a, b in zip(actor_before, policy.actor.parameters(), strict=True))
    assert policy.actor.optimizer.param_groups[0]["weight_decay"] == 0


def test_frozen_parameters_stay():
    policy = linear_policy()
    policy.actor.mu[0].bias.requires_grad_(False)
    weight, bias = policy.actor.mu[0].weight.clone(), policy.actor.mu[0].bias.clone()
    AutogradUpdater().update(networks_of(policy), BATCH, UpdateSettings(gamma=0.9, tau=0.5), update_policy=True)
    assert th.equal(policy.actor.mu[0].bias, bias)
    assert not th.equal(policy.actor.mu[0].weight, weight)
