"""Prioritized replay against a plain implementation of its definition, and against the uniform buffer at alpha 0."""

import copy

import numpy as np
import pytest
import torch as th
from conftest import PointEnv, same, snapshot
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from pickle_writer import dumps, instance
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from test_data_adding import a_log
from test_handwritten import make_policy

from sb3_ddpg_scratch import ArgumentError, ModelFileError, PrioritizedReplayBuffer, ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.priorities import PrioritizedDictReplayBuffer, PrioritizedSamples
from sb3_ddpg_scratch.sum_tree import compiled, find_leaves, planted, set_leaves
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.autograd import AutogradUpdater

SPACE, ACTIONS = spaces.Box(-np.inf, np.inf, (3,), np.float32), spaces.Box(-1, 1, (2,), np.float32)
SMALL = {"policy_kwargs": {"net_arch": [8]}, "buffer_size": 100, "batch_size": 8, "device": "cpu", "seed": 0}
SMALL |= {"learning_starts": 20, "replay_buffer_class": PrioritizedReplayBuffer}


def new_model(env=None, updater="analytic", **arguments):
    return ScratchDDPG("MlpPolicy", env or PointEnv(), **SMALL | {"updater": updater} | arguments)


def add(buffer, count, rng):
    for _ in range(count):
        n = buffer.n_envs
        values = (rng.normal(size=(n, 3)), rng.normal(size=(n, 3)), rng.uniform(-1, 1, (n, 2)), rng.normal(size=n))
        buffer.add(*values, rng.random(n) < 0.2, [{}] * n)


class Plain:
    """The definition, with a list of priorities and sums over all of it: Algorithm 1 of Schaul et al."""

    def __init__(self, alpha, beta):
        self.p, self.alpha, self.beta = {}, alpha, beta

    def new(self, rows, gone=()):
        largest = max([1.0, *self.ever]) if hasattr(self, "ever") else 1.0
        self.p |= dict.fromkeys(rows, largest)
        for row in gone:
            self.p.pop(row, None)

    def probabilities(self):
        rows = sorted(self.p)
        powers = np.array([self.p[row] ** self.alpha for row in rows])
        return np.array(rows), powers / powers.sum()

    def draw(self, points):
        rows, probabilities = self.probabilities()
        return rows[np.searchsorted(np.cumsum(probabilities), points, side="right")]

    def weights(self, drawn, beta):
        rows, probabilities = self.probabilities()
        weights = {row: (len(rows) * p) ** -beta for row, p in zip(rows, probabilities, strict=True)}
        found = np.array([weights[row] for row in drawn])
        return found / found.max()

    def update(self, drawn, errors):
        self.ever = [*getattr(self, "ever", ()), *(np.abs(errors) + 1e-6)]
        for row, error in zip(drawn, errors, strict=True):
            self.p[row] = abs(error) + 1e-6


@pytest.mark.parametrize("memory_saving", [False, True])
@pytest.mark.parametrize(("n_envs", "n_steps"), [(1, 1), (3, 1), (2, 3)])
def test_draws_and_weights_are_the_definitions(n_envs, n_steps, memory_saving):
    rng = np.random.default_rng(0)
    flags = {"optimize_memory_usage": memory_saving, "n_steps": n_steps}
    buffer = PrioritizedReplayBuffer(30 * n_envs, SPACE, ACTIONS, "cpu", n_envs, alpha=0.7, beta=0.4, **flags)
    plain = Plain(0.7, 0.4)
    for step in range(80):
        plain.new(buffer.pos * n_envs + np.arange(n_envs))
        add(buffer, 1, rng)
        if memory_saving:
            plain.new([], gone=buffer.pos * n_envs + np.arange(n_envs))
        if step < 2:
            continue
        buffer.progress_remaining = 1 - step / 80
        state = np.random.get_state()
        points = (np.arange(16) + np.random.random_sample(16)) / 16
        np.random.set_state(state)
        samples = buffer.sample(16)
        drawn = plain.draw(points)
        np.testing.assert_array_equal(buffer._drawn, drawn)
        # Beta rises from 0.4 to 1 as training goes on.
        weights = plain.weights(drawn, 0.4 + 0.6 * step / 80)
        np.testing.assert_allclose(samples.weights[:, 0], weights, rtol=1e-5)
        np.testing.assert_array_equal(samples.actions, buffer.actions.reshape(-1, 2)[drawn])
        assert (samples.discounts is None) == (n_steps == 1)
        errors = rng.normal(size=16) * rng.choice([0.01, 1, 30])
        # Of a row drawn twice, the same TD error.
        errors = errors[np.unique(drawn, return_inverse=True)[1]]
        buffer.set_priorities(errors)
        plain.update(drawn, errors)


