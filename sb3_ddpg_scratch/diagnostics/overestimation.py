"""
Over-estimation: what the critic promises against the discounted return that the policy then gets.

An episode that a time limit cut off would have gone on. Its return is therefore completed by what the critic promises for
the state where it was cut, ``gamma^n Q(s_n, mu(s_n))``, n steps on. That makes the comparison milder by the factor
``1 - gamma^n``: the share ``gamma^n``, the *tail weight*, is the critic's own word. It is recorded with each comparison,
and states for which it is above one half are not compared, unless there are no others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic
from sb3_ddpg_scratch.diagnostics.probes import select

LARGEST_TAIL_WEIGHT = 0.5


class Comparison(NamedTuple):
    """
    :param q: mean of Q(s, mu(s)) over the states compared
    :param discounted_return: mean of the discounted returns that followed them
    :param tail_weight: mean share of the critic's own word in these
    :param states: number of states compared
    """

    q: float
    discounted_return: float
    tail_weight: float
    states: int


def discounted_returns(rewards: Sequence[float], gamma: float, tail_value: float = 0.0) -> np.ndarray:
    """
    ``G_t = r_t + gamma r_{t+1} + ... + gamma^(n-t) tail_value`` for each step t of an episode.

    :param rewards: the episode's rewards
    :param gamma: discount factor
    :param tail_value: value of the state after the last step; 0 if that was a termination
    :return: the returns, shape ``(len(rewards),)``
    """
    returns = np.empty(len(rewards))
    following = tail_value
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns


def compare_episode(q_values: np.ndarray, rewards: Sequence[float], gamma: float, tail_value: float | None) -> Comparison:
    """
    :param q_values: Q(s_t, mu(s_t)) for each step of an episode
    :param rewards: its rewards
    :param gamma: discount factor
    :param tail_value: Q of the state where a time limit cut the episode off; ``None`` if it terminated
    :return: means over the states that are compared
    """
    returns = discounted_returns(rewards, gamma, tail_value or 0.0)
    weights = np.zeros(len(rewards)) if tail_value is None else gamma ** np.arange(len(rewards), 0, -1, dtype=float)
    # The weights grow along the episode: its first state is compared in any case.
    compared = weights <= max(LARGEST_TAIL_WEIGHT, weights[0])
    q, obtained, weight = (float(array[compared].mean()) for array in (np.asarray(q_values, float), returns, weights))
    return Comparison(q, obtained, weight, int(compared.sum()))


class Evaluation(NamedTuple):
    """
    :param comparison: over-estimation over all episodes
    :param return_mean: mean undiscounted return, in the environment's units
    """

    comparison: Comparison
    return_mean: float


def evaluate(networks: ActorCritic, env: VecEnv, episodes: int, normalize: VecNormalize | None) -> Evaluation:
    """
    Play noise-free episodes, and hold Q along each against the discounted return from there on.

    :param networks: the networks
    :param env: one environment, without VecNormalize
    :param episodes: how many episodes
    :param normalize: the training's VecNormalize: observations are normalised by it, and so are the rewards that are held
        against Q, whose unit they are; ``None`` without one
    :return: the comparison, and the mean return
    """
    comparisons: list[Comparison] = []
    returns: list[float] = []
    gamma = networks.model.gamma
    observation: Any = env.reset()
    while len(returns) < episodes:
        q_values: list[float] = []
        rewards: list[float] = []
        scaled: list[float] = []
        done = False
        while not done:
            observation = observation if normalize is None else normalize.normalize_obs(observation)
            actions, q_value = networks.value_of(observation)
            actions = networks.model.policy.unscale_action(actions).reshape(-1, *env.action_space.shape)  # type: ignore[misc]
            observation, reward, dones, infos = env.step(actions)
            q_values.append(float(q_value[0]))
            rewards.append(float(reward[0]))
            scaled.append(float((reward if normalize is None else normalize.normalize_reward(reward))[0]))
            done = bool(dones[0])
        tail = tail_value(networks, infos[0], normalize, normalized=False)
        comparisons.append(compare_episode(np.array(q_values), scaled, gamma, tail))
        returns.append(sum(rewards))
    states = np.array([comparison.states for comparison in comparisons])
    means = np.average(np.array([comparison[:3] for comparison in comparisons]), axis=0, weights=states)
    q, obtained, weight = means.tolist()
    return Evaluation(Comparison(q, obtained, weight, int(states.sum())), float(np.mean(returns)))


def tail_value(networks: ActorCritic, info: dict[str, Any], normalize: VecNormalize | None, normalized: bool) -> float | None:
    """
    :param networks: the networks
    :param info: the info of an episode's last step
    :param normalize: what normalises observations, if anything does
    :param normalized: whether the terminal observation in the info has been normalised already
    :return: Q(s, mu(s)) of the state where a time limit cut the episode off; ``None`` if it terminated
    """
    if not info.get("TimeLimit.truncated", False):
        return None
    last: Any = info["terminal_observation"]
    batch = {key: np.asarray(value) for key, value in last.items()} if isinstance(last, dict) else np.asarray(last)
    batch = select(batch, None)
    if normalize is not None and not normalized:
        batch = normalize.normalize_obs(batch)
    return float(networks.value_of(batch)[1][0])
