"""Packed hindsight replay against SB3's HerReplayBuffer: transition by transition, with the same seed."""

import copy
import pickle
import warnings
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize
from stable_baselines3.her.goal_selection_strategy import GoalSelectionStrategy

from sb3_ddpg_scratch import ArgumentError, EnvironmentOutputError, ScratchDDPG
from sb3_ddpg_scratch.diagnostics import DiagnosticsCallback, read_recording, write_report
from sb3_ddpg_scratch.diagnostics.probes import ProbeStates
from sb3_ddpg_scratch.hindsight import PackedHerReplayBuffer
from sb3_ddpg_scratch.parity import compare_models
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


@pytest.mark.parametrize(
    "change",
    [
        lambda obs, following, action, *rest: ({key: part[0] for key, part in obs.items()}, following, action, *rest),
        lambda obs, following, *rest: (obs, {key: part[0].tolist() for key, part in following.items()}, *rest),
        lambda *given: (*given[:3], float(given[3][0]), [bool(given[4][0])], given[5]),
        lambda *given: (*given[:2], given[2].astype(np.float64), given[3].tolist(), given[4].astype(float), given[5]),
    ],
)
def test_takes_every_transition_that_sb3s_buffer_takes(change):
    env = make_vec_env(partial(Reach, terminates=2), n_envs=1, seed=0)
    arguments = (60, env.observation_space, env.action_space, env, "cpu", 1)
    theirs, ours = HerReplayBuffer(*arguments), PackedHerReplayBuffer(*arguments)
    for transition in transitions(env, 100):
        theirs.add(*change(*transition))
        ours.add(*change(*transition))
    assert_same(theirs, ours)


def test_copies_cannot_be_written_to():
    buffer = filled(30)[1]
    copies = [buffer.dones, buffer.timeouts, buffer.ep_start, buffer.ep_length, buffer._current_ep_start]
    for copied in (*copies, *buffer.observations.values(), *buffer.next_observations.values()):
        with pytest.raises(ValueError, match="read-only"):
            copied[:] = 1
    buffer.rewards[2] = 7
    assert buffer.rewards[2, 0] == 7


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


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_n_step_returns_are_sums_of_rewards_for_the_same_goal(strategy, n_envs):
    """Against a walk along SB3's own arrays, one transition after another."""
    env = make_vec_env(partial(Reach, terminates=2), n_envs=n_envs, seed=0)
    arguments = (60 * n_envs, env.observation_space, env.action_space, env, "cpu", n_envs)
    theirs = HerReplayBuffer(*arguments, goal_selection_strategy=strategy)
    ours = PackedHerReplayBuffer(*arguments, goal_selection_strategy=strategy, n_steps=3, gamma=0.9)
    for transition in transitions(env, 100):
        theirs.add(*transition)
        ours.add(*transition)
    np.random.seed(0)
    drawn = ours.draw(50)[0]
    batch = ours._samples(drawn, None)
    reward_of = env.envs[0].unwrapped.compute_reward
    for number, (row, goal_row) in enumerate(drawn):
        (position, index), total, k = divmod(row, n_envs), 0.0, 0
        goal = theirs.observations["desired_goal"][position, index]
        if goal_row >= 0:
            goal = theirs.next_observations["achieved_goal"][divmod(goal_row, n_envs)]
        for k in range(3):
            here = ((position + k) % 60, index)
            own = theirs.rewards[here]
            total += 0.9**k * (own if goal_row < 0 else reward_of(theirs.next_observations["achieved_goal"][here], goal, {}))
            if theirs.dones[here]:
                break
        assert batch.rewards[number].item() == pytest.approx(total, abs=1e-6)
        assert batch.discounts[number].item() == pytest.approx(0.9 ** (k + 1))
        assert batch.dones[number].item() == theirs.dones[here] * (1 - theirs.timeouts[here])
        for key in ("observation", "achieved_goal"):
            np.testing.assert_allclose(batch.observations[key][number], theirs.observations[key][position, index], rtol=1e-6)
            np.testing.assert_allclose(batch.next_observations[key][number], theirs.next_observations[key][here], rtol=1e-6)
        for observations in (batch.observations, batch.next_observations):
            np.testing.assert_allclose(observations["desired_goal"][number], goal, rtol=1e-6)


class Strict(Reach):
    """Its rewards need infos of real steps, and achieved goals that are not zero."""

    def compute_reward(self, achieved_goal, desired_goal, info):
        self.calls += 1
        if not isinstance(info, dict):
            np.testing.assert_allclose([each["place"] for each in info], achieved_goal, rtol=1e-6)
        return -(np.asarray(achieved_goal) / np.linalg.norm(achieved_goal, axis=-1, keepdims=True))[..., 0]


