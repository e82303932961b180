"""Policies of a user's own that derive from SB3's, as its documentation shows them."""

import torch as th
from stable_baselines3.common.policies import ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.td3.policies import Actor, TD3Policy
from torch import nn


class DropoutActor(Actor):
    """Hidden layers with dropout; everything but the layers is SB3's."""

    def __init__(self, *args, dropout=0.2, **kwargs):
        super().__init__(*args, **kwargs)
        layers, width = [], self.features_dim
        for units in self.net_arch:
            layers += [nn.Linear(width, units), nn.ReLU(), nn.Dropout(dropout)]
            width = units
        self.mu = nn.Sequential(*layers, nn.Linear(width, get_action_dim(self.action_space)), nn.Tanh())


class ScaledCritic(ContinuousCritic):
    """Multiplies Q by a parameter that it learns."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.scale = nn.Parameter(th.ones(1))

    def forward(self, obs, actions):
        return tuple(self.scale * q_values for q_values in super().forward(obs, actions))

    def q1_forward(self, obs, actions):
        return self.scale * super().q1_forward(obs, actions)


class PlainPolicy(TD3Policy):
    """SB3's networks with other initial weights."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for network, target in ((self.actor, self.actor_target), (self.critic, self.critic_target)):
            network.apply(self.init_weights)
            target.load_state_dict(network.state_dict())


class OwnPolicy(TD3Policy):
    """Networks of the user's own."""

    def __init__(self, *args, dropout=0.2, **kwargs):
        self.dropout = dropout
        super().__init__(*args, **kwargs)

    def make_actor(self, features_extractor=None):
        kwargs = self._update_features_extractor(self.actor_kwargs, features_extractor)
        return DropoutActor(dropout=self.dropout, **kwargs).to(self.device)

    def make_critic(self, features_extractor=None):
        return ScaledCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)


class TimidPolicy(TD3Policy):
    """Acts with half of what its actor says."""

    def _predict(self, observation, deterministic=False):
        return 0.5 * self.actor(observation)


class UnsquashedPolicy(TD3Policy):
    """Predicts in environment units, which SB3 clips to the bounds."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._squash_output = False


class Block(nn.Sequential):
    def forward(self, x):
        return x + super().forward(x)


def residual_layers(n_in, widths, n_out, activation_fn):
    """Residual networks as a user would add them to SB3, who draws random numbers in the order of ScratchDDPG's."""
    width = widths[0]
    ends, blocks = [nn.Linear(n_in, width)], []
    for _ in widths:
        pair = [nn.Linear(width, 4 * width), nn.Linear(4 * width, width)]
        for layer in pair:
            nn.init.kaiming_normal_(layer.weight)
        blocks.append(Block(nn.LayerNorm(width), pair[0], activation_fn(), pair[1]))
    ends.append(nn.Linear(width, n_out))
    for layer in ends:
        nn.init.orthogonal_(layer.weight)
    for layer in (*ends, *(block[index] for block in blocks for index in (1, 3))):
        nn.init.zeros_(layer.bias)
    return [ends[0], *blocks, nn.LayerNorm(width), ends[1]]


class ResidualActor(Actor):
    def __init__(self, *args, **kwargs):
        generator = th.get_rng_state()
        super().__init__(*args, **kwargs)
        th.set_rng_state(generator)
        layers = residual_layers(self.features_dim, self.net_arch, get_action_dim(self.action_space), self.activation_fn)
        self.mu = nn.Sequential(*layers, nn.Tanh())


class ResidualCritic(ContinuousCritic):
    def __init__(self, *args, **kwargs):
        generator = th.get_rng_state()
        super().__init__(*args, **kwargs)
        th.set_rng_state(generator)
        n_in = kwargs["features_dim"] + get_action_dim(self.action_space)
        for index in range(self.n_critics):
            layers = residual_layers(n_in, kwargs["net_arch"], 1, kwargs["activation_fn"])
            self.q_networks[index] = nn.Sequential(*layers)
            self.add_module(f"qf{index}", self.q_networks[index])


class ResidualPolicy(TD3Policy):
    """SimbaPolicy without normalized observations, made of SB3's classes."""

    def __init__(self, *args, optimizer_class=th.optim.AdamW, **kwargs):
        super().__init__(*args, optimizer_class=optimizer_class, **kwargs)

    def make_actor(self, features_extractor=None):
        return ResidualActor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor=None):
        return ResidualCritic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)
