"""Environments with goals: what hindsight replay requires of them and of its arguments."""

from typing import Any

from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.validation import check_whole_number

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


def missing_goals(observation_space: spaces.Space[Any]) -> list[str]:
    """The keys of an environment with goals that an observation space lacks."""
    return [key for key in GOAL_KEYS if not isinstance(observation_space, spaces.Dict) or key not in observation_space.spaces]


def check_goal_env(env: VecEnv, observation_space: spaces.Space[Any]) -> None:
    allowed = "an environment with goals (gymnasium_robotics.GoalEnv)"
    missing = missing_goals(observation_space)
    if missing:
        raise ArgumentError("env", env, allowed, f"Its observation lacks {', '.join(missing)}: {observation_space}.")
    if not env.has_attr("compute_reward"):
        advice = "It lacks compute_reward(achieved_goal, desired_goal, info), which gives the rewards of a batch of goals."
        raise ArgumentError("env", env, allowed, advice)


def check_holds_an_episode(buffer_size: int, env: VecEnv) -> None:
    """Require a buffer that always holds a whole episode of every environment, if their time limit is known."""
    specs = env.get_attr("spec") if env.has_attr("spec") else []
    longest = max((getattr(spec, "max_episode_steps", None) or 0 for spec in specs), default=0)
    # The oldest episode is lost with its first step, and the newest one is not over before its last.
    needed = 2 * longest - 1
    if buffer_size // env.num_envs < needed:
        allowed = f"at least {needed * env.num_envs}, for episodes of {longest} steps in {env.num_envs} environment(s)"
        raise ArgumentError("buffer_size", buffer_size, allowed, "Hindsight needs whole episodes.")


def check_goal_selection(goal_selection_strategy: Any = "future", n_sampled_goal: Any = 4, **_: Any) -> None:
    """Require a known strategy and a nonnegative number of goals."""
    strategy = goal_selection_strategy
    known = isinstance(strategy, str) and strategy.lower() in KEY_TO_GOAL_STRATEGY
    if not known and not isinstance(strategy, GoalSelectionStrategy):
        raise ArgumentError("goal_selection_strategy", strategy, "one of " + ", ".join(map(repr, KEY_TO_GOAL_STRATEGY)))
    check_whole_number("n_sampled_goal", n_sampled_goal, 0)