@pytest.mark.parametrize("updater", ["analytic", "compiled"])
def test_n_step_returns_ask_for_rewards_of_real_steps_only(updater):
    buffer = {"n_steps": 3, "copy_info_dict": True}
    model = model_of(env=make_vec_env(Strict, n_envs=2, seed=0), updater=updater, replay_buffer_kwargs=buffer, gamma=0.9)
    assert model.learn(150)._n_updates > 0
    # Of the model, since none is given.
    assert model.replay_buffer.gamma == 0.9
    assert all(map(th.isfinite, model.replay_buffer.sample(500).rewards))


def test_new_goals_get_the_rewards_of_the_present_environment():
    class Shifted(Reach):
        def compute_reward(self, *arguments):
            return super().compute_reward(*arguments) - 100

    model = model_of().learn(100)
    model.set_env(make_vec_env(Shifted, seed=0))
    model.learn(100)
    assert model.replay_buffer.sample(500).rewards.min() <= -100
    np.random.seed(0)
    drawn = model.replay_buffer.draw(100)[0]
    relabeled = model.replay_buffer._samples(drawn, None).rewards[drawn[:, 1] >= 0]
    assert relabeled.max() <= -100


def model_of(algorithm=ScratchDDPG, n_envs=1, env=None, reach=None, **settings):
    env = env or make_vec_env(partial(Reach, **reach or {}), n_envs=n_envs, seed=0)
    defaults = {"learning_starts": 30, "seed": 1, "batch_size": 32, "buffer_size": 500, "device": "cpu"}
    defaults["action_noise"] = NormalActionNoise(np.zeros(2), 0.1 * np.ones(2))
    defaults |= {"policy_kwargs": {"net_arch": [16, 16]}, "replay_buffer_class": HerReplayBuffer}
    return algorithm("MultiInputPolicy", env, **defaults | settings)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_the_reference_with_sb3s_buffer_is_sb3s_ddpg_bit_for_bit(n_envs):
    theirs, ours = (
        model_of(algorithm, n_envs, gradient_steps=-1, **extra).learn(300)
        for algorithm, extra in ((DDPG, {}), (ScratchDDPG, {"updater": "autograd"}))
    )
    assert type(ours.replay_buffer) is HerReplayBuffer
    assert max(compare_models(theirs, ours).values()) == 0.0


@pytest.mark.parametrize("updater", ["analytic", "compiled"])
@pytest.mark.parametrize(("n_envs", "dtype"), [(1, np.float64), (2, np.float64), (1, np.int32)])
def test_the_fast_updaters_train_on_packed_rows_as_sb3_does(updater, n_envs, dtype):
    theirs = model_of(DDPG, n_envs, reach={"dtype": dtype}).learn(150)
    ours = model_of(updater=updater, n_envs=n_envs, reach={"dtype": dtype}).learn(150)
    assert type(ours.replay_buffer) is PackedHerReplayBuffer
    assert ours.updater_in_use == updater
    assert ours.replay_buffer_class is HerReplayBuffer
    assert max(compare_models(theirs, ours).values()) < 1e-4


def test_rewards_of_an_environment_in_another_process():
    env = make_vec_env(Reach, n_envs=2, seed=0, vec_env_cls=SubprocVecEnv)
    model = model_of(env=env, n_envs=2, updater="analytic").learn(100)
    here = model_of(n_envs=2, updater="analytic").learn(100)
    env.close()
    assert max(compare_models(model, here).values()) == 0.0


def test_bytes_of_a_transition():
    env = make_vec_env(partial(Reach, steps=50), n_envs=1)
    arguments = (10_000, env.observation_space, env.action_space, env, "cpu")
    theirs, ours = HerReplayBuffer(*arguments), PackedHerReplayBuffer(*arguments)
    for transition in transitions(env, 10_000):
        ours.add(*transition)
    names = ("actions", "rewards", "dones", "timeouts", "ep_start", "ep_length", "infos")
    arrays = [getattr(theirs, name) for name in names]
    arrays += [*theirs.observations.values(), *theirs.next_observations.values()]
    held = sum(value.nbytes for value in vars(ours).values() if isinstance(value, np.ndarray))
    assert ours.nbytes < held < 1.25 * ours.nbytes
    assert held < 0.3 * sum(array.nbytes for array in arrays)


def test_a_pickled_buffer_continues_its_episodes():
    buffer = filled(90, 2, reach={"terminates": 2})[1]
    copied = pickle.loads(pickle.dumps(buffer))
    assert copied.env is None
    copied.set_env(buffer.env)
    for transition in transitions(buffer.env, 70, seed=1):
        buffer.add(*transition)
        copied.add(*transition)
    assert_same(buffer, copied, tolerance=0)
    with pytest.raises(RuntimeError, match=r"set_env\(env\)"):
        copy.deepcopy(buffer).sample(10)


