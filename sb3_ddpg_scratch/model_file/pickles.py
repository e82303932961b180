"""
Pickles as data: a value in a model's file, a replay buffer, VecNormalize's statistics.

They are read by Python's own unpickler, with every instruction replaced that could call something chosen by the file: only
:data:`~sb3_ddpg_scratch.model_file.allowlist.CALLS` are called, and instances get attributes without a constructor.
"""

import io
import os
import pickle
import pickletools
import sys
from collections import OrderedDict, deque
from contextlib import suppress
from enum import Enum
from pathlib import Path
from struct import unpack
from typing import Any, BinaryIO, ClassVar

import numpy as np
from gymnasium import spaces
from numpy.random import BitGenerator, Generator, RandomState, SeedSequence
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.common.noise import ActionNoise
from stable_baselines3.common.save_util import load_from_pkl, open_path

from sb3_ddpg_scratch.errors import ModelFileError, UnsafeFileError
from sb3_ddpg_scratch.model_file import arrays
from sb3_ddpg_scratch.model_file.allowlist import Handle, is_own, look_up
from sb3_ddpg_scratch.model_file.functions import Call, StoredFunction

_STATE_SETTERS: tuple[tuple[type, Any], ...] = (
    (np.ndarray, arrays.set_array_state),
    (np.dtype, arrays.set_dtype_state),
    (BitGenerator, arrays.set_bit_generator_state),
    (Generator, arrays.set_generator_state),
    (RandomState, arrays.set_random_state),
    (SeedSequence, arrays.set_seed_sequence_state),
)
# In the C version, instructions cannot be replaced.
_PythonUnpickler: Any = pickle._Unpickler  # type: ignore[attr-defined,unused-ignore]
_GYM_NAMES = {"shape": "_shape", "np_random": "_np_random"}
# Known classes whose attributes may be of a class of the user's own, and what that derives from.
_OWN_PARTS: dict[str, type] = {"FloatSchedule": object, "VectorizedActionNoise": ActionNoise}
_FUNCTION = "it is a function, so that the file holds its code"
_BEFORE_THE_NAME = ("_make_skeleton_class", "builtins", "type", "abc", "ABCMeta")
TRUST = "If you trust whoever made the file, {}, which loads as SB3 does and runs code from the file."


class RefusedError(Exception):
    """A pickle that asks for more than data."""


class _Bounded:
    """Rejects reading more than the file has, since some kinds of files would allocate it first."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file, self._size = file, size
        self.readline = file.readline
        self.readinto = file.readinto  # type: ignore[attr-defined]

    def read(self, size: int) -> bytes:
        if size > self._size:
            raise RefusedError(f"it declares {size} bytes and has {self._size} in all")
        return self._file.read(size)


class DataUnpickler(_PythonUnpickler):  # type: ignore[misc]
    """Unpickles only what :mod:`~sb3_ddpg_scratch.model_file.allowlist` lists."""

    dispatch: ClassVar[dict[int, Any]] = dict(_PythonUnpickler.dispatch)

    def __init__(self, file: BinaryIO, size: int, classes_are_values: bool = False, own_classes: bool = True) -> None:
        super().__init__(_Bounded(file, size), fix_imports=False)
        self._size = size
        self._allowed = (classes_are_values, own_classes)
        # Instances whose attributes are not set yet, by identity; kept alive so that no other object gets the same id.
        self._unset: dict[int, Any] = {}

    def find_class(self, module: str, name: str) -> Any:
        found = look_up(module, name, *self._allowed)
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
            # Calling an Enum may call methods of its own.
            _check_keys(arguments)
            self.stack[-1] = kind._value2member_map_[arguments[0]]
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
        if arguments or kind.__new__ is not object.__new__:  # type: ignore[comparison-overlap]
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
        _check_keys([key])
        self._container(dict, OrderedDict)[key] = value

    def _set_items(self) -> None:
        items = self.pop_mark()
        _check_keys(items[::2])
        self._container(dict, OrderedDict).update(zip(items[::2], items[1::2], strict=True))

    def _add_items(self) -> None:
        items = self.pop_mark()
        _check_keys(items)
        self._container(set).update(items)

    def _dict(self) -> None:
        _check_keys(self.stack[::2])
        super().load_dict()

    def _frozenset(self) -> None:
        _check_keys(self.stack)
        super().load_frozenset()

    def _container(self, *kinds: type) -> Any:
        target = self.stack[-1]
        if type(target) not in kinds:
            raise RefusedError(f"it puts items into {_name(target)}")
        return target

    def _bytearray(self) -> None:
        (length,) = unpack("<Q", self.read(8))
        # The array is allocated before its content is read.
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
    dispatch[pickle.DICT[0]] = _dict
    dispatch[pickle.FROZENSET[0]] = _frozenset
    dispatch[pickle.BYTEARRAY8[0]] = _bytearray
    for _code in (
        *(pickle.INST, pickle.OBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4),
        *(pickle.PERSID, pickle.BINPERSID, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER),
    ):
        dispatch[_code[0]] = _refuse


def _check_keys(keys: Any) -> None:
    """Refuse keys and items of sets that call a method of the user's own to be stored."""
    for key in keys:
        if type(key) in (tuple, frozenset):
            _check_keys(key)
        elif not (key is None or isinstance(key, (str, int, float, bytes, np.generic, Enum))):
            raise RefusedError(f"it looks something up by {_name(key)}")


