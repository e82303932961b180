"""The policy that holds actor and critic with their targets and optimizers, and its Mlp, Cnn, Dict and residual forms."""

import inspect
from collections.abc import Callable, Sequence
from itertools import chain
from numbers import Integral
from typing import Any, ClassVar

import torch as th
from gymnasium import spaces
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor, CombinedExtractor, FlattenExtractor, NatureCNN
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule
from torch import nn

from sb3_ddpg_scratch.errors import ArgumentError, near
from sb3_ddpg_scratch.networks import NORMS, Actor, Critic, normalize_by_batch
from sb3_ddpg_scratch.observation_statistics import ObservationStatistics
from sb3_ddpg_scratch.validation import check_choice, check_number, check_whole_number

NetArch = Sequence[int] | dict[str, Sequence[int]]

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "sigmoid": nn.Sigmoid,
    "mish": nn.Mish,
}


class ScratchDDPGPolicy(BasePolicy):
    """
    Actor and critic of DDPG, their target networks, and an optimizer for each of the two.

    Parameters have the same names as in SB3's ``TD3Policy``, and are created in the same order.

    :param observation_space: observation space
    :param action_space: action space, bounded
    :param lr_schedule: learning rate as a function of the progress remaining (1 to 0)
    :param net_arch: units of each hidden layer, as a list for both networks or as ``dict(pi=[...], qf=[...])``, whose other
        keys are ignored.
        ``None`` for [400, 300], or [256, 256] after a ``NatureCNN``
    :param activation_fn: class of the hidden layers' activation, or another function that makes one, or its name, as in
        ``"relu"`` or ``"tanh"``
    :param features_extractor_class: features extractor; ``None`` for ``FlattenExtractor``, or the subclass's default
    :param features_extractor_kwargs: its arguments
    :param normalize_images: whether to divide images by 255
    :param optimizer_class: optimizer of both networks
    :param optimizer_kwargs: its arguments, except the learning rate
    :param n_critics: number of Q-networks: 1 is DDPG, 2 is TD3
    :param share_features_extractor: whether actor and critic share one features extractor, trained by the actor's loss
    :param norm: normalization of hidden layers: ``None``, ``"layer"`` or ``"batch"``; see :class:`Actor`, :class:`Critic`
    :param action_layer: how many of the critic's hidden layers see only the observation, without the action (1 in the paper)
    :param final_init: half-width of both output layers' uniform initialization (0.003 in the paper); ``None`` for torch's
    :param critic_weight_decay: the critic's ``weight_decay`` (0.01 in the paper); 0 for the one in ``optimizer_kwargs``
    :param normalize_observations: whether to normalize observations by the running mean and variance of those that training
        has seen. They are buffers of the policy, so that whatever predicts, is saved or is exported has them
    :param clip_observations: limit for the absolute value of normalized observations
    :param scale_factor: ``None`` for plain hidden layers; otherwise networks are residual, see :class:`SimbaPolicy`
    :raises ArgumentError: for invalid values
    """

    default_features_extractor_class: ClassVar[type[BaseFeaturesExtractor]] = FlattenExtractor

    actor: Actor
    actor_target: Actor
    critic: Critic
    critic_target: Critic

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: Callable[[], nn.Module] | str = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.Adam,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        norm: str | None = None,
        action_layer: int = 0,
        final_init: float | None = None,
        critic_weight_decay: float = 0.0,
        normalize_observations: bool = False,
        clip_observations: float = 10.0,
        scale_factor: int | None = None,
    ) -> None:
        super().__init__(
            observation_space,
            action_space,
            features_extractor_class or self.default_features_extractor_class,
            features_extractor_kwargs,
            optimizer_class=optimizer_class,
            optimizer_kwargs=optimizer_kwargs,
            squash_output=True,
            normalize_images=normalize_images,
        )
        if net_arch is None:
            net_arch = [256, 256] if self.features_extractor_class == NatureCNN else [400, 300]
        self.net_arch = net_arch
        actor_arch, critic_arch = _split_net_arch(net_arch)
        self.activation_fn = _activation_maker(activation_fn)
        self.n_critics = n_critics
        self.share_features_extractor = share_features_extractor
        self.norm = norm
        self.action_layer = action_layer
        self.final_init = final_init
        self.critic_weight_decay = critic_weight_decay
        self.normalize_observations, self.clip_observations = normalize_observations, clip_observations
        self.scale_factor = scale_factor
        self._check_settings(actor_arch, critic_arch)
        statistics = ObservationStatistics(observation_space, clip_observations) if normalize_observations else None
        self.observation_statistics = statistics

        network_kwargs = {
            "observation_space": observation_space,
            "action_space": action_space,
            "activation_fn": self.activation_fn,
            "normalize_images": normalize_images,
            "norm": norm,
            "final_init": final_init,
            "scale_factor": scale_factor,
            "observation_statistics": statistics,
        }
        self.actor_kwargs = network_kwargs | {"net_arch": actor_arch}
        self.critic_kwargs = network_kwargs | {
            "net_arch": critic_arch,
            "n_critics": n_critics,
            "share_features_extractor": share_features_extractor,
            "action_layer": action_layer,
        }
        self._build(lr_schedule)

    def _check_settings(self, actor_arch: list[int], critic_arch: list[int]) -> None:
        check_choice("norm", self.norm, NORMS)
        check_whole_number("n_critics", self.n_critics, 1)
        if not (_is_count(self.action_layer) and self.action_layer <= len(critic_arch)):
            raise ArgumentError(
                "action_layer", self.action_layer, f"a whole number from 0 to the critic's {len(critic_arch)} hidden layers"
            )
        if self.final_init is not None:
            check_number("final_init", self.final_init, 0, low_allowed=False)
        check_number("critic_weight_decay", self.critic_weight_decay, 0)
        if not isinstance(self.normalize_observations, bool):
            raise ArgumentError("normalize_observations", self.normalize_observations, "True or False")
        check_number("clip_observations", self.clip_observations, 0, low_allowed=False)
        if self.scale_factor is None:
            return
        check_whole_number("scale_factor", self.scale_factor, 1)
        for widths in (actor_arch, critic_arch):
            if len(set(widths)) != 1:
                allowed = "one or more equal widths for each network, one for each residual block"
                raise ArgumentError("net_arch", self.net_arch, allowed, "For example dict(pi=[64], qf=[128, 128]).")
        for name, off in (("norm", None), ("action_layer", 0)):
            if getattr(self, name) != off:
                raise ArgumentError(name, getattr(self, name), problem="cannot be combined with residual blocks")

    def _build(self, lr_schedule: Schedule) -> None:
        # In SB3's order, which determines which random numbers become which weights.
        self.actor = self.make_actor()
        self.actor_target = self.make_actor()
        self.actor_target.load_state_dict(self.actor.state_dict())
        learning_rate = lr_schedule(1)
        self.actor.optimizer = self.optimizer_class(self.actor.parameters(), lr=learning_rate, **self.optimizer_kwargs)  # type: ignore[call-arg]

        shared, shared_target = None, None
        if self.share_features_extractor:
            shared, shared_target = self.actor.features_extractor, self.actor_target.features_extractor
        self.critic = self.make_critic(shared)
        self.critic_target = self.make_critic(shared_target)
        self.critic_target.load_state_dict(self.critic.state_dict())
        critic_kwargs = self.optimizer_kwargs.copy()
        if self.critic_weight_decay > 0:
            critic_kwargs["weight_decay"] = self.critic_weight_decay
        self.critic.optimizer = self.optimizer_class(self.critic.parameters(), lr=learning_rate, **critic_kwargs)  # type: ignore[call-arg]

        self.actor_target.set_training_mode(False)
        self.critic_target.set_training_mode(False)
        for layers in (self.actor_target.mu, *self.critic_target.q_networks):
            normalize_by_batch(layers)

    def make_actor(self, features_extractor: BaseFeaturesExtractor | None = None) -> Actor:
        return Actor(**self._update_features_extractor(self.actor_kwargs, features_extractor)).to(self.device)

    def make_critic(self, features_extractor: BaseFeaturesExtractor | None = None) -> Critic:
        return Critic(**self._update_features_extractor(self.critic_kwargs, features_extractor)).to(self.device)

    def forward(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        """Normalized actions in [-1, 1], shape ``(batch, action_dim)``; ``deterministic`` has no effect."""
        return self._predict(observation, deterministic=deterministic)

    def _predict(self, observation: PyTorchObs, deterministic: bool = False) -> th.Tensor:
        return self.actor(observation)

    def set_training_mode(self, mode: bool) -> None:
        """Switch actor and critic to training or evaluation mode (batch norm, dropout). Targets stay as they are."""
        # Called twice in every step: attribute access would search parameters and buffers first.
        self._modules["actor"].set_training_mode(mode)  # type: ignore[operator, union-attr]
        self._modules["critic"].set_training_mode(mode)  # type: ignore[operator, union-attr]
        self.__dict__["training"] = mode

    def _get_constructor_parameters(self) -> dict[str, Any]:
        names = set(inspect.signature(ScratchDDPGPolicy).parameters) - {"lr_schedule"}
        return {name: getattr(self, name) for name in names} | {"lr_schedule": self._dummy_schedule}


MlpPolicy = ScratchDDPGPolicy


class CnnPolicy(ScratchDDPGPolicy):
    """:class:`ScratchDDPGPolicy` for images, with ``NatureCNN`` features by default."""

    default_features_extractor_class = NatureCNN


class MultiInputPolicy(ScratchDDPGPolicy):
    """:class:`ScratchDDPGPolicy` for Dict observations, with ``CombinedExtractor`` features by default."""

    default_features_extractor_class = CombinedExtractor


class SimbaPolicy(ScratchDDPGPolicy):
    """
    :class:`ScratchDDPGPolicy` with residual networks and normalized observations (SimBa, Lee et al. 2024,
    https://arxiv.org/abs/2410.09754), for vectors and Dicts of vectors.

    A network embeds its input by a linear layer. Residual blocks follow: layer normalization, a linear layer to
    ``scale_factor`` times the width, ReLU and a linear layer back are added to the block's input. A last layer normalization
    and the output layer end it. Embedding and output layer begin orthogonal, blocks with He's normal initialization, biases
    at 0.

    A block of width d has about ``8 d^2`` weights. The default critic has 130,000, which a CPU core trains. The published
    sizes, ``net_arch=dict(pi=[128], qf=[512, 512])`` with a learning rate of 1e-4 and batches of 256, have 4.2 million,
    about 30 times the work: a few updates a second on two cores. Normalized observations ask for low rates: begin with 3e-4.

    Arguments as for :class:`ScratchDDPGPolicy`, without ``norm`` and ``action_layer``, and with other defaults:

    :param net_arch: as in SBX, the width of each residual block, equal within a network; ``None`` for
        ``dict(pi=[64], qf=[128])``
    :param optimizer_class: AdamW, whose weight decay is 1e-2 by default
    :param normalize_observations: on
    :param scale_factor: width of a block's hidden layer, as a multiple of the block's
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Box,
        lr_schedule: Schedule,
        net_arch: NetArch | None = None,
        activation_fn: Callable[[], nn.Module] | str = nn.ReLU,
        features_extractor_class: type[BaseFeaturesExtractor] | None = None,
        features_extractor_kwargs: dict[str, Any] | None = None,
        normalize_images: bool = True,
        optimizer_class: type[th.optim.Optimizer] = th.optim.AdamW,
        optimizer_kwargs: dict[str, Any] | None = None,
        n_critics: int = 1,
        share_features_extractor: bool = False,
        final_init: float | None = None,
        critic_weight_decay: float = 0.0,
        normalize_observations: bool = True,
        clip_observations: float = 10.0,
        scale_factor: int = 4,
    ) -> None:
        if features_extractor_class is None and isinstance(observation_space, spaces.Dict):
            features_extractor_class = CombinedExtractor
        super().__init__(
            observation_space,
            action_space,
            lr_schedule,
            {"pi": [64], "qf": [128]} if net_arch is None else net_arch,
            activation_fn,
            features_extractor_class,
            features_extractor_kwargs,
            normalize_images,
            optimizer_class,
            optimizer_kwargs,
            n_critics,
            share_features_extractor,
            final_init=final_init,
            critic_weight_decay=critic_weight_decay,
            normalize_observations=normalize_observations,
            clip_observations=clip_observations,
            scale_factor=scale_factor,
        )

    def _get_constructor_parameters(self) -> dict[str, Any]:
        parameters = super()._get_constructor_parameters()
        return {name: value for name, value in parameters.items() if name not in ("norm", "action_layer")}


def _is_count(value: Any) -> bool:
    return isinstance(value, Integral) and not isinstance(value, bool) and int(value) >= 0


def _split_net_arch(net_arch: Any) -> tuple[list[int], list[int]]:
    allowed = "a list of layer widths (whole numbers, at least 1), or a dict of two such lists, 'pi' and 'qf'"
    lists: list[Any] = [net_arch.get(name) if isinstance(net_arch, dict) else net_arch for name in ("pi", "qf")]
    fits = all(isinstance(layers, (list, tuple)) for layers in lists)
    if not fits or not all(_is_count(width) and width > 0 for width in chain(*lists)):
        raise ArgumentError("net_arch", net_arch, allowed)
    actor_arch, critic_arch = lists
    return list(map(int, actor_arch)), list(map(int, critic_arch))


def _activation_maker(activation_fn: Any) -> Callable[[], nn.Module]:
    if isinstance(activation_fn, str) and activation_fn in ACTIVATIONS:
        return ACTIVATIONS[activation_fn]
    if isinstance(activation_fn, str) or not callable(activation_fn):
        allowed = f"a torch module class, a function that makes a module, or one of {', '.join(ACTIVATIONS)}"
        raise ArgumentError("activation_fn", activation_fn, allowed, near(str(activation_fn), ACTIVATIONS))
    return activation_fn
