"""The recording's file: what is written is read again, and what is torn, foreign or hostile is named."""

import json

import numpy as np
import pytest

from sb3_ddpg_scratch.diagnostics.probes import ProbeStates, distinct
from sb3_ddpg_scratch.diagnostics.recording_reader import UnreadableRecordingError, read_recording
from sb3_ddpg_scratch.diagnostics.recording_writer import FORMAT, RecordingWriter, encode
from sb3_ddpg_scratch.json_values import plain


def record(folder, episodes=5, resume_at=None, first=0):
    writer = RecordingWriter(folder, {"algorithm": "ScratchDDPG"}, resume_at)
    for episode in range(first, first + episodes):
        writer.write("episode", step=10 * episode, **{"return": -float(episode), "length": 10, "env": 0})
    return writer


def test_what_is_written_is_read(tmp_path):
    writer = record(tmp_path)
    writer.write("update", step=50, n_updates=7, q_mean=float("nan"), td_error=np.float32(np.inf), sigma=None)
    writer.write("warning", step=50, name="saturated", text="so")
    # Nothing waits in a buffer: it can be read before the file is closed.
    recording = read_recording(tmp_path)
    assert recording.header["algorithm"] == "ScratchDDPG"
    assert recording.tables["episode"]["return"].tolist() == [0, -1, -2, -3, -4]
    update = {name: column[0] for name, column in recording.tables["update"].items()}
    assert np.isnan(update["q_mean"])
    assert update["td_error"] == np.inf
    assert np.isnan(update["sigma"])
    assert recording.warnings == [{"step": 50, "name": "saturated", "text": "so"}]
    assert not recording.ended
    writer.write("end", step=50)
    writer.close()
    assert read_recording(tmp_path).ended


def test_json_without_numbers_that_it_does_not_know():
    line = encode({"a": np.array([np.nan, -np.inf, 1.5]), "b": (np.int64(3), np.bool_(True)), 4: None})
    assert json.loads(line, parse_constant=pytest.fail) == {"a": ["NaN", "-Infinity", 1.5], "b": [3, True], "4": None}
    assert plain(np.float32(0.5)) == 0.5


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_torn_last_record_is_skipped_and_named(tmp_path, cut):
    record(tmp_path).close()
    path = tmp_path / "diagnostics.jsonl"
    path.write_bytes(path.read_bytes()[: -1 - cut])
    recording = read_recording(tmp_path)
    assert recording.tables["episode"]["step"].tolist() == [0, 10, 20, 30]
    assert len(recording.problems) == 1
    assert f"{path}, line 6: torn" in recording.problems[0]
    # A run that continues starts a line of its own after the torn one.
    record(tmp_path, 2, resume_at=30, first=4).close()
    recording = read_recording(tmp_path)
    assert recording.tables["episode"]["step"].tolist() == [0, 10, 20, 30, 40, 50]
    assert len(recording.problems) == 1


def test_a_run_that_went_on_from_an_earlier_moment_replaces_what_came_after(tmp_path):
    record(tmp_path, 5).close()
    record(tmp_path, 2, resume_at=20, first=3).close()
    assert read_recording(tmp_path).tables["episode"]["step"].tolist() == [0, 10, 20, 30, 40]


@pytest.mark.parametrize(
    "line",
    [
        b"[1, 2]",
        b"null",
        b'{"kind": "episode"}',
        b'{"kind": "episode", "step": "a", "return": 1}',
        b'{"kind": "episode", "step": 1, "return": {}}',
        b'{"kind": "snapshot", "step": 1, "actions": [[1], [2]], "q": [1]}',
        b'{"kind": "snapshot", "step": 1, "actions": [[1], [2, 3]], "q": [1, 2]}',
        b'{"kind": "probes", "step": 1, "states": [1]}',
        b'{"kind": "plane", "step": 1, "dimensions": [1], "x": [1], "y": [1]}',
        b"\xff\xfe",
        b"[" * 100_000,
    ],
)
def test_records_that_make_no_sense_are_skipped_and_named(tmp_path, line):
    record(tmp_path).close()
    path = tmp_path / "diagnostics.jsonl"
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([*lines[:3], line, *lines[3:]]))
    recording = read_recording(tmp_path)
    assert len(recording.tables["episode"]["step"]) == 5
    assert len(recording.problems) == 1
    assert "line 4" in recording.problems[0]


def test_many_bad_records_are_not_listed_one_by_one(tmp_path):
    record(tmp_path).close()
    with (tmp_path / "diagnostics.jsonl").open("ab") as file:
        file.write(b"nonsense\n" * 100)
    problems = read_recording(tmp_path).problems
    assert len(problems) == 6
    assert "95 more" in problems[-1]


def test_what_cannot_be_read_at_all_is_named(tmp_path):
    with pytest.raises(UnreadableRecordingError, match="no such folder"):
        read_recording(tmp_path / "nowhere")
    with pytest.raises(UnreadableRecordingError, match=r"no diagnostics in it .* Train with DiagnosticsCallback"):
        read_recording(tmp_path)
    record(tmp_path / "below").close()
    with pytest.raises(UnreadableRecordingError, match=r"Its subfolders have some: name .*below"):
        read_recording(tmp_path)
    path = tmp_path / "diagnostics.jsonl"
    for content, reason in (
        ("", "first line is torn"),
        ('{"format": "sb3_dd', "first line is torn"),
        ('{"format": "another"}\n', "not a recording of diagnostics"),
        ("[]\n", "not a recording of diagnostics"),
        (json.dumps({"format": FORMAT, "version": 2}) + "\n", "format version 2; this program reads version 1"),
    ):
        path.write_text(content)
        with pytest.raises(UnreadableRecordingError, match=reason):
            read_recording(tmp_path)


def test_probe_states_are_read_without_running_anything(tmp_path):
    states = {"vector": np.eye(3, dtype=np.float32), "image": np.arange(12, dtype=np.uint8).reshape(3, 4)}
    ProbeStates(states).save(tmp_path)
    loaded = ProbeStates.load(tmp_path).observations
    assert {key: array.dtype for key, array in loaded.items()} == {"vector": np.float32, "image": np.uint8}
    np.testing.assert_array_equal(loaded["image"], states["image"])
    np.savez(tmp_path / "probe_states.npz", **{"observation/": np.array([object()])}, allow_pickle=True)
    assert ProbeStates.load(tmp_path) is None
    (tmp_path / "probe_states.npz").write_bytes(b"PK torn")
    assert ProbeStates.load(tmp_path) is None


def test_distinct_states():
    sample = np.array([[1, 1], [2, 2], [1, 1], [3, 3], [2, 2]], np.float32)
    assert distinct(sample, 2).tolist() == [0, 1]
    assert distinct(sample, 9).tolist() == [0, 1, 3]
