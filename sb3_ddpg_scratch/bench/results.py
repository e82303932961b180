"""What the rounds of a benchmark say: medians, spreads, and ratios within each round."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from sb3_ddpg_scratch.atomic import write_whole

# Result of one measurement, by contender and number of cores, of one round.
Round = dict[tuple[str, int], dict[str, float | str]]


@dataclass
class Setting:
    """
    All rounds of one setting.

    :param name: network and batch
    :param rounds: results of each round, by contender and cores
    :param failures: what went wrong, with the end of its log
    """

    name: str
    rounds: list[Round] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def values(self, contender: str, cores: int, figure: str) -> list[float]:
        """
        :param contender: who
        :param cores: with how many processors
        :param figure: which number
        :return: it, of each round that has it
        """
        found = [r[contender, cores].get(figure) for r in self.rounds if (contender, cores) in r]
        return [float(value) for value in found if value is not None]

    def contenders(self) -> list[str]:
        """Those that were measured, in the order in which they ran."""
        return list(dict.fromkeys(name for r in self.rounds for name, _ in r))

    def best_cores(self, contender: str, figure: str) -> int | None:
        """The number of processors with which a contender's median is best."""
        medians = {
            cores: median(values)
            for cores in sorted({c for r in self.rounds for name, c in r if name == contender})
            if (values := self.values(contender, cores, figure))
        }
        return max(medians, key=lambda cores: medians[cores]) if medians else None

    def ratios(self, contender: str, other: str, figure: str) -> list[float]:
        """
        :param contender: who
        :param other: against whom
        :param figure: which number
        :return: the quotient in each round, each side with its better number of processors
        """
        ours, theirs = self.best_cores(contender, figure), self.best_cores(other, figure)
        if ours is None or theirs is None:
            return []
        pairs = [(r.get((contender, ours)), r.get((other, theirs))) for r in self.rounds]
        return [float(a[figure]) / float(b[figure]) for a, b in pairs if a and b]


def write_json(settings: list[Setting], machine: dict[str, str], command: str, path: Path) -> None:
    """
    :param settings: what was measured
    :param machine: on what
    :param command: by which command
    :param path: file to write; its folder is made
    """
    content = {
        "command": command,
        "machine": machine,
        "settings": [
            {
                "setting": setting.name,
                "rounds": [
                    [{"contender": name, "cores": cores} | values for (name, cores), values in r.items()]
                    for r in setting.rounds
                ],
            }
            for setting in settings
        ],
    }
    write_whole(path, json.dumps(content, indent=1) + "\n")


def table(setting: Setting) -> tuple[list[str], list[list[str]]]:
    """
    :param setting: what was measured
    :return: headings, and a row of text for each contender: medians, spread, and ratios to SB3, SBX and the floor
    """
    headings = [
        "contender",
        "cores",
        "updates/s",
        "spread",
        "env steps/s",
        "vs SB3",
        "vs SBX",
        "x floor",
        "set-up s",
        "peak MB",
    ]
    rows = []
    for contender in setting.contenders():
        cores = setting.best_cores(contender, "updates_per_s")
        if cores is None:
            continue
        updates = setting.values(contender, cores, "updates_per_s")
        steps_cores = setting.best_cores(contender, "steps_per_s")
        steps = setting.values(contender, steps_cores, "steps_per_s") if steps_cores else []

        def against(other: str, contender: str = contender) -> str:
            if contender in (other, "floor"):
                return "-"
            quotients = [setting.ratios(contender, other, figure) for figure in ("updates_per_s", "steps_per_s")]
            return " / ".join(f"{median(q):.2f}" if q else "-" for q in quotients)

        floor = setting.ratios("floor", contender, "updates_per_s")
        rows.append(
            [
                contender,
                f"{cores}" if steps_cores in (cores, None) else f"{cores} / {steps_cores}",
                f"{median(updates):,.0f}",
                f"{min(updates):,.0f} to {max(updates):,.0f}",
                f"{median(steps):,.0f}" if steps else "-",
                against("sb3"),
                against("sbx"),
                f"{median(floor):.2f}" if floor and contender != "floor" else "-",
                *(
                    f"{median(values):.{digits}f}" if (values := setting.values(contender, cores, figure)) else "-"
                    for figure, digits in (("setup_s", 1), ("peak_mb", 0))
                ),
            ]
        )
    return headings, rows
