"""An environment of one's own, written as a module into a folder that nobody has installed."""

ENV_ID = "Trolley-v0"
# Its observations are large, so that a policy needs their normalization.
SOURCE = """
import gymnasium as gym
import numpy as np
from stable_baselines3.common.torch_layers import FlattenExtractor


class Trolley(gym.Env):
    observation_space = gym.spaces.Box(-1000.0, 1000.0, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 3.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.place, self.speed = self.np_random.uniform(-200.0, 200.0), 0.0
        return self.seen(), {}

    def step(self, action):
        self.speed = 0.9 * self.speed + 10.0 * float(action[0])
        self.place = float(np.clip(self.place + self.speed, -900.0, 900.0))
        return self.seen(), -abs(self.place) / 100.0, False, False, {}

    def seen(self):
        return np.array([self.place, self.speed], np.float32)


class OwnExtractor(FlattenExtractor):
    pass


gym.register("Trolley-v0", entry_point=Trolley, max_episode_steps=25)
"""


def write_module(folder, name="trolley"):
    (folder / f"{name}.py").write_text(SOURCE)