def test_what_sb3_saved_loads_and_trains(tmp_path):
    theirs = model_of(DDPG, 2).learn(150)
    theirs.save(tmp_path / "model.zip")
    theirs.save_replay_buffer(tmp_path / "buffer.pkl")
    model = ScratchDDPG.load(tmp_path / "model.zip", env=theirs.get_env())
    assert type(model.replay_buffer) is PackedHerReplayBuffer
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_replay_buffer(tmp_path / "buffer.pkl")
    assert type(model.replay_buffer) is HerReplayBuffer
    model.learn(100)
    assert model.updater_in_use == "compiled"


def test_a_saved_buffer_loads_safely_and_its_last_episode_ends(tmp_path):
    model = model_of(n_envs=2, updater="analytic", learning_starts=60, reach={"steps": 20}).learn(100)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.save(tmp_path / "model.zip")
    assert DDPG.load(tmp_path / "model.zip", env=model.get_env()).replay_buffer_class is HerReplayBuffer
    loaded = ScratchDDPG.load(tmp_path / "model.zip", env=model.get_env())
    with pytest.warns(UserWarning, match="The last trajectory in the replay buffer will be truncated"):
        loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    before, after = model.replay_buffer, loaded.replay_buffer
    assert before._current_ep_start.max() < before.pos
    assert (after._current_ep_start == after.pos).all()
    assert (after.ep_length[after.pos - 1] > 0).all()
    loaded.load_replay_buffer(tmp_path / "buffer.pkl", truncate_last_traj=False)
    np.testing.assert_array_equal(loaded.replay_buffer._current_ep_start, before._current_ep_start)


@pytest.mark.parametrize("updater", ["analytic", "autograd"])
def test_a_model_acts_without_an_environment_and_learns_once_it_has_one(tmp_path, updater):
    model = model_of(updater=updater).learn(60)
    model.save(tmp_path / "model.zip")
    loaded = ScratchDDPG.load(tmp_path / "model.zip", buffer_size=1)
    observation = model.get_env().reset()
    np.testing.assert_array_equal(loaded.predict(observation)[0], model.predict(observation)[0])
    whole = ScratchDDPG.load(tmp_path / "model.zip")
    whole.set_env(make_vec_env(Reach, n_envs=1))
    assert whole.learn(60)._n_updates > 0


def test_a_second_learn_does_not_mix_episodes():
    """It resets the environment, so that the goal of the episode under way is not that of what follows."""
    model = model_of(updater="analytic", reach={"steps": 20}).learn(45)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model.learn(40, reset_num_timesteps=True)
    buffer = model.replay_buffer
    lasts = (buffer.ep_start + buffer.ep_length - 1)[buffer.ep_length > 0]
    assert 44 in lasts
    assert buffer.timeouts[44, 0] == 1


def test_a_trajectory_that_was_abandoned_ends_where_it_was_left():
    env = make_vec_env(Reach, n_envs=1, seed=0)
    buffer = PackedHerReplayBuffer(100, env.observation_space, env.action_space, env)
    for seed in range(4):
        for transition in transitions(env, 3, seed):
            buffer.add(*transition)
    assert buffer.ep_length[:, 0].tolist()[:9] == [3] * 9
    np.testing.assert_array_equal(buffer.timeouts[[2, 5, 8], 0], 1)


class NoGoals(Reach):
    def __init__(self):
        super().__init__()
        parts = dict(self.observation_space.spaces)
        del parts["desired_goal"]
        self.observation_space = type(self.observation_space)(parts)


class NoReward(Reach):
    compute_reward = property()


@pytest.mark.parametrize("updater", ["auto", "autograd"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"env": NoGoals()}, r"env has no goals: its observation .* lacks desired_goal\."),
        ({"env": NoReward()}, r"env lacks compute_reward\("),
        (
            {"replay_buffer_kwargs": {"goal_selection_strategy": "past"}},
            "goal_selection_strategy must be .*'future', .*got 'past'",
        ),
        ({"replay_buffer_kwargs": {"n_sampled_goal": -1}}, "n_sampled_goal must be .*at least 0, got -1"),
        (
            {"replay_buffer_kwargs": {"n_sampled_gaol": 4}},
            "replay_buffer_kwargs has no .*'n_sampled_gaol'. .*'n_sampled_goal'",
        ),
        ({"replay_buffer_kwargs": [4]}, r"replay_buffer_kwargs must be a dict .*, got \[4\]"),
    ],
)
def test_bad_input_is_named_before_anything_is_trained(updater, change, message):
    with pytest.raises(ArgumentError, match=message):
        model_of(updater=updater, **change)


