"""
The names that a pickle may use. A pickle can call anything it names, with any arguments. Therefore no module is allowed as a
whole, and no class is ever called: only the few :data:`CALLS` are, which check their arguments.
"""

import importlib
import sys
import sysconfig
from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from numpy.random import bit_generator
from stable_baselines3.common.buffers import ReplayBuffer

from sb3_ddpg_scratch.model_file import arrays, functions
from sb3_ddpg_scratch.model_file.arrays import expect
from sb3_ddpg_scratch.model_file.functions import Call

# Instances of these are rebuilt from their attributes, without calling a constructor.
BUILT: dict[str, tuple[str, ...]] = {
    "gymnasium.spaces.box": ("Box",),
    "gymnasium.spaces.dict": ("Dict",),
    "gymnasium.spaces.discrete": ("Discrete",),
    "gymnasium.spaces.multi_binary": ("MultiBinary",),
    "gymnasium.spaces.multi_discrete": ("MultiDiscrete",),
    "gymnasium.spaces.tuple": ("Tuple",),
    "rl_zoo3.utils": ("SimpleLinearSchedule",),
    "sb3_ddpg_scratch.noise": ("ColoredNoise", "GaussianNoise", "OUNoise"),
    "sb3_ddpg_scratch.dict_replay": ("PackedDictReplayBuffer",),
    "sb3_ddpg_scratch.hindsight": ("PackedHerReplayBuffer",),
    "sb3_ddpg_scratch.priorities": ("PrioritizedDictReplayBuffer", "PrioritizedReplayBuffer"),
    "sb3_ddpg_scratch.replay": ("BatchColumns", "PackedNStepReplayBuffer", "PackedReplayBuffer"),
    "stable_baselines3.common.buffers": ("DictReplayBuffer", "NStepReplayBuffer", "ReplayBuffer"),
    "stable_baselines3.common.noise": ("NormalActionNoise", "OrnsteinUhlenbeckActionNoise", "VectorizedActionNoise"),
    "stable_baselines3.common.running_mean_std": ("RunningMeanStd",),
    "stable_baselines3.common.type_aliases": ("TrainFreq", "TrainFrequencyUnit"),
    "stable_baselines3.common.utils": ("ConstantSchedule", "FloatSchedule", "LinearSchedule"),
    "stable_baselines3.common.vec_env.vec_normalize": ("VecNormalize",),
    "stable_baselines3.her.goal_selection_strategy": ("GoalSelectionStrategy",),
    "stable_baselines3.her.her_replay_buffer": ("HerReplayBuffer",),
}
# Settings that are classes are of one of these kinds, in these modules, torch's or the user's own.
_VALUES = (th.nn.Module, th.optim.Optimizer, ReplayBuffer)
_SETTINGS: dict[str, tuple[str, ...]] = {
    "sb3_ddpg_scratch.hindsight": ("PackedHerReplayBuffer",),
    "sb3_ddpg_scratch.priorities": ("PrioritizedReplayBuffer",),
    "sb3_ddpg_scratch.policies": ("CnnPolicy", "MultiInputPolicy", "ScratchDDPGPolicy", "SimbaPolicy"),
    "stable_baselines3.common.torch_layers": ("BaseFeaturesExtractor", "CombinedExtractor", "FlattenExtractor", "NatureCNN"),
    "stable_baselines3.td3.policies": ("CnnPolicy", "MultiInputPolicy", "TD3Policy"),
    "stable_baselines3.common.sb2_compat.rmsprop_tf_like": ("RMSpropTFLike",),
}
# Number types, and argument types of the calls below. They may be named anywhere and are never called.
_PLAIN = [np.ndarray, np.bool_, np.random.SeedSequence, *arrays.GENERATORS.values()]
_PLAIN += [kind for kind in vars(np).values() if isinstance(kind, type) and issubclass(kind, np.number)]


@dataclass(frozen=True)
class Handle:
    """A class that a pickle may build instances of but not use as a value."""

    kind: type


def _ordered_dict(*arguments: Any) -> OrderedDict[Any, Any]:
    expect(not arguments, "an OrderedDict")
    return OrderedDict()


def _deque(items: Any = (), maxlen: Any = None) -> deque[Any]:
    expect(isinstance(items, (list, tuple)) and (maxlen is None or isinstance(maxlen, int)), "a deque")
    return deque(items, maxlen)


def _set(items: Any = ()) -> set[Any]:
    # How protocols before 4 write a set.
    expect(isinstance(items, list), "a set")
    return set(items)


