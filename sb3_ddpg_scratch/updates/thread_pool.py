"""Threads that compute together, in compiled code that releases Python's global lock."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

Result = TypeVar("Result")

_threads: ThreadPoolExecutor | None = None


def _forget_threads() -> None:
    """A forked process has none of the threads."""
    global _threads
    _threads = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run_together(tasks: Sequence[Callable[[], Result]]) -> list[Result]:
    """Run independent tasks at the same time, the first in this thread; returns or raises only once none is running."""
    global _threads
    if _threads is None:
        _threads = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="sb3_ddpg_scratch")
    others = [_threads.submit(task) for task in tasks[1:]]
    try:
        first = tasks[0]()
        return [first, *(other.result() for other in others)]
    finally:
        wait(others)
