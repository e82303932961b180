"""The results of a comparison: finished runs, their evaluations and missing runs; and the file that stores them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_ddpg_scratch.errors import ArgumentError
from sb3_ddpg_scratch.json_values import write_json

FILE = "results.json"
FORMAT = 1
COLUMNS = ("arm", "env", "seed", "step", "seconds", "mean_return", "std_return", "episodes", "failure_rate")


@dataclass(frozen=True)
class Run:
    """One finished run; ``training_seconds`` exclude evaluations."""

    arm: str
    env: str
    seed: int
    hyperparameters: dict[str, Any]
    versions: dict[str, str]
    machine: dict[str, Any]
    training_seconds: float
    updates: int


@dataclass(frozen=True)
class Results:
    """Results so far: evaluations with :data:`COLUMNS`; arm, env, seed and reason of missing runs; protocol by env."""

    runs: list[Run]
    evaluations: pd.DataFrame
    random_scores: dict[str, float]
    baseline: str
    missing: list[tuple[str, str, int, str]]
    command: str
    protocol: dict[str, dict[str, int]] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        content = {name: getattr(self, name) for name in ("command", "baseline", "protocol", "random_scores", "missing")}
        lists = {"runs": list(map(asdict, self.runs)), "evaluations": self.evaluations.to_dict("list")}
        write_json(path, {"format": FORMAT} | content | lists)

    def only_baseline(self, envs: Sequence[str], taken: Sequence[str]) -> "Results":
        """The baseline arm's results in these environments, named ``NAME.stored`` if its name is taken."""
        name = self.baseline + (".stored" if self.baseline in taken else "")
        runs = [replace(run, arm=name) for run in self.runs if run.arm == self.baseline and run.env in envs]
        for env in envs:
            if sum(run.env == env for run in runs) < 2:
                raise ArgumentError("--baseline", self.baseline, f"an arm with at least two finished runs on {env}")
        table = self.evaluations
        table = table[(table["arm"] == self.baseline) & table["env"].isin(envs)].assign(arm=name).reset_index(drop=True)
        scores = {env: self.random_scores[env] for env in envs}
        return Results(runs, table, scores, name, [], self.command, {env: self.protocol[env] for env in envs})


def read_results(path: Path | str) -> Results:
    """Read a comparison's ``results.json``, given as the file or its folder."""
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        return Results(
            [Run(**run) for run in content["runs"]],
            pd.DataFrame({"failure_rate": None} | content["evaluations"])[list(COLUMNS)],
            {str(env): float(score) for env, score in content["random_scores"].items()},
            str(content["baseline"]),
            [(str(arm), str(env), int(seed), str(why)) for arm, env, seed, why in content["missing"]],
            str(content["command"]),
            {
                str(env): {key: int(values[key]) for key in ("steps", "evaluations", "eval_episodes")}
                for env, values in content["protocol"].items()
            },
        )
    except OSError as error:
        raise ArgumentError("--baseline", str(file), f"a file that can be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError("--baseline", str(file), f"the {FILE} of a comparison ({error})") from error
