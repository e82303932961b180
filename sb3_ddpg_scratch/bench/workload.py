"""What is timed: a contender at a network size, batch size, number of environments and number of cores."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec

CONTENDERS = ("sb3", "sbx", "autograd", "analytic", "compiled")


@dataclass(frozen=True)
class Workload:
    """One measurement: ``seconds`` of updates, and of steps, with ``filled`` of ``buffer_size`` transitions in the buffer."""

    contender: str
    net_arch: tuple[int, ...]
    batch_size: int
    cores: int
    n_envs: int = 1
    gradient_steps: int = 1
    env: str = "Pendulum-v1"
    gym_packages: tuple[str, ...] = ()
    seconds: float = 2.0
    buffer_size: int = 1_000_000
    filled: int = 2_000

    @property
    def setting(self) -> str:
        """What the contenders of one comparison have in common."""
        envs = "" if self.n_envs == 1 else f", {self.n_envs} envs x {self.gradient_steps} updates"
        return f"[{','.join(map(str, self.net_arch))}]/{self.batch_size}{envs}"


def installed(contender: str) -> bool:
    """Whether what a contender needs is installed."""
    needed = {"sbx": ("sbx", "jax"), "compiled": ("numba", "scipy")}.get(contender, ())
    return all(find_spec(package) is not None for package in needed)


def measure(workload: Workload) -> dict[str, float | str]:
    """Measure in a new process, bound to as many cores as it may use; ``RuntimeError`` with the end of its log if it fails."""
    cores = sorted(os.sched_getaffinity(0))[: workload.cores] if hasattr(os, "sched_getaffinity") else []
    threads = {name: str(workload.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    module = "sb3_ddpg_scratch.bench.worker"
    finished = subprocess.run(
        [sys.executable, "-m", module, json.dumps(asdict(workload)), repr(time.time()), json.dumps(cores)],
        env=os.environ | threads | {"JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{workload.contender} at {workload.setting} failed:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])
