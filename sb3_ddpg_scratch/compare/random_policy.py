"""What a policy that acts at random reaches: the lower end of an environment's range of scores."""

import gymnasium as gym

EPISODES = 20


def random_score(env_id: str, episodes: int = EPISODES, seed: int = 0) -> float:
    """
    :param env_id: a registered environment whose episodes end
    :param episodes: how many to play
    :param seed: of the environment and of the actions
    :return: mean return of actions drawn uniformly from the action space
    """
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
