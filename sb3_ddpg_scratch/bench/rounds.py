"""The results of a benchmark's rounds: medians, spreads, and ratios within each round."""

from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from sb3_ddpg_scratch.json_values import write_json

# Measurements of one round, by contender and number of cores.
Round = dict[tuple[str, int], dict[str, float | str]]

_SPEED = ("contender", "cores", "updates/s", "spread", "env steps/s")
HEADINGS = (*_SPEED, "vs SB3", "vs SBX", "vs RLtools", "x floor", "set-up s", "peak MB")


@dataclass
class Setting:
    """All rounds of one network and batch size in an environment, and its failures, with the end of each log."""

    name: str
    env: str = ""
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def values(self, contender: str, cores: int, metric: str) -> list[float]:
        found = [r[contender, cores].get(metric) for r in self.rounds if (contender, cores) in r]
        return [float(value) for value in found if value is not None]

    def contenders(self) -> list[str]:
        """In the order in which they ran."""
        return list(dict.fromkeys(name for r in self.rounds for name, _ in r))

    def best_cores(self, contender: str, metric: str) -> int | None:
        """The number of cores with the best median."""
        medians = {
            cores: median(values)
            for cores in sorted({c for r in self.rounds for name, c in r if name == contender})
            if (values := self.values(contender, cores, metric))
        }
        return max(medians, key=lambda cores: medians[cores]) if medians else None

    def ratios(self, contender: str, other: str, metric: str) -> list[float]:
        """The ratio in each round, with the best number of cores for each contender."""
        ours, theirs = self.best_cores(contender, metric), self.best_cores(other, metric)
        if ours is None or theirs is None:
            return []
        pairs = [(r.get((contender, ours)), r.get((other, theirs))) for r in self.rounds]
        return [float(a[metric]) / float(b[metric]) for a, b in pairs if a and b]


def write_measurements(settings: list[Setting], machine: dict[str, Any], command: str, path: Path) -> None:
    """Write all measurements, the machine and the command as JSON; creates the folder."""
    described = [
        {
            "setting": setting.name,
            "env": setting.env,
            "rounds": [
                [{"contender": name, "cores": cores} | values for (name, cores), values in r.items()] for r in setting.rounds
            ],
        }
        for setting in settings
    ]
    write_json(path, {"command": command, "machine": machine, "settings": described})


def table(setting: Setting) -> list[list[str]]:
    """A row of text per contender, under :data:`HEADINGS`."""
    return [row for contender in setting.contenders() if (row := _row(setting, contender))]


def _row(setting: Setting, contender: str) -> list[str]:
    steps_cores = setting.best_cores(contender, "steps_per_s")
    cores = setting.best_cores(contender, "updates_per_s") or steps_cores
    if cores is None:
        return []
    updates = setting.values(contender, cores, "updates_per_s")
    steps = setting.values(contender, steps_cores, "steps_per_s") if steps_cores else []
    floor = setting.ratios("floor", contender, "updates_per_s") if contender != "floor" else []
    return [
        contender,
        f"{cores}" if steps_cores in (cores, None) else f"{cores} / {steps_cores}",
        _median(updates, ",.0f"),
        f"{min(updates):,.0f} to {max(updates):,.0f}" if updates else "-",
        _median(steps, ",.0f"),
        _against(setting, contender, "sb3"),
        _against(setting, contender, "sbx"),
        _against(setting, contender, "rltools"),
        _median(floor, ".2f"),
        _median(setting.values(contender, cores, "setup_s"), ".1f"),
        _median(setting.values(contender, cores, "peak_mb"), ".0f"),
    ]


def _against(setting: Setting, contender: str, other: str) -> str:
    if contender in (other, "floor"):
        return "-"
    return " / ".join(_median(setting.ratios(contender, other, metric), ".2f") for metric in ("updates_per_s", "steps_per_s"))


def _median(values: list[float], form: str) -> str:
    return format(median(values), form) if values else "-"
