"""
The package's commands, each in a process of its own, forked from one that has imported torch and SB3 alone; and their runs
without processes of their own.
"""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch as th

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
_FORKS = multiprocessing.get_context("forkserver")


def _run(folder: Path, outputs: list[Path], hidden: tuple[str, ...], run_processes: bool, arguments: list[str]) -> None:
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(ENVIRONMENT)
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # Python's mark of a module that cannot be imported
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in (ROOT / "tests", folder)]
    sys.argv = ["sb3-ddpg-scratch", *arguments]
    sys.orig_argv = list(sys.argv)
    from sb3_ddpg_scratch.cli import main

    if not run_processes and arguments[:1] == ["compare"]:
        from sb3_ddpg_scratch.runs.processes import RunProcesses

        RunProcesses.run = perform_here  # type: ignore[assignment,method-assign]
    main()


class Command:
    """
    A command that was begun in a folder, as if the ``hidden`` packages were not installed. The runs of a comparison are
    performed inside it unless they are to have processes of their own.
    """

    def __init__(self, folder: Path, *arguments: object, hidden: tuple[str, ...] = (), run_processes: bool = False) -> None:
        self.arguments = [str(argument) for argument in arguments]
        self._outputs = [folder / f".{name}-{time.monotonic_ns()}" for name in ("out", "err")]
        self._process = _FORKS.Process(target=_run, args=(folder, self._outputs, hidden, run_processes, self.arguments))
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def send(self, sent: signal.Signals) -> None:
        os.kill(self.pid, sent)

    def wait_for(self, happened: Any, seconds: float = 120) -> None:
        """Until ``happened()``, as long as the command goes on."""
        end = time.monotonic() + seconds
        while not happened():
            assert self._process.is_alive(), self.end().stderr
            assert time.monotonic() < end
            time.sleep(0.005)

    def end(self) -> subprocess.CompletedProcess[str]:
        """Wait for its end."""
        self._process.join()
        printed = [output.read_text() if output.exists() else "" for output in self._outputs]
        for output in self._outputs:
            output.unlink(missing_ok=True)
        return subprocess.CompletedProcess(self.arguments, self._process.exitcode or 0, *printed)

    def kill(self) -> None:
        self._process.kill()
        self.end()


def command(folder: Path, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a :class:`Command` to its end."""
    return Command(folder, *arguments, **options).end()


def output_of(folder: Path, *arguments: object, **options: Any) -> str:
    """What a command prints that succeeds."""
    done = command(folder, *arguments, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


_ONE_AT_A_TIME = threading.Lock()


def perform_here(executor: Any, spec: Any, progress: Any) -> bool:
    """A run of RunProcesses in this process, without the seconds that starting another one takes."""
    from sb3_ddpg_scratch.runs.training_run import perform

    with _ONE_AT_A_TIME:
        th.set_num_threads(executor.threads)
        perform(spec, executor.out, progress, executor.checkpoint_every)
    return True
