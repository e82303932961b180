"""Packed rows against SB3's own buffers, time limits in the memory-saving mode, pickling, and memory."""

import io
import pickle
import warnings
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import DDPG
from stable_baselines3.common.buffers import DictReplayBuffer, NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ScratchDDPG
from sb3_ddpg_scratch.dict_replay import PackedDictReplayBuffer
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer

OBSERVATIONS = spaces.Box(-np.inf, np.inf, (2, 3), np.float64)
ACTIONS = spaces.Box(-1, 1, (2,), np.float32)


class Noise(gym.Env):
    """Observations and rewards that are pure noise."""

    observation_space, action_space = OBSERVATIONS, ACTIONS

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=(2, 3)) * 3, {}

    def step(self, action):
        return self.np_random.normal(size=(2, 3)) * 3 + 1, self.np_random.normal(), False, False, {}


def trajectories(n_envs, steps, seed=0, observation_space=OBSERVATIONS):
    """Transitions of environments whose episodes end at random, half of them by a time limit."""
    rng = np.random.default_rng(seed)
    new = lambda: rng.normal(size=observation_space.shape).astype(np.float32).astype(observation_space.dtype)  # noqa: E731
    observations = np.stack([new() for _ in range(n_envs)])
    for _ in range(steps):
        following = np.stack([new() for _ in range(n_envs)])
        done = rng.random(n_envs) < 0.2
        infos = [{"TimeLimit.truncated": bool(d and rng.random() < 0.5)} for d in done]
        action = rng.uniform(-1, 1, (n_envs, *ACTIONS.shape)).astype(np.float32)
        yield observations, following, action, rng.normal(size=n_envs).astype(np.float32), done, infos
        observations = np.where(done[:, None, None], np.stack([new() for _ in range(n_envs)]), following)


def pair(theirs_class, ours_class, steps, capacity=60, n_envs=1, ours_kwargs=None, **kwargs):
    arguments = dict(buffer_size=capacity, observation_space=OBSERVATIONS, action_space=ACTIONS, device="cpu", n_envs=n_envs)
    theirs, ours = theirs_class(**arguments, **kwargs), ours_class(**arguments, **kwargs | (ours_kwargs or {}))
    for transition in trajectories(n_envs, steps):
        theirs.add(*transition)
        ours.add(*transition)
    return theirs, ours


def assert_same_samples(theirs, ours, batch_size=32, repeats=5, env=None, exact=True):
    for _ in range(repeats):
        state = np.random.get_state()
        expected = theirs.sample(batch_size, env)
        after = np.random.get_state()[1].copy(), np.random.get_state()[2]
        np.random.set_state(state)
        got = ours.sample(batch_size, env)
        assert np.array_equal(np.random.get_state()[1], after[0])
        assert np.random.get_state()[2] == after[1]
        for name in expected._fields:
            a, b = getattr(expected, name), getattr(got, name)
            assert (a is None) == (b is None), name
            if a is not None:
                assert a.shape == b.shape, name
                assert b.dtype == th.float32
                th.testing.assert_close(b, a.float(), rtol=0 if exact else 1e-6, atol=0 if exact else 1e-6, msg=name)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [7, 20, 60, 175])
def test_samples_are_sb3s_for_the_same_seed(n_envs, steps):
    assert_same_samples(*pair(ReplayBuffer, PackedReplayBuffer, steps, n_envs=n_envs))


@pytest.mark.parametrize("timeouts", [True, False])
@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [7, 60, 175])
def test_n_step_returns_are_sb3s(n_envs, steps, timeouts):
    kwargs = {"n_steps": 4, "gamma": 0.9, "handle_timeout_termination": timeouts}
    theirs, ours = pair(NStepReplayBuffer, PackedNStepReplayBuffer, steps, n_envs=n_envs, **kwargs)
    assert_same_samples(theirs, ours, exact=False)