def _restore(target: Any, state: Any) -> None:
    kind = type(target)
    if type(state) is not dict or not all(type(name) is str and name.isidentifier() for name in state):
        raise RefusedError(f"the attributes of {_name(target)} are not a dict of names")
    for name in state:
        # An attribute would shadow the method of that name.
        if name.startswith("__") or callable(getattr(kind, name, None)):
            raise RefusedError(f"it replaces {_name(target)}.{name}")
        # The methods of a known class call those of its attributes.
        value = state[name]
        if is_own(type(value)) and not is_own(kind) and not isinstance(value, _OWN_PARTS.get(kind.__name__, ())):
            raise RefusedError(f"{_name(target)}.{name} cannot be {_name(value)}")
    if isinstance(target, spaces.Space):
        # As gym named them. Its generator, of NumPy's older kind, is of no use to Gymnasium; None makes a new one.
        state = {_GYM_NAMES.get(name, name): value for name, value in state.items()}
        state["_np_random"] = generator if isinstance(generator := state.get("_np_random"), Generator) else None
    elif kind.__name__ in ("NormalActionNoise", "OrnsteinUhlenbeckActionNoise") and not is_own(kind):
        state = {"_dtype": np.float32} | state  # before SB3 1.8
    if any(is_own(cls) and "__setstate__" in vars(cls) for cls in kind.__mro__):
        raise RefusedError(f"{_name(target)}.__setstate__ is code of your own, which is not called for a file")
    set_state = getattr(kind, "__setstate__", None)
    # Buffers are completed once a model has checked what they hold.
    if set_state is not None and not isinstance(target, ReplayBuffer):
        set_state(target, state)
    else:
        target.__dict__.update(state)


def _name(thing: Any) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"{kind.__module__}.{kind.__qualname__}"


def unpickle(file: BinaryIO, size: int, allowed: tuple[bool, bool], path: Any, member: str, key: str, advice: str) -> Any:
    """The value of a data-only pickle; ``advice`` is what to do if it is refused."""
    try:
        value = DataUnpickler(file, size, *allowed).load()
        if isinstance(value, StoredFunction) and (value := value.as_schedule()) is None:
            raise RefusedError(_FUNCTION)
        return value
    except RefusedError as error:
        raise UnsafeFileError(path, str(error), member, key, advice) from error
    # A damaged pickle can cause any error in its reader.
    except Exception as error:
        reason = f"it is not a pickle of data, or it is damaged ({type(error).__name__}: {str(error)[:200]})"
        raise ModelFileError(path, reason, member, key, advice) from error


def texts_in(content: bytes) -> list[str]:
    """The strings in a pickle, including the names of what it needs; nothing is built or called."""
    texts: list[str] = []
    with suppress(Exception):  # a damaged pickle can cause any error
        for _, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                texts.append(argument)
    return texts


def _code_in(texts: list[str]) -> str:
    """A sentence about the class or function stored as code; empty if there is none."""
    if "_make_skeleton_class" in texts:
        after = [text for text in texts[texts.index("_make_skeleton_class") :] if text not in _BEFORE_THE_NAME]
        place = after[after.index("__module__") + 1] if "__module__" in after[:-1] else "a function"
        return f"class {after[0]} is defined in {place}, so that the file holds its code: move it to a module and import that"
    return _FUNCTION if {"_make_function", "LambdaType"} & set(texts) else ""


def unpickle_value(content: bytes, allowed: tuple[bool, bool], path: Any, member: str, key: str) -> Any:
    """A setting's value; ``allowed`` are classes as values, and classes of the user's own."""
    advice = f"Give custom_objects={{{key!r}: ...}} in its place. {TRUST.format('pass trusted=True')}"
    try:
        return unpickle(io.BytesIO(content), len(content), allowed, path, member, key, advice)
    except UnsafeFileError as error:
        code = _code_in(texts_in(content))
        if code:
            raise UnsafeFileError(path, code, member, key, advice) from error
        raise


def read_pickle(path: str | Path | io.BufferedIOBase, verbose: int = 0, trusted: bool = False) -> Any:
    """
    Read a pickle file of replay buffers, statistics, numbers and arrays.

    :param path: the file, with or without ``.pkl``, or an open one
    :param verbose: 2 for warnings about the file's name
    :param trusted: read anything it contains, and run code from it
    :return: its value
    :raises UnsafeFileError: if it asks for more than data
    :raises ModelFileError: if it is damaged
    """
    if trusted:
        return load_from_pkl(path, verbose)
    file: Any = open_path(path, "r", verbose=verbose, suffix="pkl")
    try:
        begin = file.tell()
        size = file.seek(0, os.SEEK_END) - begin
        file.seek(begin)
        return unpickle(file, size, (False, True), path, "", "", TRUST.format("pass trusted=True"))
    finally:
        if isinstance(path, (str, Path)):
            file.close()
