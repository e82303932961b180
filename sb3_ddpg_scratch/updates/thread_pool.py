"""Threads that compute together, in compiled code that releases Python's global lock."""

import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait

MOST_TASKS = 16

_threads: ThreadPoolExecutor | None = None
# Tasks wait for one another, so that all of them must run.
_lock = threading.Lock()


def _forget_threads() -> None:
    """A forked process has none of the threads."""
    global _threads, _lock
    _threads, _lock = None, threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_threads)


def run_together(tasks: Sequence[Callable[[], None]], stop: Callable[[], None]) -> None:
    """
    Run tasks at the same time, the first in this thread; returns or raises only once none is running. ``stop`` is called when
    one fails, or before it begins, so that no other one waits for it.
    """
    global _threads

    def run(task: Callable[[], None]) -> None:
        try:
            task()
        except BaseException:
            stop()
            raise

    with _lock:
        others = []
        try:
            _threads = _threads or ThreadPoolExecutor(MOST_TASKS - 1, thread_name_prefix="sb3_ddpg_scratch")
            for task in tasks[1:]:
                others.append(_threads.submit(run, task))
            tasks[0]()
        except BaseException:
            stop()
            raise
        finally:
            wait(others)
        for other in others:
            other.result()
