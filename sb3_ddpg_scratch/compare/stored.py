"""A comparison's results as a file: written when it ends, read again as the baseline of another."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from sb3_ddpg_scratch.atomic import write_whole
from sb3_ddpg_scratch.compare.results import Results, Run
from sb3_ddpg_scratch.errors import ArgumentError

FILE = "results.json"
FORMAT = 1
COLUMNS = ("arm", "env", "seed", "step", "seconds", "mean_return", "std_return", "episodes")


@dataclass(frozen=True)
class StoredResults:
    """
    :param results: what was found
    :param protocol: for each environment ``steps``, ``evaluations`` and ``eval_episodes`` of every run
    """

    results: Results
    protocol: dict[str, dict[str, int]]

    def write(self, path: Path) -> None:
        """
        :param path: the file to write, whole or not at all
        """
        results = self.results
        content = {
            "format": FORMAT,
            "command": results.command,
            "baseline": results.baseline,
            "protocol": self.protocol,
            "random_scores": results.random_scores,
            "missing": results.missing,
            "runs": [asdict(run) for run in results.runs],
            "evaluations": results.evaluations.to_dict("list"),
        }
        write_whole(path, json.dumps(content, indent=1) + "\n")

    def only_baseline(self, envs: Sequence[str], taken: Sequence[str]) -> "StoredResults":
        """
        :param envs: the environments of interest
        :param taken: names that other arms have
        :return: the baseline arm alone, on these environments; with `` (stored)`` behind its name if that is taken
        :raises ArgumentError: if it has fewer than two runs on one of them
        """
        results = self.results
        name = results.baseline + (".stored" if results.baseline in taken else "")
        runs = [replace(run, arm=name) for run in results.runs if run.arm == results.baseline and run.env in envs]
        for env in envs:
            if sum(run.env == env for run in runs) < 2:
                raise ArgumentError("--baseline", results.baseline, f"an arm with at least two finished runs on {env}")
        table = results.evaluations
        table = table[(table["arm"] == results.baseline) & table["env"].isin(envs)].assign(arm=name)
        scores = {env: results.random_scores[env] for env in envs}
        kept = Results(runs, table.reset_index(drop=True), scores, name, [], results.command)
        return StoredResults(kept, {env: self.protocol[env] for env in envs})


def read_stored(path: Path) -> StoredResults:
    """
    :param path: what a comparison stored, or its folder
    :return: the results
    :raises ArgumentError: if it is no such file
    """
    file = path / FILE if path.is_dir() else path
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        if content["format"] != FORMAT:
            raise ValueError(f"its format is {content['format']}, not {FORMAT}")
        table = pd.DataFrame(content["evaluations"])[list(COLUMNS)]
        results = Results(
            [Run(**run) for run in content["runs"]],
            table,
            {str(env): float(score) for env, score in content["random_scores"].items()},
            str(content["baseline"]),
            [(str(arm), str(env), int(seed), str(why)) for arm, env, seed, why in content["missing"]],
            str(content["command"]),
        )
        protocol = {
            str(env): {key: int(values[key]) for key in ("steps", "evaluations", "eval_episodes")}
            for env, values in content["protocol"].items()
        }
    except OSError as error:
        raise ArgumentError("--baseline", str(file), f"a file that can be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ArgumentError("--baseline", str(file), f"the {FILE} of a comparison ({error})") from error
    return StoredResults(results, protocol)