DICTS = spaces.Dict(
    b=spaces.Box(-9, 9, (2,)), a=spaces.Box(-9, 9, (2,), np.float64), c=spaces.Box(-9, 9, (1, 2)), bits=spaces.MultiBinary(2)
)
WRITERS = {
    "packed": (ReplayBuffer, PackedReplayBuffer, OBSERVATIONS, {}),
    "n-step": (NStepReplayBuffer, PackedNStepReplayBuffer, OBSERVATIONS, {}),
    "memory saved": (
        ReplayBuffer,
        PackedReplayBuffer,
        OBSERVATIONS,
        {"optimize_memory_usage": True, "handle_timeout_termination": False},
    ),
    "half precision": (ReplayBuffer, PackedReplayBuffer, spaces.Box(-9, 9, (2,), np.float16), {}),
    "Dict": (DictReplayBuffer, PackedDictReplayBuffer, DICTS, {}),
}
# How a transition of all environments may be given: what SB3 broadcasts and casts, as an assignment does.
OBSERVED = {
    "whole": lambda o: o,
    "for all environments": lambda o: o[0],
    "with an axis too many": lambda o: o[None],
    "lists": lambda o: o.tolist(),
    "whole numbers": lambda o: o.astype(int),
    "double precision": lambda o: o + 1 / 3,
    "one number": lambda o: o.flat[0],
}
GIVEN = {
    "rewards in a list": {"reward": lambda r: r.tolist()},
    "a reward": {"reward": lambda r: float(r[0])},
    "a whole number": {"reward": lambda r: 3},
    "a reward without axes": {"reward": lambda r: np.array(r[0])},
    "true and false": {"reward": lambda r: r > 0},
    "a done": {"done": lambda d: bool(d[0])},
    "dones in a list": {"done": lambda d: d.tolist()},
    "dones as numbers": {"done": lambda d: d.astype(np.float32)},
    "one info": {"infos": lambda infos: infos[:1]},
    "a time limit without a done": {"done": lambda d: d & False},
    "actions of another shape": {"action": lambda a: a.T.reshape(1, -1)},
    "actions in double precision": {"action": lambda a: a + 1 / 3},
}


def written_alike(name, n_envs, changes):
    """SB3's buffer and ours after some transitions, given with these changes; ``None`` where SB3 refuses one."""
    theirs_class, ours_class, space, kwargs = WRITERS[name]
    theirs, ours = (cls(20 * n_envs, space, ACTIONS, "cpu", n_envs=n_envs, **kwargs) for cls in (theirs_class, ours_class))
    rng = np.random.default_rng(3)
    draw = lambda part: rng.integers(0, 2, (n_envs, *part.shape)) + rng.integers(0, 2)  # noqa: E731
    for _ in range(27):
        parts = dict(space.spaces if isinstance(space, spaces.Dict) else {"": space})
        observed = [{key: changes["observed"](draw(part).astype(part.dtype)) for key, part in parts.items()} for _ in "12"]
        obs, next_obs = observed if isinstance(space, spaces.Dict) else (part[""] for part in observed)
        done = rng.random(n_envs) < (0 if name == "memory saved" else 0.3)
        infos = [{"TimeLimit.truncated": bool(d and rng.random() < 0.5)} for d in done]
        given = {"action": rng.uniform(-1, 1, (n_envs, 2)).astype(np.float32), "reward": rng.normal(size=n_envs)}
        given |= {"done": done, "infos": infos}
        given = {key: changes.get(key, lambda value: value)(value) for key, value in given.items()}
        try:
            theirs.add(obs, next_obs, **given)
        except (ValueError, TypeError):
            return None
        ours.add(obs, next_obs, **given)
    return theirs, ours


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim")
def test_takes_every_transition_that_sb3s_buffer_takes(name, n_envs):
    cases = {what: {"observed": change} for what, change in OBSERVED.items()}
    cases |= {what: {"observed": OBSERVED["whole"]} | change for what, change in GIVEN.items()}
    taken = []
    for what, changes in cases.items():
        buffers = written_alike(name, n_envs, changes)
        if buffers is None:
            continue
        taken.append(what)
        theirs, ours = buffers
        for part in ("actions", "rewards", "timeouts"):
            if (part, name) != ("timeouts", "memory saved"):
                np.testing.assert_array_equal(getattr(ours, part), getattr(theirs, part), err_msg=f"{what}: {part}")
        for seed in range(3):
            batches = []
            for buffer in buffers:
                np.random.seed(seed)
                batches.append(buffer.sample(40))
            for part, expected, got in zip(batches[0]._fields, *batches, strict=True):
                for key in expected if isinstance(expected, dict) else [None]:
                    a, b = (expected, got) if key is None else (expected[key], got[key])
                    assert (a is None) == (b is None)
                    if a is not None and (name, part) != ("memory saved", "next_observations"):
                        th.testing.assert_close(b, a.float(), rtol=1e-6, atol=1e-6, msg=f"{what}: {part} {key}")
    assert len(taken) >= len(cases) - 1


