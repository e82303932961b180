"""All runs of the presets' comparison: planned, performed in processes of their own, and gathered."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.validation import check_whole_number
from sb3_ddpg_scratch.zoo.files import preset_file, preset_names, read_settings
from sb3_ddpg_scratch.zoo.preset_report import write_report
from sb3_ddpg_scratch.zoo.preset_runs import RunSpec, finished_result, preset_settings, settings_digest
from sb3_ddpg_scratch.zoo.scripts import check_env

# For presets that state no budget for the environment: enough to learn Pendulum after 25,000 random steps.
DEFAULT_STEPS = 40_000


def plan_runs(
    env_id: str,
    presets: Sequence[str] = (),
    seeds: int = 3,
    steps: int | None = None,
    evaluations: int = 20,
    eval_episodes: int = 10,
    device: str = "cpu",
) -> list[RunSpec]:
    """
    :param env_id: the environment
    :param presets: names of presets; none for every one that has settings for the environment
    :param seeds: how many seeds, from 0
    :param steps: environment steps of each run; ``None`` for the budget that a preset states for this very environment,
        and 40,000 where it states none
    :param evaluations: evaluations in each run, evenly spaced
    :param eval_episodes: noise-free episodes in each evaluation
    :param device: device of the networks
    :return: the runs
    :raises ArgumentError: for an unknown preset or environment, or numbers out of range
    """
    for name, value in (("seeds", seeds), ("evaluations", evaluations), ("eval_episodes", eval_episodes)):
        check_whole_number(name, value, 1)
    if steps is not None:
        check_whole_number("steps", steps, evaluations)
    check_env(env_id)
    specs = []
    for preset in dict.fromkeys(presets) if presets else _presets_for(env_id):
        section, settings = preset_settings(preset, env_id)
        budget = steps or (int(settings["n_timesteps"]) if section == env_id else DEFAULT_STEPS)
        _check_budget(preset, budget, settings)
        digest = settings_digest(settings)
        specs += [RunSpec(preset, env_id, seed, budget, evaluations, eval_episodes, device, digest) for seed in range(seeds)]
    return specs


def _check_budget(preset: str, budget: int, settings: dict[str, Any]) -> None:
    first_update = settings["learning_starts"] + 1
    if budget < first_update:
        advice = "Give more, or choose other presets by --preset."
        raise ArgumentError("--steps", budget, f"at least {first_update}, when {preset} makes its first update", advice)


def _presets_for(env_id: str) -> list[str]:
    contents = {name: read_settings(preset_file(name)) for name in preset_names()}
    return [name for name, content in contents.items() if env_id in content or "default" in content]


def run_presets(specs: Sequence[RunSpec], out: Path, jobs: int, console: Console, command: str) -> list[RunSpec]:
    """
    Perform the runs that are not finished yet, and write table, summary and picture of all that are.

    :param specs: the runs, from :func:`plan_runs`
    :param out: folder for everything; runs that it holds already are not done again
    :param jobs: processes at a time, each with one thread
    :param console: where to print
    :param command: the command line that made the comparison, for the table
    :return: the runs that failed; their logs lie beside their agents
    :raises KeyboardInterrupt: if interrupted, after the runs in progress were ended and the report was written
    """
    check_whole_number("jobs", jobs, 1)
    waiting = [spec for spec in specs if finished_result(spec, out) is None]
    if len(waiting) < len(specs):
        console.print(f"{len(specs) - len(waiting)} of {len(specs)} runs are finished already.")
    failed: list[RunSpec] = []
    processes = _Processes(out)
    try:
        if waiting:
            failed = _perform_all(waiting, processes, jobs, console)
    except KeyboardInterrupt:
        console.print("Interrupted. What is finished stays; the same command goes on from there.")
        raise
    finally:
        processes.end()
        results = [result for spec in specs if (result := finished_result(spec, out)) is not None]
        if results:
            table = write_report(results, len(specs), out, command)
            console.print(table, highlight=False, markup=False, soft_wrap=True)
            console.print(f"Wrote table.md, summary.json and learning_curves.png to {out}", highlight=False)
    return failed


def _perform_all(specs: Sequence[RunSpec], processes: "_Processes", jobs: int, console: Console) -> list[RunSpec]:
    columns = (
        TextColumn("{task.description:>16}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as display:
        whole = display.add_task("all steps", total=sum(spec.steps for spec in specs))

        def perform(spec: RunSpec) -> bool:
            task = display.add_task(f"{spec.preset} {spec.seed}", total=spec.steps)
            seen = 0

            def progress(steps: int) -> None:
                nonlocal seen
                display.update(task, completed=min(steps, spec.steps))
                display.advance(whole, min(steps, spec.steps) - seen)
                seen = min(steps, spec.steps)

            try:
                return processes.run(spec, progress)
            finally:
                display.remove_task(task)

        executor = ThreadPoolExecutor(jobs)
        futures = [executor.submit(perform, spec) for spec in specs]
        try:
            return [spec for spec, future in zip(specs, futures, strict=True) if not future.result()]
        finally:
            processes.end()
            executor.shutdown(wait=True, cancel_futures=True)


class _Processes:
    """The processes that run, so that they can be ended from another thread."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False
        self._lock = threading.Lock()

    def run(self, spec: RunSpec, progress: Callable[[int], None]) -> bool:
        """Perform a run in a process of its own; true if it left its result."""
        log = spec.agent_folder(self.out).with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "sb3_ddpg_scratch.zoo.preset_runs", str(self.out), json.dumps(asdict(spec))]
        with log.open("w") as file:
            with self._lock:
                if self._ended:
                    return False
                # A session of its own: Ctrl-C reaches this process alone, which then ends the others.
                process = subprocess.Popen(
                    command,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                    start_new_session=True,
                )
                self._running.add(process)
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    progress(int(line))
            with self._lock:
                self._running.discard(process)
        return finished_result(spec, self.out) is not None

    def end(self) -> None:
        """End what runs, and begin nothing more."""
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()
