"""Environments with goals: what hindsight replay requires of them and of its arguments."""

import math
from typing import Any

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.her.goal_selection_strategy import KEY_TO_GOAL_STRATEGY, GoalSelectionStrategy

from sb3_ddpg_scratch.errors import ArgumentError, EnvironmentOutputError
from sb3_ddpg_scratch.validation import check_whole_number

GOAL_KEYS = ("observation", "achieved_goal", "desired_goal")


def missing_goals(observation_space: spaces.Space[Any]) -> list[str]:
    """The keys of an environment with goals that an observation space lacks."""
    return [key for key in GOAL_KEYS if not isinstance(observation_space, spaces.Dict) or key not in observation_space.spaces]


def check_goal_env(env: VecEnv, observation_space: spaces.Space[Any]) -> None:
    missing = missing_goals(observation_space)
    problem = f"has no goals: its observation {observation_space} lacks {', '.join(missing)}" if missing else ""
    if not missing and not env.has_attr("compute_reward"):
        problem = "lacks compute_reward(achieved_goal, desired_goal, info), which gives the rewards of a batch of goals"
    if problem:
        raise ArgumentError("env", env, advice="Hindsight needs a gymnasium_robotics.GoalEnv.", problem=problem)


def check_goal_rewards(buffer: Any, env: VecEnv, observations: Any, info: dict[str, Any]) -> None:
    """Require ``compute_reward`` to take a batch, with the goals of a first observation: it is used many steps later."""
    # More than a goal has numbers, of which a function for one goal could return as many.
    count = np.size(observations["achieved_goal"][0]) + 1
    goals = [np.stack([observations[key][0]] * count) for key in ("achieved_goal", "desired_goal")]
    cause: Exception | None = None
    try:
        infos = [dict(info) if buffer.copy_info_dict else {} for _ in range(count)]
        shape = np.shape(env.env_method("compute_reward", *goals, infos, indices=[0])[0])
        problem = "" if math.prod(shape) == count else f"returned an array of shape {shape}"
    except Exception as error:
        cause, problem = error, f"failed with {type(error).__name__}: {error}"
    if problem:
        advice = "It must compute along their first axis, as in -np.linalg.norm(achieved_goal - desired_goal, axis=-1)."
        if isinstance(cause, KeyError):
            advice = "If it needs what is in infos, give replay_buffer_kwargs=dict(copy_info_dict=True)."
        given = f"for {count} goals at once, as hindsight asks, in arrays of shape {goals[0].shape}"
        raise EnvironmentOutputError(f"The environment's compute_reward {problem} {given}. {advice}") from cause


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
