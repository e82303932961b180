"""Reads a model's zip archive into memory, within limits. Nothing is ever unpacked to the disk."""

import io
import os
import zipfile
import zlib
from collections.abc import Callable
from typing import Any, BinaryIO

from sb3_ddpg_scratch.errors import ModelFileError, UnsafeFileError

# Memory limit for all members together; a model with NatureCNN takes some 4 MB.
MAX_BYTES = 4 * 2**30
_MAX_MEMBERS = 1000
# Weights hardly compress and JSON some five times; anything far beyond that is an attack.
_MAX_RATIO, _RATIO_MATTERS_FROM = 100, 2**20
_CHUNK = 2**20
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_ENCRYPTED = 0x1


def read_members(
    file: BinaryIO, path: Any, wanted: Callable[[str], bool], max_bytes: int = MAX_BYTES, any_ratio: bool = False
) -> dict[str, bytes]:
    """Read the wanted members of a zip archive; names and sizes of all members are checked, as is how much they unpack to."""
    size = file.seek(0, os.SEEK_END)
    _check_total(path, size, "the file itself", max_bytes)
    file.seek(0)
    try:
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            check_members(members, path, max_bytes, any_ratio=any_ratio)
            return {info.filename: _read(archive, info, path) for info in members if wanted(info.filename)}
    except ModelFileError:
        raise
    # zipfile raises many kinds of errors for bytes that are not a zip file.
    except (zipfile.BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, NotImplementedError) as error:
        raise ModelFileError(path, f"it is not a whole zip-file ({error})") from error


def check_members(
    members: list[zipfile.ZipInfo], path: Any, max_bytes: int = MAX_BYTES, within: str = "", any_ratio: bool = False
) -> None:
    """Raise :class:`UnsafeFileError` for names, methods or sizes that no model has."""
    if len(members) > _MAX_MEMBERS:
        raise UnsafeFileError(path, f"it lists {len(members)} members and a model has fewer than {_MAX_MEMBERS}", within)
    seen: set[str] = set()
    for info in members:
        reason = _wrong_with(info, seen, any_ratio)
        if reason:
            raise UnsafeFileError(path, reason, within or info.filename)
        seen.add(info.filename)
    _check_total(path, sum(info.file_size for info in members), within or "its members unpacked", max_bytes)


def _wrong_with(info: zipfile.ZipInfo, seen: set[str], any_ratio: bool) -> str:
    name = info.orig_filename
    parts = name.split("/")
    if name != info.filename or not name.isprintable() or "\\" in name or ":" in name:
        return f"the name {name!r} is not one of a model's members"
    if name.startswith("/") or ".." in parts or "" in parts:
        return f"the name {name!r} points out of the archive"
    if name in seen:
        return "the archive lists this member twice"
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
        return "it is encrypted or compressed in a way that models are not"
    if not any_ratio and info.file_size > max(_RATIO_MATTERS_FROM, _MAX_RATIO * info.compress_size):
        return f"{info.compress_size} bytes would unpack to {info.file_size}, which no model's do"
    return ""


def _check_total(path: Any, size: int, what: str, max_bytes: int) -> None:
    if size > max_bytes:
        advice = f"If you know the file, raise the limit: max_bytes={size}."
        raise UnsafeFileError(path, f"{what}: {size} bytes, and at most {max_bytes} are read", advice=advice)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo, path: Any) -> bytes:
    content = io.BytesIO()
    try:
        with archive.open(info) as member:
            while chunk := member.read(_CHUNK):
                content.write(chunk)
                # The size declared in a header may be wrong.
                if content.tell() > info.file_size:
                    raise UnsafeFileError(path, f"it unpacks to more than the {info.file_size} bytes declared", info.filename)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ModelFileError(path, f"it is damaged ({error})", info.filename) from error
    if content.tell() != info.file_size:
        raise ModelFileError(path, f"it has {content.tell()} bytes and declares {info.file_size}", info.filename)
    return content.getvalue()
