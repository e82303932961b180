"""Forged replay buffers: what the model does not imply is refused by name, and what is accepted trains."""

import copyreg
import faulthandler
import io
import pickle
import re
from copy import deepcopy
from functools import cache, partial

import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from stable_baselines3 import DDPG, HerReplayBuffer
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import Logger

from sb3_ddpg_scratch import ModelFileError, ScratchDDPG
from sb3_ddpg_scratch.errors import DivergenceError, UnsafeFileError
from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from tests.conftest import PointEnv
from tests.goal_envs import Reach
from tests.test_dict_observations import Random

POINT = partial(PointEnv, length=7)
HINDSIGHT = {"replay_buffer_class": HerReplayBuffer}
KINDS = {
    "packed": (POINT, 1, {}),
    "packed, full": (POINT, 2, {"buffer_size": 60}),
    "n-step": (POINT, 2, {"n_steps": 3}),
    "memory saved": (POINT, 2, {"optimize_memory_usage": True}),
    "memory saved, full": (POINT, 1, {"optimize_memory_usage": True, "buffer_size": 40, "n_steps": 2}),
    "Dict": (Random, 2, {}),
    "hindsight": (Reach, 1, HINDSIGHT),
    "hindsight, full": (Reach, 2, HINDSIGHT | {"buffer_size": 60, "replay_buffer_kwargs": {"n_steps": 2}}),
    "hindsight, infos": (Reach, 1, HINDSIGHT | {"replay_buffer_kwargs": {"copy_info_dict": True}}),
    "SB3's": (POINT, 2, {"updater": "autograd"}),
    "SB3's, n-step": (POINT, 1, {"updater": "autograd", "n_steps": 3, "buffer_size": 60}),
    "SB3's, Dict": (Random, 1, {"updater": "autograd"}),
    "SB3's hindsight": (Reach, 2, HINDSIGHT | {"updater": "autograd", "buffer_size": 60}),
}


def model_of(kind, model_class=ScratchDDPG, **changes):
    make, n_envs, settings = KINDS[kind]
    env = make_vec_env(make, n_envs=n_envs, seed=0)
    policy = "MultiInputPolicy" if isinstance(env.observation_space, spaces.Dict) else "MlpPolicy"
    given = {"buffer_size": 400, "learning_starts": 40, "batch_size": 16, "policy_kwargs": {"net_arch": [6]}, "seed": 0}
    return model_class(policy, env, device="cpu", **given | settings | changes)


@cache
def trained(kind):
    """A model, its parameters and optimizer states, and what its buffer's file holds."""
    model = model_of(kind).learn(90)
    model.set_logger(Logger(None, []))
    return model, deepcopy(model.get_parameters()), model.replay_buffer.__getstate__()


class _Writer(pickle.Pickler):
    def __init__(self, file, forged, state):
        super().__init__(file, 5)
        self._forged, self._state = forged, state

    def reducer_override(self, thing):
        if thing is self._forged:
            return copyreg.__newobj__, (type(thing),), self._state
        return NotImplemented


def file_of(kind, state):
    """A file with a buffer of this class and whatever attributes."""
    file = io.BytesIO()
    forged = object.__new__(kind)
    _Writer(file, forged, state).dump(forged)
    file.seek(0)
    return file


def members_of(state, path=()):
    """The places of all values in the nested dicts of a state."""
    for name, value in state.items():
        yield (*path, name)
        if type(value) is dict and value:
            yield from members_of(value, (*path, name))


def value_at(state, path):
    return value_at(state[path[0]], path[1:]) if path else state


def changed(state, path, value):
    """A copy of a state with one value replaced, or removed by ``...``."""
    copied = dict(state)
    if path[1:]:
        copied[path[0]] = changed(state[path[0]], path[1:], value)
    elif value is ...:
        del copied[path[0]]
    else:
        copied[path[0]] = value
    return copied


