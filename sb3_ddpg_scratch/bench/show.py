"""The benchmark on a terminal: progress, tables, files."""

import shlex
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sb3_ddpg_scratch.bench.results import Setting, table, write_json
from sb3_ddpg_scratch.bench.run import machine, plan, run
from sb3_ddpg_scratch.bench.sweep import draw, run_sweep
from sb3_ddpg_scratch.bench.workload import CONTENDERS, installed
from sb3_ddpg_scratch.machine import usable_cores

_EXPLANATION = (
    "Medians over the rounds, each contender with its better number of cores (updates / environment steps). vs: quotient of "
    "updates/s, and of environment steps/s, within each round, the median. x floor: an update's time over that of its bare "
    "hidden-layer products on the fastest library."
)
# Columns of the tables, where no terminal says how many it has.
WIDTH = 130


@contextmanager
def _progress(console: Console) -> Iterator[Callable[[str, int, int], None]]:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as display:
        task = display.add_task("starting", total=1)
        yield lambda what, done, total: display.update(task, description=what, completed=done, total=total)


def run_bench(env: str, quick: bool, rounds: int, json: Path | None, console: Console) -> None:
    """
    :param env: id of the environment
    :param quick: measure for a shorter time
    :param rounds: how often to measure everything
    :param json: file for every measurement
    :param console: where to print
    """
    cores = sorted({1, usable_cores()})
    if not console.is_terminal:
        console.width = max(console.width, WIDTH)
    described = machine()
    console.print(", ".join(f"{name} {value}" for name, value in described.items()), highlight=False)
    missing = [name for name in CONTENDERS if not installed(name)]
    if missing:
        console.print(f"Not installed, and left out: {', '.join(missing)} (extras: bench for sbx, fast for compiled).")

    def keep(results: list[Setting]) -> None:
        if json is not None:
            write_json(results, described, shlex.join(["sb3-ddpg-scratch", *sys.argv[1:]]), json)

    with _progress(console) as progress:
        results = run(plan(env, quick, cores), rounds, progress, keep)
    keep(results)
    if json is not None:
        console.print(f"Wrote {json}")
    for failure in (text for setting in results for text in setting.failures):
        console.print(failure, markup=False)
    for setting in results:
        headings, rows = table(setting)
        shown = Table(title=f"{env}, {setting.name}: {len(setting.rounds)} round(s)", title_justify="left")
        for heading in headings:
            shown.add_column(heading, justify="left" if heading == "contender" else "right", no_wrap=True)
        for row in rows:
            shown.add_row(*row)
        console.print(shown)
    console.print(_EXPLANATION)


def run_and_draw_sweep(env: str, quick: bool, path: Path, console: Console) -> None:
    """
    :param env: id of the environment
    :param quick: measure for a shorter time
    :param path: PNG file to write
    :param console: where to print
    """
    with _progress(console) as progress:
        results = run_sweep(env, quick, progress)
    draw(results, path)
    console.print(f"Wrote {path}")
