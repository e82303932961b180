"""
Matrix products on the fastest library the machine has: MKL, oneDNN or OpenBLAS, chosen by measuring each shape.

torch multiplies by MKL, and by oneDNN if ``torch.backends.mkldnn.matmul.fp32_precision`` allows bf16. Where the processor
has no bf16 matrix unit, oneDNN still multiplies in full fp32, and large products are faster that way; where it has one, the
result is coarser. So a product goes there only if it is measured both faster and as exact as MKL's. OpenBLAS is what NumPy
multiplies by: for small products, and for those with few rows or columns, as of a first layer's weights, it takes less time.

In a training, other work fills the caches between one call of a product and the next; so it does while they are measured.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from statistics import median

import numpy as np
import torch as th

from sb3_ddpg_scratch.tuning import remembered_choice, tuning_enabled

# oneDNN's own cost per call outweighs all it could save below about this many multiplications.
SMALLEST_PRODUCT = 2**21
# Products of so few multiplications, or with so few rows or columns, may go to OpenBLAS; it would share out larger ones among
# threads of its own.
SMALL = 2**18
NARROW = 32
# Bytes of other memory that are written to before a product is timed: more than a core's own cache holds.
OTHER_WORK = 2**21
MKL, ONEDNN, OPENBLAS = LIBRARIES = ("mkl", "onednn", "openblas")
# How a library's time has to compare with MKL's. Small updates gain from one library throughout: its code stays in the caches.
HANDICAP = {ONEDNN: 0.95, OPENBLAS: 1.2}

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
    :param library: :data:`MKL`, :data:`ONEDNN` or :data:`OPENBLAS`; the fastest if not given
    """

    def __init__(
        self,
        libraries: Libraries,
        left: th.Tensor,
        right: th.Tensor,
        out: th.Tensor,
        form: str,
        bias: th.Tensor | None = None,
        library: str | None = None,
    ) -> None:
        (rows, inner), columns = left.shape, right.shape[1]
        if library is None:
            # NumPy writes only to arrays without gaps.
            library = fastest_library(rows, inner, columns, form, bias is not None) if out.is_contiguous() else MKL
        self.libraries = libraries
        self.onednn = library == ONEDNN
        self.operands = (left, right) if bias is None else (bias, left, right)
        self.out = out
        self.arrays = (left.numpy(), right.numpy(), out.numpy()) if library == OPENBLAS else None
        self.bias = None if bias is None else bias.numpy()
        self.multiply = th.mm if bias is None else th.addmm

    def __call__(self) -> None:
        """Multiply what the operands hold at present."""
        if self.arrays is not None:
            np.dot(*self.arrays)
            if self.bias is not None:
                np.add(self.arrays[2], self.bias, out=self.arrays[2])
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
    multiplications = rows * inner * columns
    if multiplications >= SMALLEST_PRODUCT and th.backends.mkldnn.is_available():
        rival = ONEDNN
    elif multiplications <= SMALL or (min(rows, columns) <= NARROW and not with_bias):
        rival = OPENBLAS
    else:
        return MKL
    if not tuning_enabled():
        return MKL
    key = f"product {form}{' with bias' if with_bias else ''} {rows}x{inner}x{columns} threads={th.get_num_threads()}"
    return remembered_choice(key, lambda: rival if _rival_is_better(rival, rows, inner, columns, form, with_bias) else MKL)


def _rival_is_better(rival: str, rows: int, inner: int, columns: int, form: str, with_bias: bool) -> bool:
    generator = th.Generator().manual_seed(0)
    left = th.randn((inner, rows) if form == "tn" else (rows, inner), generator=generator)
    right = th.randn((columns, inner) if form == "nt" else (inner, columns), generator=generator)
    left, right = left.t() if form == "tn" else left, right.t() if form == "nt" else right
    out, bias = th.empty(rows, columns), th.zeros(columns) if with_bias else None
    exact = left.double() @ right.double()
    products = {library: Product(Libraries(), left, right, out, form, bias, library) for library in (MKL, rival)}
    elsewhere = np.zeros(OTHER_WORK, np.uint8)
    times: dict[str, list[float]] = {MKL: [], rival: []}
    errors: dict[str, float] = {}
    with settings_kept():
        for repeat in range(8):
            for library, multiply in products.items():
                use_onednn(library == ONEDNN)
                elsewhere += 1
                begun = time.perf_counter()
                multiply()
                if repeat > 1:
                    times[library].append(time.perf_counter() - begun)
                errors[library] = (out.double() - exact).abs().max().item()
    as_exact = errors[rival] <= 4 * errors[MKL]
    return as_exact and median(times[rival]) < HANDICAP[rival] * median(times[MKL])
