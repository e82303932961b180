"""
Matrix products on the fastest library the machine has: MKL or oneDNN, chosen by measuring each shape.

torch sends fp32 products to oneDNN if ``torch.backends.mkldnn.matmul.fp32_precision`` allows bf16. Where the processor has
no bf16 matrix unit, oneDNN still multiplies in full fp32, and large products are faster that way; where it has one, the
result is coarser. So a product goes there only if it is measured both faster and as exact as MKL's.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch as th

from sb3_ddpg_scratch.tuning import remembered_choice, tuning_enabled

# oneDNN's own cost per call outweighs all it could save below about this many multiplications.
SMALLEST_PRODUCT = 2**21

_matmul = th.backends.mkldnn.matmul  # type: ignore[attr-defined]


def use_onednn(wanted: bool) -> None:
    """
    :param wanted: whether fp32 products shall go to oneDNN
    """
    _matmul.fp32_precision = "bf16" if wanted else "ieee"


@contextmanager
def settings_kept() -> Iterator[None]:
    """Leave torch's global setting as it was, whatever the products in between needed."""
    before = _matmul.fp32_precision
    try:
        yield
    finally:
        _matmul.fp32_precision = before


def onednn_is_better(rows: int, inner: int, columns: int, form: str = "nn") -> bool:
    """
    Whether oneDNN multiplies ``(rows, inner)`` by ``(inner, columns)`` faster than MKL, and as exactly.

    Measured once for each shape and number of threads; remembered for this machine, so that a training with the same seed
    takes the same path the next time.

    :param rows: rows of the left operand
    :param inner: columns of the left operand
    :param columns: columns of the right operand
    :param form: how the operands lie in memory: "nn" as they are, "nt" the right one transposed, "tn" the left one
    :return: whether to use oneDNN
    """
    worth_it = tuning_enabled() and rows * inner * columns >= SMALLEST_PRODUCT
    if not worth_it or not th.backends.mkldnn.is_available():
        return False
    key = f"product {form} {rows}x{inner}x{columns} threads={th.get_num_threads()}"
    return remembered_choice(key, lambda: "onednn" if _measure(rows, inner, columns, form) else "mkl") == "onednn"


def _measure(rows: int, inner: int, columns: int, form: str) -> bool:
    generator = th.Generator().manual_seed(0)
    left = th.randn((inner, rows) if form == "tn" else (rows, inner), generator=generator)
    right = th.randn((columns, inner) if form == "nt" else (inner, columns), generator=generator)
    left, right = left.t() if form == "tn" else left, right.t() if form == "nt" else right
    out = th.empty(rows, columns)
    exact = left.double() @ right.double()
    times: dict[bool, list[float]] = {False: [], True: []}
    errors: dict[bool, float] = {}
    with settings_kept():
        for repeat in range(8):
            for onednn in (False, True):
                use_onednn(onednn)
                begun = time.perf_counter()
                th.mm(left, right, out=out)
                if repeat > 1:
                    times[onednn].append(time.perf_counter() - begun)
                errors[onednn] = (out.double() - exact).abs().max().item()
    as_exact = errors[True] <= 4 * errors[False]
    return as_exact and min(times[True]) < 0.95 * min(times[False])
