"""Many runs side by side, with a progress display; finished ones are skipped."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

from rich import progress as bars
from rich.console import Console

from sb3_ddpg_scratch.runs.training_run import RunSpec, can_continue, finished_result, unfinished_run
from sb3_ddpg_scratch.terminal import ProgressLines, say

LOG_LINES = 5


Progress = Callable[[int], None]
"""Called with the number of environment steps that a run has made so far."""


class RunExecutor(Protocol):
    """Performs runs: ``RunProcesses`` or ``RayRuns``."""

    def run(self, spec: RunSpec, progress: Progress) -> bool:
        """Perform a run, wait for its end, and return whether it left its result. Called from several threads at a time."""

    def end(self) -> None:
        """Stop what is running, and start nothing more."""


def perform_runs(specs: Sequence[RunSpec], out: Path, executor: RunExecutor, jobs: int, console: Console) -> list[RunSpec]:
    """Perform unfinished runs, ``jobs`` at a time; returns the runs that failed. An interrupt stops those under way."""
    waiting = [spec for spec in specs if finished_result(spec, out) is None]
    if len(waiting) < len(specs):
        say(console, f"{len(specs) - len(waiting)} of {len(specs)} runs are finished already.")
    _tell_interrupted(waiting, out, console)
    try:
        return _perform_all(waiting, out, executor, jobs, console) if waiting else []
    except KeyboardInterrupt:
        say(console, "Interrupted. What is done is kept; the same command continues from there.")
        raise
    finally:
        executor.end()


def _tell_interrupted(waiting: Sequence[RunSpec], out: Path, console: Console) -> None:
    continued = sum(unfinished_run(spec, out) is not None for spec in waiting)
    again = {spec.arm for spec in waiting if not can_continue(spec) and spec.agent_folder(out).exists()}
    if continued:
        say(console, f"{continued} interrupted run{'s continue' if continued > 1 else ' continues'} from a checkpoint.")
    if again:
        what = f"Interrupted runs of {', '.join(sorted(again))} begin again"
        say(console, f"{what}: only scratch_ddpg without diagnostics has checkpoints.")


def _perform_all(specs: Sequence[RunSpec], out: Path, executor: RunExecutor, jobs: int, console: Console) -> list[RunSpec]:
    columns: list[bars.ProgressColumn] = [bars.TextColumn("{task.description:>16}"), bars.BarColumn()]
    columns += [bars.MofNCompleteColumn(), bars.TimeElapsedColumn(), bars.TimeRemainingColumn()]
    # Steps with updates take longer than those of the warm-up: average over a long time to estimate what is left.
    with bars.Progress(*columns, console=console, speed_estimate_period=900) as display:
        total = sum(spec.steps for spec in specs)
        whole, lines = display.add_task("all steps", total=total), ProgressLines(console, total)

        def perform(spec: RunSpec) -> bool:
            task = display.add_task(f"{spec.arm} {spec.seed}", total=spec.steps, visible=False)
            seen = 0

            def progress(steps: int) -> None:
                nonlocal seen
                steps = min(steps, spec.steps)
                display.update(task, completed=steps, visible=True)
                display.advance(whole, steps - seen)
                lines.tell(int(display.tasks[0].completed))
                seen = steps

            try:
                if not executor.run(spec, progress):
                    return False
                progress(spec.steps)
                return True
            finally:
                display.remove_task(task)

        pool = ThreadPoolExecutor(jobs)
        futures = [pool.submit(perform, spec) for spec in specs]
        failed = []
        try:
            for spec, future in zip(specs, futures, strict=True):
                if not future.result():
                    failed.append(spec)
                    say(console, _failure(spec, out))
        finally:
            executor.end()
            pool.shutdown(wait=True, cancel_futures=True)
    return failed


def _failure(spec: RunSpec, out: Path) -> str:
    """Which run failed, where its log is, and how the log ends."""
    log = spec.log_file(out)
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    end = "".join(f"\n    {line}" for line in lines[-LOG_LINES:])
    return f"Failed: {spec.arm}, seed {spec.seed}, on {spec.env_id}. See {log}{end}"
