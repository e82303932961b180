"""Which updater serves a policy."""

import time
from copy import deepcopy
from importlib.util import find_spec

import numpy as np
import torch as th
from stable_baselines3.common.preprocessing import get_action_dim
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.networks import Actor, Critic
from sb3_ddpg_scratch.policies import ScratchDDPGPolicy
from sb3_ddpg_scratch.replay import BatchColumns, PackedReplayBuffer, packable
from sb3_ddpg_scratch.tuning import remembered_choice, tuning_enabled
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater
from sb3_ddpg_scratch.updates.flat import flat_adam_supports
from sb3_ddpg_scratch.updates.interface import Updater, UpdateSettings

UPDATERS: tuple[str, ...] = ("auto", "autograd", "analytic", "compiled")

# Multiplications of one pass through all networks, beyond which compiled updates have never been found faster.
LARGEST_COMPILED = 10**9


def why_not_by_hand(policy: ScratchDDPGPolicy) -> str | None:
    """
    :param policy: a policy
    :return: what keeps it from the updaters with hand-written gradients, in words; ``None`` if nothing does
    """
    optimizers = (policy.actor.optimizer, policy.critic.optimizer)
    parameters = list(policy.parameters())
    reasons = {
        f"the device is {policy.device}, not the CPU": policy.device.type != "cpu",
        f"norm={policy.norm!r} is not None": policy.norm is not None,
        "the observations are not a Box of floating-point numbers": not packable(policy.observation_space),
        "the features extractor is not FlattenExtractor": policy.features_extractor_class is not FlattenExtractor,
        f"activation_fn={policy.activation_fn.__name__} is neither ReLU nor Tanh": policy.activation_fn
        not in (nn.ReLU, nn.Tanh),
        "the networks are of a class of your own": type(policy.actor) is not Actor or type(policy.critic) is not Critic,
        "the optimiser is not a plain Adam or AdamW": not all(map(flat_adam_supports, optimizers)),
        "some parameters are frozen or not float32": any(
            str(p.dtype) != "torch.float32" or not p.requires_grad for p in parameters
        ),
        "the networks were compiled": any(hasattr(module, "_orig_mod") for module in policy.modules()),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def make_updater(name: str, policy: ScratchDDPGPolicy, batch_size: int, verbose: int = 0) -> Updater:
    """
    :param name: one of :data:`UPDATERS`
    :param policy: the policy to train
    :param batch_size: transitions in an update, by which ``"auto"`` chooses
    :param verbose: with 1 or more, ``"auto"`` says why if it has to take the reference
    :return: the updater
    :raises ArgumentError: for an updater that cannot serve this policy, or is not installed
    """
    if name == "autograd":
        return AutogradUpdater(policy)
    reason = why_not_by_hand(policy)
    if reason is not None:
        if name != "auto":
            raise ArgumentError("updater", name, f"'auto' or 'autograd' for this policy, since {reason}")
        if verbose >= 1:
            print(f"Updating by autograd, the reference, since {reason}.")
        return AutogradUpdater(policy)
    if name == "auto":
        name = _fastest(policy, batch_size)
    return _compiled_updater(policy) if name == "compiled" else AnalyticUpdater(policy)


def _compiler_installed() -> bool:
    return all(find_spec(package) is not None for package in ("numba", "scipy"))


def _compiled_updater(policy: ScratchDDPGPolicy) -> Updater:
    if not _compiler_installed():
        raise ArgumentError(
            "updater",
            "compiled",
            "'auto' or 'analytic' without Numba and SciPy",
            "pip install 'sb3-ddpg-scratch[fast]'",
        )
    return CompiledUpdater(policy)


def _fastest(policy: ScratchDDPGPolicy, batch_size: int) -> str:
    """The faster of "compiled" and "analytic" for these sizes, measured once on this machine."""
    multiplications = batch_size * sum(parameter.numel() for parameter in policy.parameters())
    if not _compiler_installed() or not tuning_enabled() or multiplications > LARGEST_COMPILED:
        return "analytic"
    shapes = [tuple(parameter.shape) for network in (policy.actor, policy.critic) for parameter in network.parameters()]
    key = f"updater {policy.activation_fn.__name__} {shapes} batch={batch_size} threads={th.get_num_threads()}"
    return remembered_choice(key, lambda: _measure_fastest(policy, batch_size))


class _OneBatch(PackedReplayBuffer):
    """A buffer that always gives the same batch, and draws no random numbers."""

    def __init__(self, batch: th.Tensor) -> None:
        self.batch = batch

    def draw(self, batch_size: int, n_batches: int = 1) -> np.ndarray:
        return np.zeros((n_batches, batch_size), np.int64)

    def gather(self, indices: np.ndarray, out: th.Tensor | np.ndarray, env: VecNormalize | None = None) -> None:
        th.as_tensor(out).copy_(self.batch)


def _measure_fastest(policy: ScratchDDPGPolicy, batch_size: int) -> str:
    columns = BatchColumns(policy.actor.features_dim, get_action_dim(policy.action_space))
    buffer = _OneBatch(th.rand(batch_size, columns.width, generator=th.Generator().manual_seed(0)))
    contenders: dict[str, Updater] = {
        "compiled": _compiled_updater(deepcopy(policy)),
        "analytic": AnalyticUpdater(deepcopy(policy)),
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(12):
        for name, updater in contenders.items():
            begun = time.perf_counter()
            updater.train(buffer, 1, batch_size, UpdateSettings(gamma=0.99, tau=0.005), repeat)
            if repeat > 1:
                times[name].append(time.perf_counter() - begun)
    return min(times, key=lambda name: min(times[name]))
