"""
The replay buffer on the disk, in segments: files with the transitions of a range of time steps, shared by all later
checkpoints. Time steps are counted from the first ever added: number n is at position n modulo ``buffer_size``.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stable_baselines3.common.buffers import ReplayBuffer
from stable_baselines3.her.her_replay_buffer import HerReplayBuffer

from sb3_ddpg_scratch.atomic import whole_file
from sb3_ddpg_scratch.errors import CheckpointError
from sb3_ddpg_scratch.model_file.buffers import KNOWN, Members, checked_state
from sb3_ddpg_scratch.replay import PackedReplayBuffer

FOLDER = "segments"
_NAME = re.compile(r"\d+-\d+-[0-9a-f]+\.rows")
# Neighbors are joined up to this size, so that frequent checkpoints do not leave thousands of files.
LARGEST_JOINED = 16 * 2**20

_SB3_COLUMNS = ("observations", "next_observations", "actions", "rewards", "dones", "timeouts")
# Additional columns of SB3's HerReplayBuffer, which also change for old transitions.
_SB3_EPISODES = ("ep_start", "ep_length", "_current_ep_start")


class Segment(NamedTuple):
    """A file with the transitions of time steps ``start`` to ``stop - 1``."""

    name: str
    start: int
    stop: int
    bytes: int
    sha256: str


def why_not_saved(buffer: ReplayBuffer) -> str | None:
    """Why a replay buffer cannot be saved in segments; ``None`` if it can."""
    if isinstance(buffer, HerReplayBuffer) and buffer.copy_info_dict:
        return "with copy_info_dict=True the replay buffer keeps infos, which may be any objects"
    if type(buffer) in KNOWN:
        return None
    names = ", ".join(cls.__name__ for cls in KNOWN)
    return f"the replay buffer is a {type(buffer).__name__}; those that can be checkpointed are {names}"


def columns_of(buffer: ReplayBuffer) -> dict[str, np.ndarray]:
    """A replay buffer's arrays as views of shape ``(buffer_size, ...)``."""
    packed = isinstance(buffer, PackedReplayBuffer)
    columns = {}
    for name in buffer._row_arrays if isinstance(buffer, PackedReplayBuffer) else _SB3_COLUMNS:
        value = getattr(buffer, name, None)
        parts = {f"{name}/{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        for full_name, part in parts.items():
            if part is not None and part.size:
                columns[full_name] = part.reshape(buffer.buffer_size, -1) if packed else part
    return columns


def layout_of(buffer: ReplayBuffer) -> dict[str, Any]:
    columns = {name: [column.dtype.str, list(column.shape)] for name, column in columns_of(buffer).items()}
    return {"class": type(buffer).__name__, "columns": columns}


def head_of(buffer: ReplayBuffer) -> dict[str, Any]:
    """A buffer's state besides its columns, and the row at its position, which memory-saving buffers have already begun."""
    row = {name: column[buffer.pos].copy() for name, column in columns_of(buffer).items()}
    head = {"pos": buffer.pos, "full": buffer.full, "row": row}
    if isinstance(buffer, PackedReplayBuffer):
        return head | buffer.beside_rows()
    return head | {name: getattr(buffer, name) for name in _SB3_EPISODES if isinstance(buffer, HerReplayBuffer)}


class SegmentLog:
    """The segments of a buffer that is being filled, and how many time steps had ever been added when they were written."""

    def __init__(self, folder: Path, segments: list[Segment] | None = None, written: int = 0) -> None:
        self.folder = folder
        self.segments = list(segments or ())
        self.written = written

    def save(self, buffer: ReplayBuffer, added: int) -> None:
        """Write the time steps added since the last call; after an error, ``segments`` and ``written`` are unchanged."""
        size = buffer.buffer_size
        written, segments = self.written + added, self.segments
        if written % size != buffer.pos or (written >= size) != buffer.full:
            # Something else added or removed transitions: start over.
            written, segments = buffer.pos + (size if buffer.full else 0), []
        if segments and written == self.written:
            return
        oldest = max(written - size, 0)
        segments = [segment for segment in segments if segment.stop > oldest]
        columns = columns_of(buffer)
        row_bytes = sum(column[0].nbytes for column in columns.values())
        # The newest transition may still change: a new learn() marks it as the last of its trajectory.
        start = max(segments[-1].stop - 1 if segments else 0, oldest)
        while segments and _joins(segments[-1], (written - start) * row_bytes) and segments[-1].start >= oldest:
            start = segments.pop().start
        if written > start:
            segments.append(_write(self.folder, columns, start, written, size))
        self.segments, self.written = segments, written


def _joins(segment: Segment, following: int) -> bool:
    return segment.bytes <= following and segment.bytes + following <= LARGEST_JOINED


def _write(folder: Path, columns: dict[str, np.ndarray], start: int, stop: int, size: int) -> Segment:
    # Always a new name: another checkpoint may need the old file of the same range.
    name = f"{start:012d}-{stop:012d}-{os.urandom(8).hex()}.rows"
    digest, total = hashlib.sha256(), 0
    with whole_file(folder / name) as file:
        for part in _parts(columns, start, stop, size):
            file.write(part)
            digest.update(part)
            total += part.nbytes
    return Segment(name, start, stop, total, digest.hexdigest())


def _parts(columns: dict[str, np.ndarray], start: int, stop: int, size: int) -> Iterator[memoryview]:
    """The memory of a range of time steps, column by column; in two parts if it wraps around the buffer's end."""
    first, count = start % size, stop - start
    before_end = min(count, size - first)
    for column in columns.values():
        for where in (slice(first, first + before_end), slice(0, count - before_end)):
            if where.stop > where.start:
                yield column[where].reshape(-1).view(np.uint8).data


def check_segment(folder: Path, segment: Segment) -> None:
    if not _NAME.fullmatch(segment.name):
        raise CheckpointError(folder / segment.name, "is not the name of a segment")
    check_file(folder / segment.name, segment.bytes, segment.sha256)


def check_file(file: Path, bytes: int, sha256: str) -> None:
    try:
        with file.open("rb") as opened:
            digest, size = hashlib.file_digest(opened, "sha256").hexdigest(), opened.tell()
    except OSError as error:
        raise CheckpointError(file, f"cannot be read ({error.strerror})") from error
    if size != bytes:
        raise CheckpointError(file, f"has {size} bytes instead of {bytes}")
    if digest != sha256:
        raise CheckpointError(file, "was changed, or belongs to another checkpoint: its SHA-256 is not the manifest's")


def restore_buffer(
    buffer: ReplayBuffer, folder: Path, segments: list[Segment], written: int, layout: dict[str, Any], head: dict[str, Any]
) -> None:
    """Read a buffer's transitions from checked segments, directly into its memory."""
    if layout != layout_of(buffer):
        raise CheckpointError(
            folder, f"holds transitions of another replay buffer: {layout}, and this model's is {layout_of(buffer)}"
        )
    columns, size = columns_of(buffer), buffer.buffer_size
    row_bytes = sum(column[0].nbytes for column in columns.values())
    oldest, reached = max(written - size, 0), None
    for segment in segments:
        count = segment.stop - segment.start
        follows = segment.start <= oldest if reached is None else segment.start <= reached < segment.stop
        if not (0 < count <= size and segment.bytes == count * row_bytes and follows):
            raise CheckpointError(folder / segment.name, "does not fit between its neighbours, or this buffer")
        reached = segment.stop
        with (folder / segment.name).open("rb") as file:
            for part in _parts(columns, segment.start, segment.stop, size):
                if file.readinto(part) != part.nbytes:
                    raise CheckpointError(folder / segment.name, "was cut off while it was read")
    if written and reached != written:
        raise CheckpointError(folder, f"holds no segment with the newest transitions, up to number {written}")
    members = Members(vars(buffer) | head | {"written": written}, folder)
    counts = members.whole("pos", 0, size - 1), members.flag("full")
    if counts != (members.whole("written", 0, 2**62) % size, written >= size):
        raise CheckpointError(folder, f"has a replay buffer at {counts}, which is not after {written} time steps")
    rows = Members(head["row"], folder, "row/")
    for name, column in columns.items():
        column[counts[0]] = rows.array(name, column.dtype, column.shape[1:])
    state = checked_state(members, members, buffer, size, buffer.n_envs)
    buffer.pos, buffer.full = counts
    if isinstance(buffer, PackedReplayBuffer):
        buffer.set_beside_rows(head)
    elif isinstance(buffer, HerReplayBuffer):
        vars(buffer).update({name: state[name] for name in _SB3_EPISODES})