def test_frequencies_are_the_probabilities():
    rng = np.random.default_rng(0)
    buffer = PrioritizedReplayBuffer(10, SPACE, ACTIONS, alpha=1.0)
    add(buffer, 10, rng)
    buffer._drawn = np.arange(10)
    buffer.set_priorities(np.arange(1.0, 11.0))
    counts = np.bincount(buffer.draw(50, 1000).ravel(), minlength=10)
    np.testing.assert_allclose(counts / counts.sum(), np.arange(1, 11) / 55, atol=2e-3)


@settings(max_examples=60, deadline=None)
@given(
    values=st.lists(st.sampled_from([0.0, 1e-9, 0.3, 1.0, 1e6]), min_size=1, max_size=70).filter(any),
    changes=st.lists(st.tuples(st.integers(0, 69), st.floats(0, 1e3)), max_size=20),
    points=st.lists(st.floats(0, 1), min_size=1, max_size=10).map(lambda points: [*points, 1.0]),
)
@pytest.mark.parametrize("functions", [(set_leaves, find_leaves), compiled()], ids=["plain", "compiled"])
def test_sum_tree(functions, values, changes, points):
    """Every inner node is the sum of its leaves, and a point finds the leaf by cumulative sums, never one of 0."""
    setter, finder = functions
    tree, leaves = planted(np.array(values), len(values)), np.array(values)
    places = np.array([place % len(values) for place, _ in changes], np.int64)
    amounts = np.array([amount for _, amount in changes])
    setter(tree, places, amounts)
    for place, amount in zip(places, amounts, strict=True):
        leaves[place] = amount
    half = len(tree) // 2
    np.testing.assert_array_equal(tree[half : half + len(leaves)], leaves)
    assert tree[1] == pytest.approx(leaves.sum())
    if leaves.sum() == 0:
        return
    found = np.empty(len(points), np.int64)
    finder(tree, np.array(points) * tree[1], found)
    assert (leaves[found] > 0).all()
    ends = np.cumsum(leaves)
    for point, leaf in zip(points, found, strict=True):
        assert ends[leaf] - leaves[leaf] <= point * ends[-1] * (1 + 1e-9) + 1e-12
        assert point * ends[-1] <= ends[leaf] * (1 + 1e-9) + 1e-12


MODES = [{}, {"n_steps": 3}, {"optimize_memory_usage": True}, {"n_steps": 2, "policy_delay": 2}]


@pytest.mark.parametrize(
    ("updater", "arguments"), [*(("analytic", mode) for mode in MODES), ("compiled", {}), ("compiled", MODES[2])]
)
def test_alpha_0_is_the_uniform_buffer_bit_for_bit(updater, arguments, recwarn):
    uniform = new_model(updater=updater, replay_buffer_class=None, **arguments).learn(150)
    zero = new_model(updater=updater, replay_buffer_kwargs={"alpha": 0}, **arguments).learn(150)
    assert zero.updater_in_use == updater
    assert same(snapshot(uniform), snapshot(zero))
    assert not [warning for warning in recwarn if "n_steps" in str(warning.message)]


@pytest.mark.parametrize("kind", [{}, {"n_critics": 2}, {"scale_factor": 2, "net_arch": [8, 8]}])
def test_gradient_of_the_weighted_loss(kind):
    policy = make_policy(**kind)
    s, a, y, w = th.randn(6, 3), th.rand(6, 2) * 2 - 1, th.randn(6, 1), th.rand(6, 1)
    batch = PrioritizedSamples(s, a, s, th.zeros(6, 1), th.zeros(6, 1), None, w)
    loss = sum((w * (q - y) ** 2).sum() / 6 for q in policy.critic(s, a))
    wanted = th.autograd.grad(loss, list(policy.critic.parameters()))
    for updater in (AnalyticUpdater(), AutogradUpdater()):
        th.testing.assert_close(updater.critic_gradient(policy.critic, batch, y), loss.detach())
        for parameter, gradient in zip(policy.critic.parameters(), wanted, strict=True):
            th.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("updater", ["analytic", "autograd"])
def test_td_errors_become_priorities(updater):
    """The larger of both critics' errors, as they were before the update."""
    model = new_model(updater=updater, policy_kwargs={"net_arch": [8], "n_critics": 2}, learning_starts=10**6)
    model.learn(50)
    state, before = np.random.get_state(), copy.deepcopy(model.policy)
    batch = model.replay_buffer.sample(8)
    rows = model.replay_buffer._drawn
    np.random.set_state(state)
    model.train(1, 8)
    with th.no_grad():
        following = before.critic_target(batch.next_observations, before.actor_target(batch.next_observations))
        y = batch.rewards + 0.99 * (1 - batch.dones) * th.cat(following, 1).min(1, keepdim=True).values
        errors = (th.cat(before.critic(batch.observations, batch.actions), 1) - y).abs().max(1).values
    found = model.replay_buffer.priorities[rows]
    np.testing.assert_allclose(found, (errors.double() + 1e-6) ** 0.6, rtol=1e-4)
    assert (model.replay_buffer.priorities[np.setdiff1d(np.arange(50), rows)] == 1).all()


