"""The folder of a comparison, and that it is no other comparison's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import holds_nothing
from sb3_ddpg_scratch.runs.training_run import RunSpec

FILE = "experiment.json"
_ADVICE = "Choose another folder, or the settings that it was made with."


def check_folder(specs: Sequence[RunSpec], out: Path) -> None:
    """
    A folder may grow by arms, environments and seeds; what is in it must have been made with the same settings.

    :raises ArgumentError: if it holds something else, naming what differs
    """
    if out.exists() and not out.is_dir():
        raise ArgumentError("--out", str(out), "a folder", "There is a file of that name.")
    if not out.exists() or holds_nothing(out):
        return
    try:
        made = json.loads((out / FILE).read_text())
        seeds, arms = int(made["seeds"]), dict(made["arms"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArgumentError("--out", str(out), "new, empty, or the folder of this comparison", _ADVICE) from error
    now = _description(specs)
    differences = list(_differences(arms, now["arms"], ()))
    if seeds > now["seeds"]:
        differences.append(f"seeds were {seeds}, are {now['seeds']}")
    if differences:
        raise ArgumentError("--out", str(out), f"made with these settings, but {'; '.join(differences)}", _ADVICE)


def claim_folder(specs: Sequence[RunSpec], out: Path) -> None:
    """Write what the folder, which was checked, is for."""
    write_whole(out / FILE, json.dumps(_description(specs), indent=2) + "\n")


def _description(specs: Sequence[RunSpec]) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {}
    for spec in specs:
        content = asdict(spec)
        for key in ("arm", "env_id", "seed"):
            del content[key]
        arms.setdefault(spec.arm, {}).setdefault(spec.env_id, content)  # the first seed's: the only one with diagnostics
    return {"seeds": max(spec.seed for spec in specs) + 1, "arms": arms}


def _differences(made: Any, now: Any, path: tuple[str, ...]) -> Iterator[str]:
    """What differs or is missing now; on the upper two levels, arms and environments, there may be more."""
    if not isinstance(made, dict) or not isinstance(now, dict):
        if made != now:
            yield f"{', '.join(path)} was {made!r}, is {now!r}"
        return
    below_envs = len(path) > 2
    for key in made:
        where = (*path, str(key))
        if key in now:
            yield from _differences(made[key], now[key], where)
        else:
            yield f"{', '.join(where)} was {made[key]!r}, is not given" if below_envs else f"{', '.join(where)} is in it"
    if below_envs:
        yield from (f"{', '.join((*path, key))} was not given, is {now[key]!r}" for key in now if key not in made)
