"""Files are whole or absent."""

import os

import pytest

from sb3_ddpg_scratch.atomic import whole_file, write_whole


def test_what_is_written_is_there(tmp_path):
    write_whole(tmp_path / "new folder" / "text", "ä")
    assert (tmp_path / "new folder" / "text").read_bytes() == b"\xc3\xa4"
    write_whole(tmp_path / "new folder" / "text", b"\x00")
    assert (tmp_path / "new folder" / "text").read_bytes() == b"\x00"
    assert os.listdir(tmp_path / "new folder") == ["text"]


def write_half(file):
    before = file.read_bytes() if file.exists() else None
    with whole_file(file) as opened:
        opened.write(b"half of")
        opened.flush()
        assert (file.read_bytes() if file.exists() else None) == before
        raise ZeroDivisionError


def test_an_error_leaves_what_was_there_before(tmp_path):
    file = tmp_path / "file"
    for content in (None, b"before"):
        if content is not None:
            file.write_bytes(content)
        with pytest.raises(ZeroDivisionError):
            write_half(file)
        assert os.listdir(tmp_path) == ([] if content is None else ["file"])
    assert file.read_bytes() == b"before"


def test_the_name_comes_after_the_disk(tmp_path, monkeypatch):
    """The content is handed to the disk before it gets its name, and the folder with the name afterwards."""
    seen = []
    fsync = os.fsync

    def noted(descriptor):
        seen.append((os.path.realpath(f"/proc/self/fd/{descriptor}"), (tmp_path / "file").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    write_whole(tmp_path / "file", "text")
    (first, named_at_first), (second, named_then) = seen
    assert (named_at_first, named_then) == (False, True)
    assert first.endswith(".tmp")
    assert second == str(tmp_path)
