"""Reads recordings, even damaged ones: unreadable parts are skipped and listed."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from sb3_ddpg_scratch.diagnostics.recording_writer import FORMAT, RECORDING_FILE, VERSION

MOST_LISTED = 5
_MEASURED = (
    *("seconds", "q_mean", "q_abs_mean", "target_mean", "td_error", "critic_loss", "actor_loss"),
    *("critic_grad_norm", "actor_grad_norm", "saturated", "sigma", "largest_return"),
)
_COMPARED = ("q", "discounted_return", "tail_weight", "return_mean", "noise_free")

# The columns of each kind of record that is read as a table, and whether a record without it is invalid.
COLUMNS: dict[str, dict[str, bool]] = {
    "episode": {"step": True, "return": True, "length": False, "env": False},
    "update": {"step": True, "n_updates": True} | dict.fromkeys(_MEASURED, False),
    "evaluation": {"step": True} | dict.fromkeys(_COMPARED, False),
}


class UnreadableRecordingError(ValueError):
    """A recording that cannot be read at all; the message names the file and the reason."""


@dataclass
class Snapshot:
    """The networks on the probe states: normalized ``actions``, and ``plane`` of shape ``(action_dim, y, x)``, if any."""

    step: int
    actions: np.ndarray
    q_values: np.ndarray
    plane: np.ndarray | None = None


@dataclass
class Recording:
    """
    What a run recorded.

    :param path: the file
    :param header: the description of the run, written before it began
    :param tables: for "episode", "update" and "evaluation" the columns, each of shape ``(records,)``; NaN where a value is
        missing
    :param probes: source and values of the probe states; empty until they are drawn
    :param snapshots: in training order
    :param warnings: ``step``, ``name`` and ``text`` of each warning
    :param ended: whether training reached its end instead of being killed
    :param problems: what could not be read, in sentences
    """

    path: Path
    header: dict[str, Any]
    tables: dict[str, dict[str, np.ndarray]]
    probes: dict[str, Any] = field(default_factory=dict)
    snapshots: list[Snapshot] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)
    ended: bool = False
    problems: list[str] = field(default_factory=list)

    def names(self, what: str, count: int) -> list[str]:
        """Of the numbers of an ``observation`` or ``action``, with units where the recording has them."""
        given = self.header.get(f"{what}_names")
        fits = isinstance(given, list) and len(given) == count and all(isinstance(name, str) for name in given)
        return given if fits else [f"{what}[{index}]" for index in range(count)]  # type: ignore[return-value]

    @property
    def last_step(self) -> int:
        """The last environment step with a record."""
        steps = [int(table["step"][-1]) for table in self.tables.values() if len(table["step"])]
        return max([*steps, *(snapshot.step for snapshot in self.snapshots)], default=0)


def find_recording(folder: Path) -> Path:
    """The recording in a run's folder, or the file itself; raises UnreadableRecordingError if there is none."""
    if folder.is_file():
        return folder
    if not folder.is_dir():
        raise UnreadableRecordingError(f"{folder}: there is no such folder.")
    path = folder / RECORDING_FILE
    if path.is_file():
        return path
    below = sorted(str(found.parent) for found in folder.glob(f"*/{RECORDING_FILE}"))
    advice = f" Its subfolders have some: name {', '.join(below)}." if below else " Train with DiagnosticsCallback to get one."
    raise UnreadableRecordingError(f"{folder}: no diagnostics in it (no {RECORDING_FILE}).{advice}")


