"""
Objects as data: a JSON tree, and arrays beside it as raw bytes. Reading it runs no code.

Lists, strings, numbers, booleans and ``None`` represent themselves; anything else is an object with one key, its kind:
``{"tuple": [...]}``, ``{"dict": [[key, value], ...]}``, ``{"array": 3}`` for the array number 3, and so on.
"""

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any

import numpy as np
import torch as th

from sb3_ddpg_scratch.model_file.arrays import set_bit_generator_state, set_random_state

Tree = Any

_PLAIN = (type(None), bool, int, float, str)
_BIT_GENERATORS = {cls.__name__: cls for cls in (np.random.PCG64, np.random.PCG64DXSM, np.random.MT19937, np.random.Philox)}
# Longer lists of only floats are stored as arrays, which take far less space than their digits.
_LONG_LIST = 16


class NotDataError(TypeError):
    """An object that is more than data; ``where`` is its location, as in ``.state['x']``."""

    def __init__(self, where: str, value: Any) -> None:
        super().__init__(
            f"{where or 'it'} is of type {type(value).__module__}.{type(value).__qualname__}, which is more than data"
        )


class Encoder:
    """Turns objects into trees and collects their arrays; an array that occurs twice stays one array."""

    def __init__(self) -> None:
        self.arrays: list[np.ndarray] = []
        self._numbers: dict[int, int] = {}
        # Ids are unique only among objects that are alive.
        self._met: list[Any] = []

    def encode(self, value: Any, where: str = "") -> Tree:
        """The tree of a value; ``where`` is its location, for errors."""
        kind = type(value)
        if kind in _PLAIN:
            return value
        if kind is bytes:
            return {"bytes": value.hex()}
        if kind in (list, tuple, deque, dict, OrderedDict):
            return self._container(value, where)
        if isinstance(value, (np.ndarray, np.generic, th.Tensor)):
            return self._numbers_of(value, where)
        if kind is np.random.Generator and type(value.bit_generator).__name__ in _BIT_GENERATORS:
            return {"generator": self.encode(value.bit_generator.state, where)}
        if kind is np.random.RandomState:
            return {"random_state": self.encode(value.get_state(legacy=True), where)}
        raise NotDataError(where, value)

    def _container(self, value: Any, where: str) -> Tree:
        if isinstance(value, dict):
            pairs = [[self.encode(key, where), self.encode(item, f"{where}[{key!r}]")] for key, item in value.items()]
            return {"dict" if type(value) is dict else "ordered": pairs}
        if type(value) is list and len(value) > _LONG_LIST and all(type(item) is float for item in value):
            return {"floats": self._add(np.array(value), None)}
        items = [self.encode(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if isinstance(value, deque):
            return {"deque": items, "maxlen": value.maxlen}
        return {"tuple": items} if isinstance(value, tuple) else items

    def _numbers_of(self, value: Any, where: str) -> Tree:
        if isinstance(value, th.Tensor):
            data = value.detach().cpu().contiguous()
            number = self._add(data.reshape(-1).view(th.uint8).numpy(), value)
            return {"tensor": number, "dtype": str(data.dtype).removeprefix("torch."), "shape": list(data.shape)}
        if value.dtype.hasobject or value.dtype.names is not None or type(value) not in (np.ndarray, value.dtype.type):
            raise NotDataError(where, value)
        if isinstance(value, np.generic):
            return {"scalar": self._add(np.array(value), None)}
        return {"array": self._add(value, value)}

    def _add(self, array: np.ndarray, met: Any) -> int:
        if met is not None and id(met) in self._numbers:
            return self._numbers[id(met)]
        self.arrays.append(array)
        if met is not None:
            self._numbers[id(met)] = len(self.arrays) - 1
            self._met.append(met)
        return len(self.arrays) - 1


def decode(tree: Tree, arrays: list[np.ndarray]) -> Any:
    """The value that was encoded; each of the ``arrays`` must be writable and own its memory."""
    if type(tree) in _PLAIN:
        return tree
    if isinstance(tree, list):
        return [decode(item, arrays) for item in tree]
    if not isinstance(tree, dict) or not tree:
        raise ValueError(f"{tree!r:.60} represents nothing")
    kind, content = next(iter(tree.items()))
    if kind in _OF_ARRAY:
        return _OF_ARRAY[kind](arrays[content], tree)
    if kind in _OF_TREE:
        return _OF_TREE[kind](decode(content, arrays), tree)
    raise ValueError(f"{kind!r} is not a kind of data")


def _generator(state: Any, tree: dict[str, Tree]) -> np.random.Generator:
    bit_generator = _BIT_GENERATORS[state["bit_generator"]]()
    set_bit_generator_state(bit_generator, state)
    return np.random.Generator(bit_generator)


def _random_state(state: Any, tree: dict[str, Tree]) -> np.random.RandomState:
    random_state = np.random.RandomState()
    set_random_state(random_state, state)
    return random_state


# For each kind, a function that turns an array or a decoded tree into the value.
_OF_ARRAY: dict[str, Callable[[np.ndarray, dict[str, Tree]], Any]] = {
    "array": lambda array, tree: array,
    "floats": lambda array, tree: array.tolist(),
    "scalar": lambda array, tree: array[()],
    "tensor": lambda array, tree: th.from_numpy(array).view(getattr(th, tree["dtype"])).reshape(tree["shape"]),
}
_OF_TREE: dict[str, Callable[[Any, dict[str, Tree]], Any]] = {
    "dict": lambda pairs, tree: dict(pairs),
    "ordered": lambda pairs, tree: OrderedDict(pairs),
    "tuple": lambda items, tree: tuple(items),
    "deque": lambda items, tree: deque(items, tree["maxlen"]),
    "bytes": lambda text, tree: bytes.fromhex(text),
    "generator": _generator,
    "random_state": _random_state,
}
