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


class FolderInUseError(ArgumentError):
    """A folder that a process, named in the message, is writing to already."""


class DivergenceError(RuntimeError):
    """Training met a number that is not finite: a loss, or an observation or a reward of the environment."""


class ModelFileError(ValueError):
    """
    A file of a model, of a replay buffer or of statistics that cannot be read.

    :param path: the file
    :param reason: what is wrong with it
    :param member: the part of the archive that it is about, if any
    :param key: the entry in that part, if any
    :param advice: what to do about it
    """

    def __init__(self, path: Any, reason: str, member: str = "", key: str = "", advice: str = "") -> None:
        place = "".join(f", {word} {name!r}" for word, name in (("member", member), ("key", key)) if name)
        super().__init__(f"{path}{place}: {reason}.{' ' + advice if advice else ''}")
        self.path = str(path)
        self.reason = reason
        self.member = member
        self.key = key
        self.advice = advice

    def __reduce__(self) -> tuple[type["ModelFileError"], tuple[str, str, str, str, str]]:
        return type(self), (self.path, self.reason, self.member, self.key, self.advice)


class UnsafeFileError(ModelFileError):
    """A file that holds what could run code, or that would take more memory than is allowed; nothing of it was run."""


class EnvironmentOutputError(ValueError):
    """The environment gave an observation or a reward of the wrong shape or dtype."""


class ExportError(ValueError):
    """A policy that cannot be exported, or not in this form."""


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
