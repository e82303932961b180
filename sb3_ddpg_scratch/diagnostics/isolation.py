"""Looking at a model during training without changing what follows."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ddpg_scratch.checkpoint.generators import capture_generators, restore_generators

_OWN_GENERATORS = (np.random.Generator, np.random.RandomState, th.Generator)


@contextmanager
def isolated(model: OffPolicyAlgorithm, seed: int) -> Iterator[None]:
    """
    Inside, networks are in evaluation mode and random numbers come from ``seed``, in [0, 2^32). Afterwards the networks'
    modes and all generators, the replay buffer's own among them, are as before. Gradients are safe with
    ``torch.autograd.grad``.
    """
    # Between two trainings hardly any module is in training mode, and asking each of them for it would take longest.
    in_training = [module for module in model.policy.modules() if module.training]
    states = capture_generators(model.device)
    own = [(value, _state_of(value)) for value in vars(model.replay_buffer).values() if isinstance(value, _OWN_GENERATORS)]
    random.seed(seed)
    np.random.seed(seed)
    th.default_generator.manual_seed(seed)
    for module in in_training:
        module.training = False
    try:
        yield
    finally:
        for module in in_training:
            module.training = True
        restore_generators(states, model.device)
        for generator, state in own:
            _set_state(generator, state)


def _state_of(generator: Any) -> Any:
    return generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)
