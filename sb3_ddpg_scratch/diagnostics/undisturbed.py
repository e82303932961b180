"""Looking at a model in the middle of its training without changing what comes after."""

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm


def _generators_of(holder: Any) -> list[np.random.Generator | np.random.RandomState | th.Generator]:
    kinds = (np.random.Generator, np.random.RandomState, th.Generator)
    return [value for value in getattr(holder, "__dict__", {}).values() if isinstance(value, kinds)]


@contextmanager
def _restored(generator: np.random.Generator | np.random.RandomState | th.Generator) -> Iterator[None]:
    state: Any = generator.bit_generator.state if isinstance(generator, np.random.Generator) else generator.get_state()
    try:
        yield
    finally:
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        else:
            generator.set_state(state)


@contextmanager
def undisturbed(model: OffPolicyAlgorithm, seed: int) -> Iterator[None]:
    """
    Within it, networks are in evaluation mode, and random numbers come from ``seed``. Afterwards the training mode of each
    network, and the state of Python's, NumPy's and torch's generators (the model's GPU included) and of the replay
    buffer's own, if it has any, are as before. Gradients are not its matter: ``torch.autograd.grad`` leaves them alone.

    :param model: the model that is being trained
    :param seed: seed of what is drawn inside, in [0, 2^32)
    """
    # Looked at between two trainings, hardly any module is in training mode, and asking each for it would take longest.
    in_training = [module for module in model.policy.modules() if module.training]
    python_state, numpy_state = random.getstate(), np.random.get_state()
    devices = [model.device] if model.device.type == "cuda" else []
    with ExitStack() as stack:
        stack.enter_context(th.random.fork_rng(devices=devices))
        for generator in _generators_of(model.replay_buffer):
            stack.enter_context(_restored(generator))
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
            random.setstate(python_state)
            np.random.set_state(numpy_state)
