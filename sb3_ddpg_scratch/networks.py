"""The networks: Actor, mu(s), and Critic, Q(s, a), with normalization, residual blocks and the paper's late action input."""

from collections.abc import Callable, Sequence
from itertools import chain, pairwise
from operator import is_
from typing import Any

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BaseModel, BasePolicy, ContinuousCritic
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.type_aliases import PyTorchObs
from torch import nn

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.observation_statistics import ObservationStatistics

NORMS = (None, "layer", "batch")


class _ModuleTree:
    """Switches a network's mode in a fraction of the time of ``train``, since every rollout and update starts with it."""

    def __init__(self) -> None:
        self._containers: list[dict[str, nn.Module | None]] = []
        self._children: list[nn.Module | None] = []
        self._attributes: list[dict[str, Any]] = []

    def __reduce__(self) -> tuple[Any, ...]:
        # A copied network has its own modules.
        return _ModuleTree, ()

    def set_mode(self, network: nn.Module, training: bool) -> None:
        """Same effect as ``network.train(training)``."""
        children = list(chain.from_iterable(map(dict.values, self._containers)))
        if not self._attributes or len(children) != len(self._children) or not all(map(is_, children, self._children)):
            self._find_modules(network)
        if not self._attributes:
            network.train(training)
        for attributes in self._attributes:
            attributes["training"] = training

    def _find_modules(self, network: nn.Module) -> None:
        modules = list(network.modules())
        self._containers = [module._modules for module in modules if module._modules]
        self._children = list(chain.from_iterable(map(dict.values, self._containers)))
        overridden = any(type(module).train is not nn.Module.train or "train" in vars(module) for module in modules)
        self._attributes = [] if overridden else [vars(module) for module in modules]


def _activation(activation_fn: Callable[[], nn.Module]) -> nn.Module:
    activation = activation_fn()
    if not isinstance(activation, nn.Module):
        raise ArgumentError("activation_fn", activation_fn, "a torch module class, or a function that makes a module")
    return activation


def _hidden_layer(n_in: int, n_out: int, activation_fn: Callable[[], nn.Module], norm: str | None) -> list[nn.Module]:
    layers: list[nn.Module] = [nn.Linear(n_in, n_out)]
    if norm == "layer":
        layers.append(nn.LayerNorm(n_out))
    elif norm == "batch":
        layers.append(nn.BatchNorm1d(n_out))
    return [*layers, _activation(activation_fn)]


class ResidualBlock(nn.Sequential):
    """``x + f(x)`` with f a layer normalization, a wider hidden layer, and a linear layer back (Lee et al. 2024)."""

    def __init__(self, width: int, scale_factor: int, activation: nn.Module) -> None:
        wide, narrow = nn.Linear(width, scale_factor * width), nn.Linear(scale_factor * width, width)
        super().__init__(nn.LayerNorm(width), wide, activation, narrow)
        for layer in (wide, narrow):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: th.Tensor) -> th.Tensor:
        return x + super().forward(x)  # type: ignore[no-untyped-call]


def _residual_layers(network: Any, n_in: int, n_out: int) -> list[nn.Module]:
    """An embedding, blocks, a layer normalization and the output layer."""
    width = network.net_arch[0]
    embedding = nn.Linear(n_in, width)
    blocks = [ResidualBlock(width, network.scale_factor, _activation(network.activation_fn)) for _ in network.net_arch]
    output = _output_layer(width, n_out, network.final_init)
    for layer in (embedding,) if network.final_init is not None else (embedding, output):
        nn.init.orthogonal_(layer.weight)
        nn.init.zeros_(layer.bias)
    return [embedding, *blocks, nn.LayerNorm(width), output]


def flat_layers(layers: nn.Module) -> list[nn.Module]:
    """Layers in their order, with those of a residual block in its place."""
    return [one for layer in layers.children() for one in (layer if isinstance(layer, ResidualBlock) else (layer,))]


def normalize_by_batch(layers: nn.Module) -> None:
    """Use batch statistics in target networks: with the trained ones' running statistics, Q drifts and learning fails."""
    for layer in layers.modules():
        if isinstance(layer, nn.BatchNorm1d):
            layer.training, layer.track_running_stats = True, False


