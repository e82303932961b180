"""The machine and package versions behind measurements and results."""

import hashlib
import os
import platform
from collections.abc import Iterable
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil


def describe_machine() -> dict[str, Any]:
    memory = round(psutil.virtual_memory().total / 2**30, 1)
    return {"processor": processor(), "cores": usable_cores(), "memory_gib": memory, "system": platform.system()}


def processor() -> str:
    """The processor's name, with family and model if the name alone does not distinguish generations."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    fields = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    name = fields.get("model name", platform.processor() or platform.machine())
    if "cpu family" in fields and "model" in fields:
        name += f" (family {fields['cpu family']}, model {fields['model']})"
    return name


def processor_fingerprint() -> str:
    """A short hash that differs between kinds of processor and versions of torch."""
    kind = platform.processor() or platform.machine()
    with suppress(OSError), open("/proc/cpuinfo") as file:
        kind += "".join(line for line in file if line.startswith(("model name", "flags")))
    return hashlib.sha256(f"{kind} {version('torch')}".encode()).hexdigest()[:16]


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def versions(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those distributions that are installed."""
    found = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found
