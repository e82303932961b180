"""Compiled updates whose batch several threads share: when they do, and that none is left waiting for another."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch as th
from hypothesis import given, settings
from hypothesis import strategies as st
from test_handwritten import SharedUpdater, largest_difference, make_buffer, make_policy, networks_of, state_of, train
from threadpoolctl import threadpool_info, threadpool_limits
from torch import nn

from sb3_ddpg_scratch.replay import PackedReplayBuffer
from sb3_ddpg_scratch.updates import kernels, team
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater
from sb3_ddpg_scratch.updates.compiled_actor import CompiledActor
from sb3_ddpg_scratch.updates.interface import UpdateSettings
from sb3_ddpg_scratch.updates.thread_pool import run_together


@pytest.fixture
def torch_threads():
    before = th.get_num_threads()
    yield th.set_num_threads
    th.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "net_arch", "batch_size", "shares"),
    [
        (2, [256, 256], 256, 2),
        (1, [256, 256], 256, 1),
        (8, [256, 256], 256, 8),
        # 32 rows for each share at least.
        (8, [400, 300], 100, 3),
        # Too little to do for two.
        (2, [64, 64], 64, 1),
    ],
)
def test_how_many_threads_share_a_batch(torch_threads, monkeypatch, threads, net_arch, batch_size, shares):
    monkeypatch.setattr(team, "usable_cores", lambda: 8)
    torch_threads(threads)
    updater = train(CompiledUpdater, make_policy(net_arch=net_arch), 1, batch_size=batch_size)
    assert len(updater._team) == shares


def test_no_more_threads_than_cores(torch_threads, monkeypatch):
    """They would wait for one another in turn."""
    monkeypatch.setattr(team, "usable_cores", lambda: 1)
    torch_threads(8)
    assert len(train(CompiledUpdater, make_policy(net_arch=[256, 256]), 1, batch_size=256)._team) == 1


def test_the_number_of_threads_may_change_between_updates(torch_threads, monkeypatch):
    monkeypatch.setattr(team, "usable_cores", lambda: 8)
    reference, policy = (make_policy(net_arch=[128, 128]) for _ in range(2))
    torch_threads(1)
    train(CompiledUpdater, reference, 9, batch_size=200)
    buffer, settings = make_buffer(policy), UpdateSettings(gamma=0.95, tau=0.01)
    updater, networks = CompiledUpdater(), networks_of(policy)
    np.random.seed(1)
    for number in range(9):
        torch_threads(1 + number % 3)
        assert updater.objection(networks) is None
        updater.train(networks, buffer, 1, 200, settings, number)
        assert len(updater._team) == 1 + number % 3
    assert largest_difference(state_of(policy), state_of(reference), optimizers=False) < 1e-5


def test_the_same_seed_gives_the_same_bits():
    """Threads finish in any order; what they compute is added up in one."""
    first, second = make_policy(net_arch=[40, 30]), make_policy(net_arch=[40, 30])
    for policy in (first, second):
        train(SharedUpdater, policy, 60, batch_size=64, at_once=20, max_grad_norm=0.1)
    assert largest_difference(state_of(first), state_of(second)) == 0


def blas_threads():
    """Of the OpenBLAS behind SciPy, which compiled code calls; NumPy's own has 64-bit integers."""
    libraries = [library for library in threadpool_info() if library["internal_api"] == "openblas"]
    return [library["num_threads"] for library in libraries if "openblas64_" not in library["filepath"]]


def test_no_update_and_no_action_wakes_threads_of_blas(monkeypatch):
    """They would keep cores busy that the update's own threads need."""
    policy, seen = make_policy(), []
    updater, actor = train(CompiledUpdater, policy, 1), CompiledActor()
    assert actor.objection(policy.actor) is None
    actor.act(np.zeros((8, 3), np.float32), None)
    with threadpool_limits(2):
        before = blas_threads()
        assert set(before) == {2}
        kernel = kernels.advance
        monkeypatch.setattr(kernels, "advance", lambda *args: seen.extend(blas_threads()) or kernel(*args))
        actor.act(np.zeros((8, 3), np.float32), None)
        assert len(seen) == len(before)
        updater.train(networks_of(policy), make_buffer(policy), 1, 16, UpdateSettings(gamma=0.95, tau=0.01), 0)
        assert len(seen) == 2 * len(before)
        assert set(seen) == {1}
        assert blas_threads() == before


