"""
NumPy's arrays, scalars and generators, rebuilt from a pickle's description. NumPy's own functions trust their arguments: a
dtype with made-up flags reads pointers from the file, and a shape alone allocates any amount of memory. All are checked first.
"""

import math
import re
from typing import Any

import numpy as np
from numpy.random import MT19937, PCG64, PCG64DXSM, SFC64, BitGenerator, Generator, Philox, RandomState, SeedSequence
from numpy.random.bit_generator import BitGenerator as _BitGenerator

_PLAIN_DTYPE = re.compile(r"[<>=|]?([biufc]\d{1,2}|[?bBhHiIlLqQefdg]|[SU]\d{1,6}|O8?)")
GENERATORS: dict[str, type[_BitGenerator]] = {kind.__name__: kind for kind in (MT19937, PCG64, PCG64DXSM, SFC64)}
_MT19937_KEY = (624,)
_MAX_POOL = 64


def make_dtype(code: Any, align: Any = False, copy: Any = False) -> np.dtype:
    """A dtype of numbers, text or objects; always a new one, since its byte order may be set next."""
    expect(isinstance(code, str) and _PLAIN_DTYPE.fullmatch(code) is not None, "a dtype")
    return np.dtype(code, copy=True)


def set_dtype_state(dtype: np.dtype, state: Any) -> None:
    """Set a dtype's byte order; everything else must already match."""
    expect(isinstance(state, tuple) and len(state) == 8 and state[1] in ("<", ">", "|", "="), "a dtype's state")
    true_state = np.dtype(dtype.str).__reduce__()[2]
    expect(state[:1] + state[2:] == true_state[:1] + true_state[2:], "a dtype's state")
    dtype.__setstate__(state)  # type: ignore[attr-defined]


def array_from_buffer(buffer: Any, dtype: Any, shape: Any, order: Any, axis_order: Any = None) -> np.ndarray:
    """An array on these bytes; order ``K`` means that its axes are in another order in memory."""
    expect(isinstance(buffer, (bytes, bytearray)) and order in ("C", "F", "K"), "an array's buffer")
    _check_layout(dtype, shape, len(buffer))
    if order != "K" or axis_order is None:
        expect(order != "K", "an array's buffer")
        return np.frombuffer(buffer, dtype).reshape(shape, order=order)
    axes = list(axis_order) if isinstance(axis_order, (list, tuple)) else []
    expect(all(type(axis) is int for axis in axes) and sorted(axes) == list(range(len(shape))), "an array's axes")
    return np.frombuffer(buffer, dtype).reshape(shape).transpose(axes)


def empty_array(subtype: Any, shape: Any, code: Any) -> np.ndarray:
    expect(subtype is np.ndarray and shape == (0,), "an array to be filled")
    return np.empty(0, np.int8)


def set_array_state(array: np.ndarray, state: Any) -> None:
    expect(isinstance(state, tuple) and len(state) == 5 and array.size == 0, "an array's state")
    version, shape, dtype, fortran, content = state
    expect(version == 1 and isinstance(fortran, (bool, int)), "an array's state")
    if isinstance(dtype, np.dtype) and dtype.hasobject:
        expect(isinstance(content, list) and _whole(shape) and math.prod(shape) == len(content), "an array of objects")
    else:
        expect(isinstance(content, bytes), "an array's bytes")
        _check_layout(dtype, shape, len(content))
    array.__setstate__(state)


def make_scalar(dtype: Any, content: Any) -> Any:
    expect(isinstance(content, bytes), "a number's bytes")
    _check_layout(dtype, (), len(content))
    return np.frombuffer(content, dtype)[0]


def make_bit_generator(kind: Any = "PCG64") -> BitGenerator:
    """A NumPy bit generator without a buffer, by class or name, or one that was made already."""
    if isinstance(kind, BitGenerator):
        return kind
    kind = kind.__name__ if isinstance(kind, type) else kind
    expect(isinstance(kind, str) and kind in GENERATORS, "a bit generator")
    return GENERATORS[kind](0)


