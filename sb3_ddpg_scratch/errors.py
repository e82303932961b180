"""The errors of this package: each names what was wrong, what is allowed, and what to do."""

from typing import Any


class ArgumentError(ValueError):
    """
    An argument has a value that it may not have.

    :param name: the argument
    :param value: the value that it had
    :param allowed: what it may be, in words
    :param advice: what to do about it
    """

    def __init__(self, name: str, value: Any, allowed: str, advice: str = "") -> None:
        super().__init__(f"{name}={value!r} is not allowed: it must be {allowed}.{' ' + advice if advice else ''}")
        self.name = name
        self.value = value
        self.allowed = allowed
        self.advice = advice

    def __reduce__(self) -> tuple[type["ArgumentError"], tuple[str, Any, str, str]]:
        return type(self), (self.name, self.value, self.allowed, self.advice)


class ActionSpaceError(ArgumentError, AssertionError):
    """An action space that DDPG cannot act in. Also an ``AssertionError``, which is what SB3 raises here."""


class DivergenceError(RuntimeError):
    """Training has produced a loss that is not a finite number."""


class CheckpointError(RuntimeError):
    """
    A checkpoint that cannot be written, read, or put into this model.

    :param path: the file or folder
    :param problem: what is wrong with it, in words that follow its name
    :param advice: what to do about it
    """

    def __init__(self, path: Any, problem: str, advice: str = "") -> None:
        super().__init__(f"{path} {problem}.{' ' + advice if advice else ''}")
        self.path = path
        self.problem = problem
        self.advice = advice

    def __reduce__(self) -> tuple[type["CheckpointError"], tuple[Any, str, str]]:
        return type(self), (self.path, self.problem, self.advice)
