"""
The package's commands, each in a process of its own, forked from one that has imported torch and SB3 alone; and their runs
without processes of their own.
"""

import multiprocessing
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch as th

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg", "SDL_VIDEODRIVER": "dummy"}
_FORKS = multiprocessing.get_context("forkserver")


def _run(folder: Path, outputs: list[Path], hidden: tuple[str, ...], arguments: list[str]) -> None:
    for number, output in enumerate(outputs, 1):
        os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT), number)
    os.chdir(folder)
    os.environ.update(ENVIRONMENT)
    sys.modules |= dict.fromkeys(hidden)  # type: ignore[arg-type]  # Python's mark of a module that cannot be imported
    sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() not in (ROOT / "tests", folder)]
    sys.argv = ["sb3-ddpg-scratch", *arguments]
    from sb3_ddpg_scratch.cli import main

    main()


def command(folder: Path, *arguments: object, hidden: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, as if the ``hidden`` packages were not installed."""
    outputs = [folder / f".{name}-{os.getpid()}" for name in ("out", "err")]
    process = _FORKS.Process(target=_run, args=(folder, outputs, hidden, [str(argument) for argument in arguments]))
    process.start()
    process.join()
    printed = [output.read_text() for output in outputs]
    for output in outputs:
        output.unlink()
    return subprocess.CompletedProcess(arguments, process.exitcode or 0, *printed)


def output_of(folder: Path, *arguments: object) -> str:
    """What a command prints that succeeds."""
    done = command(folder, *arguments)
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