def test_several_models_train_at_once():
    """More threads wait for one another than there are cores."""
    alone, policies = make_policy(), [make_policy() for _ in range(6)]
    buffer = make_buffer(alone)
    indices = buffer.draw(16, 50)

    class Fixed(PackedReplayBuffer):
        def draw(self, batch_size, n_batches=1):
            return indices[:n_batches]

    buffer.__class__ = Fixed
    settings = UpdateSettings(gamma=0.95, tau=0.01)

    def learn(policy):
        updater, networks = SharedUpdater(), networks_of(policy)
        for number in range(20):
            assert updater.objection(networks) is None
            updater.train(networks, buffer, 1, 16, settings, number)

    learn(alone)
    threads = [threading.Thread(target=learn, args=(policy,)) for policy in policies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert all(largest_difference(state_of(policy), state_of(alone)) == 0 for policy in policies)


def _learn_and_send(policy, connection):
    train(SharedUpdater, policy, 3)
    connection.send(True)


def test_a_forked_process_has_threads_of_its_own():
    train(SharedUpdater, make_policy(), 3)
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_learn_and_send, args=(make_policy(), sending), daemon=True)
    process.start()
    try:
        assert receiving.poll(60)
    finally:
        process.kill()


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_an_update_that_stops_before_it_begins_leaves_the_networks_as_they_were(monkeypatch, where):
    """By Ctrl-C in this thread, or since another one cannot start: no thread is left behind, and the next update is made."""
    policy = make_policy()
    updater, buffer, settings = SharedUpdater(), make_buffer(policy), UpdateSettings(gamma=0.95, tau=0.01)
    networks = networks_of(policy)
    assert updater.objection(networks) is None
    updater.train(networks, buffer, 1, 16, settings, 0)
    before, kernel, main = state_of(policy), kernels.advance, threading.get_ident()

    def stopped(*args):
        here = threading.get_ident() == main
        if where == "here" and here and args[3][kernels.UPDATES]:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        if where == "elsewhere" and not here:
            raise MemoryError("no more")
        return kernel(*args)

    monkeypatch.setattr(kernels, "advance", stopped)
    with pytest.raises(KeyboardInterrupt if where == "here" else MemoryError):
        updater.train(networks, buffer, 3, 16, settings, 1)
    assert largest_difference(state_of(policy), before) == 0
    monkeypatch.undo()
    updater.train(networks, buffer, 3, 16, settings, 1)
    assert largest_difference(state_of(policy), before) > 0


def test_a_thread_that_fails_is_waited_for_and_keeps_nobody_waiting():
    done, stopped = [], threading.Event()

    def slow():
        # As in compiled code, which waits for the others.
        assert stopped.wait(20)
        done.append(True)

    def fails():
        raise MemoryError("no more")

    for tasks in ([slow, fails], [fails, slow], [slow, fails, slow]):
        done.clear()
        stopped.clear()
        with pytest.raises(MemoryError, match="no more"):
            run_together(tasks, stopped.set)
        assert done == [True] * tasks.count(slow)


def test_tasks_run_at_the_same_time():
    barrier = threading.Barrier(3, timeout=20)
    run_together([barrier.wait] * 3, barrier.abort)


@given(
    layers=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch_size=st.integers(3, 70),
    action_dim=st.integers(1, 7),
    n_critics=st.integers(1, 2),
    norm=st.sampled_from([None, "layer"]),
    scale_factor=st.sampled_from([None, 1, 5]),
    activation=st.sampled_from([nn.ReLU, nn.Mish]),
)
@settings(max_examples=30, deadline=None)
def test_a_call_stays_within_its_memory(layers, batch_size, action_dim, n_critics, norm, scale_factor, activation):
    kwargs = {"n_critics": n_critics, "norm": norm, "activation_fn": activation, "action_dim": action_dim}
    if scale_factor is not None:
        layers = [layers[0]] * len(layers)
        kwargs |= {"scale_factor": scale_factor, "norm": None, "normalize_observations": True}
    frames, actor = [], CompiledActor()
    for kind in (CompiledUpdater, SharedUpdater):
        policy = make_policy(net_arch=layers, **kwargs)
        frames.append(train(kind, policy, 1, batch_size=batch_size).frame)
    assert actor.objection(policy.actor) is None
    actor.act(np.zeros((batch_size, 3), np.float32), None)
    for table in (frame.table for frame in [*frames, actor._frame]):
        assert table[kernels.SCRATCH] < table[kernels.MOST] <= table[kernels.LIMIT]