def test_copies_cannot_be_written_to():
    """Where SB3's array is written to, a copy would keep silent; what shares the buffer's memory is still written to."""
    for kwargs in ({}, {"optimize_memory_usage": True}):
        buffer = PackedReplayBuffer(10, OBSERVATIONS, ACTIONS, "cpu", **kwargs)
        for name in ("dones", "timeouts", *(["next_observations"] if kwargs else [])):
            with pytest.raises(ValueError, match="read-only"):
                getattr(buffer, name)[0] = 1
        for name in ("observations", "actions", "rewards"):
            getattr(buffer, name)[3] = 5
            assert (getattr(buffer, name)[3] == 5).all()


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("buffer_classes", [(ReplayBuffer, PackedReplayBuffer), (NStepReplayBuffer, PackedNStepReplayBuffer)])
def test_normalizes_as_sb3_does(n_envs, buffer_classes):
    env = VecNormalize(make_vec_env(Noise, n_envs=n_envs), clip_obs=1.0)
    env.reset()
    for _ in range(30):
        env.step(np.zeros((n_envs, 2), np.float32))
    theirs, ours = pair(*buffer_classes, 50, n_envs=n_envs)
    assert_same_samples(theirs, ours, env=env, exact=False)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [7, 20, 100])
def test_memory_saving_mode_draws_sb3s_transitions(n_envs, steps):
    """The same transitions as SB3's memory-saving buffer; where its next observation is right, so is ours."""
    kwargs = {"optimize_memory_usage": True, "handle_timeout_termination": False}
    theirs, ours = pair(ReplayBuffer, PackedReplayBuffer, steps, n_envs=n_envs, **kwargs)
    for _ in range(5):
        state = np.random.get_state()
        expected = theirs.sample(40)
        np.random.set_state(state)
        got = ours.sample(40)
        for name in ("observations", "actions", "rewards", "dones"):
            assert th.equal(getattr(got, name), getattr(expected, name).float()), name
        goes_on = expected.dones[:, 0] == 0
        assert th.equal(got.next_observations[goes_on], expected.next_observations[goes_on].float())


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("steps", [7, 20, 100, 333])
def test_memory_saving_mode_is_the_full_buffer_with_time_limits(n_envs, steps, n_steps):
    """Every transition that can be sampled has the last observation of its own episode, also at time limits."""
    classes = (ReplayBuffer, PackedReplayBuffer) if n_steps == 1 else (NStepReplayBuffer, PackedNStepReplayBuffer)
    extra = {} if n_steps == 1 else {"n_steps": n_steps, "gamma": 0.9}
    theirs, ours = pair(*classes, steps, n_envs=n_envs, ours_kwargs={"optimize_memory_usage": True}, **extra)
    indices = np.unique(ours.draw(200, 5))
    batch = ours._samples(indices, None)
    steps_of, envs_of = np.divmod(indices, n_envs)
    np.testing.assert_array_equal(batch.observations, theirs.observations[steps_of, envs_of].astype(np.float32))
    if n_steps == 1:
        np.testing.assert_array_equal(batch.rewards[:, 0], theirs.rewards[steps_of, envs_of])
        goes_on = batch.dones[:, 0] == 0
        expected = theirs.next_observations[steps_of, envs_of].astype(np.float32)
        np.testing.assert_array_equal(batch.next_observations[goes_on], expected[goes_on])
        assert (theirs.timeouts[steps_of, envs_of][goes_on] == 1).any() or steps < 20
        np.testing.assert_array_equal(batch.dones[:, 0], (theirs.dones * (1 - theirs.timeouts))[steps_of, envs_of])
    else:
        full = PackedNStepReplayBuffer(60, OBSERVATIONS, ACTIONS, "cpu", n_envs, **extra)
        for transition in trajectories(n_envs, steps):
            full.add(*transition)
        expected = full._samples(indices, None)
        goes_on = batch.dones[:, 0] == 0
        for name in ("rewards", "dones", "discounts", "actions"):
            assert th.equal(getattr(batch, name), getattr(expected, name)), name
        assert th.equal(batch.next_observations[goes_on], expected.next_observations[goes_on])


