"""
The file that a run's diagnostics are recorded in: what is written, and how.

``diagnostics.jsonl`` is a text file of JSON objects, one a line. The first one is the header; every other one has a
``kind`` (``episode``, ``update``, ``evaluation``, ``probes``, ``snapshot``, ``warning``, ``resumed``, ``end``) and the
environment step it was made at. Lines are only ever appended and each is handed to the operating system at once, so that
a process that is killed leaves all of them but the one that it was writing. Numbers that are not finite, which JSON does
not know, are the words ``NaN``, ``Infinity`` and ``-Infinity``.
"""

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = "sb3_ddpg_scratch.diagnostics"
VERSION = 1
RECORDING_FILE = "diagnostics.jsonl"
PROBES_FILE = "probe_states.npz"
POLICY_FILE = "policy.pth"


def plain(value: Any) -> Any:
    """
    :param value: numbers, texts, arrays, and lists and dicts of them
    :return: the same made of what JSON knows; numbers that are not finite become words
    """
    if isinstance(value, (float, np.floating)):
        number = float(value)
        if math.isfinite(number):
            return number
        return "NaN" if math.isnan(number) else "Infinity" if number > 0 else "-Infinity"
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def encode(record: dict[str, Any]) -> bytes:
    """
    :param record: what to write
    :return: its line, with the line's end
    """
    return json.dumps(plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"


class RecordingWriter:
    """
    Appends records to the recording of a folder.

    :param folder: the run's folder; it is made
    :param header: what is known of the run before it begins
    :param resume_at: ``None`` for a new recording (one that is there already is kept, under a name with a number);
        otherwise the environment step from which an earlier run goes on, whose recording is continued
    :raises OSError: if the file cannot be written
    """

    def __init__(self, folder: Path, header: dict[str, Any], resume_at: int | None = None) -> None:
        self.path = folder / RECORDING_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and resume_at is None:
            keep_aside(self.path)
        begins = not self.path.exists() or self.path.stat().st_size == 0
        torn = not begins and self._last_byte() != b"\n"
        # Unbuffered: what write() has returned from survives the end of the process, however it ends.
        self._file = self.path.open("ab", buffering=0)
        if torn:
            self._file.write(b"\n")
        if begins:
            self._file.write(encode({"format": FORMAT, "version": VERSION} | header))
        else:
            self.write("resumed", step=resume_at)

    def _last_byte(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1)

    def write(self, kind: str, **values: Any) -> None:
        """
        :param kind: the record's kind
        :param values: its values, ``step`` among them
        """
        self._file.write(encode({"kind": kind} | values))

    def close(self) -> None:
        """Hand everything to the disk. Nothing can be written any more."""
        os.fsync(self._file.fileno())
        self._file.close()


def keep_aside(path: Path) -> Path:
    """
    Give a file that is in the way a name with a number, the first that is free.

    :param path: the file
    :return: where it is now
    """
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
    return kept
