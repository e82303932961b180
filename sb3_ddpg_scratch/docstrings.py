"""Docstrings for methods that only pass their arguments on."""

from collections.abc import Callable
from typing import Any, TypeVar

Method = TypeVar("Method", bound=Callable[..., Any])


def documented_by(function: Callable[..., Any]) -> Callable[[Method], Method]:
    """Give the decorated method the docstring of the function that does its work."""

    def document(method: Method) -> Method:
        method.__doc__ = function.__doc__
        return method

    return document
