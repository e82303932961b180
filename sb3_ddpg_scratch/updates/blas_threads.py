"""The number of threads that compiled matrix products use."""

import ctypes
import os
import threading
from collections.abc import Callable

from threadpoolctl import ThreadpoolController

_lock = threading.Lock()
_inside = 0
_libraries: list[tuple[Callable[[], int], Callable[[int], object]]] = []
_before: list[tuple[Callable[[int], object], int]] = []


class _OneBlasThread:
    """
    Within this context, ``np.dot`` in compiled code uses a single thread. OpenBLAS would wake others for products that take
    microseconds, and they keep their cores busy for some 25 milliseconds after each. The setting applies to SciPy's products
    in the whole process: the first to enter changes it, the last to leave restores it.
    """

    def __enter__(self) -> None:
        global _inside
        with _lock:
            if _inside == 0:
                _enter()
            _inside += 1

    def __exit__(self, *_: object) -> None:
        global _inside
        with _lock:
            _inside -= 1
            if _inside == 0:
                _restore()


one_blas_thread = _OneBlasThread()


def _enter() -> None:
    global _libraries
    if not _libraries:
        _libraries = _find_blas()
    for get_threads, set_threads in _libraries:
        before = get_threads()
        if before != 1:
            set_threads(1)
            _before.append((set_threads, before))


def _restore() -> None:
    while _before:
        set_threads, before = _before.pop()
        set_threads(before)


def _leave_in_child() -> None:
    """None of the threads that were inside exist in a forked process."""
    global _inside, _lock
    _lock = threading.Lock()
    if _inside:
        _inside = 0
        _restore()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_in_child)


def _find_blas() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """
    Functions to get and set the threads of the OpenBLAS behind SciPy, which compiled code calls. NumPy may bring one of its
    own, with 64-bit integers, whose threads are its users' affair.
    """
    found = []
    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        # The controller looks these up at every call, which takes longer than the call.
        functions = ctypes.CDLL(library.filepath)
        for form in ("scipy_openblas_{}_num_threads", "openblas_{}_num_threads"):
            getter, setter = (getattr(functions, form.format(verb), None) for verb in ("get", "set"))
            if getter is not None and setter is not None:
                found.append((getter, setter))
    return found
