"""
Matrix products on the fastest library the machine has: MKL, oneDNN or OpenBLAS, chosen by measuring each shape.

torch multiplies by MKL, and by oneDNN if ``torch.backends.mkldnn.matmul.fp32_precision`` allows bf16. Where the processor
has no bf16 matrix unit, oneDNN still multiplies in full fp32, and large products are faster that way; where it has one, the
result is coarser. So a product goes there only if it is measured both faster and as exact as MKL's. OpenBLAS is what NumPy
multiplies by: for products with few rows or columns, as of a first layer's weights, it takes a fraction of MKL's time.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch as th

from sb3_ddpg_scratch.tuning import remembered_choice, tuning_enabled

# oneDNN's own cost per call outweighs all it could save below about this many multiplications.
SMALLEST_PRODUCT = 2**21
# Products with so few rows or columns may go to OpenBLAS; it would share out larger ones among threads of its own.
NARROW = 32
MKL, ONEDNN, OPENBLAS = LIBRARIES = ("mkl", "onednn", "openblas")

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


class Libraries:
    """Which library torch multiplies by at present; its global setting is switched only where that changes."""

    def __init__(self) -> None:
        self.onednn = False

    def begin(self) -> None:
        """Before the first product of a series."""
        self.onednn = False
        use_onednn(False)

    def switch(self, onednn: bool) -> None:
        """
        :param onednn: whether the next product goes to oneDNN
        """
        use_onednn(onednn)
        self.onednn = onednn


class Product:
    """
    ``out = left @ right``, or ``bias + left @ right``, with operands, result and library fixed beforehand.

    :param libraries: shared by all products of a series
    :param left: left operand, shape ``(rows, inner)``
    :param right: right operand, shape ``(inner, columns)``
    :param out: where the result is written, shape ``(rows, columns)``
    :param form: how the operands lie in memory: "nn" as they are, "nt" the right one transposed, "tn" the left one
    :param bias: added to each row, shape ``(columns,)``
    """

    def __init__(
        self,
        libraries: Libraries,
        left: th.Tensor,
        right: th.Tensor,
        out: th.Tensor,
        form: str,
        bias: th.Tensor | None = None,
    ) -> None:
        (rows, inner), columns = left.shape, right.shape[1]
        library = fastest_library(rows, inner, columns, form, with_bias=bias is not None)
        self.libraries = libraries
        self.onednn = library == ONEDNN
        self.operands = (left, right) if bias is None else (bias, left, right)
        self.out = out
        self.arrays = (left.numpy(), right.numpy(), out.numpy()) if library == OPENBLAS else None
        self.multiply = th.mm if bias is None else th.addmm

    def __call__(self) -> None:
        """Multiply what the operands hold at present."""
        if self.arrays is not None:
            np.dot(*self.arrays)
            return
        if self.onednn is not self.libraries.onednn:
            self.libraries.switch(self.onednn)
        self.multiply(*self.operands, out=self.out)


def fastest_library(rows: int, inner: int, columns: int, form: str = "nn", with_bias: bool = False) -> str:
    """
    Which library multiplies ``(rows, inner)`` by ``(inner, columns)`` fastest, and as exactly as MKL.

    Measured once for each shape and number of threads; remembered for this machine, so that a training with the same seed
    takes the same path the next time.

    :param rows: rows of the left operand
    :param inner: columns of the left operand
    :param columns: columns of the right operand
    :param form: see :class:`Product`
    :param with_bias: whether a bias is added, which OpenBLAS does not do on the way
    :return: :data:`MKL`, :data:`ONEDNN` or :data:`OPENBLAS`
    """
    if rows * inner * columns >= SMALLEST_PRODUCT and th.backends.mkldnn.is_available():
        rival = ONEDNN
    elif min(rows, columns) <= NARROW and not with_bias:
        rival = OPENBLAS
    else:
        return MKL
    if not tuning_enabled():
        return MKL
    key = f"product {form} {rows}x{inner}x{columns} threads={th.get_num_threads()}"
    return remembered_choice(key, lambda: rival if _rival_is_better(rival, rows, inner, columns, form) else MKL)


def _rival_is_better(rival: str, rows: int, inner: int, columns: int, form: str) -> bool:
    generator = th.Generator().manual_seed(0)
    left = th.randn((inner, rows) if form == "tn" else (rows, inner), generator=generator)
    right = th.randn((columns, inner) if form == "nt" else (inner, columns), generator=generator)
    left, right = left.t() if form == "tn" else left, right.t() if form == "nt" else right
    out = th.empty(rows, columns)
    arrays = (left.numpy(), right.numpy(), out.numpy())
    exact = left.double() @ right.double()
    times: dict[str, list[float]] = {MKL: [], rival: []}
    errors: dict[str, float] = {}
    with settings_kept():
        for repeat in range(8):
            for library, spent in times.items():
                use_onednn(library == ONEDNN)
                begun = time.perf_counter()
                if library == OPENBLAS:
                    np.dot(*arrays)
                else:
                    th.mm(left, right, out=out)
                if repeat > 1:
                    spent.append(time.perf_counter() - begun)
                errors[library] = (out.double() - exact).abs().max().item()
    as_exact = errors[rival] <= 4 * errors[MKL]
    return as_exact and min(times[rival]) < 0.95 * min(times[MKL])