def test_memory_saving_mode_survives_an_abandoned_trajectory():
    """A new learn() resets the environment within an episode: that transition keeps its next observation."""
    buffer = PackedReplayBuffer(10, OBSERVATIONS, ACTIONS, "cpu", optimize_memory_usage=True)
    obs = lambda value: np.full((1, 2, 3), value)  # noqa: E731
    add = lambda a, b: buffer.add(obs(a), obs(b), np.zeros((1, 2)), np.zeros(1), np.array([False]), [{}])  # noqa: E731
    add(0, 1)
    add(1, 2)
    add(50, 51)
    batch = buffer._samples(np.arange(3), None)
    assert batch.next_observations[:, 0, 0].tolist() == [1, 2, 51]
    assert batch.dones.sum() == 0
    assert buffer.timeouts[:3, 0].tolist() == [0, 1, 0]


def test_memory_saving_mode_reuses_the_places_of_last_observations():
    ours = PackedReplayBuffer(30, OBSERVATIONS, ACTIONS, "cpu", optimize_memory_usage=True)
    for transition in trajectories(1, 3000):
        ours.add(*transition)
    assert len(ours._last_observations) == 64


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("n_steps", [1, 4])
@pytest.mark.parametrize("steps", [1, 7, 20, 100])
def test_after_a_reset_it_equals_a_new_one(steps, n_steps, saving):
    make = {1: PackedReplayBuffer, 4: PackedNStepReplayBuffer}[n_steps]
    extra = {"optimize_memory_usage": saving} | ({} if n_steps == 1 else {"n_steps": n_steps})
    used, fresh = (make(60, OBSERVATIONS, ACTIONS, "cpu", 3, **extra) for _ in range(2))
    for transition in trajectories(3, 333):
        used.add(*transition)
    used.reset()
    assert (used.size(), used.pos, used.full) == (0, 0, False)
    for transition in trajectories(3, steps, seed=1):
        used.add(*transition)
        fresh.add(*transition)
        assert_same_samples(fresh, used, repeats=1)
    assert used._last_observations.shape == fresh._last_observations.shape


# --------------------------------------------------------------------------------------- trajectories that learn() leaves


class Counting(gym.Env):
    """Never ends; always the same observation; the reward is the number of its trajectory."""

    observation_space, action_space = spaces.Box(-1, 1, (2,), np.float32), ACTIONS

    def __init__(self, trajectory=0):
        self.trajectory = trajectory

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.trajectory += 1
        return np.zeros(2, np.float32), {}

    def step(self, action):
        return np.zeros(2, np.float32), float(self.trajectory), False, False, {}


def counting_model(algorithm=ScratchDDPG, n_envs=1, **settings):
    kwargs = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 40 * n_envs, "learning_starts": 10**6, "seed": 0}
    return algorithm("MlpPolicy", make_vec_env(Counting, n_envs), device="cpu", gamma=1.0, **kwargs | settings)


def learn_again(model):
    model.learn(10 * model.n_envs)


def learn_in_a_new_environment(model):
    model.set_env(make_vec_env(Counting, model.n_envs, env_kwargs={"trajectory": 1}))
    model.learn(10 * model.n_envs, reset_num_timesteps=False)


