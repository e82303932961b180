"""Compiled updates whose batch several threads share: when they do, and that none is left waiting for another."""

import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
import torch as th
from test_handwritten import SharedUpdater, largest_difference, make_buffer, make_policy, state_of, train
from threadpoolctl import threadpool_info, threadpool_limits

from sb3_ddpg_scratch.updates import kernels
from sb3_ddpg_scratch.updates.analytic import AnalyticUpdater
from sb3_ddpg_scratch.updates.compiled import CompiledUpdater
from sb3_ddpg_scratch.updates.interface import UpdateSettings
from sb3_ddpg_scratch.updates.kernels import ABANDONED, meet
from sb3_ddpg_scratch.updates.team import together


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
def test_how_many_threads_share_a_batch(torch_threads, threads, net_arch, batch_size, shares):
    updater = CompiledUpdater(make_policy(net_arch=net_arch))
    torch_threads(threads)
    assert updater._share_count(batch_size) == shares


def test_the_number_of_threads_may_change_between_updates(torch_threads):
    reference, policy = (make_policy(net_arch=[128, 128]) for _ in range(2))
    train(CompiledUpdater, reference, 9, batch_size=200)
    buffer, settings = make_buffer(policy), UpdateSettings(gamma=0.95, tau=0.01)
    updater = CompiledUpdater(policy)
    np.random.seed(1)
    for number in range(9):
        torch_threads(1 + number % 3)
        updater.train(buffer, 1, 200, settings, number)
        assert len(updater._shares) == 1 + number % 3
    assert largest_difference(state_of(policy), state_of(reference), optimizers=False) < 1e-5


def test_the_same_seed_gives_the_same_bits():
    """Threads finish in any order; what they compute is added up in one."""
    first, second = make_policy(net_arch=[40, 30]), make_policy(net_arch=[40, 30])
    for policy in (first, second):
        train(SharedUpdater, policy, 60, batch_size=64, at_once=20, max_grad_norm=0.1)
    assert largest_difference(state_of(first), state_of(second)) == 0


def blas_threads():
    return [library["num_threads"] for library in threadpool_info() if library["internal_api"] == "openblas"]


@pytest.mark.parametrize("updater_class", [AnalyticUpdater, CompiledUpdater])
def test_no_update_and_no_action_wakes_threads_of_blas(monkeypatch, updater_class):
    """They would keep cores busy that the update's own threads need."""
    policy, seen, dot = make_policy(), [], np.dot
    updater = train(updater_class, policy, 1)

    def watched(*args):
        seen.extend(blas_threads())
        return dot(*args)

    with threadpool_limits(2):
        before = blas_threads()
        assert set(before) == {2}
        monkeypatch.setattr(np, "dot", watched)
        updater.act(np.zeros((8, 3), np.float32))
        assert len(seen) > 0
        # Of the two, what the updater multiplies by.
        kernel = kernels.updates
        monkeypatch.setattr(kernels, "updates", lambda *args: seen.extend(blas_threads()) or kernel(*args))
        updater.train(make_buffer(policy), 1, 16, UpdateSettings(gamma=0.95, tau=0.01), 0)
        assert set(seen) == {1}
        assert blas_threads() == before


def test_several_models_train_at_once():
    """More threads wait for one another than there are cores."""
    alone, policies = make_policy(), [make_policy() for _ in range(6)]
    buffer = make_buffer(alone)
    indices = buffer.draw(16, 50)
    buffer.draw = lambda batch_size, count: indices[:count]
    settings = UpdateSettings(gamma=0.95, tau=0.01)

    def learn(policy):
        updater = SharedUpdater(policy)
        for number in range(20):
            updater.train(buffer, 1, 16, settings, number)

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


def test_an_interrupt_before_an_update_leaves_the_networks_as_they_were(monkeypatch):
    """The other threads do not begin without the first one, and do not wait for it either."""
    policy = make_policy()
    updater, buffer, settings = SharedUpdater(policy), make_buffer(policy), UpdateSettings(gamma=0.95, tau=0.01)
    updater.train(buffer, 1, 16, settings, 0)
    before = state_of(policy)
    kernel, main = kernels.updates, threading.get_ident()

    def interrupted(*args):
        if threading.get_ident() == main:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)
        return kernel(*args)

    monkeypatch.setattr(kernels, "updates", interrupted)
    with pytest.raises(KeyboardInterrupt):
        updater.train(buffer, 1, 16, settings, 1)
    assert largest_difference(state_of(policy), before) == 0
    monkeypatch.undo()
    updater.train(buffer, 1, 16, settings, 1)
    assert largest_difference(state_of(policy), before) > 0


def test_a_thread_that_fails_does_not_leave_the_others_waiting():
    gate = np.zeros(1, np.int64)

    def task(number):
        if number == 1:
            raise MemoryError("no more")
        return meet(gate, 2, 0)

    def abandon():
        gate[0] = ABANDONED

    with pytest.raises(MemoryError, match="no more"):
        together(task, 2, abandon)


def test_all_see_what_all_have_written():
    """1,000 meetings of three threads: each adds what the others wrote at the meeting before."""
    gate, written = np.zeros(1, np.int64), np.zeros((2, 3), np.int64)

    def task(number):
        meeting = 0
        for round_ in range(1000):
            now, before = round_ % 2, 1 - round_ % 2
            written[now, number] = written[before].sum() + 1 if round_ % 10 else 1
            meeting = meet(gate, 3, meeting)
        return meeting, written[now].tolist()

    # Of 3 ones come 3 times 3 + 1, and so on: x -> 3 x + 1, nine times.
    expected = 1
    for _ in range(9):
        expected = 3 * expected + 1
    assert together(task, 3, lambda: None) == [(1000, [expected] * 3)] * 3
