"""The errors of this package: each names what was wrong, what is valid, and what to do."""

import difflib
import sys
import warnings
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

_LIBRARIES = ("sb3_ddpg_scratch", "stable_baselines3", "contextlib")


class ArgumentError(ValueError):
    """
    An argument is invalid, or missing.

    :param name: the argument
    :param value: its value; ``None`` if it is missing
    :param allowed: what it must be, in words; ``"given"`` for a missing required argument
    :param advice: what to do about it
    :param problem: what is wrong, phrased to follow the name, where "must be ..., got ..." does not say it
    """

    def __init__(self, name: str, value: Any, allowed: str = "", advice: str = "", problem: str = "") -> None:
        # Exceptions are pickled with the arguments of the base class.
        super().__init__(name, value, allowed, advice, problem)
        self.name, self.value, self.allowed, self.advice, self.problem = name, value, allowed, advice, problem

    def __str__(self) -> str:
        missing = self.value is None and self.allowed == "given"
        problem = self.problem or ("is required" if missing else f"must be {self.allowed}, got {self.value!r}")
        return f"{self.name} {problem}. {self.advice}".rstrip()


class UnknownArgumentError(ArgumentError, TypeError):
    """A constructor does not have this keyword. Also a ``TypeError``, as Python raises here."""

    def __init__(self, name: str, owner: str, advice: str = "") -> None:
        ValueError.__init__(self, name, owner, advice)
        self.name, self.owner, self.advice = name, owner, advice

    def __str__(self) -> str:
        return f"{self.owner} has no argument {self.name!r}. {self.advice}".rstrip()


class MissingPackageError(ImportError):
    """A package from one of this package's extras is not installed."""


class ActionSpaceError(ArgumentError, AssertionError):
    """DDPG does not support this action space. Also an ``AssertionError``, as SB3 raises here."""


class FolderInUseError(ArgumentError):
    """Another process, named in the message, is already writing to the folder."""


class DivergenceError(RuntimeError):
    """A loss, an observation or a reward is not finite."""


class ModelFileError(ValueError):
    """
    A file of a model, a replay buffer or statistics cannot be read.

    :param path: the file
    :param reason: what is wrong with it
    :param member: the affected member of the archive, if any
    :param key: the entry in that member, if any
    :param advice: what to do about it
    """

    def __init__(self, path: Any, reason: str, member: str = "", key: str = "", advice: str = "") -> None:
        super().__init__(str(path), reason, member, key, advice)
        self.path, self.reason, self.member, self.key, self.advice = str(path), reason, member, key, advice

    def __str__(self) -> str:
        place = "".join(f", {word} {name!r}" for word, name in (("member", self.member), ("key", self.key)) if name)
        return f"{self.path}{place}: {self.reason}. {self.advice}".rstrip()


class UnsafeFileError(ModelFileError):
    """A file contains something that could run code, or would exceed the memory limit; nothing was run."""


class EnvironmentOutputError(ValueError):
    """The environment returned an observation or a reward of the wrong shape or dtype."""


class ExportError(ValueError):
    """A policy cannot be exported in this format."""


class CheckpointError(RuntimeError):
    """
    A checkpoint cannot be written, read, or restored into this model.

    :param path: the file or folder
    :param problem: what is wrong with it, phrased to follow its name
    :param advice: what to do about it
    """

    def __init__(self, path: Any, problem: str, advice: str = "") -> None:
        super().__init__(path, problem, advice)
        self.path, self.problem, self.advice = path, problem, advice

    def __str__(self) -> str:
        return f"{self.path} {self.problem}. {self.advice}".rstrip()


def require(what: str, extra: str, *packages: str) -> None:
    """Raise :class:`MissingPackageError` unless ``packages`` can be imported; ``what`` needs them, ``extra`` provides them."""
    for package in packages:
        if find_spec(package) is None:
            source = f"'sb3-ddpg-scratch[{extra}]'" if extra else package
            problem = f"{what} needs {package}, which is not installed: pip install {source}"
            raise MissingPackageError(problem, name=package)


def warn_user(text: str) -> None:
    """A warning that names the line of the user's that led here, past this package, SB3 and what enters their contexts."""
    frame, level = sys._getframe(1), 2
    while frame.f_back and frame.f_back.f_globals.get("__name__", "").partition(".")[0] in _LIBRARIES:
        frame, level = frame.f_back, level + 1
    warnings.warn(text, stacklevel=level + 1)


def near(name: str, names: Iterable[str]) -> str:
    """``Did you mean ...?`` with up to five similar names, ignoring case; empty if there is none."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    close = [by_lower[match] for match in difflib.get_close_matches(name.lower(), by_lower, n=5)]
    return f"Did you mean {' or '.join(map(repr, close))}?" if close else ""
