"""The folder of a comparison, and that it is no other comparison's."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.folder_lock import holds_nothing
from sb3_ddpg_scratch.json_values import write_json
from sb3_ddpg_scratch.parity import flatten
from sb3_ddpg_scratch.runs.training_run import RunSpec

FILE = "experiment.json"
_ADVICE = "Choose another folder, or the settings that it was made with."


def check_folder(specs: Sequence[RunSpec], out: Path) -> None:
    """A folder may grow by arms, environments and seeds; for what was made with other settings, say what differs."""
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
    differences = list(_differences(arms, now["arms"]))
    if seeds > now["seeds"]:
        differences.append(f"seeds were {seeds}, are {now['seeds']}")
    if differences:
        raise ArgumentError("--out", str(out), f"made with these settings, but {'; '.join(differences)}", _ADVICE)


def claim_folder(specs: Sequence[RunSpec], out: Path) -> None:
    write_json(out / FILE, _description(specs))


def _description(specs: Sequence[RunSpec]) -> dict[str, Any]:
    arms: dict[str, dict[str, Any]] = {}
    for spec in specs:
        content = {key: value for key, value in asdict(spec).items() if key not in ("arm", "env_id", "seed")}
        arms.setdefault(spec.arm, {}).setdefault(spec.env_id, content)  # the first seed's: the only one with diagnostics
    return {"seeds": max(spec.seed for spec in specs) + 1, "arms": arms}


def _differences(made: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    """What is missing now or differs, by arm and environment, of which there may be more now."""
    for arm, envs in made.items():
        for env, content in envs.items():
            if env not in now.get(arm, {}):
                yield f"{arm} on {env} is in it"
                continue
            was, is_now = ({key: repr(value) for key, value in flatten(one).items()} for one in (content, now[arm][env]))
            for key in was | is_now:
                before, after = was.get(key, "not given"), is_now.get(key, "not given")
                if before != after:
                    yield f"{arm}, {env}, {key.replace('/', ', ')} was {before}, is {after}"
