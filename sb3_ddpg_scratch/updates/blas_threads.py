"""How many threads the matrix products of NumPy and SciPy take."""

import ctypes
from collections.abc import Callable

from threadpoolctl import ThreadpoolController


class OneBlasThread:
    """
    A context within which ``np.dot``, in compiled code as well, computes by itself.

    OpenBLAS wakes other threads for products that are over in microseconds, and they keep their cores busy for some 25
    milliseconds after each, while the threads that share an update wait.
    """

    def __init__(self) -> None:
        self._libraries = _find_blas()
        self._before: list[int] = []

    def __enter__(self) -> None:
        self._before = [get_threads() for get_threads, _ in self._libraries]
        self._set(1)

    def __exit__(self, *_: object) -> None:
        self._set(None)

    def _set(self, threads: int | None) -> None:
        for (_, set_threads), before in zip(self._libraries, self._before, strict=True):
            if before != 1:
                set_threads(threads or before)


def _find_blas() -> list[tuple[Callable[[], int], Callable[[int], object]]]:
    """How many threads each loaded OpenBLAS uses, and how to set that: NumPy and SciPy bring one each, or share one."""
    found = []
    for library in ThreadpoolController().select(internal_api="openblas").lib_controllers:
        # The controller looks these up anew at each call, which takes longer than the call.
        functions = ctypes.CDLL(library.filepath)
        for form in ("scipy_openblas_{}_num_threads", "openblas_{}_num_threads"):
            for suffix in ("", "64_"):
                getter, setter = (getattr(functions, form.format(verb) + suffix, None) for verb in ("get", "set"))
                if getter is not None and setter is not None:
                    found.append((getter, setter))
    return found
