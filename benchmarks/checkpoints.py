"""What a checkpoint costs when the replay buffer is full: ``python benchmarks/checkpoints.py --env HalfCheetah-v5``."""

import resource
import tempfile
import time
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
import typer
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch import ResumableCheckpoint, ScratchDDPG
from sb3_ddpg_scratch.replay import PackedReplayBuffer

# Environment steps between two checkpoints.
EVERY = 10_000


class Cost(NamedTuple):
    """Seconds, bytes written or read, and by how many bytes the process's peak memory rose."""

    seconds: float
    bytes: int
    memory: int


class _TimedCheckpoint(ResumableCheckpoint):
    def __init__(self, path: Path) -> None:
        super().__init__(path, every=EVERY)
        self.costs: list[Cost] = []

    def _save(self) -> None:
        known, peak, start = set(_files(self.path)), _peak_memory(), time.perf_counter()
        super()._save()
        seconds = time.perf_counter() - start
        written = sum(file.stat().st_size for file in set(_files(self.path)) - known)
        self.costs.append(Cost(seconds, written, _peak_memory() - peak))


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_checkpoints(env_id: str, transitions: int) -> dict[str, Cost]:
    """Fill a replay buffer of that capacity, step through an environment without updates, write checkpoints, read one."""
    env = make_vec_env(env_id, seed=0)
    model = ScratchDDPG("MlpPolicy", env, buffer_size=transitions, learning_starts=10**9, seed=0, device="cpu")
    buffer = model.replay_buffer
    assert isinstance(buffer, PackedReplayBuffer)
    generator = np.random.default_rng(0)
    for row in buffer.rows:
        row[:] = generator.random(len(row), np.float32)
    buffer.rows[:, buffer.columns.continuation] = 1
    buffer.full = True
    with tempfile.TemporaryDirectory() as name:
        callback = _TimedCheckpoint(Path(name))
        model.learn(3 * EVERY, callback=callback)
        # The new model's buffer counts as read: its pages are only counted once they are touched.
        size, peak, start = transitions * buffer.rows[0].nbytes, _peak_memory(), time.perf_counter()
        ScratchDDPG.resume(name, make_vec_env(env_id, seed=0))
        reading = Cost(time.perf_counter() - start, size, _peak_memory() - peak)
    return {"first checkpoint": callback.costs[0], "a following one": callback.costs[2], "resume": reading}


def main(
    env: Annotated[str, typer.Option(help="A registered environment with bounded Box actions.")] = "Pendulum-v1",
    quick: Annotated[bool, typer.Option("--quick", help="100,000 transitions instead of 1,000,000.")] = False,
) -> None:
    """Time checkpoints of a full replay buffer."""
    transitions = 100_000 if quick else 1_000_000
    console = Console()
    with console.status(f"{env}: {transitions:,} transitions"):
        costs = measure_checkpoints(env, transitions)
    console.print(f"{env}: checkpoints of {transitions:,} transitions, every {EVERY:,} steps", soft_wrap=True)
    table = Table("what")
    for heading in ("seconds", "MB", "more memory, MB"):
        table.add_column(heading, justify="right")
    for what, cost in costs.items():
        table.add_row(what, f"{cost.seconds:.3f}", f"{cost.bytes / 1e6:.1f}", f"{cost.memory / 1e6:.1f}")
    console.print(table)


if __name__ == "__main__":
    typer.run(main)