def load_a_buffer(model, **options):
    file = io.BytesIO()
    model.save_replay_buffer(file)
    file.seek(0)
    model.load_replay_buffer(file, **options)
    model.learn(10 * model.n_envs, reset_num_timesteps=False)


def load_and_continue(model):
    load_a_buffer(model, truncate_last_traj=False)


def go_on(model):
    model.learn(10 * model.n_envs, reset_num_timesteps=False)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize(
    ("more", "rewards"),
    [
        (learn_again, [3, 2, 1, 6]),
        (learn_in_a_new_environment, [3, 2, 1, 6]),
        (load_a_buffer, [3, 2, 1, 3]),
        (load_and_continue, [3, 3, 3, 3]),
        (go_on, [3, 3, 3, 3]),
    ],
)
@pytest.mark.parametrize("before", [10, 35, 75])
def test_n_step_returns_do_not_reach_over_a_reset(before, more, rewards, saving, n_envs):
    model = counting_model(n_envs=n_envs, n_steps=3, optimize_memory_usage=saving, updater="analytic")
    model.learn(before * n_envs)
    more(model)
    steps = np.arange(before - 3, before + 1) % 40
    indices = (steps[:, None] * n_envs + np.arange(n_envs)).ravel()
    batch = model.replay_buffer._samples(indices, None)
    assert batch.rewards.flatten().tolist() == np.repeat(rewards, n_envs).tolist()
    assert batch.dones.sum() == 0


@pytest.mark.parametrize("n_steps", [1, 3])
def test_the_reference_keeps_sb3s_returns_over_a_reset(n_steps):
    models = [
        counting_model(algorithm, n_steps=n_steps, **extra).learn(30).learn(8)
        for algorithm, extra in ((DDPG, {}), (ScratchDDPG, {"updater": "autograd", "action_noise": None}))
    ]
    theirs, ours = (model.replay_buffer for model in models)
    assert type(ours) is type(theirs)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name), err_msg=name)
    assert_same_samples(theirs, ours)


@pytest.mark.parametrize("n_envs", [1, 2])
def test_a_reset_changes_no_sample_of_one_step(n_envs):
    settings = {"n_envs": n_envs, "action_noise": None}
    theirs = counting_model(DDPG, **settings).learn(30).learn(8)
    ours = counting_model(updater="analytic", **settings).learn(30).learn(8)
    assert_same_samples(theirs.replay_buffer, ours.replay_buffer)


@pytest.mark.parametrize("n_envs", [1, 2])
@pytest.mark.parametrize("before", [30, 75])
def test_memory_saving_mode_without_time_limits_ends_a_trajectory_as_sb3_does(before, n_envs):
    settings = {"n_envs": n_envs, "action_noise": None, "optimize_memory_usage": True}
    settings["replay_buffer_kwargs"] = {"handle_timeout_termination": False}
    with pytest.warns(UserWarning, match="last trajectory"):
        theirs = counting_model(DDPG, **settings).learn(before * n_envs).learn(8 * n_envs)
    with pytest.warns(UserWarning, match="last trajectory"):
        ours = counting_model(updater="analytic", **settings).learn(before * n_envs).learn(8 * n_envs)
    assert theirs.replay_buffer.dones.sum() == n_envs
    np.testing.assert_array_equal(ours.replay_buffer.dones, theirs.replay_buffer.dones)
    assert_same_samples(theirs.replay_buffer, ours.replay_buffer)


def test_an_empty_buffer_has_no_trajectory_to_end():
    buffer = PackedReplayBuffer(10, OBSERVATIONS, ACTIONS, "cpu")
    buffer.truncate_last_trajectory()
    assert buffer.dones.sum() == 0


def test_reads_as_sb3s_buffer():
    theirs, ours = pair(ReplayBuffer, PackedReplayBuffer, 50, n_envs=2)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        a, b = getattr(theirs, name), getattr(ours, name)
        assert a.shape == b.shape, name
        np.testing.assert_array_equal(a.astype(np.float32), b, err_msg=name)
    assert (theirs.size(), theirs.pos, theirs.full) == (ours.size(), ours.pos, ours.full)


