"""
Functions in a file. Cloudpickle stores a function as its code; here it becomes a name with values and is never run.
Of SB3's and RL Zoo's learning-rate functions, which files before SB3 2.7 hold, the values say all there is to know.
"""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any

from stable_baselines3.common.utils import ConstantSchedule, LinearSchedule

from sb3_ddpg_scratch.model_file.arrays import expect

_SB3, _ZOO = ("stable_baselines3.common.utils",), ("rl_zoo3.utils", "utils.utils")


def _linear_to_zero(initial_value: float) -> Any:
    from rl_zoo3.utils import SimpleLinearSchedule  # which is slow to import

    return SimpleLinearSchedule(initial_value)


# For each function that makes one: its modules, the variables that the stored one refers to, and a schedule of their values.
_KNOWN: dict[str, tuple[tuple[str, ...], tuple[tuple[str, ...], ...], Callable[..., Any]]] = {
    "constant_fn": (_SB3, (("val",),), ConstantSchedule),
    "get_linear_fn": (_SB3, (("end", "end_fraction", "start"),), lambda end, share, start: LinearSchedule(start, end, share)),
    "linear_schedule": (_ZOO, (("initial_value",), ("initial_value_",)), _linear_to_zero),
}


@dataclass(frozen=True)
class Call:
    """Something a pickle may call. It is not callable itself, so that no attribute it is stored in can call it later."""

    function: Callable[..., Any]


@dataclass(eq=False)
class StoredFunction:
    """A function as data: the names and values of the variables around it, and where it was defined."""

    variables: tuple[str, ...]
    values: tuple[Any, ...] = ()
    module: Any = ""
    name: Any = ""

    def as_schedule(self) -> Any:
        """The schedule that SB3 or RL Zoo would make today; ``None`` for any other function."""
        maker, _, inner = str(self.name).partition(".<locals>.")
        modules, variables, schedule = _KNOWN.get(maker, ((), (), None))
        known = inner == "func" and self.module in modules and self.variables in variables
        numbers = all(isinstance(value, Real) and not isinstance(value, bool) for value in self.values)
        return schedule(*self.values) if schedule and known and numbers else None


def _named_type(name: Any) -> Call:
    return {"CodeType": Call(_variables), "LambdaType": Call(_function), "FunctionType": Call(_function)}[name]


def _variables(*code: Any) -> tuple[str, ...]:
    """Of a code object, the names of the variables around it; the instructions are dropped."""
    names = code[-2]
    expect(isinstance(names, tuple) and all(isinstance(name, str) for name in names), "a function")
    return names


def _function(variables: Any, *_: Any) -> StoredFunction:
    return StoredFunction(tuple(variables))


def _cell(*value: Any) -> tuple[Any, ...]:
    return value


def _set_state(function: Any, state: Any) -> StoredFunction:
    """``state`` is a pair of dicts, or before cloudpickle 1.5 one dict with other names."""
    expect(type(function) is StoredFunction, "a function's state")
    if isinstance(state, tuple):
        names = state[1]
        function.module, function.name = names["__module__"], names["__qualname__"]
        function.values = tuple(value for cell in names["__closure__"] or () for value in cell)
    else:
        function.module, function.name = state["module"], state["qualname"]
        function.values = tuple(state["closure_values"] or ())
    expect(len(function.values) == len(function.variables), "a function's variables")
    return function


_PICKLERS: dict[str, Callable[..., Any]] = {
    "_builtin_type": _named_type,
    "_fill_function": _set_state,
    "_function_setstate": _set_state,
    "_make_cell": _cell,
    "_make_empty_cell": _cell,
    "_make_function": _function,
    "_make_skel_func": _function,
}
CALLS = {("cloudpickle.cloudpickle", name): Call(function) for name, function in _PICKLERS.items()}
CALLS["cloudpickle.cloudpickle_fast", "_function_setstate"] = Call(_set_state)
