"""One writer per folder: a lock of the operating system, released when its process ends, even if it is killed."""

import errno
import json
import os
import shlex
import socket
import sys
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from sb3_ddpg_scratch.errors import ArgumentError, FolderInUseError

_LOCK, _HOLDER = ".lock", ".lock_holder.json"
_LONGEST_COMMAND = 200
_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP)


@contextmanager
def hold_folder(folder: Path, name: str) -> Iterator[None]:
    """Lock a folder (not its subfolders) against other processes and other code in this one; ``name`` is for errors."""
    lock, holder = FileLock(folder / _LOCK, thread_local=False), folder / _HOLDER
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(blocking=False)
    except Timeout as error:
        allowed = "a folder that nobody else is writing to"
        raise FolderInUseError(name, str(folder), allowed, _who_writes(holder)) from error
    except (OSError, NotImplementedError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise ArgumentError(name, str(folder), f"a folder that can be written to ({error.strerror})") from error
        warnings.warn(f"{folder} cannot be locked ({error}): make sure that nothing else writes to it.", stacklevel=3)
    try:
        # Only for the error message: a leftover file locks nothing, and an incomplete one is ignored.
        with suppress(OSError):
            holder.unlink(missing_ok=True)
            command = textwrap.shorten(shlex.join(sys.orig_argv), _LONGEST_COMMAND, placeholder=" ...")
            holder.write_text(json.dumps({"pid": os.getpid(), "host": socket.gethostname(), "command": command}))
        yield
    finally:
        with suppress(OSError):
            holder.unlink(missing_ok=True)
        lock.release()


def holds_nothing(folder: Path) -> bool:
    """Whether a folder is empty except for the files of :func:`hold_folder`."""
    return all(path.name in (_LOCK, _HOLDER) for path in folder.iterdir())


def _who_writes(holder: Path) -> str:
    try:
        record = json.loads(holder.read_text())
        pid, host, command = int(record["pid"]), str(record["host"]), str(record["command"])
    except (OSError, ValueError, TypeError, KeyError):
        return "Another process is writing to it: wait for it, stop it, or choose another folder."
    if (pid, host) == (os.getpid(), socket.gethostname()):
        return f"This process, {pid}, is writing to it already: choose another folder."
    return f"Process {pid} on {host} ({command}) is writing to it: wait for it, stop it, or choose another folder."
