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


def test_a_symbolic_link_stays_one(tmp_path):
    (tmp_path / "store").mkdir()
    for name, target in (("link", "store/file"), ("relative", "link"), ("dangling", "store/new")):
        (tmp_path / name).symlink_to(target)
        write_whole(tmp_path / name, f"by {name}")
        assert (tmp_path / name).is_symlink()
        assert os.readlink(tmp_path / name) == target
        assert (tmp_path / target).read_text() == f"by {name}"
    assert sorted(os.listdir(tmp_path / "store")) == ["file", "new"]


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o666, 0o400])
def test_a_file_keeps_its_permissions(tmp_path, mode):
    file = tmp_path / "file"
    file.write_text("before")
    file.chmod(mode)
    with whole_file(file) as opened:
        (temporary,) = set(tmp_path.iterdir()) - {file}
        assert temporary.stat().st_mode & 0o777 & ~mode == 0  # nobody else can read it meanwhile
        opened.write(b"after")
    assert (file.read_text(), file.stat().st_mode & 0o777) == ("after", mode)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_a_new_file_gets_the_usual_permissions(tmp_path):
    before = os.umask(0o027)
    try:
        write_whole(tmp_path / "file", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o640


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="POSIX has pipes with names")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    write_whole(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
    assert (tmp_path / "pipe").is_fifo()
