"""The benchmark on a terminal: progress, tables, files."""

import platform
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sb3_ddpg_scratch.bench.parts import draw_parts
from sb3_ddpg_scratch.bench.rounds import HEADINGS, Setting, table, write_measurements
from sb3_ddpg_scratch.bench.schedule import plan, run
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
    machine = describe_machine() | {"python": platform.python_version()}
    machine |= dict.fromkeys(_PACKAGES, "not installed") | versions(_PACKAGES)
    say(console, ", ".join(f"{name} {value}" for name, value in machine.items()))
    lacking = [reason for name in (*CONTENDERS, RLTOOLS, MUJOCO, GOALS) if (reason := missing(name))]
    if lacking:
        extras = "the extra bench brings SBX and RLtools, robotics the environments with goals"
        say(console, f"Left out: {'; '.join(lacking)} ({extras}).")

    def keep(results: list[Setting]) -> None:
        if json is not None:
            write_measurements(results, machine, command_line(), json)

    with progress_bars(console) as display:
        results = run(plan(env, quick, sorted({1, usable_cores()})), rounds, display, keep)
    if json is not None:
        say(console, f"Wrote {json}")
    for failure in (text for setting in results for text in setting.failures):
        say(console, failure)
    for setting in results:
        say(console, f"\n{setting.env}, {setting.name}: {len(setting.rounds)} round(s)")
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
        say(console, f"{name}, microseconds of a step: {listed}")
    say(console, f"Wrote {path}")
