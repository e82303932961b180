"""Environments with goals, for tests of hindsight replay that need no MuJoCo."""

import gymnasium as gym
import numpy as np
from gymnasium import spaces


class Reach(gym.Env):
    """
    A point in the plane that is to be moved to a goal. The reward is 0 within 0.3 of it, else -1.

    :param steps: episodes end after so many, or one less or more
    :param terminates: every n-th episode ends by a termination, the others by a time limit; 0 for none
    :param moves_goal: every n-th step within an episode gives a new goal; 0 for none
    """

    def __init__(self, steps=8, terminates=0, moves_goal=0, dtype=np.float64):
        box = spaces.Box(-10, 10, (2,), dtype)
        parts = {"observation": spaces.Box(-10, 10, (3,), dtype), "achieved_goal": box, "desired_goal": box}
        self.observation_space, self.action_space = spaces.Dict(parts), spaces.Box(-1, 1, (2,), np.float32)
        self.steps, self.terminates, self.moves_goal, self.dtype = steps, terminates, moves_goal, dtype
        self.episode = self.calls = 0

    def _observation(self):
        parts = {"observation": [*self.place, self.left], "achieved_goal": self.place, "desired_goal": self.goal}
        return {key: np.array(value, self.dtype) for key, value in parts.items()}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.goal = self.np_random.uniform(-1, 1, (2, 2)).astype(np.float32)
        self.left = self.steps + int(self.np_random.integers(-1, 2))
        self.episode += 1
        return self._observation(), {}

    def step(self, action):
        self.place = self.place + 0.3 * np.asarray(action)
        self.left -= 1
        if self.moves_goal and self.left % self.moves_goal == 0:
            self.goal = self.np_random.uniform(-1, 1, 2).astype(np.float32)
        reward = float(self.compute_reward(self.place, self.goal, {}))
        ends = self.left == 0
        terminates = bool(self.terminates) and self.episode % self.terminates == 0
        info = {"place": self.place.copy(), "is_success": reward == 0}
        return self._observation(), reward, ends and terminates, ends and not terminates, info

    def compute_reward(self, achieved_goal, desired_goal, info):
        self.calls += 1
        return -(np.linalg.norm(np.subtract(achieved_goal, desired_goal), axis=-1) > 0.3).astype(np.float32)


gym.register("Reach-v0", Reach)
gym.register("Limited-v0", Reach, max_episode_steps=12)
