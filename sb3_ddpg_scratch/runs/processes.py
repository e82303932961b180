"""Runs in separate processes, which end with their parent process."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path

import torch as th

import sb3_ddpg_scratch
from sb3_ddpg_scratch.gym_packages import import_modules
from sb3_ddpg_scratch.runs.batch import Progress
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result, perform


def thread_limits(threads: int) -> dict[str, str]:
    """Environment variables that limit the threads of OpenMP, the BLAS libraries, Numba and XLA."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS")
    xla = f"--xla_cpu_multi_thread_eigen={'true' if threads > 1 else 'false'} intra_op_parallelism_threads={threads}"
    return dict.fromkeys(names, str(threads)) | {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {xla}".strip()}


class RunProcesses:
    """Performs runs in processes of ``threads`` threads; with ``checkpoint_every``, an interrupted run continues."""

    def __init__(
        self, out: Path, threads: int = 1, checkpoint_every: int | None = None, gym_packages: Sequence[str] = ()
    ) -> None:
        self.out = out
        self.threads = threads
        self.checkpoint_every = checkpoint_every
        self.gym_packages = gym_packages
        self._running: set[subprocess.Popen[str]] = set()
        self._ended = False
        self._lock = threading.Lock()

    def run(self, spec: RunSpec, progress: Progress) -> bool:
        log = spec.log_file(self.out)
        log.parent.mkdir(parents=True, exist_ok=True)
        module = "sb3_ddpg_scratch.runs.processes"
        settings = [json.dumps(asdict(spec)), str(self.threads), json.dumps(self.checkpoint_every)]
        package = Path(sb3_ddpg_scratch.__file__).parent.parent
        path = os.pathsep.join([str(package), *filter(None, [os.environ.get("PYTHONPATH")])])
        with log.open("w") as file:
            with self._lock:
                if self._ended:
                    return False
                # In a new session: Ctrl-C reaches only this process, which then ends the others.
                process = subprocess.Popen(
                    [sys.executable, "-m", module, str(self.out), *settings, *self.gym_packages],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=file,
                    text=True,
                    env=os.environ | thread_limits(self.threads) | {"PYTHONPATH": path},
                    start_new_session=True,
                )
                self._running.add(process)
            with process:
                assert process.stdout is not None
                for line in process.stdout:
                    if line.strip().isdigit():  # libraries print there as well
                        progress(int(line))
            with self._lock:
                self._running.discard(process)
        return finished_result(spec, self.out) is not None

    def end(self) -> None:
        with self._lock:
            self._ended = True
            for process in self._running:
                process.terminate()


def _end_with_standard_input() -> None:
    # Not sys.stdin: a thread waiting in it holds a lock that the interpreter needs at exit.
    while os.read(0, 1024):
        pass
    os._exit(1)


def main() -> None:
    out, spec, threads = Path(sys.argv[1]), RunSpec(**json.loads(sys.argv[2])), int(sys.argv[3])
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    th.set_num_threads(threads)
    import_modules(sys.argv[5:])
    every = max(spec.steps // 100, 1)
    progress = sys.stdout
    told = 0

    def tick(steps: int) -> None:
        nonlocal told
        if steps // every > told:
            told = steps // every
            print(steps, file=progress, flush=True)

    with redirect_stdout(sys.stderr):  # what the Zoo prints
        perform(spec, out, tick, json.loads(sys.argv[4]))


if __name__ == "__main__":
    main()
