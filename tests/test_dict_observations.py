"""Dict observations of vectors in packed rows and in the fast updaters, against SB3's DictReplayBuffer and DDPG."""

from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.torch_layers import CombinedExtractor
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.observations import flat_slices, flatten, packable
from sb3_ddpg_scratch.parity import compare_models
from sb3_ddpg_scratch.updates.inspection import why_not_compiled
from sb3_ddpg_scratch.vec_env_step import step

ACTIONS = spaces.Box(-2, 2, (2,), np.float32)
# Keys in another order than the alphabet's, as an OrderedDict may have them.
MIXED = spaces.Dict(
    [
        ("wind", spaces.Box(-1, 1, (2,), np.float32)),
        ("arm", spaces.Box(-1, 1, (3, 2), np.float64)),
        ("switches", spaces.MultiBinary(3)),
    ]
)


class Random(gym.Env):
    """Dict observations at random; episodes of 7 steps terminate, every second one is cut off after 4."""

    action_space = ACTIONS

    def __init__(self, space=MIXED):
        self.observation_space, self.episode, self.steps = space, 0, 0

    def _observation(self):
        return {key: self._entry(part) for key, part in self.observation_space.spaces.items()}

    def _entry(self, part):
        if np.issubdtype(part.dtype, np.floating):
            return self.np_random.uniform(-1, 1, part.shape).astype(part.dtype)
        return self.np_random.integers(0, 2, part.shape).astype(part.dtype)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.episode, self.steps = self.episode + 1, 0
        return self._observation(), {}

    def step(self, action):
        self.steps += 1
        truncated = self.episode % 2 == 0 and self.steps == 4
        return self._observation(), float(np.sum(action)), self.steps == 7, truncated, {}


def filled(n_envs, steps, capacity=40, env=None, **kwargs):
    """SB3's buffer and ours with the same transitions."""
    arguments = (capacity * n_envs, MIXED, ACTIONS, "cpu", n_envs)
    buffers = DictReplayBuffer(*arguments), PackedDictReplayBuffer(*arguments, **kwargs)
    env = env or make_vec_env(Random, n_envs=n_envs, seed=0)
    rng = np.random.default_rng(0)
    observations = env.reset()
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32)
        following, rewards, dones, infos = env.step(actions)
        last = {key: part.copy() for key, part in following.items()}
        for index in np.flatnonzero(dones):
            for key in last:
                last[key][index] = infos[index]["terminal_observation"][key]
        for buffer in buffers:
            buffer.add(observations, last, actions, rewards, dones, infos)
        observations = following
    return buffers


def assert_same(theirs, ours, env=None, tolerance=0.0):
    for seed in range(5):
        np.random.seed(seed)
        expected = theirs.sample(32, env)
        np.random.seed(seed)
        got = ours.sample(32, env)
        for name in ("observations", "next_observations"):
            assert list(getattr(got, name)) == list(getattr(expected, name))
            for key, value in getattr(expected, name).items():
                th.testing.assert_close(getattr(got, name)[key], value.float(), rtol=tolerance, atol=tolerance)
        for name in ("actions", "rewards", "dones"):
            th.testing.assert_close(getattr(got, name), getattr(expected, name).float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [5, 40, 95])
def test_samples_are_those_of_sb3s_buffer(n_envs, steps):
    assert_same(*filled(n_envs, steps))


def test_samples_are_normalized_as_by_sb3():
    env = VecNormalize(make_vec_env(Random, n_envs=2, seed=0), norm_obs_keys=["wind", "arm"], clip_obs=1.0)
    env.reset()
    for _ in range(20):
        env.step(np.ones((2, 2), np.float32))
    # Filled with raw numbers, as SB3 does.
    assert_same(*filled(2, 50), env=env, tolerance=1e-6)


def test_each_observation_can_be_stored_once():
    theirs, ours = filled(2, 30, optimize_memory_usage=True)
    full = PackedDictReplayBuffer(80, MIXED, ACTIONS, "cpu", 2)
    assert ours.nbytes < 0.7 * full.nbytes
    # What follows a termination is never read.
    read = (theirs.dones * (1 - theirs.timeouts))[:30] == 0
    assert 30 < read.sum() < 60
    for key, expected in theirs.next_observations.items():
        np.testing.assert_array_equal(ours.next_observations[key][:30][read], expected[:30][read].astype(np.float32))


def test_entries_lie_where_the_features_extractor_puts_them():
    observations = {key: np.stack([part.sample(), part.sample()]) for key, part in MIXED.spaces.items()}
    tensors = {key: th.as_tensor(value).float() for key, value in observations.items()}
    flat = flatten(dict(reversed(observations.items())), MIXED)
    np.testing.assert_array_equal(flat, CombinedExtractor(MIXED)(tensors).numpy())
    for key, where in flat_slices(MIXED).items():
        np.testing.assert_array_equal(flat[:, where], observations[key].reshape(2, -1).astype(np.float32))


