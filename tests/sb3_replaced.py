"""A pytest plugin: SB3's own tests then meet ScratchDDPG wherever they import DDPG or TD3 (see ``make test-sb3``)."""

from collections.abc import Iterator
from types import CodeType
from typing import Any

import pytest
import stable_baselines3
from stable_baselines3.common.base_class import BaseAlgorithm

from sb3_ddpg_scratch import ScratchDDPG

stable_baselines3.DDPG = stable_baselines3.TD3 = ScratchDDPG


@pytest.fixture(autouse=True)
def _without_our_own_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """SB3's tests count warnings, and SB3 gives none of a buffer smaller than a batch, nor of a training without updates."""
    monkeypatch.setattr("sb3_ddpg_scratch.learn_setup.warn_of_settings", lambda model: None)


def _names(code: CodeType, module: dict[str, Any], seen: set[CodeType]) -> Iterator[str]:
    """The names that a function uses, and the functions of its module that it calls."""
    if code not in seen:
        seen.add(code)
        yield from code.co_names
        inner = [constant for constant in code.co_consts if isinstance(constant, CodeType)]
        called = [getattr(module.get(name), "__code__", None) for name in code.co_names]
        for one in [*inner, *filter(None, called)]:
            yield from _names(one, module, seen)


def _is_ours(item: pytest.Item) -> bool:
    """Whether ScratchDDPG has a part in a test: by its parameters if some are algorithms, else by the names it uses."""
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    parts = [part for value in parameters for part in (value if isinstance(value, tuple) else (value,))]
    algorithms = [part for part in parts if isinstance(part, type) and issubclass(part, BaseAlgorithm)]
    function: Any = getattr(item, "function", None)
    module = function.__globals__
    return ScratchDDPG in (algorithms or [module.get(name) for name in _names(function.__code__, module, set())])


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out tests that our class has no part in, such as that of A2C's speed."""
    kept = [item for item in items if _is_ours(item)]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept
