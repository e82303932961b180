"""Files that are whole or absent: written aside, handed to the disk, and renamed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """
    A file to write to, which gets its name only once everything is on the disk. After an error nothing is left of it.

    :param path: the file; its folder is made, and what is there under its name is replaced
    :raises OSError: if it cannot be written, as on a full disk
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with aside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        sync_folder(path.parent)
    finally:
        aside.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes | str) -> None:
    """
    :param path: the file; its folder is made
    :param content: what is to be in it; text as UTF-8
    :raises OSError: if it cannot be written
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


def sync_folder(folder: Path) -> None:
    """
    Hand the names in a folder to the disk, where the system can do that.

    :param folder: the folder
    """
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
