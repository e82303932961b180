"""One DDPG update, written in several ways that give the same numbers."""

from sb3_ddpg_scratch.updates.autograd import AutogradUpdater
from sb3_ddpg_scratch.updates.interface import UpdateSettings

UPDATERS: tuple[str, ...] = ("auto", "autograd")

__all__ = ["UPDATERS", "AutogradUpdater", "UpdateSettings"]
