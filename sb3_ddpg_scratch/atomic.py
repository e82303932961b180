"""Files that are whole or absent: written to a temporary file, flushed to the disk, and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """
    Open a temporary file that gets its name once it is on the disk. Creates its folder; leaves nothing after an error.
    What is there already keeps its permissions, and a symbolic link stays one.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not (path.is_file() or path.is_dir()):
        with path.open("wb") as file:  # a device or a pipe, like /dev/stdout
            yield file
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    mode = path.stat().st_mode & 0o7777 if path.is_file() else None
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # With the least permissions from the start: others must not read the content of a private file meanwhile.
        with open(
            temporary, "wb", opener=lambda name, flags: os.open(name, flags, 0o666 if mode is None else mode & 0o600)
        ) as file:
            yield file
            file.flush()
            if mode is not None:
                temporary.chmod(mode)
            os.fsync(file.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """Write a file atomically, text as UTF-8."""
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk, where the system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