@pytest.mark.parametrize(
    ("part", "fits"),
    [
        (spaces.Box(-1, 1, (3,)), True),
        (spaces.MultiBinary(4), True),
        (spaces.Box(0, 255, (3, 36, 36), np.uint8), False),
        (spaces.Discrete(4), False),
        (spaces.Box(-(2**24), 2**24, (2,), np.int64), True),
        (spaces.Box(0, 2**24 + 1, (2,), np.int64), False),
        (spaces.Dict({"b": spaces.Box(-1, 1, (2,))}), False),
    ],
)
def test_only_dicts_of_vectors_are_packed(part, fits):
    space = spaces.Dict({"a": spaces.Box(-1, 1, (2,)), "part": part})
    assert packable(space) is fits
    if not fits:
        with pytest.raises(ArgumentError, match="must be a Dict that fits into packed rows"):
            PackedDictReplayBuffer(10, space, ACTIONS)


def trained(algorithm, policy_kwargs=None, n_envs=2, normalize=False, **settings):
    env = make_vec_env(Random, n_envs=n_envs, seed=0)
    env = VecNormalize(env, norm_obs_keys=["wind", "arm"]) if normalize else env
    noise = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
    model = algorithm(
        *("MultiInputPolicy", env),
        **{"learning_starts": 40, "action_noise": noise, "seed": 1, "batch_size": 32, "device": "cpu"},
        policy_kwargs={"net_arch": [16, 16]} | (policy_kwargs or {}),
        **settings,
    )
    return model.learn(120)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_every_updater_trains_as_sb3_does(shared, normalize):
    train = partial(trained, policy_kwargs={"share_features_extractor": shared}, normalize=normalize)
    theirs = train(DDPG)
    for updater, buffer, tolerance in (
        ("autograd", DictReplayBuffer, 0.0),
        ("analytic", PackedDictReplayBuffer, 1e-4),
        ("compiled", PackedDictReplayBuffer, 1e-4),
    ):
        ours = train(ScratchDDPG, updater=updater)
        assert ours.updater_in_use == updater
        assert type(ours.replay_buffer) is buffer
        assert max(compare_models(theirs, ours).values()) <= tolerance, updater


def test_the_fast_updaters_read_the_batches_of_any_buffer_of_dicts():
    class Own(DictReplayBuffer):
        pass

    theirs = trained(DDPG)
    ours = trained(ScratchDDPG, updater="compiled", replay_buffer_class=Own)
    assert ours.updater_in_use == "compiled"
    assert max(compare_models(theirs, ours).values()) < 1e-4


def test_an_extractor_with_its_entries_in_another_order_is_not_compiled():
    model = ScratchDDPG("MultiInputPolicy", Random(), updater="compiled")
    assert why_not_compiled(model._networks(), trained=2) is None
    extractor = model.actor.features_extractor
    extractor.extractors = th.nn.ModuleDict(dict(reversed(extractor.extractors.items())))
    assert "each in its place" in why_not_compiled(model._networks(), trained=2)


def test_images_among_the_entries_stay_with_sb3s_buffer():
    space = spaces.Dict({"image": spaces.Box(0, 255, (3, 36, 36), np.uint8), "vector": spaces.Box(-1, 1, (2,))})
    model = ScratchDDPG("MultiInputPolicy", Random(space), buffer_size=10)
    assert type(model.replay_buffer) is DictReplayBuffer
    assert model.updater_in_use == "autograd"


def test_a_step_is_that_of_the_dummy_vec_env():
    ours, theirs = (make_vec_env(Random, n_envs=2, seed=3) for _ in range(2))
    ours.reset(), theirs.reset()
    for _ in range(12):
        got, expected = step(ours, np.ones((2, 2))), theirs.step(np.ones((2, 2)))
        assert list(got[0]) == list(expected[0])
        for key, value in expected[0].items():
            np.testing.assert_array_equal(got[0][key], value)
            assert got[0][key].dtype == value.dtype
            assert not np.shares_memory(got[0][key], ours.buf_obs[key])
        for a, b in zip(got[1:3], expected[1:3], strict=True):
            np.testing.assert_array_equal(a, b)


def test_a_saved_buffer_loads_safely(tmp_path):
    model = trained(ScratchDDPG, updater="compiled")
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.save(tmp_path / "model.zip")
    loaded = ScratchDDPG.load(tmp_path / "model.zip", env=make_vec_env(Random, n_envs=2))
    assert type(loaded.replay_buffer) is PackedDictReplayBuffer
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    for key, expected in model.replay_buffer.observations.items():
        np.testing.assert_array_equal(loaded.replay_buffer.observations[key], expected)
    assert DDPG.load(tmp_path / "model.zip").policy is not None