def _output_layer(n_in: int, n_out: int, final_init: float | None) -> nn.Linear:
    layer = nn.Linear(n_in, n_out)
    if final_init is not None:
        nn.init.uniform_(layer.weight, -final_init, final_init)
        nn.init.uniform_(layer.bias, -final_init, final_init)
    return layer


class _Network(BaseModel):
    """What actor and critic share."""

    observation_statistics: ObservationStatistics | None = None
    scale_factor: int | None = None

    _tree: _ModuleTree

    def set_training_mode(self, mode: bool) -> None:
        self._tree.set_mode(self, mode)

    def extract_features(self, obs: PyTorchObs, features_extractor: BaseFeaturesExtractor) -> th.Tensor:
        if self.observation_statistics is not None:
            obs = self.observation_statistics(obs)
        return super().extract_features(obs, features_extractor)


class Actor(_Network, BasePolicy):
    """
    The deterministic policy mu(s): features, hidden layers, and a tanh that keeps actions in [-1, 1].

    With ``norm="batch"`` the features and every hidden layer's sums are batch-normalized (Lillicrap et al. 2015,
    section 3). The output layer is not: normalized sums would undo the small initial weights with which the paper
    keeps the first actions near zero. With ``norm="layer"`` every hidden layer's sums are layer-normalized.

    Arguments as for SB3's ``Actor``; ``norm``, ``final_init`` and ``scale_factor`` as for ``ScratchDDPGPolicy``, whose
    ``observation_statistics`` normalize what the network sees.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        norm: str | None = None,
        final_init: float | None = None,
        scale_factor: int | None = None,
        observation_statistics: ObservationStatistics | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor=features_extractor,
            normalize_images=normalize_images,
            squash_output=True,
        )
        self._tree = _ModuleTree()
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.norm = norm
        self.final_init = final_init
        self.scale_factor = scale_factor
        # Not registered: it is a part of the policy.
        vars(self)["observation_statistics"] = observation_statistics
        self.mu = nn.Sequential(*self._layers(get_action_dim(action_space)), nn.Tanh())

    def _layers(self, action_dim: int) -> list[nn.Module]:
        if self.scale_factor is not None:
            return _residual_layers(self, self.features_dim, action_dim)
        layers: list[nn.Module] = [nn.BatchNorm1d(self.features_dim)] if self.norm == "batch" else []
        widths = [self.features_dim, *self.net_arch]
        for n_in, n_out in pairwise(widths):
            layers += _hidden_layer(n_in, n_out, self.activation_fn, self.norm)
        return [*layers, _output_layer(widths[-1], action_dim, self.final_init)]

    def forward(self, obs: PyTorchObs) -> th.Tensor:
        """Normalized actions in [-1, 1], shape ``(batch, action_dim)``."""
        return self.mu(self.extract_features(obs, self.features_extractor))

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self(observation)

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = ["net_arch", "features_dim", "activation_fn", "features_extractor", "norm", "final_init", "scale_factor"]
        names.append("observation_statistics")
        return super()._get_constructor_parameters() | {name: getattr(self, name) for name in names}


class QNetwork(nn.Sequential):
    """One Q(s, a) whose action joins the input of a later layer. (Otherwise a plain ``nn.Sequential``, as in SB3.)"""

    def __init__(self, layers: Sequence[nn.Module], action_joins_at: int) -> None:
        super().__init__(*layers)
        self.action_joins_at = action_joins_at

    def forward(self, features: th.Tensor, actions: th.Tensor) -> th.Tensor:  # type: ignore[override]
        x = features
        for index, layer in enumerate(self):
            if index == self.action_joins_at:
                x = th.cat([x, actions], dim=1)
            x = layer(x)
        return x


class Critic(_Network):
    """
    The action values Q(s, a): one network in DDPG; TD3 takes the minimum of two or more.

    With ``norm="batch"`` the features and the hidden layers before the action joins are batch-normalized
    (Lillicrap et al. 2015, section 3); with ``norm="layer"`` every hidden layer is layer-normalized.

    Arguments as for SB3's ``ContinuousCritic``, and others as for :class:`Actor`.
    """

    features_extractor: BaseFeaturesExtractor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        net_arch: list[int],
        features_extractor: BaseFeaturesExtractor,
        features_dim: int,
        activation_fn: Callable[[], nn.Module] = nn.ReLU,
        normalize_images: bool = True,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        norm: str | None = None,
        action_layer: int = 0,
        final_init: float | None = None,
        scale_factor: int | None = None,
        observation_statistics: ObservationStatistics | None = None,
    ) -> None:
        super().__init__(
            observation_space, action_space, features_extractor=features_extractor, normalize_images=normalize_images
        )
        self._tree = _ModuleTree()
        self.net_arch = net_arch
        self.features_dim = features_dim
        self.activation_fn = activation_fn
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        self.norm = norm
        self.action_layer = action_layer
        self.final_init = final_init
        self.scale_factor = scale_factor
        vars(self)["observation_statistics"] = observation_statistics

        self.q_networks: list[nn.Sequential] = []
        for index in range(n_critics):
            q_network = self._make_q_network()
            self.add_module(f"qf{index}", q_network)
            self.q_networks.append(q_network)

    def _make_q_network(self) -> nn.Sequential:
        action_dim = get_action_dim(self.action_space)
        self.action_joins_at = action_joins_at = 0
        if self.scale_factor is not None:
            return nn.Sequential(*_residual_layers(self, self.features_dim + action_dim, 1))
        layers: list[nn.Module] = [nn.BatchNorm1d(self.features_dim)] if self.norm == "batch" else []
        n_in = self.features_dim
        for depth, n_out in enumerate([*self.net_arch, 1]):
            if depth == self.action_layer:
                action_joins_at = len(layers)
                n_in += action_dim
            if depth == len(self.net_arch):
                layers.append(_output_layer(n_in, n_out, self.final_init))
            else:
                norm = None if self.norm == "batch" and depth >= self.action_layer else self.norm
                layers += _hidden_layer(n_in, n_out, self.activation_fn, norm)
            n_in = n_out
        self.action_joins_at = action_joins_at
        return QNetwork(layers, action_joins_at) if action_joins_at else nn.Sequential(*layers)

    def _features(self, obs: PyTorchObs, learn: bool) -> th.Tensor:
        with th.set_grad_enabled(learn):
            return self.extract_features(obs, self.features_extractor)

    def forward(self, obs: PyTorchObs, actions: th.Tensor) -> tuple[th.Tensor, ...]:
        """Each Q-network's values, shape ``(batch, 1)``."""
        features = self._features(obs, learn=not self.share_features_extractor and th.is_grad_enabled())
        return tuple(self._q_values(q_network, features, actions) for q_network in self.q_networks)

    def _q_values(self, q_network: nn.Sequential, features: th.Tensor, actions: th.Tensor) -> th.Tensor:
        if self.action_joins_at:
            return q_network(features, actions)
        return q_network(th.cat([features, actions], dim=1))

    def q1_forward(self, obs: PyTorchObs, actions: th.Tensor) -> th.Tensor:
        """The first Q-network alone, for the actor's loss. No gradient flows into the features."""
        return self._q_values(self.q_networks[0], self._features(obs, learn=False), actions)


def is_plain_sb3(network: Any) -> bool:
    """Whether this is SB3's own actor or critic, with all of its methods."""
    kind = type(network)
    is_actor = (kind.__module__, kind.__name__) == ("stable_baselines3.td3.policies", "Actor")
    methods = [method for method in vars(kind).values() if callable(method)]
    return (is_actor or kind is ContinuousCritic) and all(method.__module__ == kind.__module__ for method in methods)


def take_over(network: Any, activation_fn: Callable[[], nn.Module]) -> None:
    """Turn SB3's plain actor or critic into one of ours, which fast updaters support; its layers and their names stay."""
    settings: dict[str, Any] = {"_tree": _ModuleTree(), "norm": None, "final_init": None}
    is_critic = isinstance(network, ContinuousCritic)
    if is_critic:
        widths = [layer.out_features for layer in network.q_networks[0].modules() if isinstance(layer, nn.Linear)]
        settings |= {"net_arch": widths[:-1], "features_dim": network.features_extractor.features_dim}
        settings |= {"activation_fn": activation_fn, "action_layer": 0, "action_joins_at": 0}
    network.__class__ = Critic if is_critic else Actor
    vars(network).update(settings)
