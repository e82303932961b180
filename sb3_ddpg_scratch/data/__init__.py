"""Transitions that one already has: reading, checking and storing them, and learning from them alone."""

from sb3_ddpg_scratch.data.adding import Added
from sb3_ddpg_scratch.data.offline import SpacesOnly

__all__ = ["Added", "SpacesOnly"]
