"""Batches drawn in compiled code: the transitions that NumPy would draw, and the generator where NumPy would leave it."""

import threading

import numpy as np
import pytest
from test_handwritten import make_buffer, make_policy

from sb3_ddpg_scratch.replay import PackedNStepReplayBuffer, PackedReplayBuffer
from sb3_ddpg_scratch.updates.kernel_memory import Frame, load_kernels
from sb3_ddpg_scratch.updates.random_rows import Normalization, RowSampler

NO_LAYERS, NO_TABLE = np.zeros((0, 14), np.int64), np.zeros((0, 8), np.int64)


def sample(buffer, batches, env=None):
    """Draw batches by the kernel, without an update."""
    kernels = load_kernels()
    frame, numbers = Frame(kernels), np.zeros((4, 9))
    numbers[kernels.SIZES, :2] = buffer.columns.observation_dim, buffer.columns.action_dim
    frame.place_batches(batches, buffer.columns.width)
    frame.table[kernels.DRAWN] = len(batches)
    numbers[kernels.SETTINGS, 5] = getattr(buffer, "gamma", 1.0)
    normal = None if env is None else Normalization(buffer.observation_space).read(env)
    frame.place(kernels.NORMAL, normal, (3 * buffer.columns.observation_dim + 2,), np.float64)
    with frame.place_buffer(buffer, RowSampler(), buffer.columns):
        kernels.advance(numbers, NO_LAYERS, NO_TABLE, frame.table, np.zeros((0, 6)))


@pytest.mark.parametrize("n_envs", [1, 3, 4])
@pytest.mark.parametrize("bits", [np.random.MT19937, np.random.PCG64])
def test_rows_are_those_of_sample(n_envs, bits):
    buffer = make_buffer(make_policy(), n_envs=n_envs)
    before = np.random.get_bit_generator()
    np.random.set_bit_generator(bits(5))
    try:
        for batch_size in (1, 7, 64):
            state = np.random.get_bit_generator().state
            expected = np.zeros((3, batch_size, buffer.columns.width), np.float32)
            for rows in expected:
                buffer.gather(buffer.draw(batch_size)[0], rows)
            number = np.random.random_sample()
            np.random.get_bit_generator().state = state
            drawn = np.zeros_like(expected)
            sample(buffer, drawn)
            np.testing.assert_array_equal(drawn, expected)
            assert np.random.random_sample() == number
    finally:
        np.random.set_bit_generator(before)


@pytest.mark.parametrize("n_envs", [1, 3])
@pytest.mark.parametrize("steps", [150, 700])
def test_n_step_returns_are_those_of_sample(n_envs, steps):
    """Of 1 to 4 steps, up to the newest transition or an end, also round the end of a full buffer."""
    policy = make_policy()
    arguments = (500 * n_envs, policy.observation_space, policy.action_space, "cpu", n_envs)
    buffer, random = PackedNStepReplayBuffer(*arguments, n_steps=4, gamma=0.9), np.random.default_rng(0)
    for _ in range(steps):
        observations = random.normal(size=(2, n_envs, 3)).astype(np.float32)
        dones = random.random(n_envs) < 0.15
        infos = [{"TimeLimit.truncated": bool(done and random.random() < 0.5)} for done in dones]
        buffer.add(*observations, random.normal(size=(n_envs, 2)), random.normal(size=n_envs), dones, infos)
    expected = np.zeros((2, 3000, buffer.columns.width), np.float32)
    drawn = np.zeros_like(expected)
    np.random.seed(1)
    for rows in expected:
        buffer.gather(buffer.draw(3000)[0], rows)
    np.random.seed(1)
    sample(buffer, drawn)
    np.testing.assert_allclose(drawn, expected, rtol=1e-6, atol=1e-6)
    lengths = np.round(np.log(drawn[..., buffer.columns.continuation].clip(1e-9)) / np.log(0.9))
    assert set(np.unique(lengths)) >= {1, 2, 3, 4}


@pytest.mark.parametrize("stored", [1, 2, 3, 64, 65, 499, 500])
def test_every_number_of_stored_transitions(stored):
    policy = make_policy()
    buffer = PackedReplayBuffer(500, policy.observation_space, policy.action_space, "cpu")
    rows = np.arange(stored, dtype=np.float32)[:, None]
    for row in rows:
        buffer.add(np.tile(row, (1, 3)), np.zeros((1, 3)), np.zeros((1, 2)), np.zeros(1), np.array([False]), [{}])
    drawn = np.zeros((1, 2000, buffer.columns.width), np.float32)
    np.random.seed(1)
    sample(buffer, drawn)
    np.random.seed(1)
    np.testing.assert_array_equal(drawn[0, :, 0], np.random.randint(0, stored, 2000))


def test_not_every_buffer_is_supported():
    policy, sampler = make_policy(), RowSampler()
    arguments = (10, policy.observation_space, policy.action_space, "cpu")
    assert not sampler.supports(PackedReplayBuffer(*arguments), None)
    assert not sampler.supports(PackedReplayBuffer(*arguments, optimize_memory_usage=True), None)
    buffer = make_buffer(policy)
    assert sampler.supports(buffer, None)
    buffer.sample = buffer.sample
    assert not sampler.supports(buffer, None)


def test_threads_share_the_generator():
    """Two threads draw at once, one of them by NumPy: the generator's state stays whole."""
    buffer = make_buffer(make_policy())
    batches = np.zeros((1, 64, buffer.columns.width), np.float32)

    def by_numpy():
        for _ in range(2000):
            np.random.randint(0, 100, size=1000)

    thread = threading.Thread(target=by_numpy)
    thread.start()
    while thread.is_alive():
        sample(buffer, batches)
    assert 0 <= np.random.get_state()[2] <= 624
