"""
Choices that depend on what this machine is good at: measured once, then remembered in a file.

Two ways to compute the same thing differ in their last bits. If each training measured anew, two with the same seed could
take different ways; so the first measurement stands.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch as th

from sb3_ddpg_scratch.atomic import write_whole

# Set to "off", nothing is measured or remembered and the plain way is taken.
SWITCH = "SB3_DDPG_SCRATCH_TUNING"
FOLDER = "SB3_DDPG_SCRATCH_CACHE"

_known: dict[str, str] = {}
# Those of a training that is resumed, which go before this machine's own and are not remembered as its own.
_adopted: dict[str, str] = {}


def tuning_enabled() -> bool:
    """Whether measured choices are allowed (see :data:`SWITCH`)."""
    return os.environ.get(SWITCH, "on").lower() not in ("off", "0", "no", "false")


def cache_folder() -> Path:
    """The folder for what is remembered: ``SB3_DDPG_SCRATCH_CACHE``, or a folder in the user's cache."""
    if FOLDER in os.environ:
        return Path(os.environ[FOLDER])
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sb3_ddpg_scratch"


def remembered_choice(key: str, measure: Callable[[], str]) -> str:
    """
    What was chosen for a key on this machine, measured now if it never was.

    :param key: what is chosen, with everything that it depends on besides machine and torch version
    :param measure: makes the choice
    :return: the choice
    """
    if key in _adopted:
        return _adopted[key]
    if key not in _known:
        path = cache_folder() / f"choices-{machine_name()}.json"
        _known.update(_read(path))
        if key not in _known:
            choice = measure()
            # Another process may have chosen in the meantime: the first one's choice stands.
            _known.update({key: choice} | _read(path))
            _write(path, _known)
    return _known[key]


def known_choices() -> dict[str, str]:
    """All choices that this process knows."""
    return _known | _adopted


def adopt(choices: dict[str, str]) -> None:
    """
    Choose as another process did, whose results this one shall go on with.

    :param choices: from its :func:`known_choices`
    """
    _adopted.update(choices)


def forget() -> None:
    """Forget what this process knows; the file stays."""
    _known.clear()
    _adopted.clear()


def machine_name() -> str:
    """A short text that differs for another kind of processor, or version of torch."""
    processor = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        processor += "".join(line for line in file if line.startswith(("model name", "flags")))
    return hashlib.sha256(f"{processor} {th.__version__}".encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, str]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return {str(key): str(value) for key, value in content.items()} if isinstance(content, dict) else {}


def _write(path: Path, content: dict[str, str]) -> None:
    # In a home that cannot be written to, the choice stands for this process.
    with suppress(OSError):
        write_whole(path, json.dumps(content, indent=1, sort_keys=True))
