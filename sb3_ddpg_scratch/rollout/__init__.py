"""Acting and storing: SB3's ``collect_rollouts`` with minimal overhead around the environment's step."""

from sb3_ddpg_scratch.rollout.gathered import AtOnce, methods_of
from sb3_ddpg_scratch.rollout.loop import collect_rollouts
from sb3_ddpg_scratch.rollout.steps import Actions, select_actions, store_transition

__all__ = ["Actions", "AtOnce", "collect_rollouts", "methods_of", "select_actions", "store_transition"]
