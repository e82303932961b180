"""The benchmark on a terminal: progress, tables, files."""

import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sb3_ddpg_scratch.bench import uses
from sb3_ddpg_scratch.bench.parts import draw_parts
from sb3_ddpg_scratch.bench.rounds import HEADINGS, Setting, table, write_measurements
from sb3_ddpg_scratch.bench.schedule import plan, plan_uses, run
from sb3_ddpg_scratch.bench.workload import CONTENDERS, GOALS, MUJOCO, RLTOOLS, Workload, missing
from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.gym_packages import RegisteredEnv
from sb3_ddpg_scratch.machine import describe_machine, usable_cores, versions
from sb3_ddpg_scratch.terminal import command_line, progress_bars, say

_EXPLANATION = (
    "Medians over the rounds, each contender with its better number of cores (updates / environment steps). vs: median over "
    "the rounds of the ratio of updates/s, and of environment steps/s. x floor: an update's time over that of its bare "
    "hidden-layer products on the fastest library."
)
_PACKAGES = ("torch", "stable-baselines3", "sbx-rl", "jax", "rltools", "numba", "numpy")
# Width of the output if it is not a terminal.
_WIDTH = 130


def run_bench(env: RegisteredEnv, quick: bool, rounds: int, json: Path | None, console: Console) -> None:
    """Measure everything, print a table per setting, and write all measurements to ``json`` if given."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    lacking = [reason for name in (*CONTENDERS, RLTOOLS, MUJOCO, GOALS) if (reason := missing(name))]
    if lacking:
        extras = "the extra bench brings SBX and RLtools, robotics the environments with goals"
        say(console, f"Left out: {'; '.join(lacking)} ({extras}).")
    for setting in _measure(plan(env, quick, sorted({1, usable_cores()})), rounds, json, console):
        say(console, f"\n{setting.env}, {setting.name}: {len(setting.rounds)} round(s)")
        _print_table(console, HEADINGS, table(setting))
    console.print(_EXPLANATION)


def run_uses(env: RegisteredEnv, quick: bool, rounds: int, json: Path | None, console: Console) -> None:
    """Measure what users add to the fastest case, and print it as one table."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    settings = _measure(plan_uses(env, quick), rounds, json, console)
    if not all(setting.values(name, 1, "steps_per_s") for setting in settings for name in ("sb3", "compiled")):
        return
    say(console, f"\n{env.env_id}, [64,64]/64, one core: {len(settings[0].rounds)} round(s)")
    _print_table(console, uses.HEADINGS, uses.rows_of(settings))
    say(console, f"A look at networks and optimizers takes {uses.guard_of(settings):.1f} microseconds.")


def _measure(plan: list[list[Workload]], rounds: int, json: Path | None, console: Console) -> list[Setting]:
    machine = describe_machine() | {"python": platform.python_version()}
    machine |= dict.fromkeys(_PACKAGES, "not installed") | versions(_PACKAGES)
    say(console, ", ".join(f"{name} {value}" for name, value in machine.items()))

    def keep(results: list[Setting]) -> None:
        if json is not None:
            write_measurements(results, machine, command_line(), json)

    with progress_bars(console) as display:
        results = run(plan, rounds, display, keep)
    if json is not None:
        say(console, f"Wrote {json}")
    for failure in (text for setting in results for text in setting.failures):
        say(console, failure)
    return results


def _print_table(console: Console, headings: Sequence[str], rows: list[list[str]]) -> None:
    shown = Table()
    for heading in headings:
        shown.add_column(heading, justify="left" if heading == headings[0] else "right", no_wrap=True)
    for row in rows:
        shown.add_row(*row)
    console.print(shown)


def draw_bench_parts(env: RegisteredEnv, path: Path, console: Console) -> None:
    """Draw where the time of a step goes with small networks."""
    import torch as th

    require("bench --parts", "bench", "matplotlib")
    th.set_num_threads(1)
    workload = Workload("", (64, 64), 64, 1, env=env.env_id, gym_packages=env.packages)
    contenders = {"SB3's DDPG": "sb3", "ScratchDDPG": "compiled"}
    for name, parts in draw_parts(workload, contenders, path).items():
        listed = ", ".join(f"{part} {micros:.1f}" for part, micros in parts.items())
        say(console, f"{name}, microseconds of a step: {listed}")
    say(console, f"Wrote {path}")