SCALARS = [
    None,
    "text",
    b"",
    -1,
    0,
    1,
    2,
    1.5,
    np.nan,
    np.inf,
    -0.5,
    10**9,
    2**63,
    10**40,
    True,
    False,
    [],
    {},
    (),
    [3],
    {"a": 1},
]
SCALARS += [np.float32(0.5), np.int64(3), np.array(1), np.zeros(3), np.zeros(0, object), ...]


def forgeries_of(value, rng):
    """Values of other types, dtypes, shapes and ranges, in place of this one."""
    if not isinstance(value, np.ndarray):
        lists = [[*value, -1], [*value, 10**6], [*value, "x"], value[:1] * 2, [True]] if isinstance(value, list) else []
        numbers = [value + 1, value - 1, value * 1000, -value] if isinstance(value, (int, float)) else []
        return [*SCALARS, *lists, *numbers]
    made = [value.astype(dtype) for dtype in ("f2", "f8", "i1", "i8", ">f4", "c8", "?")] if value.dtype != object else []
    made += [value[:-1], value[:0], value[..., :1], value[..., None], value.ravel(), value.T, np.concatenate([value, value])]
    made += [np.asfortranarray(value), value[::2], value.astype(object), None, ..., value.tolist()]
    extremes = [-1, 2, 127, 10**6] if value.dtype.kind in "iub" else [np.nan, np.inf, -np.inf, 3e38, -1, 0.5, 10**6]
    for extreme in extremes if value.size and value.dtype != object else ():
        for places in (rng.integers(value.size, size=1), np.arange(value.size)):
            other = value.copy()
            with np.errstate(all="ignore"):
                other.reshape(-1)[places] = np.array(extreme).astype(value.dtype)
            made.append(other)
    for _ in range(3 if value.size and value.dtype != object else 0):
        made += [rng.permutation(value.ravel()).reshape(value.shape), rng.integers(0, 99, value.shape).astype(value.dtype)]
    return made


def contents(buffer):
    """Everything in a buffer, comparable."""
    return pickle.dumps(buffer.__getstate__())


def assert_as_the_model_implies(buffer, model):
    """The arrays that compiled code and SB3 work on, by the spaces alone."""
    total = buffer.buffer_size * buffer.n_envs
    sizes = spaces.flatdim(model.observation_space), model.action_space.shape[0]
    assert type(buffer.pos) is type(buffer.buffer_size) is type(buffer.n_envs) is int
    assert 0 <= buffer.pos < buffer.buffer_size
    if isinstance(buffer, PackedReplayBuffer):
        assert buffer._ends.shape == (total,)
        assert buffer._ends.dtype == np.uint8
        assert buffer.rows.dtype == np.float32
        assert buffer.rows.flags.c_contiguous
        assert buffer.rows.flags.writeable
        if type(buffer) in (PackedReplayBuffer, PackedNStepReplayBuffer):
            width = 2 * sizes[0] + sizes[1] + 2 if not buffer.optimize_memory_usage else sum(sizes) + 2
            assert buffer.rows.shape == (total, width)
    else:
        assert buffer.actions.shape == (buffer.buffer_size, buffer.n_envs, sizes[1])
        assert buffer.dones.shape == (buffer.buffer_size, buffer.n_envs)


def use(model):
    """Sample, train and store, as a learn does."""
    buffer = model.replay_buffer
    if buffer.size():
        model.train(2, 16)
    if buffer.n_envs == model.env.num_envs:
        model.learn(3 * buffer.n_envs, reset_num_timesteps=False)
    return all(th.isfinite(value).all() for value in model.policy.state_dict().values())


