"""Transitions that one already has: what is stored of them, from each source, and what is refused."""

import io
import pickle
import zipfile
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch as th
from conftest import PointEnv
from gymnasium import spaces
from stable_baselines3 import HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from sb3_ddpg_scratch import ArgumentError, ModelFileError, ScratchDDPG, UnsafeFileError
from tests.goal_envs import Reach
from tests.hostile import Reduces

SMALL = {"policy_kwargs": {"net_arch": [4]}, "buffer_size": 200, "device": "cpu", "seed": 0}
LOW, HIGH = np.array([-2.0, 0.5]), np.array([1.0, 3.0])


def new_model(env=None, updater="analytic", **settings):
    return ScratchDDPG("MlpPolicy", env or PointEnv(), **SMALL | {"updater": updater} | settings)


def a_log(n=20, length=10, terminated=(), seed=0):
    """Two episodes of ten steps, the first observation of each unrelated to what comes before it."""
    rng = np.random.default_rng(seed)
    log = {
        "observations": rng.uniform(-5, 5, (n, 3)).astype(np.float32),
        "actions": rng.uniform(LOW, HIGH, (n, 2)).astype(np.float32),
        "rewards": rng.normal(size=n).astype(np.float32),
        "terminations": np.isin(np.arange(n), terminated),
        "truncations": np.arange(n) % length == length - 1,
    }
    following = np.roll(log["observations"], -1, axis=0)
    ends = log["terminations"] | log["truncations"]
    following[ends] = rng.uniform(-5, 5, (ends.sum(), 3)).astype(np.float32)
    return log | {"next_observations": following}


def stored(buffer):
    """What a buffer without several environments holds, by SB3's names."""
    n = buffer.size()
    names = ("observations", "actions", "rewards", "next_observations", "dones", "timeouts")
    return {name: np.array(getattr(buffer, name)[:n, 0]) for name in names}


def expected(log, order=slice(None)):
    truncated = (log["truncations"] & ~log["terminations"])[order]
    return {
        "observations": log["observations"][order],
        # The definition: from [low, high] to [-1, 1].
        "actions": (2 * (log["actions"][order] - LOW) / (HIGH - LOW) - 1).astype(np.float32),
        "rewards": log["rewards"][order],
        "next_observations": log["next_observations"][order],
        "dones": (log["terminations"][order] | truncated).astype(np.float32),
        "timeouts": truncated.astype(np.float32),
    }


def assert_stored(buffer, log, order=slice(None)):
    found = stored(buffer)
    for name, values in expected(log, order).items():
        np.testing.assert_allclose(found[name], values, atol=1e-6, err_msg=name)


def episodes(log):
    """The same as episodes, each with one observation more than actions."""
    ends = np.flatnonzero(log["terminations"] | log["truncations"]) + 1
    found = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        part = {name: values[start:end] for name, values in log.items() if name != "next_observations"}
        part["observations"] = np.concatenate([part["observations"], log["next_observations"][end - 1 : end]])
        found.append(part)
    return found


def as_minari(log):
    made = [SimpleNamespace(id=index, infos={}, **part) for index, part in enumerate(episodes(log))]
    return SimpleNamespace(iterate_episodes=lambda: iter(made))


def as_table(log):
    columns = {f"observation_{index}": log["observations"][:, index] for index in range(3)}
    columns |= {f"next_observation_{index}": log["next_observations"][:, index] for index in range(3)}
    columns |= {f"action_{index}": log["actions"][:, index] for index in range(2)}
    return pd.DataFrame(
        columns | {"reward": log["rewards"], "terminated": log["terminations"], "truncated": log["truncations"]}
    )


def as_npz(log, path):
    np.savez_compressed(path / "log.npz", **log)
    return path / "log.npz"


def as_csv(log, path):
    as_table(log).to_csv(path / "log.csv", index=False)
    return str(path / "log.csv")