@pytest.mark.parametrize("saving", [False, True])
@pytest.mark.parametrize("steps", [0, 7, 60, 100])
def test_pickles_whole_and_small(saving, steps):
    buffer = PackedReplayBuffer(60, OBSERVATIONS, ACTIONS, "cpu", optimize_memory_usage=saving)
    for transition in trajectories(1, steps):
        buffer.add(*transition)
    data = pickle.dumps(buffer)
    twin = pickle.loads(data)
    assert len(twin.rows) == 60
    np.testing.assert_array_equal(twin.rows, buffer.rows)
    more = list(trajectories(1, 90, seed=1))
    for other in (buffer, twin):
        for transition in more:
            other.add(*transition)
    np.random.seed(1)
    expected = buffer.sample(50)
    np.random.seed(1)
    got = twin.sample(50)
    assert all(th.equal(a, b) for a, b in zip(expected, got, strict=True) if a is not None)
    if steps == 7:
        assert len(data) < 60 * 4 * buffer._row_width / 3 + 3000


@pytest.mark.parametrize(("observation_dim", "action_dim", "whole", "saving"), [(17, 6, 0.55, 0.35), (348, 17, 0.51, 0.27)])
def test_bytes_against_sb3s(observation_dim, action_dim, whole, saving):
    """HalfCheetah's and Humanoid's shapes, whose float64 SB3's buffer keeps."""
    observations = spaces.Box(-np.inf, np.inf, (observation_dim,), np.float64)
    actions = spaces.Box(-1, 1, (action_dim,), np.float32)
    theirs = ReplayBuffer(1000, observations, actions, "cpu")
    names = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
    sb3_bytes = sum(getattr(theirs, name).nbytes for name in names)
    for share, optimize in ((whole, False), (saving, True)):
        ours = PackedReplayBuffer(1000, observations, actions, "cpu", optimize_memory_usage=optimize)
        assert ours.nbytes <= share * sb3_bytes
        assert ours.nbytes == ours.rows.nbytes + ours._ends.nbytes + ours._aside.nbytes


@pytest.mark.parametrize("available", [1000, 10**9])
def test_a_buffer_that_exceeds_the_memory_warns_as_sb3_does(monkeypatch, available):
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=available))
    said = []
    for buffer_class in (ReplayBuffer, PackedReplayBuffer):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            buffer_class(50, OBSERVATIONS, ACTIONS, "cpu")
        said.append([(warning.category, str(warning.message).split(" buffer ")[0]) for warning in caught])
        if caught:
            assert str(caught[0].message).endswith("GB") or "optimize_memory_usage" in str(caught[0].message)
    assert said[0] == said[1]
    assert len(said[0]) == (available == 1000)


def test_other_observations_are_rejected():
    for space, words in ((spaces.Box(0, 255, (8, 8, 3), np.uint8), "no vectors"), (spaces.Discrete(3), "one-hot")):
        with pytest.raises(ArgumentError, match=rf"a Box or MultiBinary that fits into packed rows.*{words}"):
            PackedReplayBuffer(10, space, ACTIONS)


@settings(max_examples=60, deadline=None)
@given(
    n_envs=st.integers(1, 4),
    steps=st.integers(2, 80),
    n_batches=st.integers(1, 5),
    batch_size=st.integers(1, 9),
    saving=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_many_batches_at_once_are_sb3s_one_after_another(n_envs, steps, n_batches, batch_size, saving, seed):
    kwargs = {"optimize_memory_usage": saving, "handle_timeout_termination": not saving}
    theirs, ours = pair(ReplayBuffer, PackedReplayBuffer, steps, capacity=40, n_envs=n_envs, **kwargs)
    np.random.seed(seed)
    expected = [theirs.sample(batch_size).observations for _ in range(n_batches)]
    after = np.random.random()
    np.random.seed(seed)
    indices = ours.draw(batch_size, n_batches)
    assert np.random.random() == after
    for rows, batch in zip(indices, expected, strict=True):
        np.testing.assert_array_equal(ours.rows[rows][:, :6].reshape(-1, 2, 3), batch.float())
