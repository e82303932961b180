"""One DDPG update, written in several ways that give the same numbers."""

from sb3_ddpg_scratch.updates.choice import UPDATERS, make_updater
from sb3_ddpg_scratch.updates.interface import Updater, UpdateSettings

__all__ = ["UPDATERS", "UpdateSettings", "Updater", "make_updater"]
