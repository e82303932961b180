"""
Over-estimation: the critic's value compared with the discounted return that the policy then obtains.

If a time limit cut an episode off after n steps, its return is completed with a bootstrapped value,
``gamma^n Q(s_n, mu(s_n))``. The factor ``gamma^n``, the *tail weight*, is recorded too: the larger it is, the more the
critic is compared with itself. States where it exceeds one half are compared only if there are no others.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.diagnostics.actor_critic import ActorCritic
from sb3_ddpg_scratch.diagnostics.probes import for_each_part
from sb3_ddpg_scratch.errors import ArgumentError

LARGEST_TAIL_WEIGHT = 0.5


class Comparison(NamedTuple):
    """Means over the compared states: Q(s, mu(s)), the discounted return that followed, and its bootstrapped share."""

    q: float
    discounted_return: float
    tail_weight: float
    states: int


def discounted_returns(rewards: Sequence[float], gamma: float, tail_value: float = 0.0) -> np.ndarray:
    """``G_t = r_t + gamma r_{t+1} + ... + gamma^(n-t) tail_value`` for each step t of an episode."""
    returns = np.empty(len(rewards))
    following = tail_value
    for t in reversed(range(len(rewards))):
        following = rewards[t] + gamma * following
        returns[t] = following
    return returns


def compare_episode(q_values: np.ndarray, rewards: Sequence[float], gamma: float, tail_value: float | None) -> Comparison:
    """Compare an episode's Q values with its returns; ``tail_value`` is from :func:`tail_value`."""
    returns = discounted_returns(rewards, gamma, tail_value or 0.0)
    weights = np.zeros(len(rewards)) if tail_value is None else gamma ** np.arange(len(rewards), 0, -1, dtype=float)
    # The weights grow along the episode: its first state is compared in any case.
    compared = weights <= max(LARGEST_TAIL_WEIGHT, weights[0])
    q, obtained, weight = (float(array[compared].mean()) for array in (np.asarray(q_values, float), returns, weights))
    return Comparison(q, obtained, weight, int(compared.sum()))


def evaluate(networks: ActorCritic, env: VecEnv, episodes: int, normalize: VecNormalize | None) -> tuple[Comparison, float]:
    """Compare along noise-free episodes in one environment without VecNormalize; also returns the mean return in its units."""
    comparisons, returns = [], []
    observation: Any = env.reset()
    for _ in range(episodes):
        comparison, episode_return, observation = _play(networks, env, observation, normalize)
        comparisons.append(comparison)
        returns.append(episode_return)
    states = [comparison.states for comparison in comparisons]
    q, obtained, weight = np.average(np.array(comparisons)[:, :3], axis=0, weights=states).tolist()
    return Comparison(q, obtained, weight, sum(states)), float(np.mean(returns))


def _play(
    networks: ActorCritic, env: VecEnv, observation: Any, normalize: VecNormalize | None
) -> tuple[Comparison, float, Any]:
    """Play one episode from its first observation; returns the comparison, the return and the next first observation."""
    q_values: list[float] = []
    rewards: list[float] = []
    scaled: list[float] = []
    done = False
    while not done:
        actions, q_value = networks.value_of(observation, normalize)
        actions = networks.model.policy.unscale_action(actions).reshape(-1, *env.action_space.shape)  # type: ignore[misc]
        observation, reward, dones, infos = env.step(actions)
        q_values.append(float(q_value[0]))
        rewards.append(float(reward[0]))
        scaled.append(float((reward if normalize is None else normalize.normalize_reward(reward))[0]))
        done = bool(dones[0])
    tail = tail_value(networks, infos[0], normalize, normalized=False)
    return compare_episode(np.array(q_values), scaled, networks.model.gamma, tail), sum(rewards), observation


def tail_value(networks: ActorCritic, info: dict[str, Any], normalize: VecNormalize | None, normalized: bool) -> float | None:
    """Q(s, mu(s)) of the state where a time limit ended the episode with this last info; ``None`` if it terminated."""
    if not info.get("TimeLimit.truncated", False):
        return None
    batch = for_each_part(lambda part: np.asarray(part)[None], info["terminal_observation"])
    return float(networks.value_of(batch, None if normalized else normalize)[1][0])


def evaluation_env(model: Any, env: Any, seed: int) -> VecEnv:
    """The evaluation environment without VecNormalize, created if given by its id."""
    env = model._wrap_env(make_vec_env(env, seed=seed) if isinstance(env, str) else env)
    env = env.venv if isinstance(env, VecNormalize) else env
    if env.num_envs != 1:
        raise ArgumentError("eval_env", env, "one environment", f"It has {env.num_envs}.")
    for name in ("observation_space", "action_space"):
        if getattr(env, name) != getattr(model, name):
            raise ArgumentError("eval_env", env, f"one with the training's {name}, {getattr(model, name)}")
    return env