def _device(kind: Any, index: Any = None) -> th.device:
    expect(isinstance(kind, str) and (index is None or isinstance(index, int)), "a device")
    return th.device(kind) if index is None else th.device(kind, index)


def _enum_member(kind: Any, name: Any) -> Enum:
    # How Python 3.11.0 to 3.11.3 pickle a member of an Enum.
    kind = kind.kind if isinstance(kind, Handle) else kind
    expect(isinstance(kind, type) and issubclass(kind, Enum) and isinstance(name, str), "an Enum's member")
    return kind[name]


CALLS: dict[tuple[str, str], Call] = functions.CALLS | {
    ("builtins", "getattr"): Call(_enum_member),
    ("builtins", "set"): Call(_set),
    ("collections", "OrderedDict"): Call(_ordered_dict),
    ("collections", "deque"): Call(_deque),
    ("gym.utils.seeding", "RandomNumberGenerator._generator_ctor"): Call(arrays.make_generator),
    ("numpy", "dtype"): Call(arrays.make_dtype),
    ("numpy._core.multiarray", "_reconstruct"): Call(arrays.empty_array),
    ("numpy._core.multiarray", "scalar"): Call(arrays.make_scalar),
    ("numpy._core.numeric", "_frombuffer"): Call(arrays.array_from_buffer),
    ("numpy.random._pickle", "__bit_generator_ctor"): Call(arrays.make_bit_generator),
    ("numpy.random._pickle", "__generator_ctor"): Call(arrays.make_generator),
    ("numpy.random._pickle", "__randomstate_ctor"): Call(arrays.make_random_state),
    ("numpy.random", "__RandomState_ctor"): Call(arrays.make_random_state),
    (bit_generator.__name__, "__pyx_unpickle_SeedSequence"): Call(arrays.make_seed_sequence),
    ("torch", "device"): Call(_device),
}
_ANYWHERE: dict[tuple[str, str], Any] = CALLS | {(kind.__module__, kind.__qualname__): kind for kind in _PLAIN}
_ANYWHERE["builtins", "float"] = Handle(float)  # in the annotations of functions
_TORCH = {
    (kind.__module__, kind.__qualname__): kind
    for module, base in ((th.nn, th.nn.Module), (th.optim, th.optim.Optimizer))
    for kind in vars(module).values()
    if isinstance(kind, type) and issubclass(kind, base)
}
_RENAMED = {"gym.spaces.": "gymnasium.spaces.", "numpy.core.": "numpy._core."}
_KNOWN_PACKAGES = ("cloudpickle", "gymnasium", "numpy", "rl_zoo3", "sb3_ddpg_scratch", "stable_baselines3", "torch")


def look_up(module: str, name: str, classes_are_values: bool, own_classes: bool = True) -> Any:
    """A :class:`Call`, a :class:`Handle`, or a class; ``None`` for anything that is not on the list."""
    for old, new in _RENAMED.items():
        module = new + module.removeprefix(old) if module.startswith(old) else module
    if (module, name) in _ANYWHERE:
        return _ANYWHERE[module, name]
    kind = own_class(module, name) if own_classes else None
    if name in BUILT.get(module, ()) or (classes_are_values and name in _SETTINGS.get(module, ())):
        kind = getattr(importlib.import_module(module), name)
    elif kind is None and classes_are_values:
        kind = _TORCH.get((module, name))
    return kind if kind is None or (classes_are_values and issubclass(kind, _VALUES)) else Handle(kind)


def is_own(kind: type) -> bool:
    """Whether a class is the user's."""
    return kind.__module__.partition(".")[0] not in ("builtins", "collections", *_KNOWN_PACKAGES)


def own_class(module: str, name: str) -> type | None:
    """The class, if the program has already imported it from its own code, not Python's or an installed package's."""
    loaded = sys.modules.get(module)
    known = module.partition(".")[0] in _KNOWN_PACKAGES
    if loaded is None or known or not is_own_module(module, getattr(loaded, "__file__", None)):
        return None
    kind = vars(loaded).get(name)
    return kind if isinstance(kind, type) and (kind.__module__, kind.__qualname__) == (module, name) else None


def is_own_module(module: str, file: str | None) -> bool:
    """Whether a loaded module is neither Python's nor an installed package's."""
    if file is None:
        # An interactive session, or `python -c`.
        return module == "__main__"
    path = Path(file).resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return False
    installed = {Path(sysconfig.get_path(kind)).resolve() for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(path.is_relative_to(folder) for folder in installed)
