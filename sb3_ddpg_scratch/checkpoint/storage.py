"""
Checkpoints on the disk. A folder of them looks like this::

    step_000000020000/   manifest.json, state.json, arrays.bin
    step_000000040000/
    segments/            the replay buffer's rows, shared by all checkpoints

A checkpoint is written under a temporary name, its manifest last, and renamed once everything is on the disk. The manifest's
first line is the SHA-256 of the rest, which lists every file that the checkpoint needs, with its size and SHA-256.
"""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sb3_ddpg_scratch.atomic import sync_folder, write_whole
from sb3_ddpg_scratch.checkpoint.replay_segments import FOLDER, Segment, check_file, check_segment
from sb3_ddpg_scratch.checkpoint.serialization import Encoder, Tree, decode
from sb3_ddpg_scratch.errors import CheckpointError

FORMAT, VERSION = "sb3_ddpg_scratch.checkpoint", 1
MANIFEST, STATE, ARRAYS = "manifest.json", "state.json", "arrays.bin"
_NAME = re.compile(r"step_(\d{12,})")
_UNFINISHED = ".unfinished"


class Manifest(NamedTuple):
    """A checkpoint's own files, each with its size and SHA-256, and its segments, oldest first."""

    step: int
    files: dict[str, dict[str, Any]]
    segments: list[Segment]


class Checkpoint(NamedTuple):
    """A complete checkpoint: its state, and the segments of the replay buffer, oldest first."""

    folder: Path
    step: int
    state: dict[str, Any]
    segments: list[Segment]


def name_of(step: int) -> str:
    return f"step_{step:012d}"


def step_of(folder: Path) -> int:
    """The environment steps in a checkpoint's name; -1 for other names."""
    match = _NAME.fullmatch(folder.name)
    return -1 if match is None else int(match[1])


def checkpoints_in(path: Path) -> list[Path]:
    """The checkpoints in a folder, complete or not, newest first."""
    if not path.is_dir():
        return []
    found = [folder for folder in path.iterdir() if _NAME.fullmatch(folder.name)]
    return sorted(found, key=step_of, reverse=True)


def write_checkpoint(path: Path, step: int, state: dict[str, Any], segments: list[Segment]) -> Path:
    """Write a checkpoint whose segments are already on the disk; returns its folder."""
    unfinished, final = path / f".{name_of(step)}{_UNFINISHED}", path / name_of(step)
    shutil.rmtree(unfinished, ignore_errors=True)
    encoder = Encoder()
    tree = encoder.encode(state)
    table = [{"dtype": array.dtype.str, "shape": list(array.shape)} for array in encoder.arrays]
    contents = {
        ARRAYS: b"".join(np.ascontiguousarray(array).tobytes() for array in encoder.arrays),
        STATE: json.dumps({"arrays": table, "state": tree}).encode(),
    }
    files = {name: {"bytes": len(content), "sha256": _sha256(content)} for name, content in contents.items()}
    manifest = {"format": FORMAT, "version": VERSION, "step": step, "files": files}
    text = json.dumps(manifest | {"segments": [segment._asdict() for segment in segments]}, indent=1)
    try:
        for name, content in contents.items():
            write_whole(unfinished / name, content)
        write_whole(unfinished / MANIFEST, f"{_sha256(text.encode())}\n{text}")
        if final.exists():
            # It can only be damaged, or left by a training that was resumed from an earlier step.
            shutil.rmtree(final)
        unfinished.rename(final)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    sync_folder(path)
    return final


def prune(path: Path, kept: Mapping[Path, set[str]]) -> None:
    """Remove all checkpoints except the kept ones, unfinished ones, and segments that are no longer needed."""
    for folder in checkpoints_in(path):
        if folder not in kept:
            # Without its manifest it is no checkpoint, even if the removal is interrupted.
            (folder / MANIFEST).unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
    for leftover in path.glob(f".*{_UNFINISHED}"):
        shutil.rmtree(leftover, ignore_errors=True)
    needed = set().union(*kept.values())
    for file in (path / FOLDER).glob("*"):
        if file.name not in needed:
            file.unlink(missing_ok=True)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def newest_whole(path: Path) -> tuple[Checkpoint, list[CheckpointError]]:
    """The newest intact checkpoint, and what is wrong with the newer ones."""
    candidates = [path] if (path / MANIFEST).exists() or _NAME.fullmatch(path.name) else checkpoints_in(path)
    problems: list[CheckpointError] = []
    for folder in candidates:
        try:
            return read_checkpoint(folder), problems
        except CheckpointError as problem:
            problems.append(problem)
    if not problems:
        raise CheckpointError(path, "holds no checkpoints", "Train with ResumableCheckpoint or --checkpoint-every first.")
    if len(problems) == 1:
        raise problems[0]
    raise CheckpointError(path, "holds no checkpoint that is whole: " + " ".join(map(str, problems)))


def read_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint after checking the size and SHA-256 of each of its files against its manifest."""
    manifest = read_manifest(folder)
    for name in (STATE, ARRAYS):
        check_file(folder / name, **manifest.files[name])
    for segment in manifest.segments:
        check_segment(folder.parent / FOLDER, segment)
    try:
        content = json.loads((folder / STATE).read_bytes())
        state = decode(content["state"], list(_arrays(content["arrays"], (folder / ARRAYS).read_bytes())))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, RuntimeError, OSError) as error:
        raise CheckpointError(folder / STATE, f"is not understood ({type(error).__name__}: {error})") from error
    return Checkpoint(folder, manifest.step, state, manifest.segments)


def read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        digest, _, body = file.read_bytes().partition(b"\n")
    except OSError as error:
        raise CheckpointError(file, f"cannot be read ({error.strerror})") from error
    if digest != _sha256(body).encode():
        raise CheckpointError(file, "was cut off or changed: it is not what its first line says")
    try:
        content: dict[str, Any] = json.loads(body)
        written_as = (content["format"], content["version"])
        if written_as != (FORMAT, VERSION):
            raise CheckpointError(file, f"is of another format, {written_as}, than this version's, {(FORMAT, VERSION)}")
        files = {name: {key: content["files"][name][key] for key in ("bytes", "sha256")} for name in (STATE, ARRAYS)}
        manifest = Manifest(content["step"], files, [Segment(**entry) for entry in content["segments"]])
        name = name_of(manifest.step)
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(file, f"is not understood ({type(error).__name__}: {error})") from error
    if folder.name != name:
        raise CheckpointError(file, f"belongs to another checkpoint, {name}")
    return manifest


def _arrays(table: list[dict[str, Tree]], content: bytes) -> Iterator[np.ndarray]:
    start = 0
    for entry in table:
        dtype, shape = np.dtype(entry["dtype"]), tuple(entry["shape"])
        count = int(np.prod(shape, dtype=np.int64))
        if start + count * dtype.itemsize > len(content):
            raise ValueError(f"it has arrays beyond the end of {ARRAYS}")
        yield np.frombuffer(content, dtype, count, start).reshape(shape).copy()
        start += count * dtype.itemsize
