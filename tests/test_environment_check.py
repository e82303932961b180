"""Faulty environments: numbers that are not finite at any step, wrong shapes and dtypes at the first one."""

import copy
import pickle

import cloudpickle
import numpy as np
import pytest
from conftest import POLICY_OF, PointEnv
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from sb3_ddpg_scratch import DivergenceError, ScratchDDPG
from sb3_ddpg_scratch.environment_check import all_finite
from sb3_ddpg_scratch.errors import EnvironmentOutputError

SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 200, "learning_starts": 1000, "batch_size": 8, "seed": 0}
SMALL |= {"device": "cpu"}


class Bad(PointEnv):
    """Returns something else at one of its steps (0 is the reset)."""

    def __init__(self, at, change, observation="vector", length=20):
        super().__init__(observation, length=length)
        self.at, self.change, self.steps = at, change, -1

    def _changed(self, observation, reward):
        self.steps += 1
        return self.change(observation, reward) if self.steps == self.at else (observation, reward)

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        return self._changed(observation, 0.0)[0], info

    def step(self, action):
        observation, reward, *rest = super().step(action)
        return *self._changed(observation, reward), *rest


def learn(*environments, wrap=lambda env: env, **extra):
    kind = environments[0]().kind
    model = ScratchDDPG(POLICY_OF[kind], wrap(DummyVecEnv(list(environments))), **SMALL | extra)
    return model, lambda: model.learn(60)


def spoiled(value, key=None):
    def change(observation, reward):
        target = observation if key is None else observation[key]
        target[..., -1] = value
        return observation, reward

    return change


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("updater", ["auto", "autograd"])
def test_a_reward_that_is_not_finite(value, updater):
    model, run = learn(PointEnv, lambda: Bad(7, lambda observation, reward: (observation, value)), updater=updater)
    model.last_checkpoint = "runs/checkpoint-5"
    with pytest.raises(DivergenceError, match=rf"Environment 1 returned reward = {value}.*step 14.*runs/checkpoint-5"):
        run()
    assert model.replay_buffer.size() == 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_observation_that_is_not_finite(value):
    model, run = learn(PointEnv, PointEnv, lambda: Bad(5, spoiled(value)))
    with pytest.raises(DivergenceError, match=rf"Environment 2 returned observation\[2\] = {value} at environment step 15"):
        run()
    assert model.replay_buffer.size() == 4


def test_in_a_dict():
    _, run = learn(lambda: Bad(5, spoiled(np.nan, "vector"), "dict"))
    with pytest.raises(DivergenceError, match=r"observation\['vector'\]\[2\] = nan at environment step 5"):
        run()


def test_in_the_last_observation_of_an_episode():
    _, run = learn(lambda: Bad(4, spoiled(np.inf), length=4))
    with pytest.raises(DivergenceError, match=r"terminal observation\[2\] = inf at environment step 4"):
        run()


def test_behind_normalization():
    _, run = learn(lambda: Bad(5, lambda observation, reward: (observation, np.nan)), wrap=VecNormalize)
    with pytest.raises(DivergenceError, match="Environment 0 returned reward"):
        run()


def test_large_numbers_are_finite():
    assert all_finite(np.full((2, 3), 3e38, np.float32), np.full(2, -3e38, np.float32))
    assert all_finite({"image": np.full((1, 4), 255, np.uint8)}, np.zeros(1, np.int64))
    for bad in (np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([[1.0, bad]], np.float32), np.zeros(1))
        assert not all_finite({"a": np.array([[bad, 1.0]])}, np.zeros(1))
        assert not all_finite(np.zeros((1, 2)), np.array([bad]))


WRONG = {
    "broadcast": (lambda observation, reward: (observation[:1], reward), r"shape \(1,\).*must be shape \(3,\)"),
    "too long": (lambda observation, reward: (np.append(observation, 0), reward), r"shape \(4,\)"),
    "object": (lambda observation, reward: (observation.astype(object), reward), "dtype object"),
    "complex": (lambda observation, reward: (observation.astype(complex), reward), "dtype complex128"),
    "reward of one": (
        lambda observation, reward: (observation, np.array([reward])),
        r"a reward of shape \(1,\).*float\(reward\)",
    ),
    "reward of text": (lambda observation, reward: (observation, "1.0"), "dtype <U3"),
    "no reward": (lambda observation, reward: (observation, None), "dtype object"),
}


@pytest.mark.parametrize("name", list(WRONG))
def test_wrong_outputs_at_the_first_step(name):
    change, message = WRONG[name]
    _, run = learn(PointEnv, lambda: Bad(1, change))
    with pytest.raises(EnvironmentOutputError, match=f"Environment 1 returned .*{message}"):
        run()


def test_wrong_outputs_at_the_reset():
    _, run = learn(lambda: Bad(0, WRONG["broadcast"][0]))
    with pytest.raises(EnvironmentOutputError, match=r"Environment 0 returned an observation of shape \(1,\)"):
        run()


def test_floats_for_an_image_of_bytes():
    _, run = learn(lambda: Bad(1, lambda observation, reward: (observation / 255, reward), "image"))
    with pytest.raises(EnvironmentOutputError, match=r"dtype float64.*uint8"):
        run()


def test_a_dict_with_other_keys():
    _, run = learn(lambda: Bad(1, lambda observation, reward: ({"vector": observation["vector"]}, reward), "dict"))
    with pytest.raises(EnvironmentOutputError, match=r"\['vector'\].*\['image', 'vector'\]"):
        run()


