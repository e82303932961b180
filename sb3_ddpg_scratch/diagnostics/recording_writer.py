"""
The file that a run's diagnostics are recorded in: what is written, and how.

``diagnostics.jsonl`` is a text file of JSON objects, one per line. The first is the header; each of the others has a
``kind`` (``episode``, ``update``, ``evaluation``, ``probes``, ``snapshot``, ``warning``, ``resumed``, ``end``) and the
environment step at which it was made. Lines are only ever appended, and each is handed to the operating system at once, so
that a killed process leaves all of them except the one it was writing. Numbers that are not finite, which JSON cannot
represent, are the words ``NaN``, ``Infinity`` and ``-Infinity``.
"""

import json
import os
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.json_values import plain

FORMAT = "sb3_ddpg_scratch.diagnostics"
VERSION = 1
RECORDING_FILE = "diagnostics.jsonl"
PROBES_FILE = "probe_states.npz"
POLICY_FILE = "policy.pth"


def encode(record: dict[str, Any]) -> bytes:
    return json.dumps(plain(record), allow_nan=False, separators=(",", ":")).encode() + b"\n"


class RecordingWriter:
    """Appends to a folder's recording, from ``resume_at`` on, or to a new one: an earlier one gets a numbered name."""

    def __init__(self, folder: Path, header: dict[str, Any], resume_at: int | None = None) -> None:
        self.path = folder / RECORDING_FILE
        folder.mkdir(parents=True, exist_ok=True)
        if self.path.exists() and resume_at is None:
            _keep_aside(self.path)
        begins = not self.path.exists() or self.path.stat().st_size == 0
        # Unbuffered: what write() has returned from survives the end of the process, however it ends.
        self._file = self.path.open("ab", buffering=0)
        if begins:
            self._file.write(encode({"format": FORMAT, "version": VERSION} | header))
        else:
            self._file.write(b"\n")  # The last line may be torn; empty lines are skipped.
            self.write("resumed", step=resume_at)

    def write(self, kind: str, **values: Any) -> None:
        self._file.write(encode({"kind": kind} | values))

    def close(self) -> None:
        os.fsync(self._file.fileno())
        self._file.close()


def _keep_aside(path: Path) -> None:
    """Rename a file that is in the way: the first free number goes into its name."""
    number = 1
    while (kept := path.with_name(f"{path.stem}.{number}{path.suffix}")).exists():
        number += 1
    path.rename(kept)