@pytest.fixture
def _no_hang():
    faulthandler.dump_traceback_later(100, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()


def refusal_of(model, file):
    """The error of loading a file; ``None`` if the model took it. A refusal leaves the model's buffer as it was."""
    own, before = model.replay_buffer, contents(model.replay_buffer)
    try:
        model.load_replay_buffer(file)
    except ModelFileError as error:
        assert model.replay_buffer is own
        assert contents(own) == before
        return error
    assert_as_the_model_implies(model.replay_buffer, model)
    return None


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_no_hang")
def test_forged_members_are_refused_or_harmless(kind):
    model, parameters, state = trained(kind)
    own, rng = model.replay_buffer, np.random.default_rng(sum(map(ord, kind)))
    forgeries = [(path, value) for path in members_of(state) for value in forgeries_of(value_at(state, path), rng)]
    forgeries += [((name,), 1) for name in ("_row_arrays", "_samples_type", "_ones", "infos", "extra", "dones_writeable")]
    refused, faulty = 0, []
    for number, index in enumerate(rng.permutation(len(forgeries))[:90]):
        changes = dict([forgeries[index]])
        if number % 3 == 0:
            # A second one, of another member.
            path, value = forgeries[rng.integers(len(forgeries))]
            changes |= {path: value} if path[0] != forgeries[index][0][0] else {}
        forged = state
        for path, value in changes.items():
            forged = changed(forged, path, value)
        error = refusal_of(model, file_of(type(own), forged))
        if error is not None:
            refused += 1
            faulty += [] if error.key or isinstance(error, UnsafeFileError) else [(changes, str(error))]
            continue
        try:
            fine = use(model)
        except DivergenceError:
            # Of numbers as large as float32 has them.
            fine = any(isinstance(value, np.ndarray) and np.abs(value).max() > 1e30 for value in changes.values())
        faulty += [] if fine else [changes]
        model.replay_buffer = own
        model.set_parameters(deepcopy(parameters))
        model._last_obs = None
    assert faulty == []
    assert refused > 20


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_no_hang")
def test_a_file_of_another_buffer_is_refused_or_trains(kind):
    model = model_of(kind).learn(90)
    model.set_logger(Logger(None, []))
    for other in KINDS:
        error = refusal_of(model, file_of(type(trained(other)[0].replay_buffer), trained(other)[2]))
        spaces_differ = trained(other)[0].observation_space != model.observation_space
        assert (error is not None) == spaces_differ, (other, error)
        assert use(model)


def nan_at(row):
    def change(array):
        changed = array.copy()
        changed[row] = np.nan
        return changed

    return change


NAMED = [
    ("packed", "rows", lambda rows: rows[:, :1].copy(), r"shape \(any, 10\), and is float32 of shape \(91, 1\)"),
    ("packed", "rows", lambda rows: rows.astype(np.float16), "array of float32, .*, and is float16"),
    ("packed", "rows", lambda rows: rows[:50], "it must have 400 rows, or the 91 that were written, and has 50"),
    ("packed", "rows", np.asfortranarray, "contiguous"),
    ("packed", "rows", nan_at(3), r"its numbers must be finite, and at \(3, 0\) is nan"),
    ("packed", "rows", lambda rows: 2 * rows, "column 6, the continuation, must be 0 or 1"),
    ("packed", "_row_width", lambda width: 1, "it must be 10 for this model, and is 1"),
    ("packed", "columns", lambda columns: columns._replace(action_dim=1), "it must be BatchColumns.*action_dim=2"),
    ("packed", "columns", tuple, "it must be BatchColumns"),
    ("packed", "_ends", lambda ends: ends[:5], r"shape \(91\), and is uint8 of shape \(5,\)"),
    ("packed", "_ends", lambda ends: ends + np.uint8(9), r"from 0 to 2, and at \(0,\) is 9"),
    ("packed", "n_envs", lambda n: 0, "whole number from 1"),
    ("packed", "pos", lambda pos: 400, "whole number from 0 to 399, and is 400"),
    ("packed", "pos", lambda pos: -1, "whole number from 0 to 399, and is -1"),
    ("packed", "pos", float, "whole number from 0 to 399, and is 90.0"),
    ("packed", "full", lambda full: 1, "True or False, and is 1"),
    ("packed", "buffer_size", lambda size: 10**15, "need [0-9]+ bytes"),
    ("n-step", "n_steps", lambda n: 0, "whole number from 1 to 200, and is 0"),
    ("n-step", "n_steps", lambda n: 10**9, "whole number from 1 to 200, and is 1000000000"),
    ("n-step", "gamma", lambda gamma: np.nan, "number from 0 to 1, and is nan"),
    ("n-step", "gamma", str, "number from 0 to 1, and is '0.99'"),
    ("memory saved", "_aside", lambda aside: aside + 10**6, "from 0 to 64"),
    ("memory saved", "_free_places", lambda free: [10**6], "list of whole numbers from 0 to 63"),
    ("memory saved", "_free_places", lambda free: [*free, free[0]], "a place is used twice"),
    ("hindsight", "_episode", lambda episode: episode + 9999, "from 0 to 64"),
    ("hindsight", "_table/spans", lambda spans: spans[:, :1], r"shape \(3, 65\)"),
    ("hindsight", "_table/spans", lambda spans: spans * [[1], [0], [1]], "do not follow each other"),
    ("hindsight", "_table/spans", lambda spans: spans * [[10**6], [1], [1]], r"and at \(0, [0-9]+\) is -1000000"),
    ("hindsight", "_table/time", lambda time: time + 400, "after 490 steps, pos and full are not 90 and False"),
    ("hindsight", "_table/goals", nan_at(2), "finite"),
    ("hindsight", "goal_selection_strategy", str, "must be a GoalSelectionStrategy"),
    ("SB3's", "observations", lambda o: o.astype(np.float64), "array of float32"),
    ("SB3's", "dones", lambda dones: dones - 1, "from 0 to 1"),
    ("SB3's, Dict", "observations/arm", nan_at(7), "finite"),
    ("SB3's hindsight", "ep_length", lambda length: length + 60, "from 0 to 30"),
]


@pytest.mark.parametrize(("kind", "member", "change", "message"), NAMED)
def test_a_refusal_names_the_member_and_the_reason(kind, member, change, message):
    model, _, state = trained(kind)
    path = tuple(member.split("/"))
    error = refusal_of(model, file_of(type(model.replay_buffer), changed(state, path, change(value_at(state, path)))))
    assert error is not None
    assert error.key == member
    assert re.search(message, error.reason), error.reason


def test_a_buffer_within_a_models_file_is_checked_as_well(tmp_path):
    model = model_of("packed").learn(50)
    model.save(tmp_path / "whole.zip", include=["replay_buffer"])
    loaded = ScratchDDPG.load(tmp_path / "whole.zip").replay_buffer
    assert loaded.size() == 50
    np.testing.assert_array_equal(loaded.rows, model.replay_buffer.rows)
    model.replay_buffer.rows = model.replay_buffer.rows[:, :1].copy()
    model.save(tmp_path / "forged.zip", include=["replay_buffer"])
    with pytest.raises(ModelFileError, match="key 'rows'"):
        ScratchDDPG.load(tmp_path / "forged.zip")


def test_buffers_of_another_size_and_of_sb3_before_time_limits_load():
    model = model_of("packed", buffer_size=80)
    theirs = model_of("packed", DDPG, buffer_size=200).learn(50)
    state = vars(theirs.replay_buffer).copy()
    model.load_replay_buffer(file_of(ReplayBuffer, state))
    assert model.replay_buffer.buffer_size == 200
    del state["timeouts"], state["handle_timeout_termination"]
    model.load_replay_buffer(file_of(ReplayBuffer, state))
    assert model.replay_buffer.timeouts.sum() == 0
    np.testing.assert_array_equal(model.replay_buffer.dones, theirs.replay_buffer.dones)


def test_n_step_returns_are_those_of_the_model():
    """Rows are single transitions: the model's n and gamma, and not the file's, are used with them."""
    state = trained("n-step")[2]
    model = model_of("n-step", n_steps=2, gamma=0.5)
    model.load_replay_buffer(file_of(PackedNStepReplayBuffer, state))
    model.replay_buffer._ends[:] = 0
    rewards = model.replay_buffer.rewards
    samples = model.replay_buffer._get_samples(np.array([4]))
    expected = rewards[4] + 0.5 * rewards[5]
    assert np.isclose(samples.rewards.item(), expected).any()
    assert samples.discounts.item() == 0.25
