"""
Python's own unpickler with each instruction replaced that could call something of the file's choice: calls go to
:data:`~sb3_ddpg_scratch.model_file.allowlist.CALLS` alone, and instances get their attributes without their constructor.
"""

import pickle
import sys
from collections import OrderedDict, deque
from enum import Enum
from struct import unpack
from typing import Any, BinaryIO, ClassVar

import numpy as np
from numpy.random import BitGenerator, Generator, SeedSequence

from sb3_ddpg_scratch.model_file import arrays
from sb3_ddpg_scratch.model_file.allowlist import Call, Handle, look_up

_STATE_SETTERS: tuple[tuple[type, Any], ...] = (
    (np.ndarray, arrays.set_array_state),
    (np.dtype, arrays.set_dtype_state),
    (BitGenerator, arrays.set_bit_generator_state),
    (Generator, arrays.set_generator_state),
    (SeedSequence, arrays.set_seed_sequence_state),
)


# The one written in C lets no instruction be replaced.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]


class RefusedError(Exception):
    """A pickle that asks for more than data."""


class _Bounded:
    """A file that is never asked for more than it has: some kinds of files allocate all of it before they look."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise RefusedError(f"it declares {size} bytes and has {self._size} in all")
        return self._file.read(size)


class DataUnpickler(_PythonUnpickler):
    """Reads a pickle of what :mod:`~sb3_ddpg_scratch.model_file.allowlist` lists."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BinaryIO, size: int, classes_are_values: bool = False) -> None:
        super().__init__(_Bounded(file, size), fix_imports=False)
        self._size = size
        self._classes_are_values = classes_are_values
        # The instances whose attributes have not been set yet, by identity; kept alive so that no other takes their place.
        self._unset: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = look_up(module, name, self._classes_are_values)
        if found is None:
            unknown = f"it names {module}.{name}, which is not among the types that are read as data"
            hint = "" if module in sys.modules else f", and {module} is not imported: if it is your own, import it first"
            raise RefusedError(unknown + hint)
        return found

    def _call(self) -> None:
        arguments = self.stack.pop()
        target = self.stack[-1]
        kind = target.kind if isinstance(target, Handle) else target
        if type(arguments) is not tuple:
            raise RefusedError("it calls something without arguments")
        if isinstance(target, Call):
            self.stack[-1] = target.function(*arguments)
        elif isinstance(kind, type) and issubclass(kind, Enum) and len(arguments) == 1:
            self.stack[-1] = kind(arguments[0])
        else:
            raise RefusedError(f"it calls {_name(kind)}, which is not called to read data")

    def _new(self) -> None:
        arguments, target = self.stack.pop(), self.stack.pop()
        kind: Any = target.kind if isinstance(target, Handle) else target
        if type(arguments) is not tuple or not isinstance(kind, type):
            raise RefusedError("it makes an instance of no class")
        if issubclass(kind, tuple) and hasattr(kind, "_fields") and len(arguments) == len(kind._fields):
            self.append(tuple.__new__(kind, arguments))
            return
        if arguments or kind.__new__ is not object.__new__:
            raise RefusedError(f"it makes an instance of {_name(kind)}, which is more than data")
        made: Any = object.__new__(kind)
        self._unset[id(made)] = made
        self.append(made)

    def _build(self) -> None:
        state = self.stack.pop()
        target = self.stack[-1]
        for kind, set_state in _STATE_SETTERS:
            if isinstance(target, kind):
                set_state(target, state)
                return
        if self._unset.pop(id(target), None) is None:
            raise RefusedError(f"it sets attributes of {_name(target)}, which it has not made")
        _restore(target, state)

    def _append(self) -> None:
        item = self.stack.pop()
        self._container(list, deque).append(item)

    def _extend(self) -> None:
        items = self.pop_mark()
        self._container(list, deque).extend(items)

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._container(dict, OrderedDict)[key] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        self._container(dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))

    def _add_items(self) -> None:
        items = self.pop_mark()
        self._container(set).update(items)

    def _container(self, *kinds: type) -> Any:
        target = self.stack[-1]
        if type(target) not in kinds:
            raise RefusedError(f"it puts items into {_name(target)}")
        return target

    def _bytearray(self) -> None:
        (length,) = unpack("<Q", self.read(8))
        # The array is made before its content is seen.
        if length > self._size:
            raise RefusedError(f"it declares {length} bytes and has {self._size} in all")
        content = bytearray(length)
        self.readinto(content)
        self.append(content)

    def _refuse(self) -> None:
        raise RefusedError("it uses instructions that no model needs (old-style instances, extensions, outside objects)")

    dispatch[pickle.REDUCE[0]] = _call
    dispatch[pickle.NEWOBJ[0]] = _new
    dispatch[pickle.BUILD[0]] = _build
    dispatch[pickle.APPEND[0]] = _append
    dispatch[pickle.APPENDS[0]] = _extend
    dispatch[pickle.SETITEM[0]] = _set_item
    dispatch[pickle.SETITEMS[0]] = _set_items
    dispatch[pickle.ADDITEMS[0]] = _add_items
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_code[0]] = _refuse


def _restore(target: Any, state: Any) -> None:
    kind = type(target)
    if type(state) is not dict or not all(type(name) is str and name.isidentifier() for name in state):
        raise RefusedError(f"the attributes of {_name(target)} are not a dict of names")
    for name in state:
        # An attribute would stand before the method of that name.
        if name.startswith("__") or callable(getattr(kind, name, None)):
            raise RefusedError(f"it replaces {_name(target)}.{name}")
    set_state = getattr(kind, "__setstate__", None)
    if set_state is not None:
        set_state(target, state)
    else:
        target.__dict__.update(state)


def _name(thing: Any) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"
