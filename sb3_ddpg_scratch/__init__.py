"""DDPG written by hand inside Stable-Baselines3's API."""

from importlib.metadata import PackageNotFoundError, version

from sb3_ddpg_scratch.checkpoint import ResumableCheckpoint
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.errors import (
    ActionSpaceError,
    ArgumentError,
    CheckpointError,
    DivergenceError,
    EnvironmentOutputError,
    ExportError,
    FolderInUseError,
    MissingPackageError,
    ModelFileError,
    UnknownArgumentError,
    UnsafeFileError,
)
from sb3_ddpg_scratch.noise import ColoredNoise, GaussianNoise, OUNoise
from sb3_ddpg_scratch.policies import CnnPolicy, MlpPolicy, MultiInputPolicy, ScratchDDPGPolicy, SimbaPolicy
from sb3_ddpg_scratch.priorities import PrioritizedReplayBuffer
from sb3_ddpg_scratch.soft_update import soft_update

try:
    __version__ = version("sb3-ddpg-scratch")
except PackageNotFoundError:  # imported from a source tree that is not installed
    __version__ = "0+unknown"

__all__ = [
    "ActionSpaceError",
    "ArgumentError",
    "CheckpointError",
    "CnnPolicy",
    "ColoredNoise",
    "DivergenceError",
    "EnvironmentOutputError",
    "ExportError",
    "FolderInUseError",
    "GaussianNoise",
    "MissingPackageError",
    "MlpPolicy",
    "ModelFileError",
    "MultiInputPolicy",
    "OUNoise",
    "PrioritizedReplayBuffer",
    "ResumableCheckpoint",
    "ScratchDDPG",
    "ScratchDDPGPolicy",
    "SimbaPolicy",
    "UnknownArgumentError",
    "UnsafeFileError",
    "soft_update",
]
