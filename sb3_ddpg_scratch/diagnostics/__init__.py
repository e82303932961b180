"""What DDPG is doing while it trains, recorded by a callback and drawn in a report."""

from sb3_ddpg_scratch.diagnostics.callback import DiagnosticsCallback
from sb3_ddpg_scratch.diagnostics.recording_reader import Recording, UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.report import figures, table, write_report

__all__ = [
    "DiagnosticsCallback",
    "Recording",
    "UnreadableRecordingError",
    "figures",
    "read_recording",
    "table",
    "write_report",
]
