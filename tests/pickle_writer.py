"""Pickles written by hand: they name classes and functions that need not be installed, and ask for anything."""

import io
import pickle
from typing import Any

import numpy as np


def global_of(module: str, name: str) -> bytes:
    """The instruction that names something in a module, by protocol 4."""
    return b"\x8c" + bytes([len(module)]) + module.encode() + b"\x8c" + bytes([len(name)]) + name.encode() + b"\x93"


class Named:
    """A class or function, by its name in the file."""

    def __init__(self, module: str, name: str) -> None:
        self.module, self.name = module, name


class Made:
    """What a function, or a class's ``__new__``, returned for these arguments; then its state."""

    def __init__(self, maker: Any, arguments: tuple[Any, ...] = (), state: Any = None, instance: bool = False) -> None:
        self.maker, self.arguments, self.state, self.instance = maker, arguments, state, instance


class Filled(Made):
    """A function, whose state is set by a call whose result is dropped, as a pickler's sixth argument to ``save_reduce``."""

    def __init__(self, made: Made, state: dict[str, Any]) -> None:
        super().__init__(made.maker, made.arguments)
        self.names = state


class _Writer(pickle._Pickler):  # type: ignore[name-defined,misc]
    def save(self, value: Any, save_persistent_id: bool = True) -> None:
        if isinstance(value, Named):
            self.write(global_of(value.module, value.name))
        elif isinstance(value, Filled):
            self.save(Made(value.maker, value.arguments))
            # The function stays in the memo while it is filled; the result of that is dropped.
            self.write(pickle.BINPUT + b"\xfa")
            self.save(Named("cloudpickle.cloudpickle_fast", "_function_setstate"))
            self.write(pickle.BINGET + b"\xfa")
            self.save(({}, value.names))
            self.write(pickle.TUPLE2 + pickle.REDUCE + pickle.POP)
        elif isinstance(value, Made):
            self.save(value.maker)
            self.save(value.arguments)
            self.write(pickle.NEWOBJ if value.instance else pickle.REDUCE)
            if value.state is not None:
                self.save(value.state)
                self.write(pickle.BUILD)
        elif isinstance(value, (set, frozenset)) and any(isinstance(item, Made) for item in value):
            self.write(pickle.EMPTY_SET + pickle.MARK if isinstance(value, set) else pickle.MARK)
            for item in value:
                self.save(item)
            self.write(pickle.ADDITEMS if isinstance(value, set) else pickle.FROZENSET)
        elif isinstance(value, np.ndarray):
            empty = (Named("numpy", "ndarray"), (0,), b"b")
            state = (1, value.shape, value.dtype, False, value.tobytes())
            self.save(Made(Named("numpy.core.multiarray", "_reconstruct"), empty, state))
        else:
            super().save(value, save_persistent_id)


def dumps(value: Any) -> bytes:
    file = io.BytesIO()
    _Writer(file, 4).dump(value)
    return file.getvalue()


def instance(module: str, name: str, **attributes: Any) -> Made:
    return Made(Named(module, name), (), attributes, instance=True)
