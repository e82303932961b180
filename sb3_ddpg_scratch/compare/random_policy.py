"""The score of a uniformly random policy: the lower end of an environment's range of scores."""

import gymnasium as gym

EPISODES = 20


def random_score(env_id: str, episodes: int = EPISODES, seed: int = 0) -> float:
    """Mean return of uniformly drawn actions; ``seed`` is for the environment and the actions."""
    env = gym.make(env_id)
    env.action_space.seed(seed)
    total = 0.0
    for episode in range(episodes):
        env.reset(seed=seed if episode == 0 else None)
        over = False
        while not over:
            _, reward, terminated, truncated, _ = env.step(env.action_space.sample())
            total += float(reward)
            over = terminated or truncated
    env.close()
    return total / episodes
