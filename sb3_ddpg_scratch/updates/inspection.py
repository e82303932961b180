"""
Whether hand-written passes do what the modules and optimizers would: a full inspection, with the reason if they do not.

:mod:`~sb3_ddpg_scratch.updates.guard` looks for changes since then.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from itertools import pairwise
from operator import attrgetter, is_
from typing import Any

import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor
from torch import nn
from torch.nn.modules import module as torch_module
from torch.optim import optimizer as torch_optimizer

from sb3_ddpg_scratch.networks import Actor, Critic, QNetwork, ResidualBlock, flat_layers
from sb3_ddpg_scratch.observation_statistics import ObservationStatistics
from sb3_ddpg_scratch.observations import why_not_packable
from sb3_ddpg_scratch.updates.interface import Networks

# Activations with hand-written passes, and the attributes that these read.
ACTIVATIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.ReLU: (),
    nn.Tanh: (),
    nn.LeakyReLU: ("negative_slope",),
    nn.ELU: ("alpha",),
    nn.SELU: (),
    nn.Sigmoid: (),
    nn.Softplus: ("beta", "threshold"),
    nn.SiLU: (),
    nn.Mish: (),
    nn.GELU: ("approximate",),
}
_WITH_PARAMETERS = (nn.Linear, nn.LayerNorm)
_EXTRACTORS = (FlattenExtractor, CombinedExtractor)
_CONTAINERS = (Actor, Critic, QNetwork, ResidualBlock, *_EXTRACTORS, nn.ModuleDict, nn.Sequential, nn.Flatten)
_KNOWN_MODULES = {*_CONTAINERS, *_WITH_PARAMETERS, *ACTIVATIONS}

# Of networks in the order of Networks.
_NAMES = ("actor", "critic")
# Settings of Adam that its hand-written step does not know.
ADAM_FLAGS = ("amsgrad", "maximize", "capturable", "differentiable")

_forward = attrgetter("forward")


def methods_of_layers() -> list[Any]:
    """The methods that hand-written passes replace."""
    return [
        Actor.extract_features,
        Critic.extract_features,
        Critic.q1_forward,
        ObservationStatistics.forward,
        ObservationStatistics._normalized,
        nn.Module.__call__,
        *map(_forward, _KNOWN_MODULES),
    ]


# A class that is patched later no longer does what the hand-written passes do.
_METHODS = methods_of_layers()
_GLOBAL_HOOKS = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
    torch_optimizer._global_optimizer_pre_hooks,
    torch_optimizer._global_optimizer_post_hooks,
)
_tensor_hooks = attrgetter("_backward_hooks")
_grad_hooks = attrgetter("_post_accumulate_grad_hooks")


def _hooks_of(module: nn.Module) -> tuple[dict[Any, Any], ...]:
    return (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)


def any_hooks(modules: Iterable[nn.Module], trained: Iterable[th.Tensor], optimizers: Iterable[Any]) -> bool:
    """Whether anything is hooked into these modules, parameters and optimizers, or into all of torch's."""
    of_optimizers = (one for optimizer in optimizers for one in _step_hooks(optimizer))
    found = (*_GLOBAL_HOOKS, *(hooks for module in modules for hooks in _hooks_of(module)), *of_optimizers)
    return any(found) or any(_tensor_hooks(parameter) or _grad_hooks(parameter) for parameter in trained)


def _step_hooks(optimizer: Any) -> tuple[dict[Any, Any], ...]:
    return (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)


