"""
What the diagnostics cost: trainings with and without the callback, in turns.

Run it from the checkout: ``python benchmarks/diagnostics_cost.py``. It prints two numbers. The *share inside* is the
processor time spent in the callback's methods over that of the whole training, minus the same for a callback that does
nothing (SB3's calls and the timing itself); the *ratio* is the time of a training with the callback over that of one
without, the median of pairs made right after each other.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.diagnostics.callback import DiagnosticsCallback


class _Timed(BaseCallback):
    """Counts the processor time that is spent in a callback."""

    inside = 0.0

    def on_step(self) -> bool:
        began = time.thread_time()
        result = super().on_step()
        self.inside += time.thread_time() - began
        return result

    def on_rollout_start(self) -> None:
        began = time.thread_time()
        super().on_rollout_start()
        self.inside += time.thread_time() - began

    def on_training_start(self, locals_: dict[str, Any], globals_: dict[str, Any]) -> None:
        began = time.thread_time()
        super().on_training_start(locals_, globals_)
        self.inside += time.thread_time() - began

    def on_training_end(self) -> None:
        began = time.thread_time()
        super().on_training_end()
        self.inside += time.thread_time() - began


class _TimedDiagnostics(_Timed, DiagnosticsCallback):
    """The diagnostics, timed."""


class _TimedNothing(_Timed):
    """A callback that does nothing, timed: what SB3's calls and the timing itself take."""

    def _on_step(self) -> bool:
        return True


@dataclass
class Cost:
    """Medians: the callback's share of the training's time, and the time of a training with it over one without, minus 1."""

    share_inside: float
    ratio: float
    ratios: list[float]
    microseconds_per_step: float


def measure_cost(
    env_id: str = "Pendulum-v1",
    steps: int = 3000,
    pairs: int = 5,
    model_class: type = ScratchDDPG,
    model_kwargs: dict[str, Any] | None = None,
    **callback_kwargs: Any,
) -> Cost:
    """Train with and without the callback, whose arguments besides ``out`` are ``callback_kwargs``."""
    settings = {"seed": 0, "device": "cpu", "buffer_size": steps} | (model_kwargs or {})

    def train(callback: BaseCallback | None) -> float:
        model = model_class("MlpPolicy", env_id, **settings)
        began = time.process_time()
        model.learn(steps, callback=callback)
        return time.process_time() - began

    train(None)
    ratios, shares, plain_times = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        for pair in range(pairs):
            timed = _TimedDiagnostics(Path(folder) / str(pair), **callback_kwargs)
            nothing = _TimedNothing()
            # Now one first, then the other: a machine that gets slower must not favour either.
            turns: list[BaseCallback | None] = [timed, None] if pair % 2 else [None, timed]
            times = {turn is not None: train(turn) for turn in turns}
            ratios.append(times[True] / times[False] - 1)
            time_with_nothing = train(nothing)
            shares.append(timed.inside / times[True] - nothing.inside / time_with_nothing)
            plain_times.append(times[False])
    return Cost(median(shares), median(ratios), ratios, 1e6 * median(plain_times) / steps)


def main() -> None:
    """Measure the cost at the default rate for two sizes of networks, and print it."""
    parser = argparse.ArgumentParser(description="What DiagnosticsCallback costs at its default rate.")
    parser.add_argument(
        "--steps", type=int, default=30_000, help="environment steps of each training; a tenth for the larger net"
    )
    parser.add_argument("--pairs", type=int, default=3, help="trainings with and without the callback, each")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    arguments = parser.parse_args()
    results = {}
    print("net, batch      share inside   ratio - 1 (each pair)")
    # The larger one takes ten times as long for a step.
    for layers, batch_size, steps in (([64, 64], 64, arguments.steps), ([256, 256], 256, max(arguments.steps // 10, 1))):
        kwargs = {"policy_kwargs": {"net_arch": layers}, "batch_size": batch_size}
        cost = measure_cost(steps=steps, pairs=arguments.pairs, model_kwargs=kwargs)
        name = f"{layers}, {batch_size}"
        each = ", ".join(f"{ratio:+.1%}" for ratio in cost.ratios)
        print(
            f"{name:<15} {cost.share_inside:>12.2%}   {cost.ratio:+.2%} ({each}); {cost.microseconds_per_step:.0f} us a step"
        )
        results[name] = asdict(cost)
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