def test_beta_follows_the_progress_of_learn():
    """20 steps come before the first of 80 updates."""
    seen = []
    model = new_model(replay_buffer_kwargs={"beta": lambda progress: seen.append(progress) or 1.0})
    model.learn(100)
    assert seen == pytest.approx([1 - step / 100 for step in range(21, 101)])


def test_both_updaters_learn_the_same_and_compiled_ones_say_why_not(recwarn):
    results = [snapshot(new_model(updater=updater).learn(100)) for updater in ("analytic", "autograd")]
    for name, tensor in results[0].items():
        th.testing.assert_close(tensor, results[1][name], rtol=1e-3, atol=1e-4)
    assert new_model(updater="auto").learn(30).updater_in_use == "analytic"
    assert not [warning for warning in recwarn if "updater" in str(warning.message)]
    with pytest.warns(UserWarning, match="'analytic' updater while replay is prioritized"):
        new_model(updater="compiled").learn(30)


def test_dict_observations_and_several_environments():
    class Split(PointEnv):
        def __init__(self):
            super().__init__()
            self.observation_space = spaces.Dict({"a": spaces.Box(-10, 10, (2,)), "b": spaces.Box(-10, 10, (1,))})

        def _observe(self):
            whole = super()._observe()
            return {"a": whole[:2], "b": whole[2:]}

    env = make_vec_env(Split, n_envs=2)
    model = ScratchDDPG("MultiInputPolicy", env, updater="analytic", **SMALL).learn(80)
    assert type(model.replay_buffer) is PrioritizedDictReplayBuffer
    assert (model.replay_buffer.priorities[:80] > 0).all()
    assert len(np.unique(model.replay_buffer.priorities)) > 10


def test_demonstrations_have_priorities_too():
    model = new_model(demonstration_share=0.5, bc_alpha=2.5)
    model.add_transitions(a_log())
    model.learn_offline(20)
    assert len(np.unique(model.demonstrations.priorities[:20])) == 20
    model.learn(60)
    assert len(np.unique(model.replay_buffer.priorities[:60])) > 10


# -------------------------------------------------------------------------------------------------------------- Files


class Stop(BaseCallback):
    def _on_step(self):
        if self.num_timesteps == 110:
            raise KeyboardInterrupt
        return True


@pytest.mark.parametrize("arguments", [{}, {"n_steps": 3, "optimize_memory_usage": True, "buffer_size": 50}])
def test_resumed_training_ends_with_the_same_bits(arguments, tmp_path):
    """Priorities of old transitions change after their rows were written."""
    whole = new_model(**arguments).learn(120)
    killed = new_model(**arguments)

    with pytest.raises(KeyboardInterrupt):
        killed.learn(120, callback=[ResumableCheckpoint(tmp_path, every=40), Stop()])
    resumed = ScratchDDPG.resume(tmp_path, PointEnv())
    assert type(resumed.replay_buffer) is PrioritizedReplayBuffer
    resumed.learn(120)
    assert same(snapshot(whole), snapshot(resumed))
    np.testing.assert_array_equal(whole.replay_buffer._tree, resumed.replay_buffer._tree)


def test_file_of_a_buffer(tmp_path):
    model = new_model().learn(60)
    model.save_replay_buffer(tmp_path / "buffer.pkl")
    model.save(tmp_path / "model")
    loaded = ScratchDDPG.load(tmp_path / "model", PointEnv())
    loaded.load_replay_buffer(tmp_path / "buffer.pkl")
    assert type(loaded.replay_buffer) is PrioritizedReplayBuffer
    np.testing.assert_array_equal(loaded.replay_buffer._tree, model.replay_buffer._tree)
    assert loaded.replay_buffer._largest == model.replay_buffer._largest
    loaded.learn(30, reset_num_timesteps=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("_priorities", np.full(60, np.nan)),
        ("_priorities", -np.ones(61)),
        ("_priorities", np.ones(3)),
        ("_priorities", np.ones(61, np.float32)),
        ("_largest", np.inf),
        ("alpha", -1.0),
    ],
)
def test_damaged_priorities_are_refused(name, value, tmp_path):
    model = new_model().learn(60)
    state = model.replay_buffer.__getstate__() | {name: value}
    forged = instance("sb3_ddpg_scratch.priorities", "PrioritizedReplayBuffer", **state)
    (tmp_path / "buffer.pkl").write_bytes(dumps(forged))
    with pytest.raises(ModelFileError, match=name):
        model.load_replay_buffer(tmp_path / "buffer.pkl")


def test_wrong_arguments():
    for name, value in (("alpha", -1), ("beta", 2), ("betta", 1)):
        with pytest.raises(ArgumentError, match=name):
            new_model(replay_buffer_kwargs={name: value})
    with pytest.raises(ArgumentError, match="fits into packed rows"):
        ScratchDDPG("CnnPolicy", PointEnv("image"), **SMALL)
    assert type(new_model(replay_buffer_class=ReplayBuffer).replay_buffer) is ReplayBuffer
