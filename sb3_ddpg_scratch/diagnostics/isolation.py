"""Looking at a model during training without changing what follows."""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from sb3_ddpg_scratch.checkpoint.generators import capture_generators, restore_generators

_GENERATORS = (np.random.Generator, np.random.RandomState, th.Generator)


@contextmanager
def isolated(model: OffPolicyAlgorithm, seed: int) -> Iterator[None]:
    """Inside, networks are in evaluation mode and random numbers come from ``seed``; afterwards all is as before."""
    # Between two trainings hardly any module is in training mode, and asking each of them for it would take longest.
    in_training = [module for module in model.policy.modules() if module.training]
    states = capture_generators(model.device)
    own = [_restorer(value) for value in vars(model.replay_buffer).values() if isinstance(value, _GENERATORS)]
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
        for restore in own:
            restore()


def _restorer(generator: Any) -> Callable[[], None]:
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", generator.bit_generator.state)
    return partial(generator.set_state, generator.get_state())
