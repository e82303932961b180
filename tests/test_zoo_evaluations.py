"""Evaluations of the Zoo's experiments: how many of their episodes fail."""

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch.zoo.evaluations import FailedEpisodes


class Overheats(gym.Wrapper):
    """Every third episode has ``hot`` in the middle, and none ends because of it."""

    number = 0

    def reset(self, **options):
        self.number, self.clock = self.number + 1, 0
        return super().reset(**options)

    def step(self, action):
        self.clock += 1
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward, terminated, truncated, info | {"hot": self.number % 3 == 0 and self.clock == 5}


@pytest.mark.parametrize(
    ("end", "key", "rates", "printed"),
    [
        ("terminated", None, [1, 1], "3 of 3 episodes terminated"),
        ("truncated", None, [0, 0], ""),
        ("truncated", "hot", [1 / 3, 1 / 3], "1 of 3 episodes had hot"),
        ("terminated", "cold", [0, 0], "0 of 3 episodes had cold"),
    ],
)
def test_failed_episodes_are_counted(tmp_path, capsys, end, key, rates, printed):
    env = make_vec_env(lambda: Overheats(PointEnv(end=end)), 1)
    evaluation = EvalCallback(env, eval_freq=30, n_eval_episodes=3, log_path=str(tmp_path), verbose=1)
    failed = FailedEpisodes(evaluation, key)
    DDPG("MlpPolicy", PointEnv(), policy_kwargs={"net_arch": [4]}, device="cpu").learn(60, evaluation)
    # Of any three episodes in a row, one is hot.
    np.testing.assert_allclose(failed.rates(), rates)
    said = capsys.readouterr().out
    assert said.count(printed) == 2 if printed else "episodes" not in said
    assert "Eval num_timesteps=60" in said
