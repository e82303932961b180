"""Transitions that one already has: reading, checking and storing them."""

from sb3_ddpg_scratch.data.adding import add_transitions

__all__ = ["add_transitions"]
