"""The states of the random generators that all of a process shares."""

import random
from typing import Any

import numpy as np
import torch as th


def capture_generators(device: th.device) -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(legacy=True),
        "torch": th.get_rng_state(),
    }
    if device.type == "cuda":
        states["cuda"] = th.cuda.get_rng_state(device)
    return states


def restore_generators(states: dict[str, Any], device: th.device) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    th.set_rng_state(states["torch"])
    if device.type == "cuda" and "cuda" in states:
        th.cuda.set_rng_state(states["cuda"], device)
