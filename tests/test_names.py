"""Names of observations' and actions' numbers: where they come from, and where they are shown."""

import re

import gymnasium as gym
import numpy as np
import pytest
from conftest import PointEnv
from gymnasium import spaces
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, DivergenceError, ScratchDDPG

SETTINGS = {"buffer_size": 100, "device": "cpu", "policy_kwargs": {"net_arch": [8]}}
NAMES = ["x [m]", "y [m]", "clock"]


class Named(PointEnv):
    metadata = {"render_modes": [], "observation_names": NAMES, "action_names": ["east [N]", "north [N]"]}  # noqa: RUF012
    broken_at = None

    def _observe(self):
        seen = super()._observe()
        if self.broken_at == self.clock:
            (seen if isinstance(seen, np.ndarray) else seen["vector"])[1] = np.nan
        return seen


def test_names_are_the_environments_or_an_arguments_and_are_kept_in_files(tmp_path):
    model = ScratchDDPG("MlpPolicy", gym.wrappers.TimeLimit(Named(), 5), **SETTINGS)
    assert (model.observation_names, model.action_names) == (NAMES, ["east [N]", "north [N]"])
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", env=PointEnv())
    assert (loaded.observation_names, loaded.action_names) == (NAMES, ["east [N]", "north [N]"])
    given = ScratchDDPG("MlpPolicy", Named(), action_names=("u", "v"), **SETTINGS)
    assert (given.observation_names, given.action_names) == (NAMES, ["u", "v"])
    assert ScratchDDPG("MlpPolicy", PointEnv(), **SETTINGS).observation_names is None
    normalized = VecNormalize(make_vec_env(Named, 2))
    assert ScratchDDPG("MlpPolicy", normalized, **SETTINGS).observation_names == NAMES


@pytest.mark.parametrize("names", [["x"], "abc", ["x", "y", 3], {"x": ["y"]}, 3])
def test_names_that_do_not_fit_are_rejected(names):
    with pytest.raises(ArgumentError, match=r"observation_names must be a list of 3 names"):
        ScratchDDPG("MlpPolicy", PointEnv(), observation_names=names, **SETTINGS)
    broken = type("Broken", (Named,), {"metadata": {"observation_names": names}})
    with pytest.raises(ArgumentError, match=r"env.metadata\['observation_names'\] must be a list of 3 names"):
        ScratchDDPG("MlpPolicy", broken(), **SETTINGS)


def test_names_of_a_dict_are_by_key():
    env = PointEnv("dict")
    model = ScratchDDPG("MultiInputPolicy", env, observation_names={"vector": NAMES}, **SETTINGS)
    assert model.observation_names == {"vector": NAMES}
    for wrong in ({"vektor": NAMES}, NAMES, {"vector": NAMES[:2]}):
        with pytest.raises(ArgumentError, match="observation_names"):
            ScratchDDPG("MultiInputPolicy", env, observation_names=wrong, **SETTINGS)


@pytest.mark.parametrize("kind", ["vector", "dict"])
def test_an_error_names_the_number_that_is_not_finite(kind):
    env, key = Named(kind), "['vector']" if kind == "dict" else ""
    env.metadata = {} if kind == "dict" else Named.metadata
    env.broken_at = 3
    names = {"vector": NAMES} if kind == "dict" else None
    policy = "MultiInputPolicy" if kind == "dict" else "MlpPolicy"
    model = ScratchDDPG(policy, env, observation_names=names, **SETTINGS)
    with pytest.raises(DivergenceError, match=re.escape(f"observation{key}[1] (y [m]) = nan")):
        model.learn(20)


def test_an_observation_of_one_number_and_one_that_is_a_matrix():
    class Matrix(Named):
        observation_space = spaces.Box(-1, 1, (2, 2), np.float32)

        def __init__(self):
            self.action_space = spaces.Box(-1, 1, (1,), np.float32)

        def reset(self, *, seed=None, options=None):
            return np.zeros((2, 2), np.float32), {}

        def step(self, action):
            return np.array([[0, 0], [np.inf, 0]], np.float32), 0.0, False, False, {}

    names = {"observation_names": ["a", "b", "c", "d"], "action_names": ["u"]}
    with pytest.raises(DivergenceError, match=re.escape("observation[1, 0] (c) = inf")):
        ScratchDDPG("MlpPolicy", Matrix(), **names, **SETTINGS).learn(3)