def as_sb3_buffer(log, path):
    """As SB3 fills its own and saves it."""
    model = new_model(updater="autograd")
    assert type(model.replay_buffer) is ReplayBuffer
    for row in range(len(log["rewards"])):
        action = 2 * (log["actions"][row] - LOW) / (HIGH - LOW) - 1
        cut = bool(log["truncations"][row] and not log["terminations"][row])
        done = bool(log["terminations"][row]) or cut
        both = log["observations"][row], log["next_observations"][row]
        model.replay_buffer.add(*both, action, log["rewards"][row], np.array([done]), [{"TimeLimit.truncated": cut}])
    model.save_replay_buffer(path / "buffer.pkl")
    return path / "buffer.pkl"


SOURCES = {
    "dict": lambda log, path: log,
    "others' names": lambda log, path: {
        {"terminations": "terminals", "truncations": "timeouts"}.get(name, name): values for name, values in log.items()
    },
    "episodes": lambda log, path: episodes(log),
    "Minari": lambda log, path: as_minari(log),
    "table": lambda log, path: as_table(log),
    "npz": as_npz,
    "csv": as_csv,
    "replay buffer": as_sb3_buffer,
}


@pytest.mark.parametrize("updater", ["analytic", "autograd"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_source_stores_the_same(source, updater, tmp_path):
    log = a_log(terminated=[9])
    model = new_model(updater=updater)
    added = model.add_transitions(SOURCES[source](log, tmp_path))
    assert added[:4] == (20, 1, 1, 0)
    assert_stored(model.replay_buffer, log)


def test_arrays_by_name_and_one_line(capsys):
    model = new_model(verbose=1)
    capsys.readouterr()
    added = model.add_transitions(**a_log(terminated=[9]))
    assert str(added) == capsys.readouterr().out.strip()
    assert str(added).startswith("Stored 20 transitions, mean reward ")
    assert str(added).endswith("; episodes: 1 terminated, 1 cut off.")


def test_d3rlpy_has_no_observation_after_an_episode():
    """Its last transition of an episode that was cut off has none, so it is left out, and the one before is the last."""
    log = a_log(terminated=[9])
    made = [
        SimpleNamespace(
            observations=log["observations"][part],
            actions=log["actions"][part],
            rewards=log["rewards"][part, None],
            terminated=ends,
        )
        for part, ends in ((slice(0, 10), True), (slice(10, 20), False))
    ]
    model = new_model()
    added = model.add_transitions(SimpleNamespace(episodes=made))
    assert (added.transitions, added.left_out) == (19, 1)
    log["next_observations"][9] = model.replay_buffer.next_observations[9, 0]
    log["truncations"] = np.arange(20) == 18
    assert_stored(model.replay_buffer, log, slice(19))


def test_rows_alone_are_their_own_next_observations():
    log = a_log(30, terminated=[9])
    del log["next_observations"]
    model = new_model()
    assert model.add_transitions(log).left_out == 2
    kept = np.array([row for row in range(30) if row not in (19, 29)])
    found = stored(model.replay_buffer)
    np.testing.assert_array_equal(found["observations"], log["observations"][kept])
    inner = [index for index, row in enumerate(kept) if row != 9]
    np.testing.assert_array_equal(found["next_observations"][inner], log["observations"][kept[inner] + 1])
    assert np.flatnonzero(found["dones"]).tolist() == [9, 18, 27]
    assert np.flatnonzero(found["timeouts"]).tolist() == [18, 27]


def test_an_interrupted_row_of_transitions_is_cut_off_there():
    """Transitions in another order than time: n-step returns must not go from one to the next."""
    log = a_log()
    order = np.random.default_rng(1).permutation(20)
    model = new_model(n_steps=3)
    model.add_transitions({name: values[order] for name, values in log.items()})
    buffer = model.replay_buffer
    follow = [a + 1 == b and a % 10 != 9 for a, b in pairwise(order)]
    assert buffer.timeouts[:19, 0].astype(bool).tolist() == [not one for one in follow]
    assert not np.any(buffer.rows[:20, buffer.columns.continuation] == 0)


@pytest.mark.parametrize("updater", ["analytic", "autograd"])
def test_n_step_returns_go_to_the_end_of_logged_episodes(updater):
    """r_t + 0.9 r_(t+1) + 0.81 r_(t+2) within an episode, fewer at its end."""
    log = a_log(terminated=[9])
    model = new_model(updater=updater, n_steps=3, gamma=0.9)
    model.add_transitions(log)
    np.random.seed(0)
    batch = model.replay_buffer.sample(64)
    for row in range(64):
        start = int(np.flatnonzero((log["observations"] == batch.observations[row].numpy()).all(axis=1))[0])
        steps = min(3, (9 if start < 10 else 19) - start + 1)
        total = sum(0.9**step * log["rewards"][start + step] for step in range(steps))
        assert batch.rewards[row].item() == pytest.approx(total, abs=1e-5)
        assert batch.discounts[row].item() == pytest.approx(0.9**steps)
        np.testing.assert_array_equal(batch.next_observations[row], log["next_observations"][start + steps - 1])
        assert batch.dones[row].item() == (start + steps - 1 == 9)


@pytest.mark.parametrize("settings", [{}, {"optimize_memory_usage": True}, {"updater": "autograd"}])
def test_several_environments_share_the_log(settings):
    """Each gets a part of it, in order; what does not fill a step of all is left."""
    env = make_vec_env(PointEnv, n_envs=3)
    model = new_model(env, **settings)
    log = a_log(terminated=[9])
    assert model.add_transitions(log).transitions == 18
    buffer, wanted = model.replay_buffer, expected(log)
    for index in range(3):
        part = slice(6 * index, 6 * index + 6)
        np.testing.assert_allclose(buffer.actions[:6, index], wanted["actions"][part], atol=1e-6)
        alive = ~log["terminations"][part]
        following = np.array(buffer.next_observations)[:6, index]
        np.testing.assert_array_equal(following[alive], log["next_observations"][part][alive])
    # The end of each part is cut off, unless it is an episode's.
    assert buffer.timeouts[5].tolist() == [1, 1, 1]
    assert buffer.dones[3, 1] == 1
    assert buffer.timeouts[3, 1] == 0


def test_memory_saving_keeps_the_last_observations():
    log = a_log(terminated=[9])
    model = new_model(optimize_memory_usage=True)
    model.add_transitions(log)
    model.add_transitions(log)
    for part in (slice(0, 20), slice(20, 40)):
        alive = ~log["terminations"]
        np.testing.assert_array_equal(model.replay_buffer.next_observations[part, 0][alive], log["next_observations"][alive])


def test_dict_observations():
    log = a_log()
    space = spaces.Dict({"a": spaces.Box(-9, 9, (2,)), "b": spaces.Box(-9, 9, (1,))})

    class Split(PointEnv):
        def _observe(self):
            whole = super()._observe()
            return {"a": whole[:2], "b": whole[2:]}

    env = Split()
    env.observation_space = space
    model = ScratchDDPG("MultiInputPolicy", env, updater="analytic", **SMALL)
    split = {
        f"{name}/{key}": log[name][:, part]
        for name in ("observations", "next_observations")
        for key, part in (("a", slice(2)), ("b", slice(2, 3)))
    }
    model.add_transitions(split | {name: log[name] for name in ("actions", "rewards", "terminations", "truncations")})
    np.testing.assert_array_equal(model.replay_buffer.observations["a"][:20, 0], log["observations"][:, :2])
    np.testing.assert_array_equal(model.replay_buffer.next_observations["b"][:20, 0], log["next_observations"][:, 2:])
    with pytest.raises(ArgumentError, match="observations must be a dict with arrays for"):
        model.add_transitions(log)


def test_hindsight_relabels_logged_episodes():
    """Every reward of a sampled batch is the one of its own goal."""
    env = Reach()
    model = ScratchDDPG("MultiInputPolicy", env, replay_buffer_class=HerReplayBuffer, updater="analytic", **SMALL)
    made = []
    for seed in range(3):
        observation, _ = env.reset(seed=seed)
        episode = {"observations": [observation], "actions": [], "rewards": [], "terminations": [], "truncations": []}
        over = False
        while not over:
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            steps = (observation, action, reward, terminated, truncated)
            for values, value in zip(episode.values(), steps, strict=True):
                values.append(value)
        keys = episode["observations"][0]
        episode["observations"] = {key: np.array([one[key] for one in episode["observations"]]) for key in keys}
        made.append(episode)
    added = model.add_transitions(made)
    assert added.transitions == sum(len(one["actions"]) for one in made)
    batch = model.replay_buffer.sample(100)
    achieved, desired = (batch.next_observations[key].numpy() for key in ("achieved_goal", "desired_goal"))
    np.testing.assert_allclose(batch.rewards[:, 0], env.compute_reward(achieved, desired, [{}] * 100), atol=1e-6)
    assert len(np.unique(desired, axis=0)) > 3


def test_statistics_of_observations_count_the_log():
    log = a_log()
    model = new_model(policy_kwargs={"net_arch": [4], "normalize_observations": True})
    model.add_transitions(log)
    statistics = model.policy.observation_statistics
    np.testing.assert_allclose(statistics.mean, log["observations"].mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(statistics.var, log["observations"].var(axis=0), rtol=1e-3)


def test_vec_normalize_counts_the_log():
    """As if it had been met in an environment: observations, and the variance of discounted sums of rewards."""
    log = a_log()
    env = VecNormalize(make_vec_env(PointEnv, n_envs=1), gamma=0.9)
    new_model(env).add_transitions(log)
    np.testing.assert_allclose(env.obs_rms.mean, log["observations"].mean(axis=0), atol=1e-3)
    sums = []
    for start in (0, 10):
        for row in range(start, start + 10):
            sums.append(sum(0.9 ** (row - before) * log["rewards"][before] for before in range(start, row + 1)))
    assert env.ret_rms.var == pytest.approx(np.var(sums), rel=1e-3)


def test_a_table_by_the_models_names_and_the_episodes_of_its_rows():
    log = a_log()
    names = ["x [m]", "y [m]", "time"]
    model = new_model(observation_names=names, action_names=["fx [N]", "fy [N]"])
    table = pd.DataFrame(log["observations"], columns=names)
    table[["fx [N]", "fy [N]"]] = log["actions"]
    table = table.assign(reward=log["rewards"], terminated=False, episode=np.arange(20) // 10)
    assert model.add_transitions(table)[:4] == (18, 0, 2, 2)


def test_learning_goes_on_from_there():
    """The first transition of the environment does not follow the last one of the log."""
    model = new_model(optimize_memory_usage=True, learning_starts=5, batch_size=8, n_steps=2)
    log = a_log()
    model.add_transitions(log)
    model.learn(30)
    np.testing.assert_array_equal(model.replay_buffer.next_observations[19, 0], log["next_observations"][19])
    assert model._n_updates == 25


WRONG = {
    "nothing": (lambda log: None, "data or observations, actions"),
    "a number": (lambda log: 3, "data must be a dict of arrays, a pandas table"),
    "width": (
        lambda log: log | {"observations": log["observations"][:, :2]},
        r"has rows of shape \(2,\), and the space has shape \(3,\)",
    ),
    "ragged": (lambda log: log | {"observations": [[1, 2, 3], [1, 2]]}, "observations has rows of different lengths"),
    "words": (lambda log: log | {"rewards": ["a"] * 20}, "rewards must be numbers"),
    "NaN": (lambda log: set_(log, "observations", (4, 1), np.nan), r"observation\[1\] \(y \[m\]\) = nan at row 4"),
    "infinite reward": (lambda log: set_(log, "rewards", 7, np.inf), "reward = inf at row 7"),
    "next NaN": (lambda log: set_(log, "next_observations", (2, 0), np.nan), r"next observation\[0\] .* = nan at row 2"),
    "NaN action": (lambda log: set_(log, "actions", (5, 1), np.nan), r"action\[1\] = nan at row 5"),
    "bounds": (lambda log: set_(log, "actions", (6, 0), 1.5), r"action\[0\] = 1.5 at row 6, outside of \[-2, 1\]"),
    "lengths": (lambda log: log | {"rewards": log["rewards"][:-1]}, "rewards must be of the length of actions, 20, got 19"),
    "no truncations": (lambda log: without(log, "truncations"), "truncations is required. Time limits are no terminations"),
    "no actions": (lambda log: without(log, "actions"), "actions is required"),
    "dones": (lambda log: log | {"dones": log["truncations"]}, "does not tell terminations from time limits"),
    "unknown": (lambda log: log | {"rewrads": log["rewards"]}, "Did you mean 'rewards'"),
    "twice": (lambda log: log | {"reward": log["rewards"]}, "has rewards twice"),
    "flags": (lambda log: log | {"terminations": np.full(20, 2)}, "terminations must be 0 or 1 at row 0, got 2"),
    "unsorted": (lambda log: log | {"episodes": [0] * 5 + [1] * 5 + [0] * 10}, "has episode 0 again in row 10"),
    "empty": (lambda log: {name: values[:0] for name, values in log.items()}, "data has no transitions"),
    "no episodes": (lambda log: [], "data has no transitions"),
    "second episode": (lambda log: [log, set_(log, "rewards", 3, np.nan)], "reward = nan at episode 1, row 3"),
    "too many": (lambda log: [log] * 11, "has 220 transitions, and buffer_size is 200"),
    "inner end": (
        lambda log: without(log | {"observations": np.zeros((21, 3))}, "next_observations"),
        "one observation more than actions, as a single episode has, and an end at row 9",
    ),
}


def without(log, name):
    return {key: values for key, values in log.items() if key != name}


def set_(log, name, place, value):
    changed = log[name].copy()
    changed[place] = value
    return log | {name: changed}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_data_names_the_row_and_leaves_the_buffer_as_it_was(case):
    make, message = WRONG[case]
    model = new_model(
        observation_names=["x [m]", "y [m]", "time"], policy_kwargs={"net_arch": [4], "normalize_observations": True}
    )
    model.add_transitions(a_log(seed=1))
    before, statistics = pickle.dumps(model.replay_buffer), model.policy.observation_statistics.mean.clone()
    with pytest.raises(ArgumentError, match=message):
        model.add_transitions(make(a_log()))
    assert pickle.dumps(model.replay_buffer) == before
    assert th.equal(model.policy.observation_statistics.mean, statistics)


def test_actions_that_seem_to_be_normalized_already():
    class Wide(PointEnv):
        def __init__(self):
            super().__init__()
            self.action_space = spaces.Box(-100, 100, (2,), np.float32)

    log = a_log() | {"actions": np.random.default_rng(0).uniform(-1, 1, (20, 2))}
    with pytest.warns(UserWarning, match=r"within \[-1, 1\], and Box.* are they normalized already\?"):
        new_model(Wide()).add_transitions(log)


def test_files_that_are_refused(tmp_path):
    model = new_model()
    path = tmp_path / "log.npz"
    path.write_bytes(b"")
    with pytest.raises(ModelFileError, match="not a whole zip-file"):
        model.add_transitions(path)
    np.savez(path, **a_log() | {"rewards": np.array([Reduces(print, "run")] * 20, object)})
    with pytest.raises(UnsafeFileError, match="holds objects"):
        model.add_transitions(path)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("rewards.npy", "w") as member:
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**40,)})
        member.write(header.getvalue() + bytes(2**22))
    with pytest.raises(UnsafeFileError, match="at most 1000000 are read"):
        model.add_transitions(path, max_bytes=1_000_000)
    with pytest.raises(ModelFileError, match="rewards"):
        model.add_transitions(path)
    pickled = tmp_path / "buffer.pkl"
    pickled.write_bytes(pickle.dumps(Reduces(print, "run")))
    with pytest.raises(UnsafeFileError):
        model.add_transitions(pickled)
    (tmp_path / "log.csv").write_text("")
    with pytest.raises(ModelFileError, match="not a table"):
        model.add_transitions(tmp_path / "log.csv")
    with pytest.raises(ArgumentError, match=r"data must be a file of \.npz, \.csv"):
        model.add_transitions("log.h5")
    assert model.replay_buffer.size() == 0


def test_a_long_log_of_zeros_is_no_attack(tmp_path):
    """Two million flags compress a thousandfold."""
    np.savez_compressed(tmp_path / "log.npz", **a_log() | {"terminations": np.zeros(2_000_000, bool)})
    with pytest.raises(ArgumentError, match="terminations must be of the length of actions, 20, got 2000000"):
        new_model().add_transitions(tmp_path / "log.npz")
