"""The benchmark on a terminal: progress, tables, files."""

import platform
import shlex
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sb3_ddpg_scratch.bench.parts import draw_parts
from sb3_ddpg_scratch.bench.rounds import HEADINGS, Setting, table, write_measurements
from sb3_ddpg_scratch.bench.schedule import plan, run
from sb3_ddpg_scratch.bench.workload import CONTENDERS, GOALS, MUJOCO, RLTOOLS, Workload, missing
from sb3_ddpg_scratch.errors import require
from sb3_ddpg_scratch.gym_packages import RegisteredEnv
from sb3_ddpg_scratch.machine import describe_machine, usable_cores, versions

_EXPLANATION = (
    "Medians over the rounds, each contender with its better number of cores (updates / environment steps). vs: median over "
    "the rounds of the ratio of updates/s, and of environment steps/s. x floor: an update's time over that of its bare "
    "hidden-layer products on the fastest library."
)
_PACKAGES = ("torch", "stable-baselines3", "sbx-rl", "jax", "rltools", "numba", "numpy")
# Columns of the output where it is not a terminal.
_WIDTH = 130


def run_bench(env: RegisteredEnv, quick: bool, rounds: int, json: Path | None, console: Console) -> None:
    """Measure everything, print a table for each setting, and write every measurement to ``json`` if given."""
    if not console.is_terminal:
        console.width = max(console.width, _WIDTH)
    machine = describe_machine() | {"python": platform.python_version()}
    machine |= dict.fromkeys(_PACKAGES, "not installed") | versions(_PACKAGES)
    console.print(", ".join(f"{name} {value}" for name, value in machine.items()), highlight=False)
    lacking = [reason for name in (*CONTENDERS, RLTOOLS, MUJOCO, GOALS) if (reason := missing(name))]
    if lacking:
        extras = "the extra bench brings SBX and RLtools, robotics the environments with goals"
        console.print(f"Left out: {'; '.join(lacking)} ({extras}).", soft_wrap=True)
    results = _run(env, quick, rounds, machine, json, console)
    if json is not None:
        console.print(f"Wrote {json}", soft_wrap=True)
    for failure in (text for setting in results for text in setting.failures):
        console.print(failure, markup=False, soft_wrap=True)
    for setting in results:
        console.print(f"\n{setting.env}, {setting.name}: {len(setting.rounds)} round(s)", markup=False, soft_wrap=True)
        shown = Table()
        for heading in HEADINGS:
            shown.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
        for row in table(setting):
            shown.add_row(*row)
        console.print(shown)
    console.print(_EXPLANATION)


def draw_bench_parts(env: RegisteredEnv, path: Path, console: Console) -> None:
    """Draw where the time of a step goes with small networks."""
    import torch as th

    require("bench --parts", "bench", "matplotlib")
    th.set_num_threads(1)
    workload = Workload("", (64, 64), 64, 1, env=env.env_id, gym_packages=env.packages)
    contenders = {"SB3's DDPG": "sb3", "ScratchDDPG": "compiled"}
    for name, parts in draw_parts(workload, contenders, path).items():
        listed = ", ".join(f"{part} {micros:.1f}" for part, micros in parts.items())
        console.print(f"{name}, microseconds of a step: {listed}", soft_wrap=True)
    console.print(f"Wrote {path}", soft_wrap=True)


def _run(
    env: RegisteredEnv, quick: bool, rounds: int, machine: dict[str, Any], json: Path | None, console: Console
) -> list[Setting]:
    command = shlex.join(["sb3-ddpg-scratch", *sys.argv[1:]])

    def keep(results: list[Setting]) -> None:
        if json is not None:
            write_measurements(results, machine, command, json)

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("starting", total=1)

        def show_progress(what: str, done: int, total: int) -> None:
            display.update(task, description=what, completed=done, total=total)

        results = run(plan(env, quick, sorted({1, usable_cores()})), rounds, show_progress, keep)
    keep(results)
    return results
