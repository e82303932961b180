"""What a checkpoint costs when the replay buffer is full: seconds, bytes and memory."""

import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table
from stable_baselines3.common.env_util import make_vec_env

from sb3_ddpg_scratch.checkpoint.callback import ResumableCheckpoint
from sb3_ddpg_scratch.ddpg import ScratchDDPG
from sb3_ddpg_scratch.replay import PackedReplayBuffer

# Environment steps between two checkpoints.
EVERY = 10_000


class _Timed(ResumableCheckpoint):
    """Notes of each checkpoint the seconds, the bytes written, and by how much the process's peak of memory has risen."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, every=EVERY)
        self.costs: list[tuple[float, int, int]] = []

    def _save(self) -> None:
        known, peak, begun = set(_files(self.path)), _peak_memory(), time.perf_counter()
        super()._save()
        seconds = time.perf_counter() - begun
        written = sum(file.stat().st_size for file in set(_files(self.path)) - known)
        self.costs.append((seconds, written, _peak_memory() - peak))


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.rglob("*") if file.is_file()]


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure_checkpoints(env_id: str, transitions: int) -> dict[str, tuple[float, int, int]]:
    """
    Fill a replay buffer, step through an environment without updates, and write checkpoints.

    :param env_id: id of the environment
    :param transitions: the buffer's capacity, all of it filled
    :return: seconds, bytes and rise of the memory's peak (bytes), of the first checkpoint, of a following one (the second
        of two), and of reading one
    """
    env = make_vec_env(env_id, seed=0)
    model = ScratchDDPG("MlpPolicy", env, buffer_size=transitions, learning_starts=10**9, seed=0, device="cpu")
    buffer = model.replay_buffer
    assert isinstance(buffer, PackedReplayBuffer)
    generator = np.random.default_rng(0)
    for row in buffer.rows:
        row[:] = generator.random(len(row), np.float32)
    buffer.full = True
    with tempfile.TemporaryDirectory() as name:
        callback = _Timed(Path(name))
        model.learn(3 * EVERY, callback=callback)
        # Pages are only counted once they are touched: the buffer's own belong to no reading.
        size, peak, begun = transitions * buffer.rows[0].nbytes, _peak_memory(), time.perf_counter()
        ScratchDDPG.resume(name, make_vec_env(env_id, seed=0))
        reading = (time.perf_counter() - begun, size, _peak_memory() - peak)
    return {"first checkpoint": callback.costs[0], "a following one": callback.costs[2], "resume": reading}


def run_checkpoints(env_id: str, quick: bool, console: Console) -> None:
    """
    :param env_id: id of the environment
    :param quick: measure a buffer of 100,000 transitions instead of 1,000,000
    :param console: where to print
    """
    transitions = 100_000 if quick else 1_000_000
    with console.status(f"{env_id}: {transitions:,} transitions"):
        costs = measure_checkpoints(env_id, transitions)
    shown = Table(title=f"{env_id}: checkpoints of {transitions:,} transitions, every {EVERY:,} steps", title_justify="left")
    shown.add_column("what")
    for heading in ("seconds", "MB", "more memory, MB"):
        shown.add_column(heading, justify="right")
    for what, (seconds, size, memory) in costs.items():
        shown.add_row(what, f"{seconds:.3f}", f"{size / 1e6:.1f}", f"{memory / 1e6:.1f}")
    console.print(shown)