class OneGoal(Reach):
    """Its compute_reward takes one goal at a time, in one of several ways."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def compute_reward(self, achieved_goal, desired_goal, info):
        return self.function(achieved_goal, desired_goal, info)


ONE_GOAL = {
    "equal": (lambda a, d, info: np.float32(0 if np.array_equal(a, d) else -1), r"returned an array of shape \(\)"),
    "norm": (lambda a, d, info: -np.linalg.norm(a - d), r"returned an array of shape \(\)"),
    "branch": (lambda a, d, info: 0.0 if np.linalg.norm(a - d, axis=-1) < 0.3 else -1.0, "failed with ValueError"),
    "index": (lambda a, d, info: -abs(a[0] - d[0]), r"returned an array of shape \(2,\)"),
    "float": (lambda a, d, info: -float(np.linalg.norm(a - d, axis=-1)), "failed with TypeError"),
    "info": (lambda a, d, info: [-one["none"] for one in info], "failed with KeyError.*copy_info_dict=True"),
}


@pytest.mark.parametrize("updater", ["auto", "autograd"])
@pytest.mark.parametrize("name", list(ONE_GOAL))
def test_rewards_for_one_goal_at_a_time_are_refused_at_the_first_step(updater, name):
    function, message = ONE_GOAL[name]
    model = model_of(env=OneGoal(lambda a, d, info: -0.5 if np.ndim(a) == 1 else function(a, d, info)), updater=updater)
    with pytest.raises(EnvironmentOutputError, match=f"compute_reward {message}") as error:
        model.learn(1000)
    assert "for 3 goals at once, as hindsight asks, in arrays of shape (3, 2)." in str(error.value)
    assert model.num_timesteps == 1


def test_a_buffer_smaller_than_an_episode(monkeypatch):
    monkeypatch.setitem(gym.registry, "Reach-v0", gym.envs.registration.EnvSpec("Reach-v0", Reach, max_episode_steps=8))
    env = make_vec_env("Reach-v0", n_envs=2)
    with pytest.raises(ArgumentError, match=r"buffer_size must be at least 30, for episodes of 8 steps in 2 .*, got 29"):
        model_of(env=env, buffer_size=29)
    ScratchDDPG("MultiInputPolicy", env, buffer_size=1, replay_buffer_class=HerReplayBuffer)  # to act alone
    with pytest.raises(ArgumentError, match=r"buffer_size must be at least 30.*, got 1\."):
        model_of(env=env, buffer_size=1).learn(10)
    # Without a time limit nobody knows beforehand.
    model = model_of(buffer_size=5, learning_starts=1000)
    with pytest.raises(ArgumentError, match=r"buffer_size must be .*longest episode, which has more than 5 steps.*, got 5"):
        model.learn(50)


def test_arguments_of_n_step_returns_are_checked():
    with pytest.raises(ArgumentError, match=r"gamma must be a number in \[0, 1\], got 7"):
        model_of(updater="analytic", replay_buffer_kwargs={"n_steps": 3, "gamma": 7})
    with pytest.raises(ArgumentError, match=r"'n_steps'\] cannot be combined with updater='autograd'"):
        model_of(updater="autograd", replay_buffer_kwargs={"n_steps": 3})


class TimeLimited(Reach):
    """Episodes of 8 steps, none shorter."""

    def reset(self, **kwargs):
        observation, info = super().reset(**kwargs)
        self.left = 8
        return observation, info


def test_the_least_buffer_always_holds_an_episode():
    model_of(env=TimeLimited(), buffer_size=15, learning_starts=8).learn(100)
    with pytest.raises(ArgumentError, match=r"buffer_size must be larger: it holds no whole episode.*, got 14\. Twice"):
        model_of(env=TimeLimited(), buffer_size=14, learning_starts=8).learn(100)


def test_nothing_is_drawn_before_an_episode_has_ended():
    with pytest.raises(RuntimeError, match=r"learning_starts that is greater than the maximum"):
        model_of(learning_starts=2, reach={"steps": 30}).learn(20)


def test_diagnostics_read_packed_hindsight_replay_and_change_nothing(tmp_path):
    plain = model_of(updater="analytic").learn(150)
    watched = model_of(updater="analytic")
    watched.learn(150, callback=DiagnosticsCallback(tmp_path, every=10, snapshot_every=50, probe_states=4))
    assert max(compare_models(plain, watched).values()) == 0.0
    recording = read_recording(tmp_path)
    assert len(recording.snapshots) > 1
    assert set(ProbeStates.load(tmp_path).observations) == {"observation", "achieved_goal", "desired_goal"}
    report = write_report([tmp_path], tmp_path / "report.html")
    assert report.problems == []