def read_recording(folder: Path | str) -> Recording:
    """
    Read a recording. No code from the file is run; invalid lines are skipped and listed in ``problems``.

    :param folder: a run's folder, or a recording itself
    :return: what could be read
    :raises UnreadableRecordingError: if the recording is missing or has another format, or its header is incomplete
    """
    path = find_recording(Path(folder))
    header = read_header(path)
    lines = path.read_bytes().split(b"\n")
    records: list[dict[str, Any]] = []
    skipped: dict[int, str] = {}
    last_written = max((number for number, line in enumerate(lines, 1) if line.strip()), default=1)
    for number, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        try:
            record = _checked(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            torn = isinstance(error, (json.JSONDecodeError, UnicodeDecodeError)) and number == last_written
            skipped[number] = "torn, as when a run is killed while it writes" if torn else "not a valid record"
            continue
        if record["kind"] == "resumed":
            # The run was resumed from an earlier step, and what came after that step was recorded again.
            records = [kept for kept in records if kept["step"] <= record["step"] and kept["kind"] != "end"]
        records.append(record)
    recording = _assemble(path, header, records)
    listed = list(skipped.items())[:MOST_LISTED]
    recording.problems = [f"{path}, line {number}: {reason}; skipped." for number, reason in listed]
    if len(skipped) > len(listed):
        recording.problems.append(f"{path}: {len(skipped) - len(listed)} more lines are not valid; skipped.")
    return recording


def read_header(path: Path) -> dict[str, Any]:
    """Raises UnreadableRecordingError if the header is unreadable, incomplete or of another format."""
    try:
        with path.open("rb") as file:
            header = json.loads(file.readline())
    except OSError as error:
        raise UnreadableRecordingError(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise UnreadableRecordingError(f"{path}: its first line is torn or not JSON, so it cannot be read.") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise UnreadableRecordingError(f"{path}: not a recording of diagnostics (its first line does not say {FORMAT!r}).")
    if header.get("version") != VERSION:
        raise UnreadableRecordingError(
            f"{path}: recorded in format version {header.get('version')!r}; this program reads version {VERSION}. "
            "Use the version of sb3-ddpg-scratch that recorded it."
        )
    return header


def is_of_the_same_run(folder: Path, description: dict[str, Any]) -> bool:
    """Whether a folder's recording, if any, has the algorithm and environment of this header."""
    try:
        header = read_header(folder / RECORDING_FILE)
    except UnreadableRecordingError:
        return False
    return all(header.get(name) == description[name] for name in ("algorithm", "environment"))


def _checked(record: Any) -> dict[str, Any]:
    """The record with its values converted; raises ValueError, TypeError or KeyError if it is invalid."""
    kind, step = record["kind"], record["step"]
    if not isinstance(kind, str) or not isinstance(step, int) or isinstance(step, bool):
        raise TypeError
    if kind in COLUMNS:
        for name, needed in COLUMNS[kind].items():
            value = record[name] if needed else record.get(name)
            record[name] = np.nan if value is None else float(value)
    elif kind == "snapshot":
        actions, q_values = np.array(record["actions"], float), np.array(record["q"], float)
        if actions.ndim != 2 or q_values.shape != actions.shape[:1]:
            raise ValueError
        plane = None if record.get("plane") is None else np.array(record["plane"], float)
        if plane is not None and plane.ndim != 3:
            raise ValueError
        record["snapshot"] = Snapshot(step, actions, q_values, plane)
    elif kind == "probes" and record.get("states") is not None:
        record["states"] = np.array(record["states"], float)
        if record["states"].ndim != 2:
            raise ValueError
    elif kind == "plane":
        record["x"], record["y"] = np.array(record["x"], float), np.array(record["y"], float)
        first, second = record["dimensions"]
        record["dimensions"] = (int(first), int(second))
    elif kind == "warning":
        record["name"], record["text"] = str(record["name"]), str(record["text"])
    return record


def _assemble(path: Path, header: dict[str, Any], records: list[dict[str, Any]]) -> Recording:
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        by_kind.setdefault(record["kind"], []).append(record)
    tables = {
        kind: {name: np.array([record[name] for record in by_kind.get(kind, [])], float) for name in columns}
        for kind, columns in COLUMNS.items()
    }
    probes = by_kind.get("probes", [{}])[-1]
    # Keep the snapshots of the probe states drawn last: other numbers of states or actions belong to earlier ones.
    snapshots = [record["snapshot"] for record in by_kind.get("snapshot", []) if record["step"] >= probes.get("step", 0)]
    snapshots = [snapshot for snapshot in snapshots if snapshot.actions.shape == snapshots[-1].actions.shape]
    planes = by_kind.get("plane", [])
    # Those of the plane chosen last, too.
    for snapshot in snapshots:
        if not planes or snapshot.step < planes[-1]["step"]:
            snapshot.plane = None
    probes |= {"plane": planes[-1]} if planes else {}
    warnings = [{key: record[key] for key in ("step", "name", "text")} for record in by_kind.get("warning", [])]
    return Recording(path, header, tables, probes, snapshots, warnings, bool(records) and records[-1]["kind"] == "end")
