"""The machine and the versions that measurements and results were made with."""

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def processor() -> str:
    """The processor's name, and its family and model where the name alone does not tell generations apart."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    name = fields.get("model name", platform.processor() or platform.machine())
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def processor_fingerprint() -> str:
    """A short text that differs for another kind of processor, or version of torch."""
    kind = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        kind += "".join(line for line in file if line.startswith(("model name", "flags")))
    return hashlib.sha256(f"{kind} {version('torch')}".encode()).hexdigest()[:16]


def usable_cores() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_gib() -> float | None:
    """The machine's memory in GiB; ``None`` where the system does not say."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def versions(packages: Iterable[str]) -> dict[str, str]:
    """
    :param packages: names of distributions
    :return: the version of each that is installed
    """
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
