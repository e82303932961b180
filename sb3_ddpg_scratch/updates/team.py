"""Threads of this process that compute together: compiled code, which does not hold Python's lock."""

import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")

# No limit that is ever reached: tasks wait for one another, so that none must wait for a thread.
MOST_THREADS = 2**16

_threads: ThreadPoolExecutor | None = None


def _forget_threads() -> None:
    """In a forked process: threads are not copied."""
    global _threads
    _threads = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def together(task: Callable[[int], Result], count: int, abandon: Callable[[], None]) -> list[Result]:
    """
    Perform a task several times at once, the first time in this thread.

    :param task: takes its number, from 0
    :param count: how often
    :param abandon: called if one of them does not begin or is interrupted: tells those that wait for it to return
    :return: the results, in order
    """
    global _threads
    if _threads is None:
        # Threads come into being as they are needed, and wait for the next task without taking time.
        _threads = ThreadPoolExecutor(MOST_THREADS, thread_name_prefix="sb3_ddpg_scratch")

    def perform(number: int) -> Result:
        try:
            return task(number)
        except BaseException:
            abandon()
            raise

    others: list[Future[Result]] = []
    try:
        for number in range(1, count):
            others.append(_threads.submit(perform, number))
        first = task(0)
        return [first, *(other.result() for other in others)]
    except BaseException:
        abandon()
        wait(others)
        raise
