"""A bar chart of where the time of one environment step goes, in SB3 and here."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from functools import wraps
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.bench.worker import make_model
from sb3_ddpg_scratch.bench.workload import Workload

# In drawing order.
PARTS = ("environment", "acting", "storing", "batch", "update", "one compiled call", "noise", "the rest")
STEPS, REPEATS = 400, 5


class Stopwatch:
    """Measures the seconds spent in functions, without the time in other timed functions that they call."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._inner: list[float] = []

    def timing(self, owner: Any, name: str, part: str) -> AbstractContextManager[Any]:
        return mock.patch.object(owner, name, self._timed(getattr(owner, name), part))

    def _timed(self, function: Callable[..., Any], part: str) -> Callable[..., Any]:
        @wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            self._inner.append(0.0)
            start = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                passed = time.perf_counter() - start
                self.seconds[part] = self.seconds.get(part, 0.0) + passed - self._inner.pop()
                if self._inner:
                    self._inner[-1] += passed

        return timed


def parts_of_a_step(workload: Workload) -> dict[str, float]:
    """Microseconds for each part of an environment step with its update, from the fastest of several series."""
    model = make_model(workload)
    model.learn(workload.filled + 100, log_interval=None)
    series = []
    for _ in range(REPEATS):
        watch = Stopwatch()
        with ExitStack() as stack:
            for owner, name, part in _timed_functions(model):
                stack.enter_context(watch.timing(owner, name, part))
            start = time.perf_counter()
            model.learn(STEPS, log_interval=None, reset_num_timesteps=False)
            total = time.perf_counter() - start
        rest = total - sum(watch.seconds.values())
        series.append({part: 1e6 * seconds / STEPS for part, seconds in (watch.seconds | {"the rest": rest}).items()})
    return min(series, key=lambda parts: sum(parts.values()))


def _timed_functions(model: Any) -> list[tuple[Any, str, str]]:
    # Timed on the class: an environment with its own function would count as foreign code.
    environment = [(kind, "step", "environment") for kind in {type(one) for one in model.env.envs}]
    if not type(model).__module__.startswith("sb3_ddpg_scratch"):
        own = [("_sample_action", "acting"), ("_store_transition", "storing"), ("train", "update")]
        noise = (type(model.action_noise), "__call__", "noise")
        return [*environment, *((model, *pair) for pair in own), (model.replay_buffer, "sample", "batch"), noise]
    from sb3_ddpg_scratch.updates import kernels

    return [*environment, (kernels, "advance", "one compiled call"), (type(model.action_noise), "__call__", "noise")]


def draw_parts(workload: Workload, contenders: dict[str, str], path: Path) -> dict[str, dict[str, float]]:
    """Measure ``contenders``, by name in the picture, one after another, and draw a bar for each."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    found = {name: parts_of_a_step(replace(workload, contender=contender)) for name, contender in contenders.items()}
    canvas = Figure(figsize=(9, 1.2 + 0.7 * len(found)), layout="constrained")
    FigureCanvasAgg(canvas)
    axes = canvas.subplots()
    left = np.zeros(len(found))
    for number, part in enumerate(PARTS):
        widths = np.array([parts.get(part, 0.0) for parts in found.values()])
        if widths.any():
            axes.barh(list(found), widths, left=left, label=part, color=f"C{number}", height=0.6)
        left += widths
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:,.0f}", va="center", fontsize=9)
    axes.invert_yaxis()
    axes.set_xlim(right=1.1 * left.max())
    axes.set_xlabel(f"microseconds of an environment step, {workload.env}, {workload.setting}")
    axes.spines[["top", "right"]].set_visible(False)
    canvas.legend(loc="outside upper center", ncols=len(PARTS), frameon=False, fontsize=8)
    content = BytesIO()
    canvas.savefig(content, format="png", dpi=160)
    write_whole(path, content.getvalue())
    return found
