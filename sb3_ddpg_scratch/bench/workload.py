"""What is benchmarked: a contender with a network size, batch size, number of environments and number of cores."""

import json
import os
import shutil
import subprocess
import sys
import time
from ctypes.util import find_library
from dataclasses import asdict, dataclass
from importlib.util import find_spec

CONTENDERS = ("sb3", "sbx", "autograd", "analytic", "compiled")
# TD3 in C++, compiled for each configuration; used only where TD3 is timed.
RLTOOLS = "rltools"
# Hindsight replay is timed on this environment.
GOALS, GOAL_ENV = "hindsight", "FetchReach-v4"
# Timed in addition to the chosen environment.
MUJOCO, MUJOCO_ENV = "mujoco", "HalfCheetah-v5"


@dataclass(frozen=True)
class Workload:
    """One measurement: ``seconds`` each of updates and of steps, with ``filled`` of ``buffer_size`` transitions stored."""

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
    td3: bool = False
    layer_norm: bool = False
    hindsight: bool = False
    uses: tuple[str, ...] | None = None

    @property
    def setting(self) -> str:
        """The configuration that compared contenders share."""
        envs = "" if self.n_envs == 1 else f", {self.n_envs} envs x {self.gradient_steps} updates"
        named = (("TD3", self.td3), ("layer norm", self.layer_norm), (GOALS, self.hindsight))
        options = "".join(f", {name}" for name in (*(name for name, on in named if on), *(self.uses or ())))
        return f"[{','.join(map(str, self.net_arch))}]/{self.batch_size}{options}{envs}"


# What users add to the fastest case.
CALLBACK, WRAPPER, SB3_NOISE, DICT, NORMALIZED = "own callback", "own environment", "SB3's noise", "Dict", "VecNormalize"
USES = ((), (CALLBACK,), (WRAPPER,), (SB3_NOISE,), (DICT,), (NORMALIZED,), (CALLBACK, WRAPPER, SB3_NOISE, DICT, NORMALIZED))


def missing(contender: str) -> str | None:
    """What is missing to run a contender here, as a sentence; ``None`` if nothing is."""
    needed: dict[str, tuple[str, ...]] = {"sbx": ("sbx", "jax"), "compiled": ("numba", "scipy"), RLTOOLS: (RLTOOLS,)}
    needed |= {GOALS: ("gymnasium_robotics",), MUJOCO: ("mujoco",)}
    lacking = [package for package in needed.get(contender, ()) if find_spec(package) is None]
    if contender == RLTOOLS and not (shutil.which("g++") or shutil.which("clang++")):
        lacking.append("a C++ compiler")
    if contender == RLTOOLS and find_library("blas") is None:
        lacking.append("BLAS (libopenblas-dev)")
    return f"{contender} needs {', '.join(lacking)}" if lacking else None


def installed(contender: str) -> bool:
    return missing(contender) is None


def measure(workload: Workload) -> dict[str, float | str]:
    """Measure in a new process, pinned to its number of cores; on failure, ``RuntimeError`` has the end of its log."""
    cores = sorted(os.sched_getaffinity(0))[: workload.cores] if hasattr(os, "sched_getaffinity") else []
    threads = {name: str(workload.cores) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    module = "sb3_ddpg_scratch.bench.worker"
    finished = subprocess.run(
        [sys.executable, "-m", module, json.dumps(asdict(workload)), repr(time.time()), json.dumps(cores)],
        # RLtools refuses MKL beside torch, but accepts OpenBLAS.
        env=os.environ | threads | {"JAX_PLATFORMS": "cpu", "RL_TOOLS_DISABLE_MKL": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if finished.returncode != 0:
        raise RuntimeError(f"{workload.contender} at {workload.setting} failed:\n{finished.stderr[-2000:]}")
    return json.loads(finished.stdout.splitlines()[-1])
