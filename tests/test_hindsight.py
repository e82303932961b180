"""Packed hindsight replay against SB3's HerReplayBuffer: transition by transition, with the same seed."""

from functools import partial

import numpy as np
import pytest
import torch as th
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from tests.goal_envs import Reach


def transitions(env, steps, seed=0):
    """What SB3 stores of random actions."""
    rng = np.random.default_rng(seed)
    observations = env.reset()
    for _ in range(steps):
        actions = rng.uniform(-1, 1, (env.num_envs, 2)).astype(np.float32)
        following, rewards, dones, infos = env.step(actions)
        last = {key: part.copy() for key, part in following.items()}
        for index in np.flatnonzero(dones):
            for key in last:
                last[key][index] = infos[index]["terminal_observation"][key]
        yield observations, last, actions, rewards, dones, infos
        observations = following


def filled(steps, n_envs=1, capacity=60, env=None, reach=None, **kwargs):
    """SB3's buffer and ours with the same transitions."""
    env = env or make_vec_env(partial(Reach, **reach or {}), n_envs=n_envs, seed=0)
    arguments = (capacity * n_envs, env.observation_space, env.action_space, env, "cpu", n_envs)
    buffers = HerReplayBuffer(*arguments, **kwargs), PackedHerReplayBuffer(*arguments, **kwargs)
    for transition in transitions(env, steps):
        for buffer in buffers:
            buffer.add(*transition)
    return buffers


def assert_same(theirs, ours, env=None, batch_size=40, tolerance=1e-6):
    for seed in range(6):
        np.random.seed(seed)
        expected = theirs.sample(batch_size, env)
        state = np.random.get_state()
        np.random.seed(seed)
        got = ours.sample(batch_size, env)
        after = np.random.get_state()
        # As many numbers drawn.
        assert after[2] == state[2]
        assert np.array_equal(after[1], state[1])
        for name in ("observations", "next_observations"):
            assert list(getattr(got, name)) == list(getattr(expected, name))
            for key, value in getattr(expected, name).items():
                th.testing.assert_close(getattr(got, name)[key], value.float(), rtol=tolerance, atol=tolerance, msg=key)
        for name in ("actions", "rewards", "dones"):
            th.testing.assert_close(getattr(got, name), getattr(expected, name), rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("strategy", ["future", "final", "episode", GoalSelectionStrategy.FUTURE])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [11, 60, 67, 300])
def test_samples_are_sb3s_for_the_same_seed(strategy, n_envs, steps):
    assert_same(*filled(steps, n_envs, goal_selection_strategy=strategy, reach={"terminates": 3}))


@pytest.mark.parametrize("n_sampled_goal", [0, 1, 7])
@pytest.mark.parametrize("timeouts", [True, False])
def test_the_share_of_new_goals_and_time_limits_are_sb3s(n_sampled_goal, timeouts):
    arguments = {"n_sampled_goal": n_sampled_goal, "handle_timeout_termination": timeouts}
    assert_same(*filled(100, reach={"terminates": 2}, **arguments), tolerance=0 if n_sampled_goal == 0 else 1e-6)


def test_every_step_on_the_way_round_the_buffer():
    """Whatever part of an episode was overwritten, the same transitions are within reach."""
    env = make_vec_env(partial(Reach, terminates=2), n_envs=2, seed=0)
    arguments = (2 * 25, env.observation_space, env.action_space, env, "cpu", 2)
    theirs, ours = HerReplayBuffer(*arguments), PackedHerReplayBuffer(*arguments)
    for number, transition in enumerate(transitions(env, 120)):
        theirs.add(*transition)
        ours.add(*transition)
        np.testing.assert_array_equal(ours.ep_length, theirs.ep_length)
        if number > 10:
            assert_same(theirs, ours, batch_size=20)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_goals_that_change_within_an_episode_stay_with_their_transitions(n_envs):
    theirs, ours = filled(150, n_envs, reach={"moves_goal": 3})
    assert_same(theirs, ours)
    assert_same(*filled(150, n_envs, reach={"moves_goal": 3}, n_sampled_goal=0), tolerance=0)


def test_bits_and_single_precision_are_stored_as_they_are():
    assert_same(*filled(80, reach={"dtype": np.float32}), tolerance=0)


def test_normalizes_after_relabelling_as_sb3_does():
    env = VecNormalize(make_vec_env(Reach, n_envs=2, seed=0), clip_obs=1.0)
    env.reset()
    for _ in range(30):
        env.step(np.ones((2, 2), np.float32))
    raw = make_vec_env(Reach, n_envs=2, seed=0)
    assert_same(*filled(100, 2, env=raw), env=env, tolerance=1e-5)


def test_one_call_of_compute_reward_for_a_batch_with_the_infos_of_its_transitions():
    theirs, ours = filled(100, copy_info_dict=True)
    seen = []

    class Asked:
        num_envs = 1

        def env_method(self, name, achieved, desired, infos, indices):
            seen.append((name, achieved, desired, infos, indices))
            return [np.zeros(len(achieved), np.float32)]

    theirs.env = ours.env = Asked()
    assert_same(theirs, ours)
    assert len(seen) == 12
    for expected, got in zip(seen[::2], seen[1::2], strict=True):
        assert got[0] == expected[0] == "compute_reward"
        np.testing.assert_allclose(got[1], expected[1], rtol=1e-6)
        np.testing.assert_allclose(got[2], expected[2], rtol=1e-6)
        assert got[1].dtype == expected[1].dtype == np.float64
        for a, b in zip(got[3], expected[3], strict=True):
            np.testing.assert_array_equal(a["place"], b["place"])
            assert a is not b
        assert got[4] == expected[4] == [0]
