"""Runs on a Ray cluster, each in its own process on any free node; the files that it leaves are sent back."""

import importlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sb3_ddpg_scratch
from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.errors import ArgumentError, require
from sb3_ddpg_scratch.model_file.allowlist import is_own_module
from sb3_ddpg_scratch.runs.batch import Progress
from sb3_ddpg_scratch.runs.processes import RunProcesses
from sb3_ddpg_scratch.runs.training_run import RunSpec, finished_result

# How often a run is restarted when its node or worker dies. A run that fails is not retried.
RETRIES = 10
POLL_SECONDS = 1.0
LOCAL_OBJECT_STORE = 200 * 2**20


class RayRuns:
    """
    Performs runs as Ray tasks, on a cluster or locally. Nodes share no disk with this machine: files come back as bytes, and
    those of ``gym_packages`` (already imported) that are not installed packages are sent along.
    """

    def __init__(self, out: Path, threads: int = 1, address: str | None = None, gym_packages: Sequence[str] = ()) -> None:
        require("--executor ray", "cluster", "ray")
        ray: Any = importlib.import_module("ray")
        self.out = out
        self._ray = ray
        self._ended = False
        local = {} if address or os.environ.get("RAY_ADDRESS") else {"object_store_memory": LOCAL_OBJECT_STORE}
        modules = [str(Path(sb3_ddpg_scratch.__file__).parent), *_sent_along(gym_packages)]
        try:
            ray.init(
                address,
                runtime_env={"py_modules": modules},
                include_dashboard=False if local else None,
                log_to_driver=False,
                logging_level="ERROR",
                **local,
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ArgumentError("--ray-address", address, f"the address of a running Ray cluster ({error})") from error
        here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
            ray.get_runtime_context().get_node_id(), soft=False
        )
        # On the driver's node, so that it lives as long as the driver.
        self._board = ray.remote(_Board).options(num_cpus=0, scheduling_strategy=here).remote()
        self._task = ray.remote(_perform_there).options(num_cpus=threads, max_retries=RETRIES)
        self._threads = threads
        self._gym_packages = tuple(gym_packages)

    def __enter__(self) -> "RayRuns":
        return self

    def __exit__(self, *_: object) -> None:
        self._ray.shutdown()

    def run(self, spec: RunSpec, progress: Progress) -> bool:
        ray = self._ray
        if self._ended:
            return False
        name = f"{spec.arm}/{spec.env_id}/{spec.seed}"
        task = self._task.remote(spec, self._threads, self._gym_packages, self._board, name)
        while not ray.wait([task], timeout=POLL_SECONDS)[0]:
            if self._ended:
                ray.cancel(task, force=True)
                return False
            steps = ray.get(self._board.steps.remote(name))
            if steps:  # none while it waits for a node
                progress(steps)
        try:
            files = ray.get(task)
        except ray.exceptions.RayError as error:
            write_whole(spec.log_file(self.out), f"{error}\n")
            return False
        # The result last: with it, the run is finished.
        result = str(spec.result_file(Path()))
        for path in sorted(files, key=lambda path: path == result):
            write_whole(self.out / path, files[path])
        return finished_result(spec, self.out) is not None

    def end(self) -> None:
        self._ended = True


def _sent_along(gym_packages: Sequence[str]) -> list[str]:
    """The files and folders of those modules that are not installed packages."""
    sent = []
    for name in dict.fromkeys(name.partition(".")[0] for name in gym_packages):
        file = importlib.import_module(name).__file__
        if file is not None and is_own_module(name, file):
            sent.append(str(Path(file).parent if Path(file).name == "__init__.py" else file))
    return sent


class _Board:
    """The Ray actor that runs report their progress to."""

    def __init__(self) -> None:
        self._steps: dict[str, int] = {}

    def write(self, name: str, steps: int) -> None:
        self._steps[name] = steps

    def steps(self, name: str) -> int:
        return self._steps.get(name, 0)


def _perform_there(spec: RunSpec, threads: int, gym_packages: tuple[str, ...], board: Any, name: str) -> dict[str, bytes]:
    """On a node, perform a run and return the files that it leaves, including its log, by path."""
    with tempfile.TemporaryDirectory() as folder:
        runs = RunProcesses(Path(folder), threads, gym_packages=gym_packages)
        runs.run(spec, lambda steps: board.write.remote(name, steps))
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}
