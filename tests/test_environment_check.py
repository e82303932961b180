"""Faulty environments: numbers that are not finite at any step, wrong shapes and dtypes at the first one."""

import copy
import pickle

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from conftest import POLICY_OF, PointEnv
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import (
    DummyVecEnv,
    SubprocVecEnv,
    VecEnvWrapper,
    VecFrameStack,
    VecNormalize,
    VecTransposeImage,
)

from sb3_ddpg_scratch import ArgumentError, DivergenceError, ScratchDDPG
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


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("training", [True, False])
def test_behind_normalization(value, training):
    """Statistics that train become nan by an infinite number, in all environments; others clip it to a finite one."""

    def wrap(env):
        return VecNormalize(env, training=training)

    _, run = learn(PointEnv, lambda: Bad(5, lambda observation, reward: (observation, value)), wrap=wrap)
    with pytest.raises(DivergenceError, match=f"Environment 1 returned reward = {value} at environment step 10"):
        run()


@pytest.mark.parametrize("training", [True, False])
def test_an_observation_behind_normalization(training):
    def wrap(env):
        return VecNormalize(env, training=training)

    model, run = learn(PointEnv, lambda: Bad(5, spoiled(np.inf)), wrap=wrap)
    with pytest.raises(DivergenceError, match=r"Environment 1 returned observation\[2\] = inf at environment step 10"):
        run()
    assert model.replay_buffer.size() == 4


def test_a_dict_behind_normalization():
    def wrap(env):
        return VecNormalize(VecTransposeImage(env), norm_obs_keys=["vector"])

    _, run = learn(lambda: Bad(5, spoiled(np.inf, "vector"), "dict"), wrap=wrap)
    with pytest.raises(DivergenceError, match=r"observation\['vector'\]\[2\] = inf"):
        run()


@pytest.mark.parametrize("kind", ["vector", "dict", "image"])
def test_normalization_below_a_wrapper_that_changes_shapes(kind):
    arguments = {"norm_obs_keys": ["vector"]} if kind == "dict" else {}

    def wrap(env):
        return VecFrameStack(VecNormalize(env, norm_obs=kind != "image", **arguments), 2)

    _, run = learn(lambda: PointEnv(kind), wrap=wrap)
    with pytest.raises(ArgumentError, match=r"env has VecNormalize below .*VecFrameStack.*VecNormalize\(VecFrameStack\(env"):
        run()

    def advised(env):
        return VecNormalize(VecFrameStack(env, 2), norm_obs=kind != "image", **arguments)

    if kind == "vector":
        learn(PointEnv, wrap=advised)[1]()


def test_large_numbers_are_finite():
    assert all_finite(np.full((2, 3), 3e38, np.float32), np.full(2, -3e38, np.float32))
    assert all_finite({"image": np.full((1, 4), 255, np.uint8)}, np.zeros(1, np.int64))
    for bad in (np.nan, np.inf, -np.inf):
        assert not all_finite(np.array([[1.0, bad]], np.float32), np.zeros(1))
        assert not all_finite({"a": np.array([[bad, 1.0]])}, np.zeros(1))
        assert not all_finite(np.zeros((1, 2)), np.array([bad]))


WRONG = {
    "broadcast": (lambda observation, reward: (observation[:1], reward), r"shape \(1,\).* instead of shape \(3,\)"),
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


class Old(PointEnv):
    """gym's old interface: no info from reset, four values from step."""

    def reset(self, **kwargs):
        return super().reset(**kwargs)[0]

    def step(self, action):
        observation, reward, terminated, _, info = super().step(action)
        return observation, reward, terminated, info


class HalfOld(Old):
    def reset(self, **kwargs):
        return PointEnv.reset(self, **kwargs)


class TwoNumbers(Old):
    """Two values can be unpacked from its observation too."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Box(-10, 10, (2,), np.float32)

    def _observe(self):
        return super()._observe()[:2]


RESET, STEP = (
    r"reset must return \(observation, info\)",
    r"step must return \(observation, reward, terminated, truncated, info\)",
)
OLD = [(Old, RESET), (HalfOld, STEP), (TwoNumbers, RESET), (lambda: Old("dict"), RESET)]
OLD += [(lambda: gym.wrappers.NormalizeObservation(Old()), RESET), (lambda: gym.wrappers.TimeLimit(HalfOld(), 5), STEP)]


@pytest.mark.parametrize(("make", "rule"), OLD)
def test_environments_of_the_old_interface(make, rule):
    for wrap in (lambda: make(), lambda: DummyVecEnv([make])):
        policy = POLICY_OF[make().unwrapped.kind]
        with pytest.raises(EnvironmentOutputError, match=f"Environment 0's {rule}.*migration_guide"):
            ScratchDDPG(policy, wrap(), **SMALL).learn(5)


@pytest.mark.parametrize(("make", "rule"), [(Old, RESET), (HalfOld, STEP), (TwoNumbers, RESET)])
def test_environments_of_the_old_interface_in_a_process(make, rule, capfd):
    env = SubprocVecEnv([make], start_method="fork")
    with pytest.raises(EnvironmentOutputError, match=f"environment's {rule}"):
        ScratchDDPG("MlpPolicy", env, **SMALL).learn(5)
    assert make is TwoNumbers or "values to unpack" in capfd.readouterr().err
    for process in env.processes:
        process.kill()


def test_an_error_about_unpacking_of_the_environments_own_stays():
    def change(observation, reward):
        return [one + four for one, _, _, four in [observation]], reward

    with pytest.raises(ValueError, match=r"expected 4, got 3") as error:
        learn(lambda: Bad(1, change))[1]()
    assert type(error.value) is ValueError


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
