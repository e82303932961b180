"""Exact, atomic, resumable training checkpoints."""

from sb3_ddpg_scratch.checkpoint.callback import ResumableCheckpoint

__all__ = ["ResumableCheckpoint"]