def _same(found: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether these are the very same objects."""
    return len(found) == len(expected) and all(map(is_, found, expected))


def replaced_method(instance: object) -> str | None:
    """The name of a method that was replaced on the instance itself, if any."""
    named = ((name, getattr(type(instance), name, None)) for name, value in vars(instance).items() if callable(value))
    return next((name for name, method in named if callable(method)), None)


def why_not_by_hand(networks: Sequence[nn.Module], trained: int) -> str | None:
    """Why hand-written passes do not suit these networks, the first ``trained`` of them trained; ``None`` if they do."""
    for index, network in enumerate(networks):
        name = f"{_NAMES[index % 2]}{'' if index < trained or trained == 0 else '_target'}"
        reason = _why_not_these_modules(name, network) or _why_not_these_parameters(name, network, index < trained)
        if reason is not None:
            return reason
    if any(_GLOBAL_HOOKS):
        return "torch has global hooks"
    return None if methods_of_layers() == _METHODS else "a method of a class of layers was replaced"


def _why_not_these_modules(name: str, network: Any) -> str | None:
    for path, module in network.named_modules():
        what = f"{name}.{path}" if path else name
        if type(module) not in _KNOWN_MODULES:
            return f"{what} is a {type(module).__name__}"
        method = replaced_method(module)
        if method is not None:
            return f"{what}.{method} was replaced"
        if any(_hooks_of(module)):
            return f"{what} has hooks"
        if isinstance(module, nn.LayerNorm) and len(module.normalized_shape) != 1:
            return f"{what} normalizes more than the units of a layer"
        if isinstance(module, nn.GELU) and module.approximate != "none":
            return f"{what} is an approximation"
    statistics = network.observation_statistics
    if statistics is not None and (
        type(statistics) is not ObservationStatistics or replaced_method(statistics) or any(_hooks_of(statistics))
    ):
        return f"{name}.observation_statistics do something else, or have hooks"
    if isinstance(network, Critic):
        registered = [getattr(network, f"qf{index}", None) for index in range(network.n_critics)]
        if not _same(network.q_networks, registered):
            return f"{name}.q_networks are not its modules qf0, qf1, ..."
    return None


def _why_not_these_parameters(name: str, network: nn.Module, trained: bool) -> str | None:
    layers = [module for module in network.modules() if isinstance(module, _WITH_PARAMETERS)]
    own = [parameter for module in layers for parameter in (module.weight, module.bias)]
    if not _same(list(network.parameters()), own):
        return f"{name} has a layer without a bias, or a parameter in two places"
    for path, parameter in network.named_parameters():
        if trained and not parameter.requires_grad:
            return f"{name}.{path} is frozen"
        if trained and (_tensor_hooks(parameter) or _grad_hooks(parameter)):
            return f"{name}.{path} has hooks"
    return None


NO_COMPILER = "Numba and SciPy cannot be imported: pip install numba scipy"


@cache
def compiler_installed() -> bool:
    """Whether Numba is installed, and SciPy, whose BLAS it uses."""
    return all(find_spec(name) is not None for name in ("numba", "scipy"))


def why_not_compiled(networks: Sequence[nn.Module], trained: int) -> str | None:
    """See :func:`why_not_by_hand`; the kernels also need float32 on the CPU, and layers as ScratchDDPG makes them."""
    if not compiler_installed():
        return NO_COMPILER
    reason = why_not_by_hand(networks, trained) or why_not_packable(networks[0].observation_space)  # type: ignore[arg-type]
    if reason is not None:
        return reason
    for index, network in enumerate(networks):
        name = _NAMES[index % 2]
        if network.observation_statistics is not networks[0].observation_statistics:
            return "networks normalize observations by different statistics"
        for path, parameter in network.named_parameters():
            if not _is_plain(parameter):
                return f"{name}.{path} is not contiguous float32 on the CPU"
        reason = _why_not_these_layers(name, network) or _why_not_these_constants(name, network)
        if reason is not None:
            return reason
    if len(activations_of(networks)) > 1:
        return "actor and critic have different activations"
    if len(eps_of(networks)) > 1:
        return "layers have different eps"
    addresses = [parameter.data_ptr() for network in networks for parameter in network.parameters()]
    return None if len(set(addresses)) == len(addresses) else "two parameters share their memory"


def _hidden_layers(networks: Iterable[Any]) -> Iterator[nn.Module]:
    for network in networks:
        for layers in [network.mu] if isinstance(network, Actor) else network.q_networks:
            yield from flat_layers(layers)[:-1]


def activations_of(networks: Iterable[Any]) -> set[type[nn.Module]]:
    """The classes of the hidden layers' activations, which ``activation_fn`` may be a function to make."""
    return {type(layer) for layer in _hidden_layers(networks) if type(layer) in ACTIVATIONS}


def eps_of(networks: Iterable[Any]) -> set[float]:
    """What layer normalizations add to the variance."""
    return {module.eps for network in networks for module in network.modules() if isinstance(module, nn.LayerNorm)}


def _why_not_these_layers(name: str, network: Any) -> str | None:
    extractor = network.features_extractor
    if type(extractor) is CombinedExtractor and list(extractor.extractors) != list(network.observation_space.spaces):
        return f"{name}.features_extractor does not take the entries of the observation space, each in its place"
    for layers in [network.mu] if isinstance(network, Actor) else network.q_networks:
        flat = flat_layers(layers)
        widths = [tuple(layer.weight.shape)[::-1] for layer in flat if isinstance(layer, nn.Linear)]
        blocks = [number for number, layer in enumerate(layers) if type(layer) is ResidualBlock]
        of_blocks = range(1, 1 + len(network.net_arch)) if network.scale_factor is not None else ()
        if [type(layer) for layer in flat] != _kinds(network) or widths != _widths(network) or blocks != list(of_blocks):
            return f"the layers of {name} are not those that it was made with"
    return None


def _why_not_these_constants(name: str, network: nn.Module) -> str | None:
    """The kernels assume the default constants of torch's layers."""
    for path, module in network.named_modules():
        usual = type(module)() if type(module) in ACTIVATIONS else None
        changed = [option for option in ACTIVATIONS.get(type(module), ()) if vars(module)[option] != vars(usual)[option]]
        if changed:
            return f"{name}.{path}.{changed[0]} is {vars(module)[changed[0]]}"
    return None


def _widths(network: Any) -> list[tuple[int, int]]:
    """The inputs and outputs of each layer, according to the settings of an actor or critic."""
    action_dim = get_action_dim(network.action_space)
    is_actor = isinstance(network, Actor)
    widths = [network.features_dim, *network.net_arch, action_dim if is_actor else 1]
    if network.scale_factor is not None:
        d = network.net_arch[0]
        wide = network.scale_factor * d
        blocks = [(d, wide), (wide, d)] * len(network.net_arch)
        return [(widths[0] + (0 if is_actor else action_dim), d), *blocks, (d, widths[-1])]
    joins = None if is_actor else network.action_layer
    return [(n_in + (action_dim if index == joins else 0), n_out) for index, (n_in, n_out) in enumerate(pairwise(widths))]


def _kinds(network: Any) -> list[type]:
    kinds: list[type] = []
    activation = network.activation_fn if isinstance(network.activation_fn, type) else None
    if network.scale_factor is not None:
        kinds = [
            nn.Linear,
            *(nn.LayerNorm, nn.Linear, activation or _found_activation(network), nn.Linear) * len(network.net_arch),
        ]
        return [*kinds, nn.LayerNorm, nn.Linear, *([nn.Tanh] if isinstance(network, Actor) else [])]
    for _ in network.net_arch:
        kinds += [nn.Linear, *([nn.LayerNorm] if network.norm == "layer" else [])]
        kinds.append(activation or _found_activation(network))
    return [*kinds, nn.Linear, *([nn.Tanh] if isinstance(network, Actor) else [])]


def _found_activation(network: Any) -> type:
    return next(iter(activations_of([network])), nn.Module)


def why_not_adam(name: str, optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> str | None:
    """Why ``name``'s optimizer is not a single plain Adam or AdamW for these parameters; ``None`` if it is."""
    if type(optimizer) not in (th.optim.Adam, th.optim.AdamW) or replaced_method(optimizer) is not None:
        return f"{name}.optimizer is not a plain Adam or AdamW"
    if any(_step_hooks(optimizer)):
        return f"{name}.optimizer has hooks"
    if len(optimizer.param_groups) != 1 or not _same(optimizer.param_groups[0]["params"], parameters):
        return f"{name}.optimizer does not train the parameters of {name}, each once in one group"
    group = optimizer.param_groups[0]
    for option in ADAM_FLAGS:
        if group.get(option):
            return f"{name}.optimizer has {option}=True"
    if not all(isinstance(value, (int, float)) for value in (group["lr"], *group["betas"], group["eps"])):
        return f"{name}.optimizer has tensors as settings"
    return None


def why_not_its_state(name: str, optimizer: th.optim.Optimizer, parameters: Sequence[th.Tensor]) -> str | None:
    """Why an optimizer's state is not Adam's as the kernels read it; ``None`` if it is."""
    for parameter in parameters:
        entry = optimizer.state.get(parameter)
        if not entry:
            continue
        tensors = [entry.get("exp_avg"), entry.get("exp_avg_sq"), entry.get("step")]
        for tensor, size in zip(tensors, (parameter.numel(), parameter.numel(), 1), strict=True):
            if not isinstance(tensor, th.Tensor) or tensor.numel() != size or not _is_plain(tensor):
                return f"{name}.optimizer.state is not Adam's in float32 on the CPU"
    return None


def _is_plain(tensor: th.Tensor) -> bool:
    return tensor.dtype == th.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()


def every_reason(networks: Networks, compiled: bool) -> list[str]:
    """Everything that prevents hand-written (or compiled) updates, in terms of ``policy_kwargs`` where possible."""
    reasons = []
    for name, network in zip(_NAMES, networks, strict=False):
        reported: list[str] = []
        for path, module in network.named_modules():
            if type(module) not in _KNOWN_MODULES and not path.startswith(tuple(f"{above}." for above in reported)):
                reported.append(path)
                reasons.append(_in_words(name, path, module, network))
    if compiled:
        for name, network in zip(_NAMES, networks, strict=False):
            parameters = list(network.parameters())
            reason = why_not_adam(name, network.optimizer, parameters)
            reasons.append(reason or why_not_its_state(name, network.optimizer, parameters) or "")
    if compiled and not compiler_installed():
        reasons.append(NO_COMPILER)
    if not any(reasons):
        reasons.append((why_not_compiled if compiled else why_not_by_hand)(networks, 2) or "")
    return [reason for reason in dict.fromkeys(reasons) if reason]


def _in_words(name: str, path: str, module: nn.Module, network: Any) -> str:
    kind = type(module).__name__
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return "norm='batch'"
    if path == "features_extractor":
        return f"features extractor {kind}"
    is_activation = type(module) is getattr(network, "activation_fn", None)
    return f"activation {kind}" if is_activation else f"{name}.{path} is a {kind}".replace(". ", " ")
