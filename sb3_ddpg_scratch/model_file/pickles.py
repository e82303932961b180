"""Pickles as data: a value in a model's file, a replay buffer, VecNormalize's statistics."""

import io
import os
import pickletools
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from stable_baselines3.common.save_util import load_from_pkl, open_path
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from sb3_ddpg_scratch.errors import ModelFileError, UnsafeFileError
from sb3_ddpg_scratch.model_file.data_unpickler import DataUnpickler, RefusedError

_BEFORE_THE_NAME = ("_make_skeleton_class", "builtins", "type", "abc", "ABCMeta")
TRUST = "If you trust whoever made the file, {}, which loads as SB3 does and runs code from the file."


def unpickle(file: BinaryIO, size: int, classes_are_values: bool, path: Any, member: str, key: str, advice: str) -> Any:
    """The value of a pickle of data; ``advice`` is what to do if it is refused."""
    try:
        return DataUnpickler(file, size, classes_are_values).load()
    except RefusedError as error:
        raise UnsafeFileError(path, str(error), member, key, advice) from error
    # Whatever a damaged pickle makes of the stack of its reader.
    except Exception as error:
        reason = f"it is not a pickle of data, or it is damaged ({type(error).__name__}: {str(error)[:200]})"
        raise ModelFileError(path, reason, member, key, advice) from error


def texts_in(content: bytes) -> list[str]:
    """The texts in a pickle, among them the names of what it needs; nothing of it is built or called."""
    texts: list[str] = []
    with suppress(Exception):  # whatever a damaged pickle makes of it
        for _, argument, _ in pickletools.genops(content):
            if isinstance(argument, str):
                texts.append(argument)
    return texts


def _code_in(texts: list[str]) -> str:
    """Which class or function is stored as code, in words; empty if none is."""
    if "_make_skeleton_class" in texts:
        after = [text for text in texts[texts.index("_make_skeleton_class") :] if text not in _BEFORE_THE_NAME]
        place = after[after.index("__module__") + 1] if "__module__" in after[:-1] else "a function"
        return f"class {after[0]} is defined in {place}, so that the file holds its code: move it to a module and import that"
    if "_make_function" in texts:
        return "it is a function, so that the file holds its code"
    return ""


def unpickle_value(content: bytes, classes_are_values: bool, path: Any, member: str, key: str) -> Any:
    advice = f"Give custom_objects={{{key!r}: ...}} in its place. {TRUST.format('pass trusted=True')}"
    try:
        return unpickle(io.BytesIO(content), len(content), classes_are_values, path, member, key, advice)
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
    :param trusted: read whatever it holds, and run code from it
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
        return unpickle(file, size, False, path, "", "", TRUST.format("pass trusted=True"))
    finally:
        if isinstance(path, (str, Path)):
            file.close()


def load_vec_normalize(path: str | Path, venv: VecEnv | None, trusted: bool = False) -> VecNormalize:
    """
    ``VecNormalize.load`` without running code from the file.

    :param path: what ``VecNormalize.save`` wrote
    :param venv: the environments to wrap; ``None`` for the statistics alone
    :param trusted: read whatever it holds, and run code from it
    :return: the wrapper with its statistics
    :raises ModelFileError: if it holds anything else, or is damaged
    """
    statistics = read_pickle(path, trusted=trusted)
    if not isinstance(statistics, VecNormalize):
        raise ModelFileError(path, f"it holds {type(statistics).__name__} and no VecNormalize")
    if venv is not None:
        statistics.set_venv(venv)
    return statistics
