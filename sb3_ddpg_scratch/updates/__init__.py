"""One DDPG update, written in several ways that give the same numbers."""

from sb3_ddpg_scratch.updates.choice import UPDATERS, UpdaterChoice
from sb3_ddpg_scratch.updates.interface import Networks, UpdateSettings

__all__ = ["UPDATERS", "Networks", "UpdateSettings", "UpdaterChoice"]