def set_bit_generator_state(generator: BitGenerator, state: Any) -> None:
    """Set the state, a dict or (since NumPy 2) a dict and the seed sequence."""
    numbers, sequence = state if isinstance(state, tuple) and len(state) == 2 else (state, None)
    expect(isinstance(numbers, dict) and (sequence is None or type(sequence) is SeedSequence), "a generator's state")
    if isinstance(generator, MT19937):
        _check_position(numbers["state"]["key"], numbers["state"]["pos"])
    elif isinstance(generator, Philox):
        position = numbers["buffer_pos"]
        expect(_is_whole(position) and position <= len(numbers["buffer"]) == 4, "a generator's position")
    if sequence is None:
        generator.state = numbers
    else:
        generator.__setstate__((numbers, sequence))  # type: ignore[attr-defined]


def make_generator(bit_generator: Any = "PCG64", constructor: Any = None) -> Generator:
    return Generator(make_bit_generator(bit_generator))


def set_generator_state(generator: Generator, state: Any) -> None:
    if state is not None:
        set_bit_generator_state(generator.bit_generator, state)


def make_random_state(bit_generator: Any = "MT19937", constructor: Any = None) -> RandomState:
    """NumPy's older generator, around a bit generator since NumPy 1.24."""
    return RandomState(make_bit_generator(bit_generator))


def set_random_state(random_state: RandomState, state: Any) -> None:
    """Set the state, a dict or (before NumPy 1.17) a tuple."""
    if state is not None:
        _check_position(*(state[1:3] if isinstance(state, tuple) else (state["state"]["key"], state["state"]["pos"])))
        random_state.set_state(state)


def _check_position(key: Any, position: Any) -> None:
    # NumPy reads the key at any position that it is given.
    fits = isinstance(key, np.ndarray) and key.dtype == np.uint32 and key.shape == _MT19937_KEY
    expect(fits and _is_whole(position) and position <= _MT19937_KEY[0], "a generator's position")


def make_seed_sequence(kind: Any, checksum: Any, state: Any) -> SeedSequence:
    expect(kind is SeedSequence, "a seed sequence")
    sequence = SeedSequence(0)
    if state is not None:
        set_seed_sequence_state(sequence, state)
    return sequence


def set_seed_sequence_state(sequence: SeedSequence, state: Any) -> None:
    expect(isinstance(state, tuple) and len(state) == 5, "a seed sequence's state")
    entropy, children, pool, pool_size, key = state
    plain = entropy is None or _is_whole(entropy) or _whole(entropy)
    plain = plain or (isinstance(entropy, np.ndarray) and entropy.dtype.kind in "iu" and entropy.ndim <= 1)
    expect(plain and _is_whole(children) and _whole(key), "a seed sequence's state")
    expect(_is_whole(pool_size) and 4 <= pool_size <= _MAX_POOL, "a seed sequence's pool")
    fits = isinstance(pool, np.ndarray) and pool.dtype == np.uint32 and pool.shape == (pool_size,)
    expect(fits and pool.flags.c_contiguous, "a seed sequence's pool")
    sequence.__setstate__(state)  # type: ignore[attr-defined]


def _check_layout(dtype: Any, shape: Any, n_bytes: int) -> None:
    expect(isinstance(dtype, np.dtype) and not dtype.hasobject, "an array's dtype")
    shape = (shape,) if _is_whole(shape) else shape
    expect(_whole(shape) and math.prod(shape) * dtype.itemsize == n_bytes, "an array's shape")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _whole(values: Any) -> bool:
    return isinstance(values, (tuple, list)) and all(_is_whole(value) for value in values)


def expect(fits: bool, what: str) -> None:
    if not fits:
        raise ValueError(f"{what} is malformed or unsupported")