def test_whole_numbers_are_rewards_and_wider_floats_observations():
    for change in (
        lambda observation, reward: (observation.astype(np.float64), 1),
        lambda observation, reward: (observation, np.float32(1)),
        lambda observation, reward: (observation, True),
        lambda observation, reward: (observation, np.array(1.0)),
    ):
        learn(lambda change=change: Bad(1, change))[1]()


class Wide(VecEnvWrapper):
    """A custom VecEnv that returns rewards as a column."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        observations, rewards, dones, infos = self.venv.step_wait()
        return observations, rewards[:, None], dones, infos


@pytest.mark.parametrize("wrap", [Wide, lambda env: VecNormalize(Wide(env), norm_reward=False)])
def test_a_column_of_rewards(wrap):
    _, run = learn(PointEnv, PointEnv, wrap=wrap)
    with pytest.raises(EnvironmentOutputError, match=r"rewards of shape \(2, 1\).*shape \(2,\)"):
        run()


def test_in_a_subprocess():
    env = SubprocVecEnv([lambda: Bad(1, WRONG["too long"][0])], start_method="fork")
    try:
        model = ScratchDDPG("MlpPolicy", env, **SMALL)
        with pytest.raises(EnvironmentOutputError, match=r"shape \(1, 4\)"):
            model.learn(10)
    finally:
        env.close()


COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
    "cloudpickle": lambda thing: pickle.loads(cloudpickle.dumps(thing)),
}


def clocks_of_a_copy(env, duplicate):
    """How far the environment and its copy get in one step of the copy."""
    before, twin = env.clock, duplicate(env)
    twin.step(env.action_space.low)
    return env.clock - before, twin.clock - before


@pytest.mark.parametrize("steps", [0, 1, 20, 60])
@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
def test_after_learn_an_environment_is_as_sb3_leaves_it(duplicate, steps):
    outcomes = []
    for algorithm in (DDPG, ScratchDDPG):
        venv = DummyVecEnv([PointEnv, PointEnv])
        model = algorithm("MlpPolicy", venv, **SMALL)
        model.learn(steps)
        clocks = [clocks_of_a_copy(env, duplicate) for env in venv.envs]
        attributes = [sorted(vars(thing)) for thing in (venv, *venv.envs)]
        forms = [pickle.dumps(env) for env in venv.envs]
        outcomes.append((clocks, attributes, any(b"sb3_ddpg_scratch" in form for form in forms)))
    assert outcomes[0][0] == [(0, 1), (0, 1)]
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize("duplicate", [copy.deepcopy, COPIES["pickle"], COPIES["cloudpickle"]])
def test_a_copied_model_continues(duplicate):
    model, _ = learn(PointEnv, PointEnv)
    twin = duplicate(model.learn(0))
    twin.learn(20)
    assert [env.clock for env in twin.env.envs] == [10, 10]
    assert [env.clock for env in model.env.envs] == [0, 0]


class CopiesAt(BaseCallback):
    """Copies the environments at one of a callback's moments, and steps the copies."""

    def __init__(self, moment, duplicate):
        super().__init__()
        self.duplicate, self.clocks = duplicate, []
        setattr(self, moment, self._copy)

    def _copy(self):
        self.clocks += [clocks_of_a_copy(env, self.duplicate) for env in self.training_env.envs]
        return True

    def _on_step(self):
        return True


@pytest.mark.parametrize(
    "moment", ["_init_callback", "_on_training_start", "_on_rollout_start", "_on_step", "_on_rollout_end"]
)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, COPIES["cloudpickle"]])
def test_an_environment_copied_by_a_callback(moment, duplicate):
    callback = CopiesAt(moment, duplicate)
    model, _ = learn(PointEnv, PointEnv)
    model.learn(20, callback=callback)
    assert callback.clocks
    assert set(callback.clocks) == {(0, 1)}


class Snapshots(VecEnvWrapper):
    """Copies its environments before each step, as a search would that goes back to them."""

    def __init__(self, venv):
        super().__init__(venv)
        self.clocks = []

    def reset(self):
        return self.venv.reset()

    def step_async(self, actions):
        for duplicate in (copy.deepcopy, COPIES["cloudpickle"]):
            self.clocks += [clocks_of_a_copy(env, duplicate) for env in self.venv.envs]
        self.venv.step_async(actions)

    def step_wait(self):
        return self.venv.step_wait()


def test_an_environment_copied_inside_a_step():
    model, run = learn(PointEnv, PointEnv, wrap=Snapshots)
    run()
    assert len(model.env.clocks) == 30 * 2 * 2
    assert set(model.env.clocks) == {(0, 1)}


class Fails(PointEnv):
    """Fails in its first reset or step."""

    def __init__(self, method):
        super().__init__()
        self.method = method

    def reset(self, **kwargs):
        if self.method == "reset":
            raise RuntimeError("out of order")
        return super().reset(**kwargs)

    def step(self, action):
        raise RuntimeError("out of order")


@pytest.mark.parametrize("method", ["reset", "step"])
def test_nothing_is_left_after_an_error(method):
    model, run = learn(lambda: Fails(method), PointEnv)
    with pytest.raises(RuntimeError, match="out of order"):
        run()
    assert not any({"step", "reset"} & set(vars(env)) for env in model.env.envs)


def test_a_method_that_the_user_replaced_stays():
    model, run = learn(PointEnv)
    env = model.env.envs[0]
    step, calls = env.step, []
    env.step = lambda action: calls.append(action) or step(action)
    run()
    assert len(calls) == 60


def test_the_last_checkpoints_path_is_not_saved(tmp_path):
    model, _ = learn(PointEnv)
    model.last_checkpoint = "somewhere"
    model.save(tmp_path / "model")
    assert ScratchDDPG.load(tmp_path / "model").last_checkpoint is None
